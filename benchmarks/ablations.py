"""Compare design choices at equal cost, each alone against one baseline.

    python benchmarks/ablations.py --train data/orchard/train.parquet --val data/orchard/val.parquet \
        --out docs/results/ablations.json
    python benchmarks/ablations.py --study scenes --config configs/scenes-cpu.toml \
        --train data/scenes/train.parquet --val data/scenes/val.parquet --judge benchmarks/judges/scenes \
        --out docs/results/scenes-study.json
    python benchmarks/ablations.py --study systems --train data/orchard/train.parquet \
        --val data/orchard/val.parquet --out docs/results/systems.json

Small models are trained from scratch for the same number of steps, from the same seeds and on the same
batches, and measured on the same validation examples with the same noise. Every finished run is stored at
once: started again, the study goes on where it was cut off.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.report import table
from mmdiff.batches import load_examples, make_embedder
from mmdiff.config import TrainConfig, load_train_config, to_dict
from mmdiff.data import Examples
from mmdiff.dry_run import measure
from mmdiff.evaluate import evaluate
from mmdiff.evaluation.core import Evaluation, Settings, mean
from mmdiff.judge import Judge
from mmdiff.model import MultiModalDiffusion
from mmdiff.pipeline import Pipeline
from mmdiff.trainer import Trainer

Change = Callable[[TrainConfig], TrainConfig]
CPU = torch.device("cpu")
SIZE = {"image_size": 32, "patch_size": 8, "width": 96, "depth": 4, "heads": 4, "refiner_width": 16}
SAME = ("data", "config", "evaluation")  # what all runs in a file have in common

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
    "repaint_lpips": "holes.blocks.fillings.repaint.lpips",
    "precision": "likeness.generated.precision",
    "recall": "likeness.generated.recall",
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration that differs from the baseline's by ``change``, and what it is trained on.

    annotated: name of the modality that every training example must have, if any.
    settings: of the evaluation, where they differ from the baseline's.
    tasks: what it can be measured on; None: on everything.
    """

    change: Change = lambda config: config
    annotated: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] | None = None

    def train(self, config: TrainConfig, examples: Examples) -> Trainer:
        """The trained model of ``config``, which `change` has made."""
        if self.annotated:
            examples = examples.take(examples.present[self.annotated].nonzero()[:, 0])
        trainer = Trainer(config, examples, CPU)
        trainer.load_pretrained("checkpoints")
        while trainer.images < config.optim.images:
            trainer.train_step()
        return trainer


def model_with(**options: Any) -> Change:
    """Other options of the model."""
    return lambda config: dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


def tasks_with(**options: Any) -> Change:
    """Other shares of the tasks."""
    return lambda config: dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, **options))


def weights(family: str) -> Change:
    """Another weight family for everything but the anchor."""

    def change(config: TrainConfig) -> TrainConfig:
        modalities = (dataclasses.replace(m, weights=family) for m in config.model.modalities)
        return model_with(modalities=tuple(modalities))(config)

    return change


def pair(name: str) -> Change:
    """The anchor and one other modality alone."""

    def change(config: TrainConfig) -> TrainConfig:
        anchor, *others = config.model.modalities
        return model_with(modalities=(anchor, *(m for m in others if m.name == name)))(config)

    return change


def alone(name: str | None = None, **tasks: Any) -> Change:
    """The anchor, and one other modality if ``name`` is given, in other shares of the tasks."""

    return lambda config: tasks_with(**tasks)(pair(name or "")(config))


def pixels(config: TrainConfig) -> TrainConfig:
    """Pixels in the place of latents, for as many images as make the same number of operations.

    Squared errors of pixels are a fifth as large, and so are the weights of the other terms.
    """
    anchor, *others = config.model.modalities
    others = [dataclasses.replace(m, loss_weight=m.loss_weight / 5, options=_fine(m.options)) for m in others]
    anchor = dataclasses.replace(anchor, kind="image", options={})
    changed = model_with(modalities=(anchor, *others), refiner_width=32)(config)
    before, after = (measure(MultiModalDiffusion(c.model)) for c in (config, changed))
    images = round(config.optim.images * before.step / after.step)
    return dataclasses.replace(changed, optim=dataclasses.replace(config.optim, images=images))


def _fine(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "stride"}


