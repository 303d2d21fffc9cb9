"""Tables of studies: one model for everything against models for one thing, design choices, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.tables.evaluation import Report, Results, Table, look_up

Column = tuple[str, str, str]  # text, name of the figure, format

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
CHOICES: tuple[Column, ...] = (
    *READING,
    ("holes: gain over mean fill (dB)", "hole_gain", ".2f"),
    ("holes: LPIPS", "hole_lpips", ".3f"),
    ("holes: SSIM", "hole_ssim", ".3f"),
    *MAKING,
)
BLOCKS = {"blocks10": "10 %", "blocks25": "25 %", "blocks": "50 %", "blocks75": "75 %", "blocks90": "90 %"}
KINDS = BLOCKS | {"half": "half", "box": "box", "lines": "lines", "super2": "2 ×", "super4": "4 ×"}
CLASSICAL = {"mean": "mean of the known pixels", "telea": "Telea", "navier_stokes": "Navier-Stokes"}
OURS = "ours"
READERS = "readers alone"  # a classifier and a U-Net
LONGER = "ours, trained as long as the four it replaces"
COMPARISONS = {OURS: "comparisons", LONGER: "longer_comparisons"}  # the key of each one's comparisons
TWIN = "diffusion of photos, RePaint"  # the same diffusion, of photos alone
# system -> what it was trained for, in the words of docs/evidence.md
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

Decision = tuple[str, bool] | None  # the figures in words and whether the claim holds; None: not measured


def lpips_ratio(results: Results, mine: str, system: str, limit: float) -> Decision:
    """LPIPS in holes of half the pixels, ours divided by another's."""
    found = look_up(results, f"{COMPARISONS[mine]}.{system}.blocks")
    return found and (f"{found['ratio']:.3f}", found["ratio"] <= limit)


def lpips_not_worse(results: Results, mine: str, system: str) -> Decision:
    """Whether the interval of the difference in LPIPS, ours minus the other's, reaches down to 0."""
    found = look_up(results, f"{COMPARISONS[mine]}.{system}.blocks.difference")
    words = "{mean:+.4f} ({low:+.4f} to {high:+.4f})"
    return found and (words.format(**found), found["low"] <= 0)


def within(results: Results, mine: str, system: str, figure: str, margin: float, form: str) -> Decision:
    """Whether a figure of ours is at most ``margin`` below that of another system."""
    names = (mine, system)
    ours, theirs = (look_up(results["variants"], f"{name}.figures.{figure}.mean") for name in names)
    if ours is None or theirs is None:
        return None
    return f"{ours:{form}} against {theirs:{form}}", ours >= theirs - margin


# a claim, what decides it, and the arguments after (results, mine)
CLAIMS: tuple[tuple[str, Callable[..., Decision], *tuple[Any, ...]], ...] = (
    ("LPIPS at most 0.67 of reconstruction only", lpips_ratio, "reconstruction only", 0.67),
    ("LPIPS at most 0.9 of RePaint, with at most a tenth of its calls", lpips_ratio, TWIN, 0.9),
    ("LPIPS not worse than of diffusion for holes only", lpips_not_worse, "diffusion for holes only"),
    ("mean IoU within 1 point of the segmenter", within, "segmenter", "mask_iou", 0.01, ".3f"),
    ("top-1 within 1 point of the classifier", within, "classifier", "label_top1", 0.01, ".1%"),
    ("precision not below diffusion of photos alone", within, TWIN, "precision", 0.0, ".3f"),
    ("recall within 5 points of it", within, TWIN, "recall", 0.05, ".3f"),
)


def comparisons(results: Results) -> Report:
    """The evidence of the first edition, see docs/evidence.md: systems, claims, tables, cost."""
    systems = _systems(results)
    tables = (
        systems,
        _claims(results),
        _fillings(results),
        _by_kind("LPIPS by kind of hole", "System", lpips_by_kind(results["comparisons"]), ".3f"),
        _by_kind(_capital(LONGER), "LPIPS divided by that of", _ratios(results), ".2f"),
        _variants("Reading photos", "System", results, READING),
        _variants("Making photos", "System", results, MAKING),
        _costs(results),
    )
    trained = "at the same cost, but for one row; “ours” is one model for everything"
    if not systems.rows:
        trained = "as “ours”, but for what its name says"
    about = f"Small models, not the shipped checkpoint, each trained {trained}."
    return Report(tables, f"{about} {_how_compared(results)}")


def _repeated(seeds: Sequence[int]) -> str:
    """What the numbers of a table are over, if its rows have so many runs."""
    low, high = min(seeds), max(seeds)
    if high == 1:
        return "One run each."
    if low == high:
        return f"Mean ± standard deviation over {high} seeds."
    return f"Mean ± standard deviation over up to {high} seeds; rows without ± are one run."


