"""Does joint training help where annotations are scarce? One model of everything against readers alone.

    python benchmarks/scarce.py configs/butterflies-small.toml --train data/butterflies/train.parquet \
        --val data/butterflies/val.parquet --out docs/results/scarce.json

Of the labels and of the masks a share is kept, the rest is taken away; all photos stay. Ours learns from all
of them and what is kept, a classifier and a U-Net from the photos whose annotations were kept, with strong
augmentation, for equally many steps whatever the share. Ours sees photos with both annotations, with either
and with none equally often (`data.balance`), or it would hardly meet one in a hundred. A smaller share is a
part of a larger one. Captions name classes, so the model has no words here: they would tell it the labels
that were taken away.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.intervals import over_photos_and_seeds
from benchmarks.report import build
from benchmarks.study import (
    CPU,
    Bench,
    Variant,
    add_arguments,
    command,
    load_bench,
    model_with,
    optim_with,
    study,
    write,
)
from benchmarks.tables.studies import OURS, READERS, scarce_system
from mmdiff.checkpoint import build_model
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.data.examples import Examples
from mmdiff.evaluation import metrics
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.observers.observer import Observer, Photos
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline
from mmdiff.training.dry_run import count
from mmdiff.training.trainer import Trainer

READ = ("label", "mask")  # modalities whose annotations become scarce
SHARES = (0.01, 0.05, 0.2, 1.0)
BALANCE = 0.0  # photos are seen equally often by what is left of their annotations, however few have as much


def thinned(examples: Examples, share: float) -> Examples:
    """The examples with that share of the labels and of the masks, at least one of each.

    Their sources are what is left of their annotations.
    """
    present = dict(examples.present)
    for name in READ:
        rows = present[name].nonzero()[:, 0]
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        kept = rows[order[: max(1, round(share * len(rows)))]]
        present[name] = torch.zeros_like(present[name]).index_fill(0, kept, True)
    left = torch.stack([present[name] for name in READ], dim=1).tolist()
    return dataclasses.replace(examples, present=present, sources=[f"{READ}: {has}" for has in left])


def balanced_without_words(config: TrainConfig) -> TrainConfig:
    """The configuration without embeddings, in which annotated photos are seen more often."""
    modalities = tuple(m for m in config.model.modalities if m.kind != "embedding")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, balance=BALANCE))
    return model_with(modalities=modalities, embedder="")(config)


@dataclass(frozen=True)
class Scarce(Variant):
    """Ours, or a classifier and a U-Net, with a share of the annotations.

    Attributes:
        share: of the annotations that is kept. steps: of a reader's training, 0 for ours.
    """

    share: float = 1.0
    steps: int = 0

    def train(
        self, config: TrainConfig, examples: Examples, kept: Path | None = None
    ) -> tuple[Trainer, float]:
        return super().train(config, thinned(examples, self.share), kept)


def named(system: str, share: float) -> str:
    """The name of the variant."""
    return scarce_system(system, f"{share:.0%}")


def variants(shares: Sequence[float], steps: int) -> dict[str, Scarce]:
    """Both systems at every share."""
    return {
        named(system, share): Scarce(balanced_without_words, share=share, steps=steps * (system == READERS))
        for share in shares
        for system in (OURS, READERS)
    }


def run(variant: Scarce, config: TrainConfig, bench: Bench) -> dict[str, Any]:
    """Train one system and measure it, photo by photo."""
    start = time.process_time()
    if variant.steps:
        parameters, each = _read_alone(variant, config, bench)
        images = variant.steps * Classifier.batch_size
    else:
        trainer, _ = variant.train(config, bench.train, bench.kept)
        ev = bench.evaluation(trainer, variant)
        each = scores(ev, {name: ev.predict(name, _real(ev, name)["image"]) for name in READ})
        parameters, images = count(trainer.model), trainer.images
    seconds = round(time.process_time() - start, 1)
    return {
        "figures": {name: round(mean(values), 5) for name, values in each.items()},
        "validation": {},
        "each": {name: [round(value, 3) for value in values.tolist()] for name, values in each.items()},
        "images": images,
        "parameters": parameters,
        "train_cpu_seconds": seconds,
        "cpu_seconds": seconds,
    }


def _read_alone(variant: Scarce, config: TrainConfig, bench: Bench) -> tuple[int, dict[str, Tensor]]:
    """Parameters of a classifier and a U-Net together, and their scores."""
    examples, size = thinned(bench.train, variant.share), config.model.image_size
    ev = Evaluation(Pipeline(build_model(config.model), CPU), bench.val, bench.settings)
    torch.manual_seed(config.optim.seed)
    readers: dict[str, Observer] = {
        "label": Classifier(ev.pipe.modalities["label"].classes, size),
        "mask": Segmenter(ev.pipe.modalities["mask"].classes, size),
    }
    predicted = {}
    for name, reader in readers.items():
        photos = annotated(examples, name, size)
        reader.reach = 3.0
        steps_of_epoch = max(1, len(photos) // min(reader.batch_size, len(photos)))
        reader.fit(photos, math.ceil(variant.steps / steps_of_epoch), config.optim.seed)
        probabilities = reader.probabilities(_real(ev, name)["image"])
        predicted[name] = probabilities if name == "label" else probabilities.argmax(1)
    return sum(map(count, readers.values())), scores(ev, predicted)


def annotated(examples: Examples, name: str, size: int) -> Photos:
    """The photos that have the modality, their central squares of this many pixels."""
    rows, low = examples.present[name].nonzero()[:, 0], examples.margin // 2
    square = (..., slice(low, low + size), slice(low, low + size))
    targets = examples.stored[name][rows]
    return Photos(examples.stored["image"][rows][square], targets if name == "label" else targets[square])


def _real(ev: Evaluation, name: str) -> dict[str, Tensor]:
    return ev.read(ev.rows_with("image", name))


def scores(ev: Evaluation, predicted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of each photo whether its label is right, and the mean IoU of its mask: name -> (n,)."""
    counts, kept = ev.mask_counts(predicted["mask"], _real(ev, "mask")["mask"])
    overlap = metrics.iou(counts)[:, kept]
    return {
        "label_top1": (predicted["label"].argmax(1) == _real(ev, "label")["label"]).double(),
        "mask_iou": overlap.nanmean(1),
    }


