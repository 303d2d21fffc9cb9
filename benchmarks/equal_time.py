"""Variants of a training at equal time: what they reach on validation photos after so many seconds of work.

    python benchmarks/equal_time.py configs/butterflies-cpu.toml --out docs/results/equal-time.json \
        --variant "as it is" --variant "faster: optim.lr=2e-3" --variant "wide: model.width=384 model.depth=5"

All train on the same examples, in turn, a slice of time each, so that a change of the machine's pace meets
all of them. The losses are those of the averaged weights, by term; a variant may change options of [model]
and [optim], but not what the terms mean.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.study import CPU, command, write
from mmdiff.checkpoint import build_model, save_checkpoint
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder, training_data, validation_data
from mmdiff.data.examples import Examples
from mmdiff.training.dry_run import count
from mmdiff.training.processes import Processes
from mmdiff.training.trainer import Trainer

SLICE = 20.0  # seconds
POINTS = 6  # validations of each variant


def changed(config: TrainConfig, variant: str) -> tuple[str, TrainConfig]:
    """ "NAME: part.option=value …", a value as in TOML -> the name and the configuration with them.

    Raises ValueError for what is no option.
    """
    name, _, changes = variant.partition(":")
    for change in shlex.split(changes):
        key, _, value = change.partition("=")
        part, _, option = key.partition(".")
        if part not in ("model", "optim") or not hasattr(getattr(config, part), option):
            raise ValueError(f"{change!r} sets no option of [model] or [optim]; write optim.lr=2e-3.")
        parsed = tomllib.loads(f"value = {value}")["value"]
        config = replace(config, **{part: replace(getattr(config, part), **{option: parsed})})
    return name.strip(), config


@dataclass
class Run:
    """One variant: its trainer, the seconds of its training so far, and what was measured."""

    name: str
    trainer: Trainer
    seconds: float
    points: list[dict[str, float]]

    def train(self, until: float) -> None:
        """Train until so many seconds have been spent on it."""
        started = time.perf_counter() - self.seconds
        while self.seconds < until:
            self.trainer.train_step()
            self.seconds = time.perf_counter() - started

    def measure(self, val: Examples) -> None:
        """The losses now."""
        terms = {name: round(value, 5) for name, value in self.trainer.validate(val).items()}
        self.points.append({"seconds": round(self.seconds), "images": self.trainer.images, **terms})
        print(self.name, self.points[-1], flush=True)


def examples_of(configs: dict[str, TrainConfig]) -> tuple[dict[int, Examples], Examples]:
    """Training examples by size of a patch, as encodings are stored in patches, and those of validation.

    Raises ValueError if they cannot be read.
    """
    train: dict[int, Examples] = {}
    for config in {config.model.patch_size: config for config in configs.values()}.values():
        model = build_model(config.model)
        model.load_pretrained("checkpoints")
        embedder = make_embedder(config, None, CPU)
        train[config.model.patch_size] = training_data(config, model, embedder, Processes(), 1)
    return train, validation_data(config, model, embedder)


def race(
    configs: dict[str, TrainConfig],
    train: dict[int, Examples],
    val: Examples,
    seconds: float,
    compiled: bool = True,
) -> list[Run]:
    """Train all for so many seconds each, in slices by turns; compiling is not counted.

    train: of `examples_of`.
    """
    runs = []
    for name, config in configs.items():
        trainer = Trainer(config, train[config.model.patch_size], CPU, compiled)
        trainer.load_pretrained("checkpoints")
        trainer.train_step()
        runs.append(Run(name, trainer, 0.0, []))
    slices = max(1, round(seconds / SLICE))
    marks = {round(slices * (k + 1) / POINTS) for k in range(POINTS)}
    for k in range(1, slices + 1):
        for run in runs:
            run.train(seconds * k / slices)
        if k in marks:
            for run in runs:
                run.measure(val)
    return runs


def described(run: Run, variant: str) -> dict[str, Any]:
    """A run for JSON."""
    batch = run.trainer.config.optim.batch_size
    return {
        "name": run.name,
        "changes": variant.partition(":")[2].strip(),
        "parameters": count(run.trainer.model),
        "images_per_second": round((run.trainer.images - batch) / run.seconds, 1),
        "points": run.points,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="TOML file of a training configuration")
    parser.add_argument("--variant", action="append", required=True, help="NAME: part.option=value …")
    parser.add_argument("--seconds", type=float, default=600, help="of training, each (%(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for a checkpoint of every variant")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    try:
        config = load_train_config(args.config)
        configs = dict(changed(config, variant) for variant in args.variant)
        train, val = examples_of(configs)
    except ValueError as error:
        sys.exit(f"error: {error}")
    runs = race(configs, train, val, args.seconds)
    for run in runs if args.keep else ():
        save_checkpoint(run.trainer.ema.model, args.keep / run.name.replace(" ", "-"))
    report = {
        "command": command("equal_time", arguments),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "runs": [described(run, variant) for run, variant in zip(runs, args.variant, strict=True)],
    }
    write(report, args.out)


if __name__ == "__main__":
    main()
