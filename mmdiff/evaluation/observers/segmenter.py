"""A small U-Net that segments generated pictures, trained on real photos with masks only.

`python -m mmdiff.evaluate --segmenter` uses it. Training:

    python -m mmdiff.evaluation.observers.segmenter --data train.parquet --val val.parquet --out OUT
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
from mmdiff.evaluation import metrics
from mmdiff.evaluation.observers.augmentation import draw_moves, moved, roughened
from mmdiff.evaluation.observers.command import Command
from mmdiff.evaluation.observers.observer import WIDTHS, Observer, ResidualBlock, fit, stem
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.mask import VOID, MaskModality

COLOUR = 3.0  # times that of a classifier: light and weather differ more outdoors than in a studio


class Segmenter(Observer):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to class logits (B, K, size, size); never void."""

    noun, command = "segmenter", "python -m mmdiff.evaluation.observers.segmenter"

    def __init__(self, classes: Sequence[str], size: int = 96, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__(classes, size, widths)
        first, second, third = self.widths
        self.stem = stem(first)
        self.down = ResidualBlock(first, second, stride=2)
        self.bottom = nn.Sequential(ResidualBlock(second, third, stride=2), ResidualBlock(third, third))
        self.up = ResidualBlock(third + second, second)
        self.top = ResidualBlock(second + first, first)
        self.head = nn.Conv2d(first, len(self.classes), 1)
        is_void = torch.tensor([name == VOID for name in self.classes])
        self.register_buffer("is_void", is_void, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        half = self.stem(self.sized(images))
        quarter = self.down(half)
        up = self.up(torch.cat([_twice(self.bottom(quarter)), quarter], 1))
        logits = self.head(self.top(torch.cat([_twice(up), half], 1)))
        return _twice(logits).masked_fill(self.is_void[:, None, None], -1e4)

    def read(self, images: Tensor) -> Tensor:
        """Class maps (B, H, W) of the pictures, at their own size."""
        if len(images) == 0:
            return torch.empty(0, *images.shape[-2:], dtype=torch.long)
        probabilities = self.probabilities(images, batch=64)
        return F.interpolate(probabilities, images.shape[-2:], mode="bilinear").argmax(1)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class MaskedPhotos:
    """N photos with masks: images (N, 3, H, W) uint8, masks (N, H, W) uint8."""

    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.masks)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) float32 in [-1, 1] and masks (B, H, W) long."""
        return self.images[rows].to(device).float() / 127.5 - 1, self.masks[rows].to(device).long()


def read_masked_photos(path: str | Path, classes: Sequence[str], size: int) -> MaskedPhotos:
    """The photos with masks of a Parquet file. Raises ValueError if it has none."""
    image = ImageModality("image", size, patch_size=2)
    mask = MaskModality("mask", size, patch_size=2, classes=classes)
    examples = read_parquet(path, [image, mask], DataConfig())
    if not {"image", "mask"} <= set(examples.stored):
        raise ValueError(f"{path} has no photo with a mask; a segmenter needs the columns image and mask.")
    rows = (examples.present["image"] & examples.present["mask"]).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"{path} has no row with both a photo and a mask.")
    return MaskedPhotos(examples.stored["image"][rows], examples.stored["mask"][rows])


def train(segmenter: Segmenter, photos: MaskedPhotos, epochs: int, seed: int) -> None:
    """Train in place on photos that are moved, blurred and tinted at random; void pixels do not count."""
    device = segmenter.head.weight.device
    void = segmenter.classes.index(VOID) if VOID in segmenter.classes else -100

    def loss_of(rows: Tensor, generator: torch.Generator) -> Tensor:
        images, masks = photos.batch(rows, device)
        moves = draw_moves(len(rows), generator)
        masks = moved(masks[:, None].float(), moves, "nearest")[:, 0].long()
        images = roughened(moved(images, moves), generator, COLOUR)
        logits = segmenter(images.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits, masks, ignore_index=void)

    fit(segmenter, len(photos), loss_of, epochs, seed, batch_size=16, lr=3e-3)


def measure(segmenter: Segmenter, photos: MaskedPhotos) -> dict:
    """IoU of every class over all pixels of the photos, and their mean."""
    images, masks = photos.batch(torch.arange(len(photos)), segmenter.head.weight.device)
    void = segmenter.classes.index(VOID) if VOID in segmenter.classes else None
    counts = metrics.confusion(segmenter.read(images), masks.cpu(), len(segmenter.classes), ignore=void)
    kept = [k for k in range(len(segmenter.classes)) if k != void]
    each = metrics.iou(counts.sum(0))[kept]
    return {
        "val_examples": len(photos),
        "val_iou": {segmenter.classes[k]: round(v, 4) for k, v in zip(kept, each.tolist(), strict=True)},
        "val_miou": round(each.nanmean().item(), 4),
    }


def card(facts: dict) -> str:
    """The README.md beside the weights."""
    each = ", ".join(f"{name} {iou:.3f}" for name, iou in facts["val_iou"].items())
    return f"""# Segmenter

A U-Net of {facts["parameters"]:,} parameters that segments pictures of {facts["size"]} x \
{facts["size"]} pixels.
It measures whether generated pictures show the mask they were made from: \
`python -m mmdiff.evaluate --segmenter`.

- Trained for {facts["epochs"]} epochs on {facts["train_examples"]:,} real photos with masks of \
`{facts["data"]}` and on nothing else, with
  flips, small shifts, rotations, scaling, blur, grain and changes of light and colour \
({facts["seconds"]:.0f} s on {facts["device"]}).
- On {facts["val_examples"]:,} photos of `{facts["val"]}`: mean IoU {facts["val_miou"]:.3f} ({each}), \
pooled over all pixels, void left out.
- The weights derive from the training photos, so their licence and attribution apply.
- Made by `python -m mmdiff.evaluation.observers.segmenter --data {facts["data"]} --val {facts["val"]} \
--epochs {facts["epochs"]} --seed {facts["seed"]}`.
"""


main = Command(
    Segmenter,
    __doc__.split("\n")[0],
    annotation="masks",
    class_file="mask_classes.txt",
    epochs=30,
    size=96,
    read=read_masked_photos,
    train=train,
    measure=measure,
    card=card,
).run

if __name__ == "__main__":
    main()
