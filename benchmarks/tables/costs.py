"""Tables of costs: many modalities in one pass, quality by steps, the engine, training."""

from __future__ import annotations

from typing import Any

from benchmarks.tables.evaluation import Report, Results, Table, look_up

GUIDED = "ancestral, guided"  # by the pixels around holes
# figures by steps: text, name, format
FIGURES = (
    ("Holes: LPIPS", "hole_lpips", ".3f"),
    ("Photo from label: classifier agrees", "judge_from_label", ".1%"),
    ("Photo and label together: classifier agrees", "judge_joint", ".1%"),
)
# comparisons of `benchmarks/engine.py`: text, key
SPEEDS = (
    ("all heads, {steps} steps, against a DiT for photos alone (diffusers)", "loop_against_dit_batch_1"),
    ("the same for a batch of {requests}", "loop_against_dit_batch_{requests}"),
    ("the network in bfloat16 against float32, batch 1", "bfloat16_against_float32_batch_1"),
    ("the same, batch 8", "bfloat16_against_float32_batch_8"),
    ("one request through the engine, against a bare loop over the model", "engine_against_bare_loop"),
    ("{requests} requests at once, against one after the other", "together_against_one_by_one"),
    (
        "the network alone: one call with a batch of {requests}, against {requests} calls",
        "network_together_against_one_by_one",
    ),
    ("one request with all previews over HTTP, against the bare loop", "stream_against_bare_loop"),
    ("the same on the page in Chromium, on the same cores, against the bare loop", "page_against_bare_loop"),
)
# the same, of one side
ONE_SIDED = (("4 steps of all heads", "four_steps_seconds"), ("`python app.py --help`", "help_seconds"))
# rates of `benchmarks/training.py`: text, path, format
RATES = (
    ("training, images/s", "images_per_second", ".1f"),
    ("training, GFLOP/s", "training_gflops", ".1f"),
    ("a large matrix product, GFLOP/s", "matmul_gflops.square", ".1f"),
    ("the model's own products, GFLOP/s", "matmul_gflops.model", ".1f"),
    ("training, share of the large product's rate", "share_of_matmul.square", ".2f"),
    ("training, share of its own products' rate", "share_of_matmul.model", ".2f"),
    ("batches drawn, images/s", "draw_images_per_second", ".0f"),
)


def efficiency(results: Results) -> Report:
    """`benchmarks/efficiency.py`: cost of a pass, and every figure by sampler and steps."""
    points, passes = results["quality"], results["passes"]
    measured = [column for column in FIGURES if any(column[1] in point for point in points)]
    tables = (_passes(passes), *(_by_steps(points, *column) for column in measured))
    rounds, settings = passes["joint_against_photos"]["rounds"], results["settings"]
    note = (
        f"Passes of {passes['batch']} samples, medians of {rounds} pairs in turn, {results['device']}. "
        f"{settings['samples']} pictures a figure, photos from labels rounded up to equally many of each and "
        f"with guidance {settings['guidance']:g}, holes “{GUIDED}” by the pixels around them with "
        f"{results['filling_guidance']:g}, which takes two calls a step."
    )
    return Report(tables, note)


def engine(results: Results) -> Report:
    """`benchmarks/engine.py`: a row for every comparison."""
    rows = []
    for text, name in SPEEDS:
        if (pair := results.get(name.format(**results))) is None:  # of an older benchmark
            continue
        seconds = f"{pair['seconds']:.2f}", f"{pair['against_seconds']:.2f}"
        rows.append((text.format(**results), *seconds, _ratio(pair)))
    for text, name in ONE_SIDED:
        if name in results:
            rows.append((text, f"{results[name]:.2f}", "", ""))
    rows += [
        ("from the click to the first preview", f"{results['first_preview_seconds']:.2f}", "", ""),
        ("from `python app.py` to the first page", f"{results['start_to_first_page_seconds']:.1f}", "", ""),
    ]
    note = (
        f"Requests of {results['steps']} steps on {results['cores']} cores ({results['device']}), with the "
        f"browser on the same cores; medians of pairs run in turn, torch {results['torch']}."
    )
    if "precision" in results:
        note += f" The network computes in {results['precision']}. {_apart(results)}"
    head = ("Measured", "Seconds", "Against", "Ratio (range)")
    return Report((Table("Speed of a run", head, rows),), note)


