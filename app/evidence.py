"""Tables of `benchmarks/evidence.py`: what is hoped of one model for everything, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.tables import Table, look_up

Column = tuple[str, str, str]  # text, name of the figure, how it is written
Results = dict[str, Any]

FILLING: tuple[Column, ...] = (
    ("LPIPS", "blocks_lpips", ".3f"),
    ("SSIM", "blocks_ssim", ".3f"),
    ("PSNR (dB)", "blocks_psnr", ".2f"),
)
READING: tuple[Column, ...] = (
    ("mask: mean IoU", "mask_iou", ".3f"),
    ("mask: pixels right", "pixel_accuracy", ".1%"),
    ("label: top-1", "label_top1", ".1%"),
    ("label: NLL (nats)", "label_nll", ".2f"),
    ("label: ECE", "label_ece", ".3f"),
    ("embedding: cosine", "embedding_cosine", ".3f"),
    ("embedding: recall@5", "embedding_recall@5", ".1%"),
)
MAKING: tuple[Column, ...] = (
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("Fréchet distance", "frechet", ".2f"),
    ("kernel distance", "kernel", ".3f"),
    ("photo from label: judge agrees", "judge_from_label", ".1%"),
    ("photo and label together: judge agrees", "judge_joint", ".1%"),
)
KINDS = {
    "blocks10": "10 %",
    "blocks25": "25 %",
    "blocks": "50 %",
    "blocks75": "75 %",
    "blocks90": "90 %",
    "half": "half",
    "box": "box",
    "lines": "lines",
    "super2": "2 ×",
    "super4": "4 ×",
}
CLASSICAL = {"mean": "mean of the known pixels", "telea": "Telea", "navier_stokes": "Navier-Stokes"}
OURS = "ours"
LONGER = "ours, trained as long as the four it replaces"
COMPARISONS = {OURS: "comparisons", LONGER: "longer_comparisons"}  # where the pairs of each stand
TWIN = "diffusion of photos, RePaint"  # the same diffusion, of photos alone
# system -> what it was trained for, as docs/evidence.md says it
SYSTEMS = {
    OURS: "all modalities and tasks, in the shares of the configuration",
    LONGER: "the same with four times the images, the other modalities’ losses at a sixteenth, more holes",
    "reconstruction only": "holes filled in one call, by squared error: no diffusion",
    "masked autoencoder": "the same with three quarters of the patches hidden (He et al. 2022), our backbone "
    "in place of theirs",
    TWIN: "photos with nothing given; holes by resampling (Lugmayr et al. 2022), ten times as many calls",
    "diffusion for holes only": "photos given with holes, nothing else (as Palette, Saharia et al. 2022)",
    "diffusion of photos, holes as augmentation": "photos, with and without holes, and no other modality",
    "a time of its own for each modality": "as ours, but every modality is diffused to a time of its own (as "
    "UniDiffuser, Bao et al. 2023)",
    "segmenter": "masks read off whole photos, in one call",
    "classifier": "labels read off whole photos, in one call",
    "embedding regression": "embeddings read off whole photos, in one call",
}


# (results, which of ours) -> words, and whether it is enough; None: not measured
Measured = Callable[[Results, str], tuple[str, bool] | None]


@dataclass(frozen=True)
class Claim:
    """What was hoped for, and how it is measured."""

    text: str
    measured: Measured


def ratio(system: str, limit: float) -> Measured:
    """LPIPS in holes of half the pixels, ours divided by another's."""

    def measured(results: Results, mine: str) -> tuple[str, bool] | None:
        found = look_up(results.get(COMPARISONS[mine], {}), f"{system}.blocks")
        return found and (f"{found['ratio']:.3f}", found["ratio"] <= limit)

    return measured


def not_worse(system: str) -> Measured:
    """Whether the interval of the difference in LPIPS leaves it open that ours is no farther away."""

    def measured(results: Results, mine: str) -> tuple[str, bool] | None:
        found = look_up(results.get(COMPARISONS[mine], {}), f"{system}.blocks.difference")
        return found and (
            f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})",
            found["low"] <= 0,
        )

    return measured


