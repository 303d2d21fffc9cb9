"""Compare design choices at equal cost, each alone against one baseline.

    python benchmarks/ablations.py --train data/orchard/train.parquet --val data/orchard/val.parquet \
        --out docs/results/ablations.json
    python benchmarks/ablations.py --study scenes --config configs/scenes-cpu.toml \
        --train data/scenes/train.parquet --val data/scenes/val.parquet --judge benchmarks/judges/scenes \
        --images 24000 --lr 1e-3 --seeds 1 --out docs/results/scenes-study.json
    python benchmarks/ablations.py --study leads --config configs/butterflies-small.toml \
        --train data/butterflies/train.parquet --val data/butterflies/val.parquet \
        --judge benchmarks/judges/butterflies --images 60000 --lr 2e-3 --out docs/results/leads.json

Small models are trained from scratch for the same number of steps, from the same seeds and on the same
batches, and measured on the same validation examples with the same noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import build
from benchmarks.study import (
    CPU,
    Bench,
    Change,
    Variant,
    command,
    load_bench,
    model_with,
    optim_with,
    pair,
    photos_judged,
    study,
    tasks_with,
    trained_and_measured,
)
from benchmarks.tables.evaluation import look_up
from mmdiff.checkpoint import build_model
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.training.dry_run import measure

SIZE = {"image_size": 32, "patch_size": 8, "width": 96, "depth": 4, "heads": 4, "refiner_width": 16}

# name of a figure -> where it stands in the results of `evaluate`
FIGURES = {
    "mask_iou": "mask_from_image.miou",
    "label_top1": "label_from_image.top1",
    "judge_from_label": "image_from_label.judge_agreement",
    "judge_joint": "joint.judge_agreement",
    "joint_labels": "joint.distinct_labels",
    "embedding_cosine": "embedding_from_image.cosine",
    "hole_gain": "holes.blocks.gain",
    "hole_lpips": "holes.blocks.lpips",
    "hole_ssim": "holes.blocks.ssim",
    "precision": "likeness.generated.precision",
    "recall": "likeness.generated.recall",
}


def weights(family: str) -> Change:
    """Another weight family for everything but the anchor."""

    def change(config: TrainConfig) -> TrainConfig:
        modalities = (dataclasses.replace(m, weights=family) for m in config.model.modalities)
        return model_with(modalities=tuple(modalities))(config)

    return change


def leads(**by_name: float) -> Change:
    """Other leads than the configuration's; 0 for those that are not named."""

    def change(config: TrainConfig) -> TrainConfig:
        modalities = config.model.modalities
        others = tuple(dataclasses.replace(m, lead=by_name.get(m.name, 0.0)) for m in modalities)
        return model_with(modalities=others)(config)

    return change


def meaning(lead: float) -> Change:
    """The same lead for everything but the photo."""
    return leads(mask=lead, label=lead, embedding=lead)


def heavier(times: float) -> Change:
    """Heavier losses of everything but the photo."""

    def change(config: TrainConfig) -> TrainConfig:
        anchor, *others = config.model.modalities
        others = [dataclasses.replace(m, loss_weight=times * m.loss_weight) for m in others]
        return model_with(modalities=(anchor, *others))(config)

    return change


def pixels(config: TrainConfig) -> TrainConfig:
    """Pixels in the place of latents, for as many images as make the same number of operations.

    Squared errors of pixels are a fifth as large, and so are the weights of the other terms.
    """
    anchor, *others = config.model.modalities
    others = [dataclasses.replace(m, loss_weight=m.loss_weight / 5, options=_fine(m.options)) for m in others]
    anchor = dataclasses.replace(anchor, kind="image", options={})
    changed = model_with(modalities=(anchor, *others), refiner_width=32)(config)
    before, after = (measure(build_model(c.model)) for c in (config, changed))
    images = round(config.optim.images * before.step / after.step)
    return dataclasses.replace(changed, optim=dataclasses.replace(config.optim, images=images))


