"""Generate from the command line: `python -m mmdiff.sample CHECKPOINT --given label="Apple Golden 2"`.

Writes each sample's modalities as files, and numbers and settings as JSON beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdiff.request import SAMPLERS, Request

if TYPE_CHECKING:
    from mmdiff.pipeline import Output, Pipeline


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.sample", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    parser.add_argument(
        "--given",
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="image=FILE, mask=FILE (class numbers or colours), label=NAME or its number, embedding=TEXT or "
        "FILE of a photo",
    )
    parser.add_argument(
        "--wanted", nargs="*", default=[], metavar="NAME", help="default: everything not given"
    )
    parser.add_argument("--known-pixels", help="black and white picture, white where the given image is kept")
    parser.add_argument("--out", default="samples", help="folder for the results (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="network calls (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first sample; the next ones count up")
    parser.add_argument("--num-samples", type=int, default=4, help="default: %(default)s")
    parser.add_argument(
        "--guidance",
        nargs="+",
        default=["1"],
        metavar="[NAME=]NUMBER",
        help="guidance scale, of all given modalities or by name, as in mask=1.5; 1 is off",
    )
    parser.add_argument(
        "--sample-first",
        nargs="*",
        default=[],
        metavar="NAME",
        help="sample these early, while the image is still noise; the others follow them as if given",
    )
    parser.add_argument(
        "--leads",
        nargs="*",
        metavar="NAME=NUMBER",
        help="what is decided first, as in label=0.5 mask=0.2; default: as the checkpoint was trained",
    )
    parser.add_argument("--sampler", default="ddim", help=f"{', '.join(SAMPLERS)} (default: %(default)s)")
    parser.add_argument(
        "--eta", type=float, default=0.0, help="fresh noise of ddim, 0 to 1 (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser.parse_args(arguments)


def parse_given(pairs: list[str]) -> dict[str, str]:
    """["name=value", ...] -> dictionary."""
    given: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not value:
            raise ValueError(f"--given {pair!r} is not of the form NAME=VALUE, such as label=3.")
        given[name] = value
    return given


def as_class(text: str, classes: Sequence[str]) -> str | int:
    """A class by name or by number; where names are numbers, too, the name comes first."""
    from mmdiff.modalities.base import class_index

    return int(text) if text.isdecimal() and class_index(text, classes) is None else text


def parse_numbers(option: str, words: list[str], example: str) -> dict[str, float]:
    """["3"] -> {"": 3.0}, ["mask=1.5", ...] -> {"mask": 1.5, ...}."""
    numbers: dict[str, float] = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            numbers[name] = float(number)
        except ValueError:
            raise ValueError(f"{option} {word!r}: {number!r} is no number; write {example}.") from None
    return numbers


def parse_guidance(words: list[str]) -> float | dict[str, float]:
    """["3"] -> 3.0, ["mask=1.5", ...] -> {"mask": 1.5, ...}."""
    scales = parse_numbers("--guidance", words, "3 or mask=1.5")
    if "" in scales and len(words) > 1:
        raise ValueError(f"--guidance {' '.join(words)}: give one number for all, or each with its name.")
    return scales[""] if "" in scales else scales


def write(output: Output, pipe: Pipeline, folder: Path, settings: dict[str, Any]) -> list[Path]:
    """Write pictures as PNG, numbers and the texts nearest to embeddings as JSON; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    results: dict[str, Any] = {"settings": settings, "seconds": output.seconds}
    for name, values in output.values.items():
        exported = [pipe.modalities[name].export(value) for value in values]
        for k, (pictures, _) in enumerate(exported):
            for suffix, picture in pictures.items():
                written.append(folder / f"{k:02d}_{name}{suffix}.png")
                picture.save(written[-1])
        numbers = [number for _, number in exported if number is not None]
        if numbers:
            results[name] = numbers
        if pipe.modalities[name].takes_text and pipe.can_describe:
            results["nearest"] = [description.as_dict() for description in pipe.describe(values)]
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return [*written, folder / "results.json"]


def make_request(args: argparse.Namespace, pipe: Pipeline) -> Request:
    """The request that the arguments describe. Raises ValueError for values of the wrong form."""
    from mmdiff.images import read, warn
    from mmdiff.known_pixels import read_known_pixels

    given: dict[str, Any] = dict(parse_given(args.given))
    for name in given.keys() & pipe.modalities.keys():
        if pipe.modalities[name].form == "class":
            given[name] = as_class(given[name], pipe.modalities[name].classes)
        elif pipe.modalities[name].takes_text and os.path.isfile(given[name]):
            given[name] = Path(given[name])  # of a photo
    size, known, anchor = pipe.model.config.image_size, None, pipe.model.anchor
    if args.known_pixels:
        photo = read(given[anchor], "photo", photo=True) if anchor in given else None
        known = read_known_pixels(args.known_pixels, size, photo and photo.size)
        if photo:
            given[anchor] = photo.image
            warn(photo.notes)
    return Request(
        given=given,
        wanted=args.wanted,
        known_pixels=known,
        guidance_scale=parse_guidance(args.guidance),
        sample_first=args.sample_first,
        leads=None if args.leads is None else parse_numbers("--leads", args.leads, "label=0.5"),
        steps=args.steps,
        seed=args.seed,
        num_samples=args.num_samples,
        sampler=args.sampler,
        eta=args.eta,
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    from tqdm import tqdm

    from mmdiff.pipeline import Pipeline

    try:
        pipe = Pipeline.from_pretrained(args.checkpoint, args.device)
        request = make_request(args, pipe)
        for step in tqdm(pipe.start(request), total=request.steps, unit="step"):
            output = step.output
        written = write(output, pipe, Path(args.out), vars(args))
    except (ValueError, OSError) as error:
        sys.exit(f"mmdiff.sample: {error}")
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
