"""The judge: a small convolutional classifier that names what a generated picture shows.

It is trained on real training photos only and shares nothing with the diffusion model, so that its
opinion is independent. Training:

    python -m mmdiff.judge --data train.parquet --val val.parquet --out benchmarks/judges/orchard
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmdiff.config import DataConfig
from mmdiff.data import read_parquet
from mmdiff.device import choose_device
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.label import LabelModality

WIDTHS = (24, 48, 96)  # channels at a half, a quarter and an eighth of the picture's size
WEAK_RECALL = 0.9
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


class Judge(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to class logits (B, K).

    Attributes:
        classes: the K class names, in the order of the logits.
        size: pixels; pictures of another size are resized to it first.
        facts: what was measured when it was trained, for the record.
    """

    def __init__(self, classes: Sequence[str], size: int = 64, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.facts: dict = {}
        self.classes = tuple(classes)
        self.size = size
        self.widths = tuple(widths)
        first, second, third = self.widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
        )  # (B, first, size / 2, size / 2)
        self.blocks = nn.Sequential(
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, third, stride=2),
            ResidualBlock(third, third),
        )  # (B, third, size / 8, size / 8)
        self.head = nn.Linear(third, len(self.classes))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))

    @torch.no_grad()
    def probabilities(self, images: Tensor, batch: int = 256) -> Tensor:
        """Class probabilities (B, K) on the CPU, for any number of pictures on any device."""
        device = self.head.weight.device
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
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Judge:
        """Load a judge for use. Raises ValueError if the folder does not hold one."""
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise ValueError(
                    f"no judge in {folder}: {name} is missing; train one with python -m mmdiff.judge."
                )
        try:
            config = json.loads((folder / CONFIG).read_text())
            judge = cls(config["classes"], config["size"], config["widths"])
            judge.load_state_dict(load_file(folder / WEIGHTS))  # copies into the module's own precision
            judge.facts = config["facts"]
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"the judge in {folder} cannot be read: {error}. Train it again.") from None
        return judge.to(device).eval()


