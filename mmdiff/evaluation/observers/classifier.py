"""A small convolutional classifier of generated pictures, trained on real photos only.

`python -m mmdiff.evaluate --judge` uses it, and results call its agreement "judge_agreement". Training:

    python -m mmdiff.evaluation.observers.classifier --data train.parquet --val val.parquet --out OUT
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.observers.augmentation import blur, draw_moves, moved, roughened
from mmdiff.evaluation.observers.command import run
from mmdiff.evaluation.observers.observer import Observer, Photos, ResidualBlock, stem
from mmdiff.modalities.label import LabelModality

WEAK_RECALL = 0.9


class Classifier(Observer):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to class logits (B, K)."""

    noun, modality, class_file = "classifier", LabelModality, "classes.txt"
    default_size, epochs, batch_size, lr = 64, 8, 64, 4e-3
    texts = {
        "network": "A convolutional network",
        "reads": "names the class of a picture",
        "use": "show their class: `python -m mmdiff.evaluate --judge`",
        "changes": "blur, grain and slight colour changes",
        "measured": f"""top-1 {{val_top1:.4f}}, blurred by one pixel {{val_top1_blurred:.4f}}.
- Classes whose photos it names correctly less often than {WEAK_RECALL}: {{val_weak_classes}}.
- Limits: it knows these {{classes}} classes only and names one of them whatever it is shown.""",
    }

    def build(self, first: int, second: int, third: int) -> None:
        self.stem = stem(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, third, stride=2),
            ResidualBlock(third, third),
        )  # (B, third, size / 8, size / 8)
        self.head = nn.Linear(third, len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(self.sized(images))).mean((2, 3)))

    def loss(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy with smoothed labels."""
        images = augment(images, generator, self.reach)
        return F.cross_entropy(self.quickly(images), targets, label_smoothing=0.1)

    def measure(self, photos: Photos) -> dict:
        """Accuracy on photos, sharp and blurred, and the recall of the classes below `WEAK_RECALL`."""
        hits = self.hits(photos)
        recall = {name: mean(hits[photos.targets == k]) for k, name in enumerate(self.classes)}
        return {
            "val_examples": len(photos),
            "val_top1": round(mean(hits), 4),
            "val_top1_blurred": round(mean(self.hits(photos, blur_sigma=1.0)), 4),
            "val_weak_classes": {name: round(r, 3) for name, r in recall.items() if r < WEAK_RECALL},
        }

    @torch.no_grad()
    def hits(self, photos: Photos, blur_sigma: float = 0.0) -> Tensor:
        """Which photos, blurred by ``blur_sigma`` pixels, get their own label: (N,) bool."""
        hits = []
        for index in torch.arange(len(photos)).split(256):
            images, labels = photos.batch(index, self.device)
            images = blur(images, torch.full((len(index),), blur_sigma))
            hits.append((self(images).argmax(1) == labels).cpu())
        return torch.cat(hits)


def augment(images: Tensor, generator: torch.Generator, reach: float = 1.0) -> Tensor:
    """Moved, blurred and grainy pictures (B, 3, H, W) in [-1, 1].

    Colour changes by a few per cent only, because some classes differ in nothing else.
    """
    return roughened(moved(images, draw_moves(len(images), generator, reach)), generator)


main = partial(run, Classifier, __doc__.split("\n")[0])

if __name__ == "__main__":
    main()
