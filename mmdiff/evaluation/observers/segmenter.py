"""A small U-Net that segments generated pictures, trained on real photos with masks only.

`python -m mmdiff.evaluate --segmenter` uses it. Training:

    python -m mmdiff.evaluation.observers.segmenter --data train.parquet --val val.parquet --out OUT
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.evaluation import metrics
from mmdiff.evaluation.observers.augmentation import draw_moves, moved, roughened
from mmdiff.evaluation.observers.command import run
from mmdiff.evaluation.observers.observer import Observer, Photos, ResidualBlock, stem
from mmdiff.modalities.mask import VOID, MaskModality

COLOUR = 3.0  # times that of a classifier: light and weather differ more outdoors than in a studio


class Segmenter(Observer):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to class logits (B, K, size, size); never void."""

    noun, modality, class_file = "segmenter", MaskModality, "mask_classes.txt"
    default_size, epochs, batch_size, lr = 96, 30, 16, 3e-3
    texts = {
        "network": "A U-Net",
        "reads": "segments a picture",
        "use": "show the mask they were made from: `python -m mmdiff.evaluate --segmenter`",
        "changes": "blur, grain and changes of light and colour",
        "measured": "mean IoU {val_miou:.3f} ({val_iou}), pooled over all pixels, void left out.",
    }

    def build(self, first: int, second: int, third: int) -> None:
        self.stem = stem(first)
        self.down = ResidualBlock(first, second, stride=2)
        self.bottom = nn.Sequential(ResidualBlock(second, third, stride=2), ResidualBlock(third, third))
        self.up = ResidualBlock(third + second, second)
        self.top = ResidualBlock(second + first, first)
        self.head = nn.Conv2d(first, len(self.classes), 1)
        is_void = torch.tensor([name == VOID for name in self.classes])
        self.register_buffer("is_void", is_void, persistent=False)
        self.void = self.classes.index(VOID) if VOID in self.classes else None

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

    def loss(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy where the moved mask is not void."""
        moves = draw_moves(len(images), generator, self.reach)
        masks = moved(targets[:, None].float(), moves, "nearest")[:, 0].long()
        images = roughened(moved(images, moves), generator, COLOUR)
        logits = self.quickly(images)
        return F.cross_entropy(logits, masks, ignore_index=-100 if self.void is None else self.void)

    def measure(self, photos: Photos) -> dict:
        """IoU of every class over all pixels of the photos, and their mean."""
        images, masks = photos.batch(torch.arange(len(photos)), self.device)
        counts = metrics.confusion(self.read(images), masks.cpu(), len(self.classes), ignore=self.void)
        each = metrics.iou(counts.sum(0))
        return {
            "val_examples": len(photos),
            "val_iou": {
                n: round(v, 4) for n, v in zip(self.classes, each.tolist(), strict=True) if n != VOID
            },
            "val_miou": round(each[~self.is_void.cpu()].nanmean().item(), 4),
        }


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


main = partial(run, Segmenter, __doc__.split("\n")[0])

if __name__ == "__main__":
    main()