def _fine(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "stride"}


# Commit 279370b is the last that can also make "no flags" and "self-conditioning" of docs/results.
STUDIES: dict[str, dict[str, Variant]] = {
    "choices": {
        "baseline": Variant(),
        "weights ramp": Variant(weights("ramp")),
        "weights none": Variant(weights("none")),
        "shared channels": Variant(model_with(channels="shared")),
        "image + mask": Variant(pair("mask")),
        "image + label": Variant(pair("label")),
        "image + embedding": Variant(pair("embedding")),
    },
    "leads": {
        "label and words 0.5, mask 0.2": Variant(),
        "none": Variant(meaning(0.0)),
        "all 0.15": Variant(meaning(0.15)),
        "all 0.3": Variant(meaning(0.3)),
        "all 0.5": Variant(meaning(0.5)),
        "the photo 0.3": Variant(leads(image=0.3)),
        "no random leads in training": Variant(tasks_with(other_leads=0.0)),
        "none, no random leads": Variant(lambda c: tasks_with(other_leads=0.0)(meaning(0.0)(c))),
        "other losses eight times as heavy": Variant(heavier(8.0)),
    },
    "scenes": {
        "all photos": Variant(),
        "only photos with a mask": Variant(annotated="mask"),
        "only photos with a label": Variant(annotated="label"),
        "pixels instead of latents": Variant(pixels),
        "what is given beside its noisy version, not in place": Variant(model_with(in_place=False)),
        "tokens without convolutions ahead of them": Variant(model_with(stem_depth=0)),
        "known pixels without a reader": Variant(model_with(reader_depth=0)),
        "what photos lack never asked for": Variant(tasks_with(ask_for_lacking=False)),
        "photos read at any time": Variant(tasks_with(reading=0.0)),
    },
}


def run(variant: Variant, config: TrainConfig, bench: Bench) -> dict[str, Any]:
    """Train one model and measure it."""
    tasks = sorted({path.split(".")[0] for path in FIGURES.values()})
    return trained_and_measured(variant, config, bench, tasks, figures)


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The figures that the model has modalities for."""
    found = {name: look_up(results, path) for name, path in FIGURES.items()}
    return {name: round(value, 5) for name, value in found.items() if isinstance(value, (int, float))}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        optim = optim_with(images=args.images, warmup_images=args.images // 10, lr=args.lr)
        base = optim(load_train_config(args.config))
        base = model_with(**SIZE)(base) if args.study == "choices" else base
        settings = EvaluationSettings(steps=args.steps, samples=args.examples, limit=args.examples, batch=128)
        embedder = make_embedder(base, args.embedder, CPU)
        bench = load_bench(base, args.train, args.val, args.judge, embedder, settings)
        names = {"train": Path(args.train).name, "val": Path(args.val).name, "judge": Path(args.judge).name}
        facts = {
            "command": command("ablations", arguments),
            "data": names,
            "device": "cpu",
            "photos_judged": photos_judged(base, bench),
        }
        report = study(STUDIES[args.study], base, bench, args.seeds, Path(args.out), facts, run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(build(report).to_markdown())


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study",
        choices=STUDIES,
        default="choices",
        help="choices of the model at a small size; what leads, or is trained on, at the configuration's own",
    )
    parser.add_argument("--train", required=True, help="Parquet file to train on")
    parser.add_argument("--val", required=True, help="Parquet file to measure on")
    parser.add_argument("--out", required=True, help="JSON file to write, continued if it is there")
    parser.add_argument("--config", default="configs/orchard-cpu.toml", help="modalities and optimiser")
    parser.add_argument("--judge", default="benchmarks/judges/orchard", help="folder of an independent judge")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--images", type=int, default=30_000, help="budget of each run")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--examples", type=int, default=245, help="examples, and pictures to judge")
    parser.add_argument("--steps", type=int, default=12, help="sampling steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