def beside(figure: str, system: str, within: float, form: str) -> Measured:
    """A figure of ours and the same of another system, of which it may stay ``within`` below."""

    def measured(results: Results, mine: str) -> tuple[str, bool] | None:
        ours, theirs = (
            look_up(results["variants"], f"{name}.figures.{figure}.mean") for name in (mine, system)
        )
        if ours is None or theirs is None:
            return None
        return f"{ours:{form}} against {theirs:{form}}", ours >= theirs - within

    return measured


CLAIMS = (
    Claim("LPIPS at most 0.67 of reconstruction only", ratio("reconstruction only", 0.67)),
    Claim("LPIPS at most 0.9 of RePaint, with at most a tenth of its calls", ratio(TWIN, 0.9)),
    Claim("LPIPS not worse than of diffusion for holes only", not_worse("diffusion for holes only")),
    Claim("mean IoU within 1 point of the segmenter", beside("mask_iou", "segmenter", 0.01, ".3f")),
    Claim("top-1 within 1 point of the classifier", beside("label_top1", "classifier", 0.01, ".1%")),
    Claim("precision not below diffusion of photos alone", beside("precision", TWIN, 0.0, ".3f")),
    Claim("recall within 5 points of it", beside("recall", TWIN, 0.05, ".3f")),
)


def heading(results: Results) -> tuple[str, str]:
    """Title and a word on what was compared."""
    model = results["config"]["model"]
    small = f"Small models of {model['image_size']} px, not the checkpoint of this page, "
    if described(results).rows:
        about = "trained at the same cost, but for one row. “Ours” is one model for everything."
        return "One model for everything, against models for one thing", small + about
    return (
        "What might mend what “ours” does worse",
        small + "each trained as “ours”, but for what its name says.",
    )


def tables(results: Results) -> list[Table]:
    """Claims, fillings, kinds of holes, reading, generation, cost; those without a row are left out."""
    found = [claims(results), fillings(results), kinds(results), ratios(results)]
    found += [systems(results, "Reading photos", READING), systems(results, "Making photos", MAKING)]
    return [table for table in (*found, costs(results)) if table.rows]


def described(results: Results) -> Table:
    """What every system was trained for; without a row for changes to ours, whose names say it."""
    found = [(name, SYSTEMS[name]) for name in results["variants"] if name in SYSTEMS]
    return Table("The systems", ("System", "Trained for"), tuple(found) if len(found) > 1 else ())


def claims(results: Results) -> Table:
    """What was hoped for, with what was measured of each of ours; without a row if nothing was."""
    mine = [name for name in COMPARISONS if name in results["variants"]]
    rows, anything = [], False
    for claim in CLAIMS:
        row = [claim.text]
        for name in mine:
            words, reached = claim.measured(results, name) or ("–", None)
            row += [words, {True: "yes", False: "no", None: "not measured"}[reached]]
            anything = anything or reached is not None
        rows.append(tuple(row))
    head = ("Hoped for", *(text for name in mine for text in (_capital(name), "Reached")))
    return Table("One model for everything: hoped for and measured", head, tuple(rows) if anything else ())


def fillings(results: Results) -> Table:
    """Holes of half the pixels: every system, then the classical fillings."""
    rows = []
    for name, entry in results["variants"].items():
        runs = entry["runs"]
        if look_up(entry, "figures.blocks_lpips") is None:
            continue
        cells = [spread(look_up(entry, f"figures.{figure}"), form, len(runs)) for _, figure, form in FILLING]
        calls = next(iter(runs.values()))["calls"]
        rows.append((name, *cells, f"{calls}", _against(results, name)))
    for name, text in CLASSICAL.items():
        found = look_up(results["comparisons"], f"{name}.blocks")
        if found:
            rows.append((text, f"{found['theirs']:.3f}", "–", "–", "0", _against(results, name)))
    head = ("System", *(text for text, _, _ in FILLING), "Calls", "LPIPS, ours against it")
    return Table("Holes of half the pixels, in blocks", head, tuple(rows))


def _against(results: Results, name: str) -> str:
    found = look_up(results["comparisons"], f"{name}.blocks")
    if not found:
        return ""
    low, high = found["difference"]["low"], found["difference"]["high"]
    return f"× {found['ratio']:.2f}, difference {low:+.3f} to {high:+.3f}"


