"""`Observer`: a small network that says what a generated picture shows.

It is trained on real photos only and shares nothing with the diffusion model, so that it is independent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

WIDTHS = (24, 48, 96)  # channels at a half, a quarter and an eighth of the picture's size
WEIGHTS, CONFIG = "model.safetensors", "config.json"


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
    """

    noun: ClassVar[str]  # what it is called in messages
    command: ClassVar[str]  # what trains it

    def __init__(self, classes: Sequence[str], size: int, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.facts: dict = {}
        self.classes = tuple(classes)
        self.size = size
        self.widths = tuple(widths)

    def sized(self, images: Tensor) -> Tensor:
        """The pictures at the size that the network was trained with."""
        if images.shape[-2:] == (self.size, self.size):
            return images
        return F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 256) -> Tensor:
        """Class probabilities on the CPU, for any number of pictures on any device."""
        device = next(self.parameters()).device
        if len(images) == 0:  # interpolate fails on an empty batch on CUDA
            return torch.empty(0, len(self.classes))
        return torch.cat([self(chunk.to(device)).softmax(1).cpu() for chunk in images.split(batch)])

    def save(self, folder: str | Path) -> None:
        """Write half-precision weights, the configuration and the facts into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous().cpu() for k, v in state.items()}, folder / WEIGHTS)
        config = {"classes": self.classes, "size": self.size, "widths": self.widths, "facts": self.facts}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load one for inference. Raises ValueError if the folder does not hold one."""
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(
                    f"no {cls.noun} in {folder}: {name} is missing; train one with {cls.command}."
                )
        try:
            config = json.loads((folder / CONFIG).read_text())
            observer = cls(config["classes"], config["size"], config["widths"])
            observer.load_state_dict(load_file(folder / WEIGHTS))  # copies into float32
            observer.facts = config["facts"]
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the {cls.noun} in {folder} cannot be read: {error}. Train it again.") from None
        return observer.to(device).eval()


def fit(
    observer: Observer,
    count: int,
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    epochs: int,
    seed: int,
    batch_size: int = 64,
    lr: float = 4e-3,
) -> None:
    """Train in place with AdamW and one learning-rate cycle.

    Args:
        count: number of examples. loss_of: rows (B,) and the random generator to use -> the loss.
    """
    observer.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, count)
    steps = epochs * (count // batch_size)
    optimizer = torch.optim.AdamW(observer.parameters(), lr=lr, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.15)
    observer.train()
    with tqdm(total=steps, desc=observer.noun, unit="step", mininterval=1) as bar:
        for _ in range(epochs):
            order = torch.randperm(count, generator=generator)
            for rows in order.split(batch_size):
                if len(rows) < batch_size:  # batch statistics would be noisy
                    break
                loss = loss_of(rows, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    observer.eval()
