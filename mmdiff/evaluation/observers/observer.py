"""`Observer`: a small network that says what a generated picture shows.

It is trained on real photos only and shares nothing with the diffusion model, so that it is independent.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmdiff.config import DataConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.device import fast_bfloat16
from mmdiff.files import CONFIG_FILE, WEIGHTS_FILE, write_text, write_weights
from mmdiff.modalities import Modality
from mmdiff.modalities.image import ImageModality

WIDTHS = (24, 48, 96)  # channels at a half, a quarter and an eighth of the picture's size


@dataclass(frozen=True)
class Photos:
    """N photos with classes: images (N, 3, H, W) uint8, targets (N,) labels or (N, H, W) masks."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) float32 in [-1, 1] and targets (B, ...) long."""
        return self.images[rows].to(device).float() / 127.5 - 1, self.targets[rows].to(device).long()


def read_annotated(path: str | Path, target: Modality) -> Photos:
    """The photos of a Parquet file that have the target. Raises ValueError if there are none."""
    image = ImageModality("image", target.image_size, target.patch_size)
    examples = read_parquet(path, [image, target], DataConfig())
    rows = torch.empty(0)
    if {"image", target.name} <= set(examples.stored):
        rows = (examples.present["image"] & examples.present[target.name]).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(
            f"{path} has no photo with a {target.name}; the columns image and {target.name} are needed."
        )
    return Photos(examples.stored["image"][rows], examples.stored[target.name][rows])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def stem(width: int) -> nn.Module:
    """(B, 3, H, W) -> (B, width, H / 2, W / 2)."""
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


class Observer(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to logits of classes in dimension 1.

    Attributes:
        classes: the K class names, in the order of the logits.
        size: pixels; pictures of another size are resized to it first.
        widths: channels at the three resolutions.
        facts: measurements of its training.
        reach: how far training moves, turns and scales pictures, times the usual.
    """

    reach = 1.0

    noun: ClassVar[str]  # what it is called in messages, and its module
    modality: ClassVar[type[Modality]]  # what it says of a picture
    class_file: ClassVar[str]  # beside the data, one class name a line
    default_size: ClassVar[int]
    epochs: ClassVar[int]  # by default
    batch_size: ClassVar[int]
    lr: ClassVar[float]  # peak
    texts: ClassVar[dict[str, str]]  # of its README.md, with the names of facts in braces

    def __init__(
        self, classes: Sequence[str], size: int | None = None, widths: Sequence[int] = WIDTHS
    ) -> None:
        super().__init__()
        self.facts: dict = {}
        self.classes, self.widths = tuple(classes), tuple(widths)
        self.size = size or self.default_size
        self.build(*self.widths)

    def build(self, first: int, second: int, third: int) -> None:
        """Make the layers, of these numbers of channels at a half, a quarter and an eighth of the size."""
        raise NotImplementedError

    def loss(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar loss of pictures (B, 3, H, W), changed at random, and their targets (B, ...) long."""
        raise NotImplementedError

    def measure(self, photos: Photos) -> dict:
        """JSON-ready figures of photos that it was not trained on."""
        raise NotImplementedError

    @classmethod
    def command(cls) -> str:
        """What trains one."""
        return f"python -m mmdiff.evaluation.observers.{cls.noun}"

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def sized(self, images: Tensor) -> Tensor:
        """The pictures at the size that the network was trained with."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 256) -> Tensor:
        """Class probabilities on the CPU, for any number of pictures on any device."""
        if len(images) == 0:  # interpolate fails on an empty batch on CUDA
            return torch.empty(0, len(self.classes))
        return torch.cat([self(chunk.to(self.device)).softmax(1).cpu() for chunk in images.split(batch)])

    def quickly(self, images: Tensor) -> Tensor:
        """The logits of a training step, float32, computed in bfloat16 where that is fast."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            return self(images.contiguous(memory_format=torch.channels_last)).float()

    def fit(self, photos: Photos, epochs: int, seed: int) -> None:
        """Train in place, on the network's own device, with AdamW and one learning-rate cycle."""
        self.to(memory_format=torch.channels_last).train()  # a fifth faster on a CPU
        generator = torch.Generator().manual_seed(seed)
        batch_size = min(self.batch_size, len(photos))
        batches = len(photos) // batch_size  # an epoch, without a smaller last one: its statistics are noisy
        steps = epochs * batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1, pct_start=0.15)
        with tqdm(total=steps, desc=self.noun, unit="step", mininterval=1) as bar:
            for _ in range(epochs):
                order = torch.randperm(len(photos), generator=generator)
                for rows in order.split(batch_size)[:batches]:
                    loss = self.loss(*photos.batch(rows, self.device), generator)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    cycle.step()
                    bar.update()
                    bar.set_postfix(loss=f"{loss.item():.3f}")
        self.eval()

    def save(self, folder: str | Path) -> None:
        """Write half-precision weights, the configuration and the facts into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.state_dict(), folder / WEIGHTS_FILE)
        config = {"classes": self.classes, "size": self.size, "widths": self.widths, "facts": self.facts}
        write_text(folder / CONFIG_FILE, json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load one for inference. Raises ValueError if the folder does not hold one."""
        folder = Path(folder)
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"no {cls.noun} in {folder}: {name} is missing; train one with {cls.command()}."
                )
        try:
            config = json.loads((folder / CONFIG_FILE).read_text())
            observer = cls(config["classes"], config["size"], config["widths"])
            observer.load_state_dict(load_file(folder / WEIGHTS_FILE))  # copies into float32
            observer.facts = config["facts"]
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the {cls.noun} in {folder} cannot be read: {error}. Train it again.") from None
        return observer.to(device).eval()