def kinds(results: Results) -> Table:
    """LPIPS of every filling by kind of hole."""
    lpips = lpips_by_kind(results["comparisons"])
    measured = [kind for kind in KINDS if kind in lpips["ours"]]
    rows = []
    for name, values in lpips.items():
        cells = (f"{values[kind]:.3f}" if kind in values else "–" for kind in measured)
        rows.append((CLASSICAL.get(name, name), *cells))
    head = ("System", *(KINDS[kind] for kind in measured))
    return Table("LPIPS by kind of hole", head, tuple(rows) if measured else ())


def ratios(results: Results) -> Table:
    """LPIPS of ours, trained for longer, divided by that of every other system, by kind of hole."""
    comparisons = results.get(COMPARISONS[LONGER], {})
    measured = [kind for kind in KINDS if any(kind in by_kind for by_kind in comparisons.values())]
    rows = []
    for name, by_kind in comparisons.items():
        if name != OURS and name not in CLASSICAL:
            cells = (f"{by_kind[kind]['ratio']:.2f}" if kind in by_kind else "–" for kind in measured)
            rows.append((name, *cells))
    head = ("LPIPS divided by that of", *(KINDS[kind] for kind in measured))
    return Table(_capital(LONGER), head, tuple(rows))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def lpips_by_kind(comparisons: Results) -> dict[str, dict[str, float]]:
    """LPIPS by kind of hole, of ours and of every filling it was compared with."""
    ours = {kind: pair["ours"] for by_kind in comparisons.values() for kind, pair in by_kind.items()}
    return {"ours": ours} | {
        name: {kind: pair["theirs"] for kind, pair in by_kind.items()}
        for name, by_kind in comparisons.items()
    }


def systems(results: Results, title: str, columns: Sequence[Column]) -> Table:
    """A row for every system that has one of the figures."""
    rows = []
    for name, entry in results["variants"].items():
        cells = [
            spread(look_up(entry, f"figures.{figure}"), form, len(entry["runs"]))
            for _, figure, form in columns
        ]
        if set(cells) != {"–"}:
            rows.append((name, *cells))
    floors = [
        spread(look_up(results["variants"], f"ours.figures.{figure}_of_training_photos"), form, 1)
        for _, figure, form in columns
    ]
    if set(floors) != {"–"}:
        rows.append(("(training photos)", *floors))
    return Table(title, ("System", *(text for text, _, _ in columns)), tuple(rows))


def costs(results: Results) -> Table:
    """Parameters, images and CPU minutes of training, mean over seeds."""
    rows = []
    for name, entry in results["variants"].items():
        runs = list(entry["runs"].values())
        minutes = sum(run["train_cpu_seconds"] for run in runs) / len(runs) / 60
        rows.append((name, f"{runs[0]['parameters']:,}", f"{runs[0]['images']:,}", f"{minutes:.1f}"))
    return Table("Cost of training", ("System", "Parameters", "Images", "CPU minutes"), tuple(rows))


def how(results: Results) -> str:
    model, evaluation = results["config"]["model"], results["evaluation"]
    counts = [len(entry["runs"]) for entry in results["variants"].values()]
    fewest, most = min(counts), max(counts)
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    repeated = f"{seeds}, ± is their standard deviation." if most > 1 else "One run of each."
    filling, scale = evaluation["filling_steps"], evaluation["filling_guidance"]
    apart = "" if filling in (None, evaluation["steps"]) else f", {filling} in holes but for RePaint"
    guided = "no guidance" if scale == 1 else f"guidance of {scale:g} in holes where a system can be guided"
    return (
        f"{repeated} Pictures of {model['image_size']} px, width "
        f"{model['width']} and {model['depth']} blocks; {evaluation['samples']} photos, "
        f"{evaluation['steps']} steps of `{evaluation['sampler']}` (eta {evaluation['eta']:g}){apart}, "
        f"{guided}. Intervals are 95 %, by the bootstrap over photos that share hole and noise. The judge "
        f"names {results['photos_judged']:.1%} of the real photos correctly."
    )


def spread(value: dict[str, float] | None, form: str, seeds: int) -> str:
    """A mean, with its standard deviation where there are several seeds; – where nothing was measured."""
    if not value:
        return "–"
    return f"{value['mean']:{form}} ± {value['std']:{form}}" if seeds > 1 else f"{value['mean']:{form}}"