def ablations(results: Results) -> Report:
    """`benchmarks/ablations.py`: a row for every variant, mean and spread over seeds."""
    repeated = _repeated([len(variant["runs"]) for variant in results["variants"].values()])
    optim, evaluation = results["config"]["optim"], results["evaluation"]
    note = (
        f"{repeated} {_size(results, 'Models')}, {optim['images']:,} images each in batches of "
        f"{optim['batch_size']}; {evaluation['limit']} validation examples, {evaluation['steps']} sampling "
        f"steps. {_judge(results)}"
    )
    return Report((_variants("The variants", "Variant", results, CHOICES),), note)


def scarce_system(system: str, share: str) -> str:
    """The name of a variant of `benchmarks/scarce.py`; share as in "5%"."""
    return f"{system}, {share} of the annotations"


def scarce(results: Results) -> Report:
    """`benchmarks/scarce.py`: ours and the readers alone at every share of the annotations."""
    figures = {"label_top1": ("label: top-1", ".1%"), "mask_iou": ("mask: mean IoU", ".3f")}
    tables = []
    for figure, (title, form) in figures.items():
        rows = []
        for share, difference in results["scarce"].items():
            means = [
                results["variants"][scarce_system(system, share)]["figures"][figure]["mean"]
                for system in (OURS, READERS)
            ]
            found = difference[figure]
            words = f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
            rows.append((share, *(f"{value:{form}}" for value in means), words))
        head = ("Annotations kept", "Ours", "A reader alone", "Difference (95 % interval)")
        tables.append(Table(f"Read from validation photos, {title}", head, rows))
    runs = next(iter(results["variants"].values()))["runs"]
    note = (
        f"{len(runs)} seeds; intervals over photos and seeds. {_size(results, 'Ours')}, "
        f"{results['config']['optim']['images']:,} images; readers for {results['reader_steps']:,} steps."
    )
    return Report(tuple(tables), note)


def gradients(results: Results) -> Report:
    """`benchmarks/gradients.py`: a row for every modality, a column for every time in training."""
    points = results["gradients"]
    head = ("Gradient of", "Weight", *(f"{point['images']:,} images" for point in points))
    rows = []
    for name, weight in results["weights"].items():
        pulls = [point["pulls"][name] for point in points]
        rows.append((name, f"{weight:g}", *(f"{p['norm']:.3f}, {p['cosine']:+.2f}" for p in pulls)))
    note = (
        f"Norm in the shared parameters, cosine with the photos' gradient; {results['batches']} batches of "
        f"{results['batch_size']} each, `{results['config']}`."
    )
    return Report((Table("Gradients of the losses", head, rows),), note)


def lpips_by_kind(comparisons: Results) -> dict[str, dict[str, float]]:
    """LPIPS by kind of hole, of ours and of every filling it was compared with."""
    ours = {kind: pair["ours"] for by_kind in comparisons.values() for kind, pair in by_kind.items()}
    return {OURS: ours} | {
        name: {kind: pair["theirs"] for kind, pair in by_kind.items()}
        for name, by_kind in comparisons.items()
    }


def _systems(results: Results) -> Table:
    """Purpose of every system; no rows for changes to ours."""
    found = [(name, SYSTEMS[name]) for name in results["variants"] if name in SYSTEMS]
    return Table("The systems", ("System", "Trained for"), found if len(found) > 1 else ())


def _claims(results: Results) -> Table:
    """Every claim with the figures of each of ours; no rows if nothing was measured."""
    mine = [name for name in COMPARISONS if name in results["variants"]]
    rows, anything = [], False
    for claim, decide, *arguments in CLAIMS:
        row = [claim]
        for name in mine:
            words, reached = decide(results, name, *arguments) or ("–", None)
            row += [words, {True: "yes", False: "no", None: "not measured"}[reached]]
            anything = anything or reached is not None
        rows.append(row)
    head = ("Hoped for", *(text for name in mine for text in (_capital(name), "Reached")))
    return Table("One model for everything: hoped for and measured", head, rows if anything else ())


def _fillings(results: Results) -> Table:
    """Holes of half the pixels: every system, then the classical fillings."""
    rows = []
    for name, entry in results["variants"].items():
        if look_up(entry, "figures.blocks_lpips") is not None:
            runs = list(entry["runs"].values())
            cells = _cells(entry, FILLING, len(runs))
            rows.append((name, *cells, f"{runs[0]['calls']}", _against(results, name)))
    for name, text in CLASSICAL.items():
        if found := look_up(results["comparisons"], f"{name}.blocks"):
            rows.append((text, f"{found['theirs']:.3f}", "–", "–", "0", _against(results, name)))
    head = ("System", *(text for text, _, _ in FILLING), "Calls", "LPIPS, ours against it")
    return Table("Holes of half the pixels, in blocks", head, rows)


