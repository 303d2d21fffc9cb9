"""Independent observers: small networks that say what a generated picture shows, trained on real photos only.

They share nothing with the diffusion model, so that their opinion is independent of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmdiff.device import choose_device

WIDTHS = (24, 48, 96)  # channels at a half, a quarter and an eighth of the picture's size
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


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
        facts: what was measured when it was trained, for the record.
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
        """Write half-precision weights, the configuration and the facts."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous().cpu() for k, v in state.items()}, folder / WEIGHTS)
        config = {"classes": self.classes, "size": self.size, "widths": self.widths, "facts": self.facts}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load one for use. Raises ValueError if the folder does not hold one."""
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(
                    f"no {cls.noun} in {folder}: {name} is missing; train one with {cls.command}."
                )
        try:
            config = json.loads((folder / CONFIG).read_text())
            observer = cls(config["classes"], config["size"], config["widths"])
            observer.load_state_dict(load_file(folder / WEIGHTS))  # copies into the module's own precision
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
        count: number of examples. loss_of: rows (B,) and the generator of all that is random -> the loss.
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
                if len(rows) < batch_size:  # its statistics would be noisy
                    break
                loss = loss_of(rows, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    observer.eval()


# -- commands ----------------------------------------------------------------------------------------


def read_classes(path: str | Path) -> list[str]:
    """Class names from a text file, one a line, in the order of their numbers."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no class list at {path}; give --classes a text file with one class name a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def train_and_save(
    make: type[Observer],
    args: argparse.Namespace,
    read: Callable[[str, Sequence[str], int], Sized],
    learn: Callable[[Any, Any, int, int], None],
    measure: Callable[[Any, Any], dict],
    card: Callable[[dict], str],
) -> dict:
    """Train, measure and save an observer; returns the measured facts.

    Args:
        args: of `run_command`. read: path, classes, size -> photos. learn: observer, photos, epochs, seed.
        measure: observer and validation photos -> facts. card: facts -> the README.md beside the weights.
    """
    classes = read_classes(args.classes)
    photos, val = (read(path, classes, args.size) for path in (args.data, args.val))
    torch.manual_seed(args.seed)  # the initial weights
    observer = make(classes, args.size).to(choose_device(args.device))
    start = time.perf_counter()
    learn(observer, photos, args.epochs, args.seed)
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
    } | measure(observer, val)
    observer.save(args.out)
    (Path(args.out) / CARD).write_text(card(observer.facts), encoding="utf-8")
    return observer.facts


def run_command(
    argv: Sequence[str] | None,
    make: type[Observer],
    summary: str,
    annotation: str,
    class_file: str,
    epochs: int,
    size: int,
    train: Callable[[argparse.Namespace], dict],
) -> None:
    """The command that trains an observer: reads its arguments, trains, and prints the facts.

    Args:
        annotation: what the photos have ("labels"). class_file: beside the data, read without --classes.
        epochs, size: defaults.
    """
    parser = argparse.ArgumentParser(prog=make.command, description=summary)
    parser.add_argument(
        "--data", required=True, help=f"Parquet file with real training photos and {annotation}"
    )
    parser.add_argument("--val", required=True, help="Parquet file to measure it on")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--classes", help=f"class names, one a line (default: {class_file} beside --data)")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--size", type=int, default=size, help="pixels; a multiple of 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(argv)
    args.classes = args.classes or Path(args.data).parent / class_file
    try:
        facts = train(args)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(facts, indent=2, sort_keys=True))


# -- augmentation ------------------------------------------------------------------------------------


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_moves(batch: int, generator: torch.Generator) -> Tensor:
    """Random flip, rotation up to 9 degrees, size times 0.9 to 1.1 and shift up to 5 % of the picture.

    Returns (B, 2, 3), from output to input coordinates, as `torch.nn.functional.affine_grid` takes them.
    """
    angle = uniform(generator, -0.16, 0.16, batch)
    scale = uniform(generator, 0.9, 1.1, batch)
    mirror = 1 - 2 * torch.randint(0, 2, (batch,), generator=generator)
    shift = uniform(generator, -0.1, 0.1, batch, 2)  # the grid's coordinates span [-1, 1]
    return torch.stack(
        [
            torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
            torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )


def moved(images: Tensor, moves: Tensor, mode: str = "bilinear") -> Tensor:
    """(B, C, H, W) after the moves (B, 2, 3); beyond the border the border is repeated."""
    grid = F.affine_grid(moves.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one standard deviation (B,) in pixels for each picture; 0 leaves it as it is."""
    batch, channels, height, width = images.shape
    offsets = torch.arange(-4, 5, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.to(images.device)[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (B * C, 9)
    flat = F.pad(images, (4, 4, 4, 4), mode="replicate").reshape(1, batch * channels, height + 8, width + 8)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels).view_as(images)


def roughened(images: Tensor, generator: torch.Generator, colour: float = 1.0) -> Tensor:
    """Blur of half the pictures, slight changes of light and colour (times ``colour``), grain."""
    batch, device = len(images), images.device
    blurred = torch.rand(batch, generator=generator) < 0.5
    images = blur(images, blurred * uniform(generator, 0.3, 1.4, batch))
    gain = 1 + colour * uniform(generator, -0.08, 0.08, batch, 1, 1, 1)
    tint = 1 + colour * uniform(generator, -0.03, 0.03, batch, 3, 1, 1)
    lift = colour * uniform(generator, -0.06, 0.06, batch, 1, 1, 1)
    grain = uniform(generator, 0, 0.03, batch, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    return (images * (gain * tint).to(device) + lift.to(device) + grain.to(device)).clamp(-1, 1)
