"""Measure a checkpoint on a data set, and write the figures as JSON.

    python -m mmdiff.evaluate CHECKPOINT --data PARQUET --out results.json --judge benchmarks/judges/orchard

measures task by task; --all-subsets instead measures every modality given every subset of the others.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.data.parquet import read_parquet
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.grids import draw_grid
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.evaluation.skip import Skip, or_reason
from mmdiff.evaluation.subsets import all_subsets
from mmdiff.evaluation.subsets import table as subsets_table
from mmdiff.evaluation.tasks import TASKS
from mmdiff.modalities import Modality
from mmdiff.options import add_options, from_options
from mmdiff.pipeline import Pipeline

SUBSET_EXAMPLES = 96  # with --all-subsets, which samples up to 23 times


def evaluate(
    ev: Evaluation,
    tasks: Sequence[str] = tuple(TASKS),
    grids: Path | None = None,
    each: dict[str, Tensor] | None = None,
) -> dict:
    """Figures of each task by its name, or {"skipped": reason}.

    Args:
        grids: folder to write a grid of samples of each task to.
        each: values of single examples, (n,), are added to it as "TASK/NAME".
    """
    results = {}
    for name in tasks:
        start = time.perf_counter()
        try:
            outcome = TASKS[name](ev)
        except Skip as reason:
            results[name] = {"skipped": str(reason)}
            continue
        results[name] = outcome.figures | {"seconds": round(time.perf_counter() - start, 1)}
        if each is not None:
            each |= {f"{name}/{key}": values for key, values in outcome.each.items()}
        if grids is not None and outcome.panels:
            grids.mkdir(parents=True, exist_ok=True)
            draw_grid(outcome).save(grids / f"{name}.webp", quality=85)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        report = run(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    print(subsets_table(report["subsets"]) if args.all_subsets else table(report["tasks"]))


def run(args: argparse.Namespace) -> dict:
    """Load everything that the arguments name and measure it."""
    settings = from_options(EvaluationSettings, args)
    if args.all_subsets and settings.limit is None:
        settings = dataclasses.replace(settings, limit=SUBSET_EXAMPLES)
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(args.checkpoint, device=args.device)
    pipe.compile()
    classifier = Classifier.from_pretrained(args.judge, pipe.device) if args.judge else None
    examples = read_examples(args.data, pipe)
    segmenter = Segmenter.from_pretrained(args.segmenter, pipe.device) if args.segmenter else None
    ev = Evaluation(pipe, examples, settings, classifier, segmenter=segmenter)
    if args.train:
        trained_on = _read(args.train, [pipe.modalities["image"]])
        ev.train_captions, ev.train_photos = trained_on.captions, trained_on.stored["image"]
    results = measure(ev, args)
    return results | {
        "checkpoint": Path(args.checkpoint).name,
        "data": Path(args.data).name,
        "device": torch.cuda.get_device_name(pipe.device) if pipe.device.type == "cuda" else pipe.device.type,
        "examples": len(ev.rows),
        "image_size": ev.size,
        "judge": classifier.facts if classifier else None,
        "segmenter": segmenter.facts if segmenter else None,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
        "torch": torch.__version__,
        "white_rule_iou_on_photos": or_reason(lambda: ev.white_rule_iou),
    }


def measure(ev: Evaluation, args: argparse.Namespace) -> dict:
    """{"subsets": ...} with --all-subsets, else {"tasks": ...}."""
    if not args.all_subsets:
        return {"tasks": evaluate(ev, args.tasks, Path(args.grids) if args.grids else None)}
    try:
        return {"subsets": all_subsets(ev)}
    except Skip as reason:
        raise ValueError(f"subsets cannot be compared: {reason}.") from None


def read_examples(path: str, pipe: Pipeline) -> Examples:
    """The data set, with the embeddings of its photos if the model has an embedding modality."""
    examples = _read(path, pipe.modalities.values())
    if "embedding" in pipe.modalities and "embedding" not in examples.stored and pipe.embedder is not None:
        size = pipe.modalities["image"].shape[-1]
        add_embeddings(examples, "embedding", "image", pipe.embedder, size)
    return examples


def _read(path: str, modalities: Iterable[Modality]) -> Examples:
    examples = read_parquet(path, modalities, DataConfig())
    if "image" not in examples.stored:
        raise ValueError(f"{path} has no photo in a column 'image'; rename the column that holds them.")
    return examples


def table(results: Mapping[str, dict]) -> str:
    """The figures of `evaluate` as text, one number a line."""
    lines = list(_flatten(results))
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _flatten(figures: Mapping, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if not isinstance(value, Mapping):
            yield prefix + name, f"{value:.4f}" if isinstance(value, float) else str(value)
        elif not name.startswith("by_"):
            yield from _flatten(value, f"{prefix}{name}.")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    parser.add_argument("--data", required=True, help="Parquet file of examples that were not trained on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--judge", help="folder of a classifier, see mmdiff/evaluation/observers")
    parser.add_argument("--segmenter", help="folder of a segmenter, see mmdiff/evaluation/observers")
    parser.add_argument("--train", help="Parquet file of the training data, for copies and likeness")
    parser.add_argument(
        "--all-subsets",
        action="store_true",
        help="measure every modality given every subset of the others, instead of the tasks; "
        f"--limit is {SUBSET_EXAMPLES} by default",
    )
    parser.add_argument("--grids", help="folder for pictures of 64 samples a task")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"which tasks to measure, of {', '.join(TASKS)} (default: all)",
    )
    add_options(parser, EvaluationSettings)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