def differences(report: Mapping[str, Any], shares: Sequence[float]) -> dict[str, Any]:
    """Ours minus the readers alone at each share: figure -> mean and interval over photos and seeds."""
    made = report["variants"]

    def values(system: str, share: float, figure: str) -> list[list[float]]:
        runs = made[named(system, share)]["runs"]
        return [runs[seed]["each"][figure] for seed in sorted(runs)]

    return {
        f"{share:.0%}": {
            figure: over_photos_and_seeds(
                np.subtract(*(values(system, share, figure) for system in (OURS, READERS)))
            )
            for figure in ("label_top1", "mask_iou")
        }
        for share in shares
    }


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        base = optim_with(images=args.images, warmup_images=args.images // 10)(load_train_config(args.config))
        settings = EvaluationSettings(batch=128)
        embedder = make_embedder(base, None, CPU)
        bench = load_bench(base, args.train, args.val, None, embedder, settings, args.keep)
        facts = {
            "command": command("scarce", arguments),
            "data": {"train": Path(args.train).name, "val": Path(args.val).name},
            "device": "cpu",
            "reader_steps": args.reader_steps,
        }
        wanted = variants(args.shares, args.reader_steps)
        report = study(wanted, base, bench, args.seeds, Path(args.out), facts, run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    report["scarce"] = differences(report, args.shares)
    write(report, Path(args.out))
    print(build(report).to_markdown())


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a small size for ours, such as configs/butterflies-small.toml")
    add_arguments(parser, threads=2)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the annotations kept")
    parser.add_argument("--images", type=int, default=160_000, help="budget of ours (%(default)s)")
    parser.add_argument("--reader-steps", type=int, default=3000, help="of each reader (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
