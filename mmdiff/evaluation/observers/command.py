"""The command that trains, measures and saves an observer."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdiff.device import choose_device
from mmdiff.evaluation.observers.observer import Observer

CARD = "README.md"


@dataclass(frozen=True)
class Command:
    """How one kind of observer is trained from the command line.

    Attributes:
        make: class of the observer. summary: of the help text. annotation: of the photos ("labels").
        class_file: beside the data, read without --classes. epochs, size: defaults.
        read: path, classes, size -> photos. train: observer, photos, epochs, seed; in place.
        measure: observer and validation photos -> facts. card: facts -> the README.md beside the weights.
    """

    make: type[Observer]
    summary: str
    annotation: str
    class_file: str
    epochs: int
    size: int
    read: Callable[[str, Sequence[str], int], Sized]
    train: Callable[[Any, Any, int, int], None]
    measure: Callable[[Any, Any], dict]
    card: Callable[[dict], str]

    def run(self, argv: Sequence[str] | None = None) -> None:
        """Read the arguments, train, and print the measured facts as JSON."""
        parser = argparse.ArgumentParser(prog=self.make.command, description=self.summary)
        parser.add_argument(
            "--data", required=True, help=f"Parquet file with real training photos and {self.annotation}"
        )
        parser.add_argument("--val", required=True, help="Parquet file to measure it on")
        parser.add_argument("--out", required=True, help="folder to write")
        parser.add_argument(
            "--classes", help=f"class names, one a line (default: {self.class_file} beside --data)"
        )
        parser.add_argument("--epochs", type=int, default=self.epochs)
        parser.add_argument("--size", type=int, default=self.size, help="pixels; a multiple of 8")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
        args = parser.parse_args(argv)
        try:
            facts = self._train_and_save(args)
        except ValueError as error:
            parser.exit(2, f"error: {error}\n")
        print(json.dumps(facts, indent=2, sort_keys=True))

    def _train_and_save(self, args: argparse.Namespace) -> dict:
        classes = read_classes(args.classes or Path(args.data).parent / self.class_file)
        photos, val = (self.read(path, classes, args.size) for path in (args.data, args.val))
        torch.manual_seed(args.seed)  # the initial weights
        observer = self.make(classes, args.size).to(choose_device(args.device))
        start = time.perf_counter()
        self.train(observer, photos, args.epochs, args.seed)
        observer.facts = {
            "classes": len(classes),
            "data": Path(args.data).name,
            "device": next(observer.parameters()).device.type,
            "epochs": args.epochs,
            "parameters": sum(p.numel() for p in observer.parameters()),
            "seconds": round(time.perf_counter() - start, 1),
            "seed": args.seed,
            "size": args.size,
            "train_examples": len(photos),
            "val": Path(args.val).name,
        } | self.measure(observer, val)
        observer.save(args.out)
        (Path(args.out) / CARD).write_text(self.card(observer.facts), encoding="utf-8")
        return observer.facts


def read_classes(path: str | Path) -> list[str]:
    """Class names from a text file, one a line, in the order of their numbers."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no class list at {path}; give --classes a text file with one class name a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
