"""Tables of `benchmarks/evidence.py` and `benchmarks/likelihood.py`: systems side by side, by question."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.tables.evaluation import Report, Results, Table, look_up

NAME = re.compile(r"(?P<system>.+), (?P<images>[\d,]+) images")
LESS = ("lpips", "frechet", "kernel", "nll", "nats", "bits")  # ends of the figures of which less is better

KINDS = {
    "holes": "all kinds",
    "blocks10": "10 %",
    "blocks25": "25 %",
    "blocks": "50 %",
    "blocks75": "75 %",
    "box": "box",
    "scattered": "scattered",
}
FILLING = {f"{kind}_lpips": (f"holes, {text}: LPIPS", ".4f") for kind, text in KINDS.items()}
FILLING |= {"holes_psnr": ("holes: PSNR (dB)", ".2f")}
UNPASTED = {
    "unpasted_holes_lpips": ("known pixels not put back: LPIPS", ".4f"),
    "unpasted_holes_psnr": ("known pixels not put back: PSNR in holes (dB)", ".2f"),
}
READING = {
    "mask_iou": ("mask: mean IoU", ".3f"),
    "label_top1": ("label: top-1", ".1%"),
    "label_nll": ("label: NLL (nats)", ".2f"),
    "embedding_cosine": ("embedding: cosine", ".3f"),
    "embedding_recall": ("embedding: recall@5", ".1%"),
}
TUNED = {f"tuned_{name}": column for name, column in READING.items()}
MADE = {
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "frechet": ("Fréchet distance", ".1f"),
    "kernel": ("kernel distance", ".3f"),
    "judge_precision": ("precision, judge's features", ".3f"),
    "judge_recall": ("recall, judge's features", ".3f"),
    "judge_frechet": ("Fréchet, judge's features", ".2f"),
    "judge_kernel": ("kernel, judge's features", ".3f"),
}
TOGETHER = {
    "judge_together": ("photo and label: judge agrees", ".1%"),
    "labels_made": ("labels that occurred", ".0f"),
    "embedding_together": ("photo and embedding: cosine", ".3f"),
    "embedding_together_recall": ("photo and embedding: recall@5", ".1%"),
}
FROM_LABEL = {
    f"{prefix}{name}": (f"{text}{guided}", form)
    for prefix, guided in (("", ""), ("guided_", ", guided"))
    for name, text, form in (
        ("judge_from_label", "judge agrees", ".1%"),
        ("class_precision", "precision within a class", ".3f"),
        ("class_recall", "recall within a class", ".3f"),
    )
}
FROM_TEXT = {
    "judge_from_text": ("judge sees the caption's species", ".1%"),
    "text_cosine": ("cosine to the caption", ".3f"),
}
LIKELIHOOD = {
    "photo_bits": ("photo: bits per dimension", ".4f"),
    "photo_alone_bits": ("photo alone, all else ignored: bits per dimension", ".4f"),
    "mask_nats": ("mask (nats)", ".1f"),
    "label_nats": ("label (nats)", ".2f"),
    "embedding_nats": ("embedding (nats)", ".1f"),
    "prior_nats": ("L0 of all (nats)", ".4f"),
    "total_nats": ("all together (nats)", ".1f"),
}
TABLES: dict[str, Mapping[str, tuple[str, str]]] = {
    "Holes": FILLING,
    "The network's own output": UNPASTED,
    "Reading photos": READING,
    "Reading photos, after fine-tuning on that": TUNED,
    "Photos from nothing": MADE,
    "Made together": TOGETHER,
    "Photos from labels": FROM_LABEL,
    "Photos from captions": FROM_TEXT,
    "Bounds on the negative log-likelihood": LIKELIHOOD,
}
FIGURES = {name: column for columns in TABLES.values() for name, column in columns.items()}
AGAINST = {
    "against": "ours less each of the others, at equal images",
    "against_sum": "ours with four times the images, the cost of the sum, less each of the others",
}


def named(system: str, images: int) -> str:
    """The name of a variant."""
    return f"{system}, {images:,} images"


def parts(variant: str) -> tuple[str, int]:
    """System and budget of a variant's name. Raises ValueError for another name."""
    match = NAME.fullmatch(variant)
    if match is None:
        raise ValueError(f"{variant!r} names no system and number of images.")
    return match["system"], int(match["images"].replace(",", ""))


def lower_is_better(figure: str) -> bool:
    """Whether less of a figure is better."""
    return figure.endswith(LESS)


def by_budget(results: Results) -> dict[str, dict[int, dict[str, list[float]]]]:
    """System -> budget -> figure -> its value of every seed."""
    table: dict[str, dict[int, dict[str, list[float]]]] = {}
    for variant, entry in results["variants"].items():
        system, images = parts(variant)
        runs = list(entry["runs"].values())
        figures = {name: [run["figures"][name] for run in runs] for name in runs[0]["figures"]}
        table.setdefault(system, {})[images] = figures
    return table


def answers(results: Results) -> Report:
    """Figures of every system, differences from ours with intervals, costs, and how each was tuned."""
    tables = []
    for title, columns in TABLES.items():
        tables.append(_figures(title, results, columns))
        for key, text in AGAINST.items():
            tables.append(_differences(f"{title}: {text}", results.get(key, {}), columns))
    tables += [_costs(results), _tuning(results)]
    return Report(tuple(tables), _how(results))


