"""Measure a checkpoint on a data set, and write the figures as JSON.

    python -m mmdiff.evaluate CHECKPOINT --data PARQUET --out results.json --judge benchmarks/judges/orchard

measures task by task; with --all-subsets instead every wanted modality for every given subset.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.data.parquet import read_parquet
from mmdiff.evaluation.core import Evaluation, Settings, Skip, or_reason
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.observers.classifier import Judge
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.evaluation.show import draw_grid, table
from mmdiff.evaluation.subsets import all_subsets
from mmdiff.evaluation.subsets import table as subsets_table
from mmdiff.evaluation.tasks import TASKS
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import SAMPLERS

SUBSET_EXAMPLES = 96  # there are up to 23 subsets to sample


def evaluate(
    ev: Evaluation,
    tasks: Sequence[str] = tuple(TASKS),
    grids: Path | None = None,
    each: dict[str, Tensor] | None = None,
) -> dict:
    """Figures of each task, or {"skipped": reason}; writes a grid of samples a task to ``grids``.

    Values of single examples are added to ``each``, as "TASK/NAME".
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
            draw_grid(outcome).save(grids / f"{name}.png")
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
    names = [f.name for f in dataclasses.fields(Settings)]
    settings = Settings(**{n: tuple(v) if isinstance(v := getattr(args, n), list) else v for n in names})
    if args.all_subsets and settings.limit is None:
        settings = dataclasses.replace(settings, limit=SUBSET_EXAMPLES)
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(args.checkpoint, device=args.device)
    judge = Judge.from_pretrained(args.judge, pipe.device) if args.judge else None
    examples = read_examples(args.data, pipe)
    segmenter = Segmenter.from_pretrained(args.segmenter, pipe.device) if args.segmenter else None
    captions, photos = read_training_data(args.train, pipe) if args.train else ((), None)
    ev = Evaluation(pipe, examples, settings, judge, captions, segmenter, photos)
    results = measure(ev, args)
    return results | {
        "checkpoint": Path(args.checkpoint).name,
        "data": Path(args.data).name,
        "device": _device_name(pipe.device),
        "examples": len(ev.rows),
        "image_size": ev.size,
        "judge": judge.facts if judge else None,
        "segmenter": segmenter.facts if segmenter else None,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
        "torch": torch.__version__,
        "white_rule_iou_on_photos": or_reason(lambda: ev.white_rule_iou),
    }


def measure(ev: Evaluation, args: argparse.Namespace) -> dict:
    """{"subsets": ...} or {"tasks": ...}, as asked for."""
    if not args.all_subsets:
        return {"tasks": evaluate(ev, args.tasks, Path(args.grids) if args.grids else None)}
    try:
        return {"subsets": all_subsets(ev)}
    except Skip as reason:
        raise ValueError(f"subsets cannot be compared: {reason}.") from None


def read_examples(path: str, pipe: Pipeline) -> Examples:
    """The data set, with the embeddings of its photos and captions if the model knows embeddings."""
    examples = _with_photos(read_parquet(path, pipe.modalities.values(), DataConfig()), path)
    if "embedding" in pipe.modalities and "embedding" not in examples.stored and pipe.embedder is not None:
        size = pipe.modalities["image"].shape[-1]
        add_embeddings(examples, "embedding", "image", pipe.embedder, size)
    return examples


def read_training_data(path: str, pipe: Pipeline) -> tuple[list[str], torch.Tensor]:
    """Captions and photos (n, 3, H, W) uint8 that the model was trained with."""
    examples = _with_photos(read_parquet(path, [pipe.modalities["image"]], DataConfig()), path)
    return examples.captions, examples.stored["image"]


def _with_photos(examples: Examples, path: str) -> Examples:
    if "image" not in examples.stored:
        raise ValueError(f"{path} has no photo in a column 'image'; rename the column that holds them.")
    return examples


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.evaluate", description=__doc__.split("\n")[0])
    default = Settings()
    parser.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    parser.add_argument("--data", required=True, help="Parquet file of examples that were not trained on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument(
        "--judge", help="folder of an independent classifier, see mmdiff/evaluation/observers"
    )
    parser.add_argument("--segmenter", help="folder of an independent one, see mmdiff/evaluation/observers")
    parser.add_argument("--train", help="Parquet file of the training data, for the tasks prompts and copies")
    parser.add_argument(
        "--all-subsets",
        action="store_true",
        help="measure every modality given every subset of the others, instead of the tasks",
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
    parser.add_argument(
        "--holes",
        nargs="+",
        choices=list(HOLES),
        default=list(default.holes),
        metavar="KIND",
        help=f"which kinds of holes, of {', '.join(HOLES)}",
    )
    parser.add_argument(
        "--repaint",
        type=int,
        default=default.repaint,
        help="also fill the holes by RePaint with so many resamples, the model untold (default: 0, not)",
    )
    parser.add_argument(
        "--classical",
        action=argparse.BooleanOptionalAction,
        default=default.classical,
        help="also fill the holes by Telea's method and by Navier-Stokes",
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="sampling steps")
    parser.add_argument(
        "--reading-steps", type=int, default=default.reading_steps, help="steps where a whole photo is given"
    )
    parser.add_argument(
        "--filling-steps", type=int, help="steps where a photo has holes (default: as many as --steps)"
    )
    parser.add_argument(
        "--filling-guidance",
        type=float,
        default=default.filling_guidance,
        help="how strongly holes follow the known pixels; 1 = off",
    )
    parser.add_argument("--batch", type=int, default=default.batch, help="samples at a time")
    parser.add_argument(
        "--limit",
        type=int,
        help=f"use only this many examples (default: all, {SUBSET_EXAMPLES} with --all-subsets)",
    )
    parser.add_argument(
        "--samples", type=int, default=default.samples, help="pictures to generate at most a task"
    )
    parser.add_argument("--prompts", type=int, default=default.prompts, help="texts of the task prompts")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default=default.sampler)
    parser.add_argument("--eta", type=float, default=default.eta, help="fresh noise in each step, 0 to 1")
    parser.add_argument(
        "--guidance",
        type=float,
        default=default.guidance,
        help="for pictures made from a label, a mask or a text; 1 = off",
    )
    parser.add_argument(
        "--bound-draws", type=int, default=default.bound_draws, help="random times an example"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