def _against(results: Results, name: str) -> str:
    found = look_up(results["comparisons"], f"{name}.blocks")
    if not found:
        return ""
    low, high = found["difference"]["low"], found["difference"]["high"]
    return f"× {found['ratio']:.2f}, difference {low:+.3f} to {high:+.3f}"


def _ratios(results: Results) -> dict[str, dict[str, float]]:
    """LPIPS of ours, trained for longer, divided by that of every other system, by kind of hole."""
    return {
        name: {kind: pair["ratio"] for kind, pair in by_kind.items()}
        for name, by_kind in results.get(COMPARISONS[LONGER], {}).items()
        if name != OURS and name not in CLASSICAL
    }


def _by_kind(title: str, first: str, values: dict[str, dict[str, float]], form: str) -> Table:
    """A row for every filling, a column for every kind of hole that was measured."""
    kinds = [kind for kind in KINDS if any(kind in by_kind for by_kind in values.values())]
    rows = [
        (CLASSICAL.get(name, name), *(f"{by_kind[k]:{form}}" if k in by_kind else "–" for k in kinds))
        for name, by_kind in values.items()
    ]
    return Table(title, (first, *(KINDS[kind] for kind in kinds)), rows if kinds else ())


def _variants(title: str, first: str, results: Results, columns: Sequence[Column]) -> Table:
    """A row for every variant with one of the figures, a column for every figure that one of them has."""
    variants = results["variants"]
    rows = {name: _cells(entry, columns, len(entry["runs"])) for name, entry in variants.items()}
    of_photos = [(text, f"{figure}_of_training_photos", form) for text, figure, form in columns]
    rows["(training photos)"] = _cells(variants.get(OURS, {}), of_photos, 1)  # the same for every seed
    rows = {name: cells for name, cells in rows.items() if set(cells) != {"–"}}
    used = [k for k in range(len(columns)) if any(cells[k] != "–" for cells in rows.values())]
    head = (first, *(columns[k][0] for k in used))
    return Table(title, head, [(name, *(cells[k] for k in used)) for name, cells in rows.items()])


def _cells(entry: Results, columns: Sequence[Column], seeds: int) -> list[str]:
    """Mean of each figure, ± its standard deviation if there are several seeds; – where there is none."""
    cells = []
    for _, figure, form in columns:
        value = look_up(entry, f"figures.{figure}")
        spread = f" ± {value['std']:{form}}" if value and seeds > 1 else ""
        cells.append(f"{value['mean']:{form}}{spread}" if value else "–")
    return cells


def _costs(results: Results) -> Table:
    """Parameters, images and CPU minutes of training, the mean over seeds."""
    rows = []
    for name, entry in results["variants"].items():
        runs = list(entry["runs"].values())
        minutes = sum(run["train_cpu_seconds"] for run in runs) / len(runs) / 60
        rows.append((name, f"{runs[0]['parameters']:,}", f"{runs[0]['images']:,}", f"{minutes:.1f}"))
    return Table("Cost of training", ("System", "Parameters", "Images", "CPU minutes"), rows)


def _how_compared(results: Results) -> str:
    evaluation = results["evaluation"]
    counts = [len(entry["runs"]) for entry in results["variants"].values()]
    fewest, most = min(counts), max(counts)
    seeds = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    repeated = f"{seeds}, ± is their standard deviation." if most > 1 else "One run of each."
    filling, scale = evaluation["filling_steps"], evaluation["filling_guidance"]
    apart = "" if filling in (None, evaluation["steps"]) else f", {filling} in holes but for RePaint"
    guided = "no guidance" if scale == 1 else f"guidance of {scale:g} in holes where a system can be guided"
    sampler = f"{evaluation['steps']} steps of `{evaluation['sampler']}` (eta {evaluation['eta']:g})"
    size = f"{_size(results, 'Pictures')}; {evaluation['samples']} photos"
    return (
        f"{repeated} {size}, {sampler}{apart}, {guided}. "
        "Intervals are 95 %, by the bootstrap over photos that share hole and noise. " + _judge(results)
    )


def _size(results: Results, what: str) -> str:
    model = results["config"]["model"]
    return f"{what} of {model['image_size']} px, width {model['width']} and {model['depth']} blocks"


def _judge(results: Results) -> str:
    return f"The judge names {results['photos_judged']:.1%} of the real photos correctly."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