def _figures(title: str, results: Results, columns: Mapping[str, tuple[str, str]]) -> Table:
    """A row for every variant that has one of the figures, and one for real photos."""
    variants = results["variants"]
    used = [n for n in columns if any(n in entry["figures"] for entry in variants.values())]
    rows = []
    for variant, entry in variants.items():
        errors = results.get("standard_errors", {}).get(variant, {})
        cells = [
            _cell(entry["figures"].get(n), columns[n][1], len(entry["runs"]), errors.get(n)) for n in used
        ]
        if set(cells) - {"–"}:
            rows.append((*_named(variant), *cells))
    real = results.get("real_photos", {})
    if set(real) & set(used):
        cells = [f"{real[name]:{columns[name][1]}}" if name in real else "–" for name in used]
        rows.append(("(other real photos)", "", *cells))
    return Table(title, ("System", "Images", *(columns[name][0] for name in used)), rows if used else ())


def _named(variant: str) -> tuple[str, str]:
    system, images = parts(variant)
    return system, f"{images:,}"


def _cell(value: Results | None, form: str, seeds: int, error: float | None = None) -> str:
    """The mean ± its standard error where that is known, else the standard deviation of several seeds."""
    if value is None:
        return "–"
    spread = value["std"] if error is None and seeds > 1 else error
    return f"{value['mean']:{form}}" + ("" if spread is None else f" ± {spread:{form}}")


def _differences(title: str, pairs: Results, columns: Mapping[str, tuple[str, str]]) -> Table:
    """A row for every comparison, a column for every figure that has an interval."""
    used = [name for name in columns if any(name in by_figure for by_figure in pairs.values())]
    rows = []
    for variant, by_figure in pairs.items():
        cells = [_difference(name, by_figure[name]) if name in by_figure else "–" for name in used]
        if set(cells) - {"–"}:
            rows.append((*_named(variant), *cells))
    return Table(title, ("Compared with", "Its images", *(columns[name][0] for name in used)), rows)


def _difference(figure: str, found: Mapping[str, float]) -> str:
    """The difference with its interval, and what it says of ours."""
    words = f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
    return f"{words}: {_verdict(figure, found)}"


def _verdict(figure: str, found: Mapping[str, float]) -> str:
    """Better or worse where the interval leaves zero out."""
    if found["low"] <= 0 <= found["high"]:
        return "not told apart"
    return "better" if (found["high"] < 0) == lower_is_better(figure) else "worse"


def _costs(results: Results) -> Table:
    """Parameters, images and CPU minutes of training, the mean over seeds."""
    rows = []
    for variant, entry in results["variants"].items():
        runs = list(entry["runs"].values())
        minutes = sum(run["train_cpu_seconds"] for run in runs) / len(runs) / 60
        calls = str(runs[0]["calls"]) if "holes_psnr" in entry["figures"] else "–"
        rows.append(
            (
                parts(variant)[0],
                f"{runs[0]['images']:,}",
                f"{runs[0]['parameters']:,}",
                f"{minutes:.1f}",
                calls,
            )
        )
    head = ("System", "Images seen", "Parameters", "CPU minutes", "Calls that fill a hole")
    return Table("Cost of training", head, rows, detail=True)


def _tuning(results: Results) -> Table:
    """The setting that every system kept, and what the others reached."""
    rows = []
    for variant, tried in results.get("tuned", {}).items():
        for setting, found in tried.items():
            if setting != "chosen":
                kept = "yes" if setting == tried.get("chosen") else ""
                rows.append((*_named(variant), setting, _values(found.items()), kept))
    head = ("System", "Images", "Factors", "On photos held out", "Kept")
    return Table("Settings tried, on a third of the images", head, rows, detail=True)


def _values(figures: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{FIGURES[name][0]} {value:.4g}" for name, value in figures if name in FIGURES)


def _how(results: Results) -> str:
    model, evaluation = results["config"]["model"], results["evaluation"]
    counts = sorted({len(entry["runs"]) for entry in results["variants"].values()})
    seeds = f"{counts[0]} to {counts[-1]} seeds" if len(counts) > 1 else f"{counts[-1]} seeds"
    seeds = "1 seed" if counts == [1] else seeds
    if "standard_errors" in results:
        return (
            f"{seeds}, ± is the standard error over photos, random times and seeds. "
            f"{model['image_size']} px, width {model['width']}, {model['depth']} blocks; "
            f"{evaluation['limit']} photos, {evaluation['bound_draws']} random times of each."
        )
    repeated = "One run of each" if counts[-1] == 1 else f"{seeds}, ± is their standard deviation"
    tuned = "each kept the best of three settings" if look_up(results, "tuning") else "none was tuned"
    return (
        f"{repeated}; 95 % intervals are over photos and seeds. {model['image_size']} px, width "
        f"{model['width']}, {model['depth']} blocks; every image has a loss; {tuned}. "
        f"{evaluation['samples']:,} photos are generated in {evaluation['steps']} steps, "
        f"{evaluation['limit']} are filled in {evaluation['filling_steps']}. "
        f"The judge names {results['photos_judged']:.1%} of the real photos correctly."
    )
