"""A small convolutional classifier of generated pictures, trained on real photos only.

`python -m mmdiff.evaluate --judge` uses it, and results call its agreement "judge_agreement". Training:

    python -m mmdiff.evaluation.observers.classifier --data train.parquet --val val.parquet --out OUT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import DataConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.evaluation.observers.augmentation import blur, draw_moves, moved, roughened
from mmdiff.evaluation.observers.command import Command
from mmdiff.evaluation.observers.observer import WIDTHS, Observer, ResidualBlock, fit, stem
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.label import LabelModality

WEAK_RECALL = 0.9


class Classifier(Observer):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to class logits (B, K)."""

    noun, command = "classifier", "python -m mmdiff.evaluation.observers.classifier"

    def __init__(self, classes: Sequence[str], size: int = 64, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(classes, size, widths)
        first, second, third = self.widths
        self.stem = stem(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, third, stride=2),
            ResidualBlock(third, third),
        )  # (B, third, size / 8, size / 8)
        self.head = nn.Linear(third, len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(self.sized(images))).mean((2, 3)))


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moved, blurred and grainy pictures (B, 3, H, W) in [-1, 1].

    Colour changes by a few per cent only, because some classes differ in nothing else.
    """
    return roughened(moved(images, draw_moves(len(images), generator)), generator)


# -- training ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """N labelled photos: images (N, 3, H, W) uint8, labels (N,) long."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) float32 in [-1, 1] and labels (B,)."""
        return self.images[index].to(device).float() / 127.5 - 1, self.labels[index].to(device)


def read_photos(path: str | Path, classes: Sequence[str], size: int) -> Photos:
    """The labelled photos of a Parquet file with the columns image and label."""
    image = ImageModality("image", size, patch_size=2)
    label = LabelModality("label", size, patch_size=2, classes=classes)
    examples = read_parquet(path, [image, label], DataConfig())
    missing = [name for name in ("image", "label") if name not in examples.stored]
    if missing:
        raise ValueError(
            f"{path} has nothing in the column {missing[0]!r}; a classifier needs photos and labels."
        )
    rows = (examples.present["image"] & examples.present["label"]).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"{path} has no row with both a photo and a label.")
    return Photos(examples.stored["image"][rows], examples.stored["label"][rows].long())


def train(classifier: Classifier, photos: Photos, epochs: int, seed: int) -> None:
    """Train in place with smoothed labels, on the classifier's own device."""
    device = classifier.head.weight.device

    def loss_of(rows: Tensor, generator: torch.Generator) -> Tensor:
        images, labels = photos.batch(rows, device)
        images = augment(images, generator).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(classifier(images), labels, label_smoothing=0.1)

    fit(classifier, len(photos), loss_of, epochs, seed)


@torch.no_grad()
def right(classifier: Classifier, photos: Photos, blur_sigma: float = 0.0) -> Tensor:
    """Which photos, blurred by ``blur_sigma`` pixels, get their own label: (N,) bool."""
    device = classifier.head.weight.device
    hits = []
    for index in torch.arange(len(photos)).split(256):
        images, labels = photos.batch(index, device)
        images = blur(images, torch.full((len(index),), blur_sigma))
        hits.append((classifier(images).argmax(1) == labels).cpu())
    return torch.cat(hits)


def measure(classifier: Classifier, photos: Photos) -> dict:
    """Accuracy on photos, sharp and blurred, and the recall of the classes below `WEAK_RECALL`."""
    hits = right(classifier, photos)
    recall = {
        name: hits[photos.labels == k].double().mean().item() for k, name in enumerate(classifier.classes)
    }
    return {
        "val_examples": len(photos),
        "val_top1": round(hits.double().mean().item(), 4),
        "val_top1_blurred": round(right(classifier, photos, blur_sigma=1.0).double().mean().item(), 4),
        "val_weak_classes": {name: round(r, 3) for name, r in recall.items() if r < WEAK_RECALL},
    }


def card(facts: dict) -> str:
    """The README.md beside the weights."""
    weak = ", ".join(f"{name} {recall:.2f}" for name, recall in facts["val_weak_classes"].items()) or "none"
    return f"""# Classifier

A convolutional network of {facts["parameters"]:,} parameters that names the class of a picture of \
{facts["size"]} x {facts["size"]} pixels.
It measures whether generated pictures show their class: `python -m mmdiff.evaluate --judge`.

- Trained for {facts["epochs"]} epochs on {facts["train_examples"]:,} real photos of `{facts["data"]}` and \
on nothing else, with flips, small
  shifts, rotations, scaling, blur, grain and slight colour changes ({facts["seconds"]:.0f} s on \
{facts["device"]}).
- On {facts["val_examples"]:,} photos of `{facts["val"]}`: top-1 {facts["val_top1"]:.4f}, \
blurred by one pixel {facts["val_top1_blurred"]:.4f}.
- Classes whose photos it names correctly less often than {WEAK_RECALL}: {weak}.
- Limits: it knows these {facts["classes"]} classes only and names one of them whatever it is shown.
- The weights derive from the training photos, so their licence and attribution apply.
- Made by `python -m mmdiff.evaluation.observers.classifier --data {facts["data"]} --val {facts["val"]} \
--epochs {facts["epochs"]} --seed {facts["seed"]}`.
"""


main = Command(
    Classifier,
    __doc__.split("\n")[0],
    annotation="labels",
    class_file="classes.txt",
    epochs=8,
    size=64,
    read=read_photos,
    train=train,
    measure=measure,
    card=card,
).run

if __name__ == "__main__":
    main()
