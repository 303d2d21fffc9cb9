"""Tables of studies: design choices, scarce annotations, gradients."""

from __future__ import annotations

from benchmarks.tables.evaluation import Report, Results, Table, look_up

Column = tuple[str, str, str]  # text, name of the figure, format

CHOICES: tuple[Column, ...] = (
    ("mask: mean IoU", "mask_iou", ".3f"),
    ("label: top-1", "label_top1", ".1%"),
    ("embedding: cosine", "embedding_cosine", ".3f"),
    ("holes: gain over mean fill (dB)", "hole_gain", ".2f"),
    ("holes: LPIPS", "hole_lpips", ".3f"),
    ("holes: SSIM", "hole_ssim", ".3f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("photo from label: judge agrees", "judge_from_label", ".1%"),
    ("photo and label together: judge agrees", "judge_joint", ".1%"),
    ("labels that occurred there", "joint_labels", ".0f"),
)
OURS = "ours"
READERS = "readers alone"  # a classifier and a U-Net


def _repeated(variants: Results) -> str:
    """What the numbers of a table are over, whose rows are these variants."""
    seeds = [len(entry["runs"]) for entry in variants.values()]
    low, high = min(seeds), max(seeds)
    if high == 1:
        return "One run each."
    if low == high:
        return f"Mean ± standard deviation over {high} seeds."
    return f"Mean ± standard deviation over up to {high} seeds; rows without ± are one run."


def ablations(results: Results) -> Report:
    """`benchmarks/ablations.py`: a row for every variant, mean and spread over seeds."""
    repeated = _repeated(results["variants"])
    optim, evaluation = results["config"]["optim"], results["evaluation"]
    note = (
        f"{repeated} {_size(results, 'Models')}, {optim['images']:,} images each in batches of "
        f"{optim['batch_size']}; {evaluation['limit']} validation examples, {evaluation['steps']} sampling "
        f"steps. The judge names {results['photos_judged']:.1%} of the real photos correctly."
    )
    return Report((_variants(results["variants"]),), note)


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
    repeated = _repeated(results["variants"])
    note = (
        f"{repeated} Intervals are over photos and seeds. {_size(results, 'Ours')}, "
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


def noise_levels(results: Results) -> Report:
    """`benchmarks/noise_levels.py`: a row for every level."""
    columns = {"wiener": "Best linear denoiser", "network": "Network", "with_label": "… given the label"}
    columns |= {"coarse_wiener": "Coarse: linear", "coarse_network": "Coarse: network"}
    columns |= {"mask_wiener": "Masks: linear", "mask_network": "Masks: network"}
    points = results["noise_levels"]
    used = [key for key in columns if key in points[0]]
    rows = [(f"{point['level']:g}", *(f"{point[key]:.3f}" for key in used)) for point in points]
    masks = f" and {results['mask_examples']} masks" if "mask_examples" in results else ""
    note = (
        f"Mean squared error of each number of the encodings of {results['examples']} photos{masks} of "
        f"{results['data']}; coarse: share left of the photos’ coarsest frequencies. Level: log "
        "signal-to-noise ratio."
    )
    head = ("Level", *(columns[key] for key in used))
    return Report((Table("What is left of the noise", head, rows),), note)


def _variants(variants: Results) -> Table:
    """A row for every variant with one of the figures, a column for every figure that one of them has."""
    rows = {name: _cells(entry, len(entry["runs"])) for name, entry in variants.items()}
    rows = {name: cells for name, cells in rows.items() if set(cells) != {"–"}}
    used = [k for k in range(len(CHOICES)) if any(cells[k] != "–" for cells in rows.values())]
    head = ("Variant", *(CHOICES[k][0] for k in used))
    return Table("The variants", head, [(name, *(cells[k] for k in used)) for name, cells in rows.items()])


def _cells(entry: Results, seeds: int) -> list[str]:
    """Mean of each figure, ± its standard deviation if there are several seeds; – where there is none."""
    cells = []
    for _, figure, form in CHOICES:
        value = look_up(entry, f"figures.{figure}")
        spread = f" ± {value['std']:{form}}" if value and seeds > 1 else ""
        cells.append(f"{value['mean']:{form}}{spread}" if value else "–")
    return cells


def _size(results: Results, what: str) -> str:
    model = results["config"]["model"]
    return f"{what} of {model['image_size']} px, width {model['width']} and {model['depth']} blocks"
