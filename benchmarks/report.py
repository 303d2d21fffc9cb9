"""Put measured results into the Markdown that quotes them: `python benchmarks/report.py [--check]`.

Text between `<!-- results NAME -->` and `<!-- end -->` is made from docs/results/NAME.json, which
`python -m mmdiff.evaluate` or a script beside this one wrote, so no number is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import efficiency, evidence
from app.evidence import spread
from app.results import holes_apart
from app.tables import examples, look_up

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "checkpoints/orchard/README.md",
    "checkpoints/scenes/README.md",
    "docs/conditionals.md",
    "docs/demo.md",
    "docs/evidence.md",
    "docs/scenes.md",
    "docs/training.md",
)
BLOCK = re.compile(r"(<!-- results (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

# what is measured, where it stands in the JSON, how it is written
ROWS: tuple[tuple[str, str, str], ...] = (
    ("mask from photo: mean IoU of the fruit", "mask_from_image.iou.fruit", ".4f"),
    ("label from photo: top-1", "label_from_image.top1", ".1%"),
    ("label from photo: top-5", "label_from_image.top5", ".1%"),
    (
        "photo from label: a separate classifier names the asked class",
        "image_from_label.judge_agreement",
        ".1%",
    ),
    ("photo and label together: that classifier agrees", "joint.judge_agreement", ".1%"),
    ("… labels that occurred", "joint.distinct_labels", "d"),
    ("the same where all else follows the label", "joint_following_label.judge_agreement", ".1%"),
    ("… labels that occurred", "joint_following_label.distinct_labels", "d"),
    ("photo and mask together: IoU of mask and picture", "joint.mask_rule_iou", ".4f"),
    ("photo from mask: IoU of the asked mask and picture", "image_from_mask.mask_rule_iou", ".4f"),
    ("embedding from photo: cosine", "embedding_from_image.cosine", ".3f"),
    ("embedding from photo: its own among the 5 nearest of 400", "embedding_from_image.recall@5", ".1%"),
    ("the same by chance", "embedding_from_image.chance@5", ".1%"),
    ("photo from caption: cosine in the embedding space", "image_from_text.generated.cosine", ".3f"),
    ("the same of the captions' own photos", "image_from_text.photos.cosine", ".3f"),
    ("photo from text: the fruit has the colour asked for", "prompts.overall.colour", ".1%"),
    ("… colour and kind often together in training", "prompts.common.colour", ".1%"),
    ("… colour and kind rarely or never together in training", "prompts.rare.colour", ".1%"),
    ("the same check on captions of real photos", "prompts.photos.colour", ".1%"),
    ("photo from text, often together: a separate classifier names the kind", "prompts.common.kind", ".1%"),
    ("… rarely or never together", "prompts.rare.kind", ".1%"),
    ("the same check on real photos in such colours", "prompts.recoloured_photos.kind", ".1%"),
    ("holes, half of the pixels in blocks: PSNR inside (dB)", "holes.blocks.psnr", ".2f"),
    ("the same, filled with the mean of the known pixels (dB)", "holes.blocks.psnr_mean_fill", ".2f"),
    ("holes: LPIPS", "holes.blocks.lpips", ".3f"),
    ("the same, filled by Telea's method", "holes.blocks.fillings.telea.lpips", ".3f"),
)

# the same where a segmenter reads the masks of pictures
SEGMENTED: tuple[tuple[str, str, str], ...] = (
    ("mask from photo: mean IoU of the classes", "tasks.mask_from_image.miou_pooled", ".3f"),
    ("the same of a U-Net that was trained for nothing else", "segmenter.val_miou", ".3f"),
    ("label from photo: top-1", "tasks.label_from_image.top1", ".1%"),
    ("the same of a classifier that was trained for nothing else", "judge.val_top1", ".1%"),
    (
        "embedding from photo: its own among the 5 nearest of 400",
        "tasks.embedding_from_image.recall@5",
        ".1%",
    ),
    ("the same by chance", "tasks.embedding_from_image.chance@5", ".1%"),
    (
        "photo from label: the classifier names the asked class",
        "tasks.image_from_label.judge_agreement",
        ".1%",
    ),
    ("photo and label together: the classifier agrees", "tasks.joint.judge_agreement", ".1%"),
    (
        "photo from mask: mean IoU of what the U-Net sees in it",
        "tasks.image_from_mask.segmenter.miou_pooled",
        ".3f",
    ),
    (
        "the same in the masks' own photos",
        "tasks.image_from_mask.segmenter_on_photos.miou_pooled",
        ".3f",
    ),
    ("holes, half of the pixels in blocks: LPIPS", "tasks.holes.blocks.lpips", ".3f"),
    ("the same, filled by Telea's method", "tasks.holes.blocks.fillings.telea.lpips", ".3f"),
    ("the same, by Navier-Stokes", "tasks.holes.blocks.fillings.navier_stokes.lpips", ".3f"),
    ("holes: PSNR inside (dB)", "tasks.holes.blocks.psnr", ".2f"),
    ("the same, filled by Telea's method (dB)", "tasks.holes.blocks.fillings.telea.psnr", ".2f"),
    ("generated photos: precision (AlexNet features)", "tasks.likeness.generated.precision", ".2f"),
    ("the same of training photos", "tasks.likeness.training_photos.precision", ".2f"),
    ("generated photos: recall", "tasks.likeness.generated.recall", ".2f"),
    ("the same of training photos", "tasks.likeness.training_photos.recall", ".2f"),
    ("generated photo: distance to the nearest training photo", "tasks.copies.distance", ".3f"),
    ("the same of real photos not trained on", "tasks.copies.distance_of_unseen_photos", ".3f"),
    (
        "generated photo: distance to the nearest unseen photo",
        "tasks.copies.distance_to_unseen_photos",
        ".3f",
    ),
    (
        "the same to as many training photos",
        "tasks.copies.distance_to_as_many_training_photos",
        ".3f",
    ),
)

# columns of the ablations: text, name of the figure, how it is written
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("mask from photo: mean IoU", "mask_iou", ".3f"),
    ("label from photo: top-1", "label_top1", ".1%"),
    ("photo from label: judge agrees", "judge_from_label", ".1%"),
    ("photo and label together: judge agrees", "judge_joint", ".1%"),
    ("embedding from photo: cosine", "embedding_cosine", ".3f"),
    ("holes: gain over mean fill (dB)", "hole_gain", ".2f"),
    ("holes: LPIPS", "hole_lpips", ".3f"),
    ("holes: SSIM", "hole_ssim", ".3f"),
    ("precision", "precision", ".2f"),
    ("recall", "recall", ".2f"),
)


# columns of the subsets: text, name of the metric, how it is written
SUBSET_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("photo: classifier names the class", "image.judge", ".2f"),
    ("photo: cosine to the caption", "image.caption", ".3f"),
    ("photo: IoU with the mask", "image.mask_rule_iou", ".3f"),
    ("photo: mean IoU with the mask", "image.segmenter_miou", ".3f"),
    ("hole: PSNR (dB)", "image.psnr", ".2f"),
    ("hole: LPIPS", "image.negative_lpips", ".3f"),
    ("mask: IoU", "mask.iou_fruit", ".3f"),
    ("mask: mean IoU", "mask.miou", ".3f"),
    ("label: top-1", "label.top1", ".2f"),
    ("embedding: cosine", "embedding.cosine", ".3f"),
    ("embedding: recall@5", "embedding.recall@5", ".2f"),
)


def table(results: dict[str, Any]) -> str:
    """Measured results as a Markdown table, with how they were measured below it."""
    if "comparisons" in results:
        return titled_tables(evidence, results)
    if "passes" in results:
        return titled_tables(efficiency, results)
    if "variants" in results:
        return ablations_table(results)
    if "gradients" in results:
        return gradients_table(results)
    if "engine_against_bare_loop" in results:
        return speed_table(results)
    if "share_of_matmul" in results:
        return training_table(results)
    return subsets_table(results) if "subsets" in results else tasks_table(results)


def tasks_table(results: dict[str, Any]) -> str:
    """One checkpoint: a row for every task."""
    lines = ["| measured on validation data | | examples |", "|---|---|---|"]
    rows = SEGMENTED if results.get("segmenter") else [(t, f"tasks.{path}", f) for t, path, f in ROWS]
    for text, path, form in rows:
        value = look_up(results, path)
        if isinstance(value, (int, float)):  # in the place of what was not measured stands why
            count = f"{examples(results, path):,}" if path.startswith("tasks.") else ""
            lines.append(f"| {text} | {value:{form}} | {count} |")
    settings = results["settings"]
    lines += [
        "",
        f"{settings['steps']} steps of `{settings['sampler']}`, "
        f"guidance {settings['guidance']:g}{holes_apart(settings)}.",
    ]
    return "\n".join(lines) + "\n"


def subsets_table(results: dict[str, Any]) -> str:
    """`mmdiff.evaluate --all-subsets`: a row for every given subset, a column for every metric."""
    found = results["subsets"]
    measured = {metric for row in found["subsets"] for metric in row["metrics"]} | set(found["photos"])
    if "mask.iou_fruit" in measured:  # which says more than the mean with the background
        measured -= {"mask.miou"}
    columns = [column for column in SUBSET_COLUMNS if column[1] in measured]
    given = [*found["subsets"], {"given": "(real photos)", "metrics": found["photos"]}]
    rows = [
        [row["given"], *(_subset_cell(row, metric, form) for _, metric, form in columns)] for row in given
    ]
    order, settings = found["monotonicity"], results["settings"]
    lines = [
        markdown(["given", *(text for text, _, _ in columns)], rows),
        f"Mean over {found['examples']} examples, {settings['steps']} steps of `{settings['sampler']}` with "
        "the same noise for every subset. Embeddings are looked up among "
        f"{found['gallery']}. LPIPS is of pictures whose known pixels are true. An empty cell is of a "
        "modality that is given.",
        "",
        f"More given is worse by over {order['standard_errors']:g} standard errors in "
        f"{len(order['worse'])} of {order['compared']} comparisons of a subset with one that contains it; if "
        f"all were equal, about {order['worse_if_all_were_equal']:g} would be.",
        "",
    ]
    for pair in order["worse"]:
        lines.append(
            f"- {pair['metric']}: {pair['subset_mean']:.4f} given {pair['subset']}, "
            f"{pair['superset_mean']:.4f} given {pair['superset']}"
        )
    return "\n".join(lines) + "\n"


def _subset_cell(row: dict[str, Any], metric: str, form: str) -> str:
    """A mean, the distance of `negative_` metrics with its usual sign; LPIPS only where there are holes."""
    value = row["metrics"].get(metric)
    if value is None or (metric == "image.negative_lpips" and "holes" not in row["given"]):
        return ""
    mean = -value["mean"] if ".negative_" in metric else value["mean"]
    return f"{mean:{form}}"


def ablations_table(results: dict[str, Any]) -> str:
    """A study of `benchmarks/ablations.py`: a row for every variant, mean and spread over seeds."""
    measured = {figure for variant in results["variants"].values() for figure in variant["figures"]}
    columns = [column for column in COLUMNS if column[1] in measured]
    seeds = max(len(variant["runs"]) for variant in results["variants"].values())
    rows = [
        [name, *(spread(look_up(entry, f"figures.{figure}"), form, seeds) for _, figure, form in columns)]
        for name, entry in results["variants"].items()
    ]
    model, optim, evaluation = results["config"]["model"], results["config"]["optim"], results["evaluation"]
    repeated = f"Mean ± standard deviation over {seeds} seeds." if seeds > 1 else "One run each."
    lines = [
        markdown(["variant", *(text for text, _, _ in columns)], rows),
        f"{repeated} Models of {model['image_size']} px, width "
        f"{model['width']} and {model['depth']} blocks, {optim['images']:,} images each in batches of "
        f"{optim['batch_size']}; {evaluation['limit']} validation examples, {evaluation['steps']} sampling "
        f"steps. The judge names {results['photos_judged']:.1%} of the real photos correctly.",
    ]
    return "\n".join(lines) + "\n"


def titled_tables(page: ModuleType, results: dict[str, Any]) -> str:
    """The tables that the app shows, too, with how they were measured below."""
    parts = [f"**{t.title}**\n\n{markdown(t.head, t.rows)}" for t in page.tables(results)]
    return "\n".join([*parts, page.how(results) + "\n"])


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


# what `benchmarks/engine.py` compares: text and where it stands in the JSON
COMPARISONS = (
    ("one request through the engine, against a bare loop over the model", "engine_against_bare_loop"),
    ("{requests} requests at once, against one after the other", "together_against_one_by_one"),
    (
        "the network alone: one call with a batch of {requests}, against {requests} calls",
        "network_together_against_one_by_one",
    ),
    ("one request with all previews over HTTP, against the bare loop", "stream_against_bare_loop"),
    ("the same on the page in Chromium, on the same cores, against the bare loop", "page_against_bare_loop"),
)


def speed_table(results: dict[str, Any]) -> str:
    """`benchmarks/engine.py`: a row for every comparison."""
    lines = ["| | seconds | against | ratio (range) |", "|---|---|---|---|"]
    for text, name in COMPARISONS:
        pair = results[name]
        low, high = pair["ratio_range"]
        lines.append(
            f"| {text.format(**results)} | {pair['seconds']:.2f} | {pair['against_seconds']:.2f} | "
            f"{pair['ratio']:.2f} ({low:.2f} to {high:.2f}) |"
        )
    lines += [
        f"| from the click to the first preview | {results['first_preview_seconds']:.2f} | | |",
        f"| from `python app.py` to the first page | {results['start_to_first_page_seconds']:.1f} | | |",
        "",
        f"Requests of {results['steps']} steps on {results['cores']} cores ({results['device']}), with the "
        f"browser on the same cores; medians of pairs run in turn, torch {results['torch']}.",
    ]
    return "\n".join(lines) + "\n"


RATES = (
    ("training, images/s", "images_per_second", ".1f"),
    ("training, GFLOP/s", "training_gflops", ".1f"),
    ("a large matrix product, GFLOP/s", "matmul_gflops.square", ".1f"),
    ("the model's own products, GFLOP/s", "matmul_gflops.model", ".1f"),
    ("**training, share of the large product's rate**", "share_of_matmul.square", ".2f"),
    ("training, share of its own products' rate", "share_of_matmul.model", ".2f"),
    ("batches drawn, images/s", "draw_images_per_second", ".0f"),
)


def training_table(results: dict[str, Any]) -> str:
    """`benchmarks/training.py`: a row for every rate."""
    lines = ["| | median | range |", "|---|---|---|"]
    for text, path, form in RATES:
        of = look_up(results, path)
        lines.append(f"| {text} | {of['median']:{form}} | {of['low']:{form}} to {of['high']:{form}} |")
    lines += [
        f"| Parquet read, rows/s | {results['parquet_rows_per_second']:.0f} | |",
        f"| peak memory, MB | {results['peak_memory_mb']:.0f} | |",
        "",
        f"`{results['config']}`, {results['parameters'] / 1e6:.1f} M parameters, batch "
        f"{results['batch_size']}, {results['mflop_per_image']['total'] / 1e3:.1f} GFLOP an image, "
        f"{results['precision']}, "
        f"{results['device']}, torch {results['torch']}; {results['rounds']} rounds, one after the other.",
    ]
    return "\n".join(lines) + "\n"


def gradients_table(results: dict[str, Any]) -> str:
    """`benchmarks/gradients.py`: a row for every modality, a column for every time."""
    points = results["gradients"]
    head = ("gradient of", "weight", *(f"{point['images']:,} images" for point in points))
    rows = []
    for name, weight in results["weights"].items():
        pulls = [point["pulls"][name] for point in points]
        rows.append((name, f"{weight:g}", *(f"{p['norm']:.3f}, {p['cosine']:+.2f}" for p in pulls)))
    return markdown(head, rows) + (
        f"\nNorm in the shared parameters, cosine with the photos' gradient; {results['batches']} batches of "
        f"{results['batch_size']} each, `{results['config']}`.\n"
    )


def filled(text: str) -> str:
    """``text`` with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        path = ROOT / "docs" / "results" / f"{match['name']}.json"
        return match[1] + table(json.loads(path.read_text(encoding="utf-8"))) + match[3]

    return BLOCK.sub(block, text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    check = parser.parse_args(arguments).check
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8")
        if check and filled(text) != text:
            sys.exit(f"{page} is out of date; run python benchmarks/report.py")
        path.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
