"""The cost of one model for all modalities, and quality by the number of steps.

    python benchmarks/efficiency.py checkpoints/orchard --data data/orchard/val.parquet \
        --judge benchmarks/judges/orchard --out docs/results/orchard-efficiency.json \
        --plot docs/orchard_efficiency.png

One pass of the network for all modalities is timed against a pass of the same network for photos alone, and
against a pass of each of the models for one task that it replaces, in pairs, in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.engine import paired, seconds
from benchmarks.study import only, write
from benchmarks.tables.costs import FIGURES, GUIDED
from benchmarks.tables.evaluation import look_up
from mmdiff.checkpoint import build_model, load_config
from mmdiff.config import ModelConfig
from mmdiff.evaluate import evaluate, read_examples
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.network.conditioning import UNKNOWN
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import SAMPLERS
from mmdiff.training.dry_run import count, measure

STEPS = (5, 10, 20, 30, 50, 100)
TASKS = ("holes", "image_from_label", "joint")
FILLING_SAMPLER, FILLING_GUIDANCE = "ancestral", 1.5  # with which the page fills holes
# name of a figure -> where it stands in the results of `evaluate`
PATHS = {
    "hole_lpips": "holes.blocks.lpips",
    "judge_from_label": "image_from_label.judge_agreement",
    "judge_joint": "joint.judge_agreement",
}


class Pass:
    """One call of a network for a batch with nothing given, and its cost."""

    def __init__(self, config: ModelConfig, batch: int) -> None:
        self.model = build_model(config).eval()
        size = config.image_size
        flags = torch.full((batch, len(self.model.names)), UNKNOWN)
        self.condition = self.model.condition({}, flags, torch.zeros(batch, 1, size, size))
        self.z = torch.randn(batch, *self.model.z_shape)
        shape = (batch, len(self.model.names)) if self.model.has_levels else (batch,)
        self.levels = torch.zeros(shape)  # log-SNR of every modality, or of all of them in the first edition

    @torch.no_grad()
    def __call__(self) -> None:
        self.model(self.z, self.levels, self.condition)

    def facts(self) -> dict[str, int]:
        """Parameters, and operations of a pass for one sample."""
        return {"parameters": count(self.model), "operations": measure(self.model).forward}


def passes(config: ModelConfig, batch: int, rounds: int) -> dict[str, Any]:
    """All in one pass, against photos alone and against a model for each modality."""
    names = [m.name for m in config.modalities]
    joint, photos = Pass(config, batch), Pass(only(config), batch)
    single = {names[0]: photos} | {name: Pass(only(config, name), batch) for name in names[1:]}

    def all_single() -> float:
        return sum(seconds(one) for one in single.values())

    for one in (joint, *single.values()):
        one()  # warm
    whole, facts = joint.facts(), {name: one.facts() for name, one in single.items()}
    return {
        "modalities": names,
        "batch": batch,
        "joint": whole,
        "single": facts,
        "joint_against_photos": paired(lambda: seconds(joint), lambda: seconds(photos), rounds),
        "joint_against_all_single": paired(lambda: seconds(joint), all_single, rounds),
        "operations_against_photos": round(whole["operations"] / facts[names[0]]["operations"], 3),
        "parameters_against_all_single": round(
            whole["parameters"] / sum(f["parameters"] for f in facts.values()), 3
        ),
    }


def quality(ev: Evaluation, filling_guidance: float, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The figures of every sampler at every number of steps, on the same examples and noise.

    The page's default sampler for holes is also measured with guidance.
    """
    ways = [(name, name, 1.0, TASKS) for name in SAMPLERS]
    ways.append((GUIDED, FILLING_SAMPLER, filling_guidance, ("holes",)))
    points, plain = [], ev.settings
    for name, sampler, guidance, tasks in ways:
        for number in steps:
            ev.settings = dataclasses.replace(plain, sampler=sampler, steps=number, filling_guidance=guidance)
            results = evaluate(ev, tasks)
            found = {name: look_up(results, path) for name, path in PATHS.items()}
            kept = {name: round(v, 4) for name, v in found.items() if isinstance(v, (int, float))}
            points.append({"sampler": name, "steps": number} | kept)
            print(points[-1], flush=True)
    return points


def plot(report: dict[str, Any], path: Path) -> None:
    """Every figure against the number of steps, a line for each sampler."""
    from matplotlib.figure import Figure

    measured = [column for column in FIGURES if any(column[1] in point for point in report["quality"])]
    figure = Figure(figsize=(4 * len(measured), 3.4), layout="constrained")
    for axes, (text, name, _) in zip(
        figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True
    ):
        for sampler in dict.fromkeys(point["sampler"] for point in report["quality"]):
            points = [
                (p["steps"], p[name]) for p in report["quality"] if p["sampler"] == sampler and name in p
            ]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", label=sampler)
        axes.set(xlabel="steps", xscale="log", title=text)
        ticks = sorted({point["steps"] for point in report["quality"]})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        report: dict[str, Any] = {
            "checkpoint": Path(args.checkpoint).name,
            "data": Path(args.data).name,
            "device": f"{platform.processor() or platform.machine()}, CPU threads: {torch.get_num_threads()}",
            "torch": torch.__version__,
            "passes": passes(load_config(Path(args.checkpoint)), args.batch, args.rounds),
        }
        pipe = Pipeline.from_pretrained(args.checkpoint, device="cpu")
        settings = EvaluationSettings(samples=args.samples, guidance=args.guidance, classical=False)
        judge = Classifier.from_pretrained(args.judge)
        ev = Evaluation(pipe, read_examples(args.data, pipe), settings, judge)
        report["settings"] = dataclasses.asdict(settings)
        report["filling_guidance"] = args.filling_guidance
        report["quality"] = quality(ev, args.filling_guidance, args.steps)
    except ValueError as error:
        sys.exit(f"error: {error}")
    write(report, args.out)
    if args.plot:
        plot(report, args.plot)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--data", required=True, help="Parquet file of examples that were not trained on")
    parser.add_argument("--judge", required=True, help="folder of an independent judge")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), help="numbers of steps")
    parser.add_argument("--samples", type=int, default=96, help="pictures a figure")
    parser.add_argument("--guidance", type=float, default=2.0, help="for photos from labels")
    parser.add_argument(
        "--filling-guidance", type=float, default=FILLING_GUIDANCE, help="by the pixels around holes"
    )
    parser.add_argument("--batch", type=int, default=8, help="samples in a pass")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of timed passes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
