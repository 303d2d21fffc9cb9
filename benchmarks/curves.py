"""Figures of a model by the number of training images, from the checkpoints that a run kept.

    python benchmarks/curves.py runs/scenes-cpu --data data/scenes/val.parquet \
        --out docs/results/scenes-curve.json --plot docs/scenes_curve.png

Reads mask, label and embedding off validation photos with every checkpoint in the run's `history`, and adds
the losses of its `metrics.csv`. With `optim.keep_checkpoints` a run keeps them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


from benchmarks.tables.evaluation import look_up
from mmdiff.evaluate import evaluate, read_examples
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline

TASKS = ("mask_from_image", "label_from_image", "embedding_from_image")
# name of a figure -> where it stands in the results of `evaluate`, and its name in the plot
FIGURES = {
    "mask_miou": ("mask_from_image.miou_pooled", "mask from photo: mean IoU"),
    "label_top1": ("label_from_image.top1", "label from photo: top-1"),
    "embedding_recall@5": ("embedding_from_image.recall@5", "embedding from photo: recall@5 of 400"),
}


def measure(folder: Path, data: str, device: str) -> dict[str, float]:
    """The figures of one checkpoint, of the modalities that it has."""
    pipe = Pipeline.from_pretrained(folder, device=device)
    results = evaluate(Evaluation(pipe, read_examples(data, pipe), EvaluationSettings()), TASKS)
    found = {name: look_up(results, path) for name, (path, _) in FIGURES.items()}
    return {name: round(value, 4) for name, value in found.items() if value is not None}


def losses(run: Path) -> list[dict[str, float]]:
    """Validation losses by name, with the images seen; none if the run wrote no log."""
    path = run / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split_val"] == "1"]
    kept = [name for name in (rows[0] if rows else []) if name.startswith("L") or name == "total"]
    return [{"images": int(row["images"])} | {name: float(row[name]) for name in kept} for row in rows]


def curve(run: Path, data: str, device: str) -> dict[str, Any]:
    """Figures and validation losses by images seen. Raises ValueError without a history."""
    folders = sorted((run / "history").glob("*/"))
    if not folders:
        raise ValueError(f"{run} has no history; train with optim.keep_checkpoints = true.")
    points = [{"images": int(folder.name)} | measure(folder, data, device) for folder in folders]
    return {"run": run.name, "data": Path(data).name, "points": points, "losses": losses(run)}


def plot(report: dict[str, Any], path: Path) -> None:
    """Figures to the left, losses relative to their first value to the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, (_, text) in FIGURES.items():
        points = [(p["images"], p[name]) for p in report["points"] if name in p]
        if points:
            left.plot(*zip(*points, strict=True), marker="o", label=text)
    for name in report["losses"][0] if report["losses"] else []:
        if name not in ("images", "L2/image"):
            first = report["losses"][0][name]
            values = [(p["images"], p[name] / first) for p in report["losses"]]
            right.plot(*zip(*values, strict=True), marker="o", label=name)
    left.set(xlabel="training images", ylim=(0, 1), title="read off validation photos")
    right.set(xlabel="training images", title="validation loss, relative to the first")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--data", required=True, help="Parquet file of examples that were not trained on")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(arguments)
    try:
        report = curve(args.run, args.data, args.device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    report["settings"] = dataclasses.asdict(EvaluationSettings())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        plot(report, args.plot)


if __name__ == "__main__":
    main()