ONE_CALL = {"steps": 1}
READ = {"always": ("image",), "holes": 0.0, "absent": 0.0, "one_call": True}
STUDIES: dict[str, dict[str, Variant]] = {
    "choices": {
        "baseline": Variant(),
        "weights ramp": Variant(weights("ramp")),
        "weights none": Variant(weights("none")),
        "shared channels": Variant(model_with(channels="shared")),
        "no flags": Variant(model_with(flags=False)),
        "self-conditioning": Variant(model_with(self_conditioning=True)),
        "image + mask": Variant(pair("mask")),
        "image + label": Variant(pair("label")),
        "image + embedding": Variant(pair("embedding")),
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
    "systems": {
        "ours, all tasks": Variant(),
        "reconstruction only": Variant(
            alone(always=("image",), holes=1.0, one_call=True), settings=ONE_CALL, tasks=("holes",)
        ),
        "diffusion of photos, RePaint": Variant(
            alone(never=("image",)), settings={"repaint": 10}, tasks=("holes", "likeness")
        ),
        "diffusion for holes only": Variant(alone(always=("image",), holes=1.0), tasks=("holes",)),
        "diffusion of photos, with and without holes": Variant(alone(), tasks=("holes", "likeness")),
        "segmenter": Variant(alone("mask", never=("mask",), **READ), tasks=("mask_from_image",)),
        "classifier": Variant(alone("label", never=("label",), **READ), tasks=("label_from_image",)),
    },
}


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all runs share: data, judge, embedder, and how to measure."""

    train: Examples
    val: Examples
    judge: Judge
    embedder: Any
    settings: Settings

    @property
    def photos(self) -> Tensor:
        """The training photos in the form that `Evaluation` takes them."""
        return self.train.stored["image"]


def run(variant: Variant, config: TrainConfig, bench: Bench) -> dict[str, Any]:
    """Train one model and measure it; seconds are CPU time, as other work may share the machine."""
    start = time.process_time()
    trainer = variant.train(config, bench.train)
    trained = time.process_time()
    settings = dataclasses.replace(bench.settings, **variant.settings)
    pipe = Pipeline(trainer.ema.model, CPU, bench.embedder)
    ev = Evaluation(pipe, bench.val, settings, bench.judge, train_photos=bench.photos)
    tasks = variant.tasks or sorted({path.split(".")[0] for path in FIGURES.values()})
    results = evaluate(ev, tasks)
    return {
        "figures": figures(results),
        "validation": {name: round(value, 5) for name, value in trainer.validate(bench.val).items()},
        "images": trainer.images,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "train_cpu_seconds": round(trained - start, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def figures(results: dict[str, Any]) -> dict[str, float]:
    """The figures that the model has modalities for."""
    found = {}
    for name, path in FIGURES.items():
        value = reduce(lambda tree, key: tree.get(key, {}), path.split("."), results)
        if isinstance(value, (int, float)):
            found[name] = round(value, 5)
    return found


def summary(runs: Sequence[dict[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of every number in a part of the runs."""
    found = {}
    for name in runs[0][part]:
        values = [one[part][name] for one in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": round(statistics.fmean(values), 5), "std": round(spread, 5)}
    return found


def study(
    variants: Mapping[str, Variant],
    base: TrainConfig,
    bench: Bench,
    seeds: int,
    out: Path,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Run what is missing in the file ``out``, seed by seed, and return all of it.

    Raises ValueError if the file holds runs that were made otherwise.
    """
    fixed = {"config": to_dict(base), "evaluation": dataclasses.asdict(bench.settings)}
    fixed = json.loads(json.dumps(facts | fixed))
    report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else fixed | {"variants": {}}
    changed = ", ".join(name for name in SAME if report.get(name) != fixed.get(name))
    if changed:
        raise ValueError(f"{out} was made with another {changed}; remove it or give another --out.")
    report |= fixed
    for seed in range(seeds):
        for name, variant in variants.items():
            entry = report["variants"].setdefault(name, {"runs": {}})
            if str(seed) in entry["runs"]:
                continue
            config = variant.change(base)
            config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, seed=seed))
            entry["runs"][str(seed)] = found = run(variant, config, bench)
            runs = list(entry["runs"].values())
            entry |= {part: summary(runs, part) for part in ("figures", "validation")}
            write(report, out)
            shown = ", ".join(f"{n} {v:.4g}" for n, v in found["figures"].items())
            print(f"{name}, seed {seed}, {found['cpu_seconds']:.0f} s of CPU: {shown}", flush=True)
    return report


def write(report: dict[str, Any], out: Path) -> None:
    """Replace the file in one move, so that an interruption leaves the old or the new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(out.suffix + ".part")
    part.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(out)


def photos_judged(base: TrainConfig, bench: Bench) -> float:
    """Share of the real photos, at the models' size, that the judge names correctly."""
    pipe = Pipeline(MultiModalDiffusion(base.model), CPU, bench.embedder)
    ev = Evaluation(pipe, bench.val, bench.settings, bench.judge)
    real = ev.read(ev.having("image", "label"))
    return round(mean(ev.judged(real["image"]) == real["label"]), 4)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        base = load_train_config(args.config)
        optim = {"images": args.images, "warmup_images": args.images // 10, "lr": args.lr}
        base = dataclasses.replace(base, optim=dataclasses.replace(base.optim, **optim))
        base = base if args.study == "scenes" else model_with(**SIZE)(base)
        blueprint, embedder = MultiModalDiffusion(base.model), make_embedder(base, args.embedder, CPU)
        train, val = (load_examples(path, blueprint, base, embedder) for path in (args.train, args.val))
        settings = Settings(steps=args.steps, samples=args.examples, limit=args.examples, batch=128)
        bench = Bench(train, val, Judge.from_pretrained(args.judge), embedder, settings)
        names = {"train": Path(args.train).name, "val": Path(args.val).name, "judge": Path(args.judge).name}
        given = sys.argv[1:] if arguments is None else arguments
        facts = {
            "command": shlex.join(["python", "benchmarks/ablations.py", *given]),
            "data": names,
            "device": "cpu",
            "photos_judged": photos_judged(base, bench),
        }
        report = study(STUDIES[args.study], base, bench, args.seeds, Path(args.out), facts)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(table(report))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--study",
        choices=STUDIES,
        default="choices",
        help="choices of the model and whole systems, at a small size, or what is trained on, at the "
        "configuration's own",
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
