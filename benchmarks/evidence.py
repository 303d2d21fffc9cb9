"""Is one model for everything as good as models for one thing? Systems of one size at equal training cost.

    python benchmarks/evidence.py configs/evidence-orchard.toml --judge benchmarks/judges/orchard \
        --train data/orchard/train.parquet --val data/orchard/val.parquet \
        --out docs/results/evidence-orchard.json --plot docs/evidence_orchard.png

Every system has the same backbone, sees as many training images and is measured on the same photos with the
same holes and noise. A second model of ours sees as many images as the four models for one task together.
Finished runs are kept, so that a study that was cut off continues. `--keep FOLDER` also keeps the trained
models, which can then be measured again without training. `--remedies` compares changes to ours instead.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.repaint import RePaintEvaluation
from benchmarks.report import build
from benchmarks.study import (
    CPU,
    Bench,
    Change,
    Variant,
    alone,
    command,
    load_bench,
    model_with,
    optim_with,
    photos_judged,
    study,
    tasks_with,
    trained_and_measured,
    write,
)
from benchmarks.systems import MaskedAutoencoder, OneCall
from benchmarks.tables.evaluation import look_up
from benchmarks.tables.studies import CLASSICAL, COMPARISONS, LONGER, OURS, lpips_by_kind
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.evaluation.classical_inpainting import CLASSICAL_METHODS
from mmdiff.evaluation.holes import HOLES, interval
from mmdiff.evaluation.settings import EvaluationSettings

PHOTOS = {"joint": 0.0, "given": 1.0, "holes": 1.0}  # every photo is given, with holes


@dataclass(frozen=True)
class System(Variant):
    """A variant with its method to fill holes.

    Attributes:
        fills: "ours": the known pixels are conditioning; "repaint": RePaint without conditioning; "": none.
    """

    fills: str = "ours"


OTHER = {"classical": False}  # classical fillings are the same beside every system
UNGUIDED = OTHER | {"filling_guidance": 1.0}  # guidance needs training with and without known pixels
ONE_CALL = UNGUIDED | {"steps": 1, "filling_steps": 1}


def reader(name: str) -> System:
    """Trained to read one modality off whole photos, in one call."""
    change = alone(name, only_reading=1.0, absent=0.0)
    return System(change, settings=ONE_CALL, tasks=(f"{name}_from_image",), fills="")


def weighed(share: float) -> Change:
    """The losses of everything but the anchor times ``share``."""

    def change(config: TrainConfig) -> TrainConfig:
        anchor, *others = config.model.modalities
        others = (dataclasses.replace(m, loss_weight=m.loss_weight * share) for m in others)
        return model_with(modalities=(anchor, *others))(config)

    return change


def lighter_with_holes(config: TrainConfig) -> TrainConfig:
    """Other modalities weigh a sixteenth, and more of the examples have holes."""
    return tasks_with(**MORE_HOLES)(weighed(1 / 16)(config))


def four_times(config: TrainConfig) -> TrainConfig:
    """As many images as the four models for one thing see together."""
    return optim_with(images=4 * config.optim.images)(config)


def longer(config: TrainConfig) -> TrainConfig:
    """Four times the images, lighter weights and more holes."""
    return four_times(lighter_with_holes(config))


MORE_HOLES = {"joint": 0.1, "given": 0.8, "holes": 0.9, "only_reading": 0.2}


# Commit 279370b is the last that can also make "a time of its own for each modality" of docs/results.
SYSTEMS: dict[str, System] = {
    OURS: System(),
    LONGER: System(longer, settings=OTHER),
    "reconstruction only": System(alone(**PHOTOS), settings=ONE_CALL, tasks=("holes",), trainer=OneCall),
    "masked autoencoder": System(
        alone(**PHOTOS), settings=ONE_CALL, tasks=("holes",), trainer=MaskedAutoencoder
    ),
    "diffusion of photos, RePaint": System(
        alone(given=0.0),
        settings=UNGUIDED,
        tasks=("holes", "likeness"),
        evaluation=RePaintEvaluation,
        fills="repaint",
    ),
    "diffusion for holes only": System(alone(**PHOTOS), settings=UNGUIDED, tasks=("holes",)),
    "diffusion of photos, holes as augmentation": System(
        alone(), settings=OTHER, tasks=("holes", "likeness")
    ),
    "segmenter": reader("mask"),
    "classifier": reader("label"),
    "embedding regression": reader("embedding"),
}


REMEDIES: dict[str, System] = {
    OURS: System(),
    "holes in 58 % of the examples, not 20": System(tasks_with(**MORE_HOLES)),
    "other modalities weigh a quarter": System(weighed(0.25)),
    "other modalities weigh a sixteenth": System(weighed(1 / 16)),
    "a sixteenth, and holes in 58 %": System(lighter_with_holes),
    "twice as many steps, of half the batch": System(optim_with(batch_size=16, lr=1e-3)),
    "times of little noise weigh more": System(optim_with(snr_cap=20.0)),
    "modalities left out in half of the examples": System(tasks_with(absent=0.5)),
    "four times the images": System(four_times),
    "four times the images, a sixteenth, and holes in 58 %": System(longer),
}
ALL_TASKS = (
    "holes",
    "likeness",
    "mask_from_image",
    "label_from_image",
    "embedding_from_image",
    "image_from_label",
    "joint",
)
# name of a figure -> where it stands in the results of `evaluate`
FIGURES = {
    "mask_iou": "mask_from_image.miou_pooled",
    "pixel_accuracy": "mask_from_image.pixel_accuracy",
    "label_top1": "label_from_image.top1",
    "label_nll": "label_from_image.nll",
    "label_ece": "label_from_image.ece",
    "embedding_cosine": "embedding_from_image.cosine",
    "embedding_recall@5": "embedding_from_image.recall@5",
    "judge_from_label": "image_from_label.judge_agreement",
    "judge_joint": "joint.judge_agreement",
    "precision": "likeness.generated.precision",
    "recall": "likeness.generated.recall",
    "frechet": "likeness.generated.frechet",
    "kernel": "likeness.generated.kernel",
}
FLOORS = {"precision", "recall", "frechet", "kernel"}  # also measured of training photos


def run(system: System, config: TrainConfig, bench: Bench) -> dict[str, Any]:
    """Train a system and measure it."""

    def describe(
        results: dict[str, Any], each: dict[str, Tensor], settings: EvaluationSettings
    ) -> dict[str, Any]:
        filled = {kind: each.get(f"holes/{kind}/{system.fills}") for kind in settings.holes}
        return {
            "figures": figures(results, system),
            "lpips": {kind: thousandths(lpips) for kind, lpips in filled.items() if lpips is not None},
            "classical": classical(results, each),
            "calls": calls(system, settings),
        }

    return trained_and_measured(system, config, bench, ALL_TASKS, describe)


def calls(system: System, settings: EvaluationSettings) -> int:
    """Calls of the network that fill a hole; guidance doubles them."""
    if system.fills == "repaint":
        return settings.steps * RePaintEvaluation.resamples
    return (settings.filling_steps or settings.steps) * (1 if settings.filling_guidance == 1 else 2)


def figures(results: Mapping[str, Any], system: System) -> dict[str, float]:
    """The figures that the system was measured on, of holes those of its own filling."""
    found = {name: look_up(results, path) for name, path in FIGURES.items()}
    for name in FLOORS:
        path = FIGURES[name].replace("generated", "training_photos")
        found[f"{name}_of_training_photos"] = look_up(results, path)
    for kind in HOLES:
        own = "" if system.fills == "ours" else f".fillings.{system.fills}"
        for metric in ("lpips", "psnr", "ssim"):
            found[f"{kind}_{metric}"] = look_up(results, f"holes.{kind}{own}.{metric}")
    return {name: round(v, 5) for name, v in found.items() if isinstance(v, (int, float))}


def classical(results: Mapping[str, Any], each: Mapping[str, Tensor]) -> dict[str, Any]:
    """LPIPS of every photo by classical fillings, where they were measured: kind -> filling -> values."""
    found: dict[str, Any] = {}
    for kind in results.get("holes", {}):
        if all(f"holes/{kind}/{name}" in each for name in CLASSICAL_METHODS):
            found[kind] = {name: thousandths(each[f"holes/{kind}/{name}"]) for name in CLASSICAL_METHODS}
    return found


def thousandths(values: Tensor) -> list[int]:
    return (values * 1000).round().long().tolist()


# -- comparisons -----------------------------------------------------------------------------------------


def compare(variants: Mapping[str, Any], name_of_ours: str = OURS) -> dict[str, dict[str, Any]]:
    """Ours against every other filling: name -> kind of hole -> LPIPS of both, ratio, difference.

    Each photo's LPIPS is averaged over seeds; the 95 % interval is of the bootstrap over photos, whose pairs
    share hole and noise.
    """
    ours = over_seeds(run["lpips"] for run in variants[name_of_ours]["runs"].values())
    others = {
        name: over_seeds(run["lpips"] for run in entry["runs"].values())
        for name, entry in variants.items()
        if name != name_of_ours
    }
    fixed = next(iter(variants[OURS]["runs"].values()))["classical"]
    for filling in CLASSICAL_METHODS:
        others[filling] = over_seeds([{kind: values[filling] for kind, values in fixed.items()}])
    return {
        name: {kind: _pair(ours[kind], theirs) for kind, theirs in by_kind.items() if kind in ours}
        for name, by_kind in others.items()
        if by_kind
    }


def over_seeds(runs: Any) -> dict[str, Tensor]:
    """LPIPS of each photo by kind of hole, the mean over seeds."""
    runs = list(runs)
    kinds = set.intersection(*(set(one) for one in runs)) if runs else set()
    return {
        kind: torch.tensor([one[kind] for one in runs], dtype=torch.float64).mean(0) / 1000
        for kind in HOLES
        if kind in kinds
    }


def _pair(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    return {
        "ours": round(ours.mean().item(), 4),
        "theirs": round(theirs.mean().item(), 4),
        "ratio": round((ours.mean() / theirs.mean()).item(), 3),
        "difference": {name: round(value, 4) for name, value in interval(ours - theirs).items()},
    }


CLASSICAL_LINES = {"mean": ":", "telea": "--", "navier_stokes": "-."}
HIDDEN = {"blocks10": 10, "blocks25": 25, "blocks": 50, "blocks75": 75, "blocks90": 90}  # per cent


def plot(report: Mapping[str, Any], path: Path) -> None:
    """LPIPS of every filling against the hidden share, and at one half against calls of the network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = iter(f"C{k}" for k in range(10) if k != 7)  # 7 is grey, as classical fillings are
    for name, values in lpips_by_kind(report["comparisons"]).items():
        points = [(share, values[kind]) for kind, share in HIDDEN.items() if kind in values]
        if not points:
            continue
        color = "0.4" if name in CLASSICAL else next(colours)
        style = {"linewidth": 3 if name in COMPARISONS else 1.2, "label": CLASSICAL.get(name, name)}
        if name in CLASSICAL:
            style |= {"linestyle": CLASSICAL_LINES[name], "markersize": 4}
        left.plot(*zip(*points, strict=True), marker="o", color=color, **style)
        runs = report["variants"].get(name, {}).get("runs")
        if runs and "blocks" in values:
            right.plot(next(iter(runs.values()))["calls"], values["blocks"], "o", color=color)
    left.set(xlabel="hidden pixels in blocks, %", yscale="log", title="holes of several sizes")
    right.set(xlabel="calls of the network", xscale="log", title="half of the pixels hidden")
    if left.lines:
        figure.legend(loc="outside right upper", fontsize="small")
    for axes in (left, right):
        axes.set(ylabel="LPIPS")
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        base = load_train_config(args.config)
        if args.images:
            base = optim_with(images=args.images)(base)
        settings = EvaluationSettings(
            steps=args.steps,
            filling_steps=args.filling_steps,
            filling_guidance=args.filling_guidance,
            samples=args.samples,
            holes=tuple(args.holes),
            eta=args.eta,
            batch=128,
        )
        embedder = make_embedder(base, args.embedder, CPU)
        bench = load_bench(base, args.train, args.val, args.judge, embedder, settings, args.keep)
        facts = {
            "command": command("evidence", arguments),
            "data": {"config": Path(args.config).stem, "train": Path(args.train).name},
            "device": "cpu",
            "photos_judged": photos_judged(base, bench),
        }
        wanted = REMEDIES if args.remedies else {name: SYSTEMS[name] for name in args.systems}
        report = study(wanted, base, bench, args.seeds, Path(args.out), facts, run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if OURS in report["variants"]:
        report["comparisons"] = compare(report["variants"])
        if LONGER in report["variants"]:
            report["longer_comparisons"] = compare(report["variants"], LONGER)
        write(report, Path(args.out))
        if args.plot:
            plot(report, args.plot)
    print(build(report).to_markdown())


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="one size for all systems, such as configs/evidence-orchard.toml")
    parser.add_argument("--train", required=True, help="Parquet file to train on")
    parser.add_argument("--val", required=True, help="Parquet file to measure on")
    parser.add_argument("--out", required=True, help="JSON file to write, continued if it is there")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--keep", type=Path, help="folder for trained models, to measure them again")
    parser.add_argument("--judge", required=True, help="folder of an independent judge")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument(
        "--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="SYSTEM"
    )
    parser.add_argument("--remedies", action="store_true", help="changes to ours instead of the systems")
    parser.add_argument("--holes", nargs="+", choices=list(HOLES), default=list(HOLES), metavar="KIND")
    parser.add_argument("--images", type=int, help="budget of each run (default: the configuration's)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each system")
    parser.add_argument("--samples", type=int, default=192, help="photos to fill, and pictures to generate")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps, and jumps of RePaint")
    parser.add_argument("--filling-steps", type=int, default=6, help="steps of the others in holes")
    parser.add_argument(
        "--filling-guidance",
        type=float,
        default=1.5,
        help="by the known pixels, where a system can be guided",
    )
    # As much as RePaint, whose jumps are random; without fresh noise errors of early steps stay.
    parser.add_argument("--eta", type=float, default=1.0, help="fresh noise in each step, 0 to 1")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