def _apart(results: Results) -> str:
    """How far results in bfloat16 are from those in float32, and from those among eight."""
    texts = []
    for name, words in (("", "from float32"), ("_among_eight", "alone from among eight")):
        found = results[f"bfloat16_differences{name}"]
        parts = [f"{found['grey_levels_mean']:.2f} grey levels in the mean"]
        if "mask_pixels_share" in found:
            parts.append(f"{found['mask_pixels_share']:.2%} of the mask's pixels")
        if "label_largest" in found:
            parts.append(f"at most {found['label_largest']:.3f} in the probability of a label")
        texts.append(f"{words}: {', '.join(parts)}")
    return f"Results in bfloat16 differ {'; '.join(texts)}."


def training(results: Results) -> Report:
    """`benchmarks/training.py`: a row for every rate."""
    rows = []
    for text, path, form in RATES:
        rate = look_up(results, path)
        rows.append((text, f"{rate['median']:{form}}", f"{rate['low']:{form}} to {rate['high']:{form}}"))
    rows += [
        ("Parquet read, rows/s", f"{results['parquet_rows_per_second']:.0f}", ""),
        ("peak memory, MB", f"{results['peak_memory_mb']:.0f}", ""),
    ]
    note = (
        f"`{results['config']}`, {results['parameters'] / 1e6:.1f} M parameters, batch "
        f"{results['batch_size']}, {results['mflop_per_image']['total'] / 1e3:.1f} GFLOP an image, "
        f"{results['precision']}, {results['device']}, torch {results['torch']}; {results['rounds']} rounds, "
        "one after the other."
    )
    return Report((Table("Speed of training", ("Measured", "Median", "Range"), rows),), note)


def equal_time(results: Results) -> Report:
    """`benchmarks/equal_time.py`: losses of every variant when half of the time is over, and all of it."""
    rows = []
    for run in results["runs"]:
        middle, last = (_after(run["points"], share) for share in (0.5, 1.0))
        losses = (f"{point[name]:.3f}" for name in ("L1", "L2/mask") for point in (middle, last))
        size = f"{run['parameters'] / 1e6:.1f} M"
        total = (f"{point['total']:.3f}" for point in (middle, last))
        rows.append((run["name"], size, f"{last['images'] / last['seconds']:.0f}", *total, *losses))
    seconds = [round(_after(results["runs"][0]["points"], share)["seconds"]) for share in (0.5, 1.0)]
    head = ["Variant", "Parameters", "Images/s"]
    head += [f"{name} after {n} s" for name in ("Loss", "Photo’s", "Mask’s") for n in seconds]
    note = (
        "Validation losses of the averaged weights, less is better; all trained in turn on "
        f"{results['threads']} threads, torch {results['torch']}."
    )
    return Report((Table("Shapes and ways of training at equal time", tuple(head), rows),), note)


def _after(points: list[dict[str, float]], share: float) -> dict[str, float]:
    """The measurement nearest to this share of the time."""
    return min(points, key=lambda point: abs(point["seconds"] - share * points[-1]["seconds"]))


def _passes(passes: Results) -> Table:
    """All modalities in one pass, against photos alone and against a model for each."""
    names, joint, single = passes["modalities"], passes["joint"], passes["single"]

    def shares(count: str) -> tuple[str, str]:
        others = single[names[0]][count], sum(one[count] for one in single.values())
        return tuple(f"× {joint[count] / other:.2f}" for other in others)

    seconds = (_ratio(passes[pair], "× ") for pair in ("joint_against_photos", "joint_against_all_single"))
    rows = [
        ("Seconds of a pass", *seconds),
        ("Operations of a pass", *shares("operations")),
        ("Parameters, and so memory", *shares("parameters")),
    ]
    many = f"{len(names)} models for one each"
    head = (f"{len(names)} modalities in one pass", "Against photos alone", f"Against {many}")
    return Table("Cost of many in one", head, rows)


def _ratio(pair: dict[str, Any], times: str = "") -> str:
    low, high = pair["ratio_range"]
    return f"{times}{pair['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _by_steps(points: list[dict[str, Any]], title: str, figure: str, form: str) -> Table:
    """A row for every sampler, a column for every number of steps."""
    found = {(p["sampler"], p["steps"]): p[figure] for p in points if figure in p}
    samplers, steps = (list(dict.fromkeys(key[k] for key in found)) for k in (0, 1))
    rows = [
        (sampler, *(f"{found[sampler, n]:{form}}" if (sampler, n) in found else "–" for n in steps))
        for sampler in samplers
    ]
    return Table(title, ("Steps", *(str(n) for n in steps)), rows)
