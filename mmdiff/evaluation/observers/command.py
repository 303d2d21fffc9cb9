"""The command that trains, measures and saves an observer."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mmdiff.device import choose_device
from mmdiff.evaluation.observers.observer import WIDTHS, Observer, read_annotated
from mmdiff.files import CARD_FILE, write_text

TEMPLATE = Path(__file__).with_name("card.md")


def run(make: type[Observer], summary: str, argv: Sequence[str] | None = None) -> None:
    """Read the arguments, train an observer of that class, save it, and print the measured facts as JSON."""
    parser = argparse.ArgumentParser(prog=make.command(), description=summary)
    annotated = f"Parquet file with real training photos and {make.modality.kind}s"
    parser.add_argument("--data", required=True, help=annotated)
    parser.add_argument("--val", required=True, help="Parquet file to measure it on")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument(
        "--classes", help=f"class names, one a line (default: {make.class_file} beside --data)"
    )
    parser.add_argument("--epochs", type=int, default=make.epochs)
    parser.add_argument("--size", type=int, default=make.default_size, help="pixels; a multiple of 8")
    parser.add_argument(
        "--widths",
        type=int,
        nargs=3,
        default=WIDTHS,
        help="channels at a half, a quarter, an eighth of it",
    )
    parser.add_argument(
        "--reach", type=float, default=1.0, help="of the moves in training; 3 where there are few photos"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(argv)
    try:
        facts = _train_and_save(make, args)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(facts, indent=2, sort_keys=True))


def _train_and_save(make: type[Observer], args: argparse.Namespace) -> dict:
    classes = read_classes(args.classes or Path(args.data).parent / make.class_file)
    target = make.modality(make.modality.kind, args.size, patch_size=2, classes=classes)
    photos, val = (read_annotated(path, target) for path in (args.data, args.val))
    torch.manual_seed(args.seed)  # the initial weights
    observer = make(classes, args.size, args.widths).to(choose_device(args.device))
    observer.reach = args.reach
    start = time.perf_counter()
    observer.fit(photos, args.epochs, args.seed)
    observer.facts = {
        "classes": len(classes),
        "data": Path(args.data).name,
        "device": observer.device.type,
        "epochs": args.epochs,
        "reach": args.reach,
        "parameters": sum(p.numel() for p in observer.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "seed": args.seed,
        "size": args.size,
        "train_examples": len(photos),
        "val": Path(args.val).name,
    } | observer.measure(val)
    observer.save(args.out)
    write_text(Path(args.out) / CARD_FILE, card(observer))
    return observer.facts


def card(observer: Observer) -> str:
    """The README.md beside the weights, from the facts."""
    facts = {name: _listed(v) if isinstance(v, dict) else v for name, v in observer.facts.items()}
    facts["widths"] = " ".join(map(str, observer.widths))
    texts = {name: text.format(**facts) for name, text in observer.texts.items()}
    return TEMPLATE.read_text(encoding="utf-8").format(
        title=observer.noun.capitalize(), command=observer.command(), **facts, **texts
    )


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items()) or "none"


def read_classes(path: str | Path) -> list[str]:
    """Class names from a text file, one a line, in the order of their numbers."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no class list at {path}; give --classes a text file with one class name a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
