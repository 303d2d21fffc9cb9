"""How much noise does the network remove from photos and masks, beside the best linear denoiser?

    python benchmarks/noise_levels.py checkpoints/butterflies --data data/butterflies/val.parquet \
        --train data/butterflies/train.parquet --out docs/results/butterflies-levels.json

The linear one is the Wiener filter of the training examples' mean and covariance. Where the network is hardly
better, it knows little beyond these: under much noise that is shapes, under little it is detail. One modality
alone is noisy; all others are ignored, or the label of a photo is given as well. Errors are also taken of the
coarsest frequencies alone, which outlines and layout are made of.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.study import CPU, command, write
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples
from mmdiff.device import fast_bfloat16
from mmdiff.evaluate import read_examples
from mmdiff.frequencies import cosine_transform
from mmdiff.pipeline import Pipeline
from mmdiff.schedule import LEVEL_MIN

LEVELS = (-6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
BATCH = 64
COARSEST = 4  # cosine frequencies along each side
LEAST = 1e-4  # variance along a direction in which the training photos hardly differ


def precise() -> Any:
    """The precision that models compute in here."""
    return torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16(CPU))


@dataclass(frozen=True)
class Wiener:
    """The linear denoiser with the least mean squared error: mean (D,), variances (D,) along axes (D, D)."""

    mean: Tensor
    variances: Tensor
    axes: Tensor

    @classmethod
    def fitted(cls, clean: Tensor) -> Wiener:
        """To clean encodings (n, D)."""
        mean = clean.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov((clean - mean).T, correction=0))
        return cls(mean, variances.clamp(min=LEAST), axes)

    def __call__(self, noisy: Tensor, level: float) -> Tensor:
        """What is expected of the clean encodings given noisy ones (n, D), of log-SNR ``level``."""
        signal = 1 / (1 + math.exp(-level))
        gain = math.sqrt(signal) * self.variances / (signal * self.variances + 1 - signal)
        return self.mean + (noisy - math.sqrt(signal) * self.mean) @ self.axes * gain @ self.axes.T


def values(pipe: Pipeline, examples: Examples, name: str) -> Tensor:
    """What the examples have of a dense modality, (n, ..., H, W)."""
    rows = examples.present[name].nonzero()[:, 0]
    return draw_batch(examples, pipe.modalities, rows, None, flip=False)[0][name]


@torch.no_grad()
def encoded(pipe: Pipeline, values: Tensor, name: str) -> Tensor:
    """Encodings of values (n, ..., H, W) of a dense modality: (n, C, h, w)."""
    parts = []
    for chunk in values.split(BATCH):
        with precise():
            parts.append(pipe.modalities[name].encode(chunk).float())
    return torch.cat(parts)


@torch.no_grad()
def denoised(pipe: Pipeline, noisy: Tensor, level: float, name: str, labels: Tensor | None = None) -> Tensor:
    """The network's clean encodings of noisy ones (n, C, h, w) of a dense modality.

    labels: (n,), given; None: all other modalities are ignored.
    """
    model, parts = pipe.model, []
    for rows in torch.arange(len(noisy)).split(BATCH):
        seen = model.nothing_given(len(rows), pipe.device, (name,))
        if labels is not None:
            seen = model.giving(seen, {"label": labels[rows]})
        levels = torch.full((len(rows), len(model.names)), LEVEL_MIN)
        levels[:, model.names.index(name)] = level
        with precise():
            raw = model(model.channels.place(name, noisy[rows]), levels, seen)
            clean = model.clean_encodings(raw, seen)[name]
        parts.append(model.channels.take(name, clean).float())
    return torch.cat(parts)


def coarse(encodings: Tensor, cells: int) -> Tensor:
    """The coarsest cosine coefficients of encodings (n, C, h, w) of patches of ``cells`` positions a side."""
    return cosine_transform(F.pixel_shuffle(encodings, cells))[..., :COARSEST, :COARSEST]


def compare(
    pipe: Pipeline, name: str, train: Tensor, clean: Tensor, labels: Tensor | None = None
) -> list[dict[str, float]]:
    """Mean squared errors at each of `LEVELS`, of validation encodings (n, C, h, w) under the same noise.

    "coarse_" are those of the coarsest frequencies, as a share of these frequencies' variance.
    """
    modality = pipe.modalities[name]
    cells = modality.patch_size // modality.stride
    variance = coarse(clean - clean.mean(0), cells).square().mean()
    wiener = Wiener.fitted(train.flatten(1))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for level in LEVELS:
        signal = 1 / (1 + math.exp(-level))
        noisy = math.sqrt(signal) * clean + math.sqrt(1 - signal) * noise
        found = {
            "wiener": wiener(noisy.flatten(1), level).view_as(clean),
            "network": denoised(pipe, noisy, level, name),
        }
        if labels is not None:
            found["with_label"] = denoised(pipe, noisy, level, name, labels)
        errors = {key: (x - clean).square().mean() for key, x in found.items()}
        for key, x in found.items():
            errors[f"coarse_{key}"] = coarse(x - clean, cells).square().mean() / variance
        rows.append({key: round(error.item(), 4) for key, error in errors.items()})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        report = run(args) | {"command": command("noise_levels", arguments)}
    except ValueError as error:
        sys.exit(f"error: {error}")
    write(report, args.out)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Load what the arguments name and compare. Raises ValueError for what cannot be used."""
    pipe = Pipeline.from_pretrained(args.checkpoint, device="cpu")
    if not pipe.model.has_levels:
        raise ValueError(f"{args.checkpoint} is of the first edition; give a model with levels.")
    train, val = (read_examples(path, pipe) for path in (args.train, args.data))
    photo = pipe.model.anchor
    report = {"checkpoint": Path(args.checkpoint).name, "data": Path(args.data).name}
    rows = [{"level": level} for level in LEVELS]
    for name in pipe.model.dense_names:
        held_out, labels = val, None
        if name == photo and "label" in pipe.modalities:
            held_out = val.take(val.present["label"].nonzero()[:, 0])
            labels = held_out.stored["label"].long()
        seen = values(pipe, train, name)
        seen = encoded(pipe, torch.cat([seen, seen.flip(-1)]), name)  # as in training
        clean = encoded(pipe, values(pipe, held_out, name), name)
        found = compare(pipe, name, seen, clean, labels)
        key = "" if name == photo else f"{name}_"
        rows = [
            row | {key + n: error for n, error in more.items()} for row, more in zip(rows, found, strict=True)
        ]
        report[f"{key}examples"] = len(clean)
    return report | {"noise_levels": rows}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a model with levels")
    parser.add_argument("--data", required=True, help="Parquet file to measure on")
    parser.add_argument("--train", required=True, help="Parquet file that the model was trained on")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