# -- augmentation ------------------------------------------------------------------------------------


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def move(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, rotation up to 9 degrees, size times 0.9 to 1.1 and shift up to 5 % of the picture."""
    batch = len(images)
    angle = uniform(generator, -0.16, 0.16, batch)
    scale = uniform(generator, 0.9, 1.1, batch)
    mirror = 1 - 2 * torch.randint(0, 2, (batch,), generator=generator)
    shift = uniform(generator, -0.1, 0.1, batch, 2)  # the grid's coordinates span [-1, 1]
    theta = torch.stack(
        [
            torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
            torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )  # (B, 2, 3), output to input coordinates
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one standard deviation (B,) in pixels for each picture; 0 leaves it as it is."""
    batch, channels, height, width = images.shape
    offsets = torch.arange(-4, 5, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.to(images.device)[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (B * C, 9)
    flat = F.pad(images, (4, 4, 4, 4), mode="replicate").reshape(1, batch * channels, height + 8, width + 8)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels).view_as(images)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """What a good generated picture may differ in from a photo: place, size, sharpness, a little colour.

    Colour moves by a few per cent only, because it is what tells some varieties apart.
    """
    batch, device = len(images), images.device
    images = move(images, generator)
    blurred = torch.rand(batch, generator=generator) < 0.5
    images = blur(images, blurred * uniform(generator, 0.3, 1.4, batch))
    gain = uniform(generator, 0.92, 1.08, batch, 1, 1, 1) * uniform(generator, 0.97, 1.03, batch, 3, 1, 1)
    lift = uniform(generator, -0.06, 0.06, batch, 1, 1, 1)
    grain = uniform(generator, 0, 0.03, batch, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    return (images * gain.to(device) + lift.to(device) + grain.to(device)).clamp(-1, 1)


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
        raise ValueError(f"{path} has nothing in the column {missing[0]!r}; a judge needs photos and labels.")
    rows = (examples.present["image"] & examples.present["label"]).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(f"{path} has no row with both a photo and a label.")
    return Photos(examples.stored["image"][rows], examples.stored["label"][rows].long())


def read_classes(path: str | Path) -> list[str]:
    """Class names from a text file, one a line, in the order of the label numbers."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no class list at {path}; give --classes a text file with one class name a line.")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def fit(judge: Judge, photos: Photos, epochs: int, seed: int, batch_size: int = 64, lr: float = 4e-3) -> None:
    """Train in place with AdamW, one learning-rate cycle and smoothed labels, on the judge's own device."""
    device = judge.head.weight.device
    judge.to(memory_format=torch.channels_last)  # a fifth faster on a CPU
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, len(photos))
    steps = epochs * (len(photos) // batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=lr, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.15)
    judge.train()
    with tqdm(total=steps, desc="judge", unit="step", mininterval=1) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(photos), generator=generator)
            for index in order.split(batch_size):
                if len(index) < batch_size:  # its statistics would be noisy
                    break
                images, labels = photos.batch(index, device)
                images = augment(images, generator).contiguous(memory_format=torch.channels_last)
                loss = F.cross_entropy(judge(images), labels, label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                cycle.step()
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
    judge.eval()


@torch.no_grad()
def right(judge: Judge, photos: Photos, blur_sigma: float = 0.0) -> Tensor:
    """Which photos, blurred by ``blur_sigma`` pixels, get their own label: (N,) bool."""
    device = judge.head.weight.device
    hits = []
    for index in torch.arange(len(photos)).split(256):
        images, labels = photos.batch(index, device)
        images = blur(images, torch.full((len(index),), blur_sigma))
        hits.append((judge(images).argmax(1) == labels).cpu())
    return torch.cat(hits)


def measure(judge: Judge, photos: Photos) -> dict:
    """Accuracy on photos, sharp and blurred, and the recall of the classes that it knows less well."""
    hits = right(judge, photos)
    recall = {name: hits[photos.labels == k].double().mean().item() for k, name in enumerate(judge.classes)}
    return {
        "val_examples": len(photos),
        "val_top1": round(hits.double().mean().item(), 4),
        "val_top1_blurred": round(right(judge, photos, blur_sigma=1.0).double().mean().item(), 4),
        "val_weak_classes": {name: round(r, 3) for name, r in recall.items() if r < WEAK_RECALL},
    }


def card(facts: dict) -> str:
    """The README.md beside the weights."""
    weak = ", ".join(f"{name} {recall:.2f}" for name, recall in facts["val_weak_classes"].items()) or "none"
    return f"""# Judge

A convolutional network of {facts["parameters"]:,} parameters that names the class of a picture of \
{facts["size"]} x {facts["size"]} pixels.
It measures whether generated pictures show what was asked for: `python -m mmdiff.evaluate --judge`.

- Trained for {facts["epochs"]} epochs on {facts["train_examples"]:,} real photos of `{facts["data"]}` and \
on nothing else, with flips, small
  shifts, rotations, scaling, blur, grain and slight colour changes ({facts["seconds"]:.0f} s on \
{facts["device"]}).
- On {facts["val_examples"]:,} photos of `{facts["val"]}`: top-1 {facts["val_top1"]:.4f}, \
blurred by one pixel {facts["val_top1_blurred"]:.4f}.
- Classes whose photos it names correctly less often than {WEAK_RECALL}: {weak}.
- Limits: it knows these {facts["classes"]} classes only and names one of them whatever it is shown.
- The weights derive from the training photos, so their licence and attribution apply.
- Made by `python -m mmdiff.judge --data {facts["data"]} --val {facts["val"]} --epochs {facts["epochs"]} \
--seed {facts["seed"]}`.
"""


def train(args: argparse.Namespace) -> dict:
    """Train, measure and save a judge; returns the measured facts."""
    classes = read_classes(args.classes or Path(args.data).parent / "classes.txt")
    photos, val = (read_photos(path, classes, args.size) for path in (args.data, args.val))
    torch.manual_seed(args.seed)  # the initial weights
    judge = Judge(classes, args.size).to(choose_device(args.device))
    start = time.perf_counter()
    fit(judge, photos, args.epochs, args.seed)
    judge.facts = {
        "classes": len(classes),
        "data": Path(args.data).name,
        "device": judge.head.weight.device.type,
        "epochs": args.epochs,
        "parameters": sum(p.numel() for p in judge.parameters()),
        "seconds": round(time.perf_counter() - start, 1),
        "seed": args.seed,
        "size": args.size,
        "train_examples": len(photos),
        "val": Path(args.val).name,
    } | measure(judge, val)
    judge.save(args.out)
    (Path(args.out) / CARD).write_text(card(judge.facts), encoding="utf-8")
    return judge.facts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.judge", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="Parquet file with real training photos and labels")
    parser.add_argument("--val", required=True, help="Parquet file to measure it on")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--classes", help="class names, one a line (default: classes.txt beside --data)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="pixels; a multiple of 8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(argv)
    try:
        facts = train(args)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(facts, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
