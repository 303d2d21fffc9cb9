"""Train the autoencoder on photos: L1 + LPIPS, and measure it on others.

    python -m mmdiff.autoencoder.train --data A.parquet B.parquet --val C.parquet --out OUT --max-minutes 40

Captions, masks and labels are not looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from mmdiff.autoencoder.card import card
from mmdiff.autoencoder.network import STRIDE, WIDTHS, Autoencoder, read_config
from mmdiff.config import DataConfig
from mmdiff.data.examples import read_parquet
from mmdiff.device import choose_device
from mmdiff.evaluation.skip import Skip
from mmdiff.evaluation.metrics import psnr
from mmdiff.evaluation.perceptual import load_lpips, lpips_network
from mmdiff.files import write_text
from mmdiff.modalities.image import ImageModality
from mmdiff.training.learning_rate import warm_cosine

SAVE_EVERY = 180.0  # seconds
LOG_EVERY = 20  # steps
WARMUP = 0.03  # of the training
EMA = 0.998
SETTLE = 32  # batches of 64


@dataclass(frozen=True)
class Recipe:
    """How to train. The end is at `images` crops or `max_minutes`, whichever comes first."""

    images: float = math.inf
    max_minutes: float = math.inf
    size: int = 104  # pixels; photos are cut to a square of that size when they are read
    crop: int = 64  # pixels of the random part of it that a step sees
    batch: int = 16
    lr: float = 8e-4  # peak
    perceptual: float = 1.0  # weight of LPIPS beside the mean absolute error
    noise: float = 0.15  # standard deviation of the noise on latents, which have that of 1
    latent_channels: int = 6
    widths: Sequence[int] = WIDTHS  # channels at a half, a quarter and an eighth of the photo's size
    decoder_only: bool = False  # the encoder stays, so that latents keep their meaning
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.images) or math.isfinite(self.max_minutes)):
            raise ValueError("the training has no end; give --images or --max-minutes, or both.")
        if min(self.images, self.max_minutes, self.batch, self.lr, self.latent_channels) <= 0:
            raise ValueError(f"images, max_minutes, batch, lr and latent_channels must be positive: {self}.")
        if len(self.widths) != len(WIDTHS) or min(self.widths) < 1:
            raise ValueError(f"widths are {self.widths}; give {len(WIDTHS)} numbers of channels.")
        if self.crop % STRIDE or not 0 < self.crop <= self.size:
            raise ValueError(
                f"crop is {self.crop}; give a multiple of {STRIDE} of at most the size, {self.size}."
            )


def read_photos(paths: Sequence[str | Path], size: int) -> Tensor:
    """The photos of Parquet files, (n, 3, size, size) uint8. Raises ValueError if there are none."""
    image = ImageModality("image", size, patch_size=2)
    photos = []
    for path in paths:
        examples = read_parquet(path, [image], DataConfig(), strict=False)
        if "image" not in examples.stored:
            raise ValueError(f"{path} has nothing in the column 'image'.")
        photos.append(examples.stored["image"])
    return torch.cat(photos)


def draw_crops(photos: Tensor, count: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random photos' random parts, half of them mirrored: (count, 3, crop, crop) in [-1, 1]."""
    rows = torch.randint(len(photos), (count,), generator=generator)
    top, left = torch.randint(photos.shape[-1] - crop + 1, (2, count, 1), generator=generator)
    span = torch.arange(crop)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    ys, xs = top + span, left + torch.where(mirrored, span.flip(0), span)
    channels = torch.arange(3)[:, None, None]
    places = rows[:, None, None, None], channels, ys[:, None, :, None], xs[:, None, None, :]
    picked = photos[tuple(index.to(photos.device) for index in places)]
    return picked.float() / 127.5 - 1


def objective(
    network: Autoencoder, perceptual: nn.Module, photos: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Mean absolute error and mean LPIPS of the photos (B, 3, H, W) after latents with noise."""
    latents = network.encode(photos)
    decoded = network.decode(latents + recipe.noise * torch.randn_like(latents))
    return (decoded - photos).abs().mean(), perceptual(decoded, photos).mean()


@dataclass
class Progress:
    """How far a training is: photos seen, seconds, and the share of its recipe that is done."""

    images: int = 0
    seconds: float = 0.0
    share: float = 0.0

    def follow(self, recipe: Recipe) -> Iterator[int]:
        """Step numbers until the recipe's end."""
        start, step = time.monotonic(), 0
        while self.share < 1:
            yield step
            step += 1
            self.images += recipe.batch
            self.seconds = time.monotonic() - start
            self.share = max(self.images / recipe.images, self.seconds / (60 * recipe.max_minutes))


def train(
    photos: Tensor, val: Tensor, out: Path, recipe: Recipe, device: torch.device, init: Path | None = None
) -> dict:
    """Train on photos (n, 3, S, S) uint8 and save to ``out`` with metrics.csv; returns the facts.

    Weights are an exponential moving average. init: folder of the autoencoder to start from.
    Raises ValueError where LPIPS is not installed, or that folder holds none of the same size.
    """
    try:
        perceptual = lpips_network(device)
    except Skip as reason:
        raise ValueError(f"the loss cannot be computed: {reason}") from None
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    network = Autoencoder(recipe.latent_channels, recipe.widths)
    before = None
    if init:
        network.take_weights(init)
        before = read_config(init)["training"]
    network = network.to(device, memory_format=torch.channels_last).train()
    photos = photos.to(device)
    if recipe.decoder_only:
        network.encoder.requires_grad_(False)
        network.norm.eval()
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, (0.9, 0.99), weight_decay=0, fused=True)
    out.mkdir(parents=True, exist_ok=True)
    progress, last_save = Progress(), 0.0
    with _Log(out / "metrics.csv", recipe) as log:
        for step in progress.follow(recipe):
            rate = warm_cosine(progress.share, recipe.lr, WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = rate
            crops = draw_crops(photos, recipe.batch, recipe.crop, generator)
            crops = crops.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                l1, lpips = objective(network, perceptual, crops, recipe)
            optimizer.zero_grad(set_to_none=True)
            (l1 + recipe.perceptual * lpips).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            log.note(step, progress, l1, lpips, rate)
            if progress.seconds - last_save > SAVE_EVERY:
                _save(average.module, out, photos, recipe, progress, {}, before)
                last_save = progress.seconds
    if not recipe.decoder_only:
        settle(average.module, photos, recipe.crop, generator)
    figures = measure(average.module, val, device)
    return _save(average.module, out, photos, recipe, progress, figures, before)


@torch.no_grad()
def settle(network: Autoencoder, photos: Tensor, crop: int, generator: torch.Generator) -> None:
    """Give the latents of averaged weights unit variance: what was averaged with them belongs to others."""
    crops = (draw_crops(photos, 64, crop, generator) for _ in range(SETTLE))
    update_bn(map(network.encoder, crops), network.norm)
    network.eval()


class _Log:
    """metrics.csv and the progress bar."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        write_text(path, "images,seconds,l1,lpips,lr\n")
        self.file = path.open("a", newline="", buffering=1)
        self.writer = csv.writer(self.file)
        total = recipe.images if math.isfinite(recipe.images) else None
        self.bar = tqdm(total=total, desc="autoencoder", unit="photo", unit_scale=True, mininterval=2)
        self.batch = recipe.batch

    def note(self, step: int, progress: Progress, l1: Tensor, lpips: Tensor, rate: float) -> None:
        self.bar.update(self.batch)
        if step % LOG_EVERY == 0:
            values = (progress.seconds, l1.item(), lpips.item(), rate)
            self.writer.writerow([progress.images, *(f"{v:.4g}" for v in values)])
            self.bar.set_postfix(l1=f"{l1.item():.3f}", lpips=f"{lpips.item():.3f}")

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.close()


def _save(
    network: Autoencoder,
    out: Path,
    photos: Tensor,
    recipe: Recipe,
    progress: Progress,
    figures: dict,
    before: dict | None,
) -> dict:
    facts = {
        "init": before,  # the facts of what it started from
        "photos": len(photos),
        "parameters": sum(p.numel() for p in network.parameters()),
        "recipe": {k: v for k, v in asdict(recipe).items() if v != math.inf},
        "images_seen": progress.images,
        "seconds": round(progress.seconds, 1),
        "device": next(network.parameters()).device.type,
        "val": figures,
    }
    network.save(out, facts, card(facts))
    return facts


@torch.no_grad()
def measure(network: Autoencoder, photos: Tensor, device: torch.device, batch: int = 64) -> dict[str, float]:
    """What is lost on the way through the latents: mean PSNR (dB), LPIPS and the latents' own spread."""
    network = network.to(device).eval()
    distance = load_lpips(device)
    squares, distances, latents = [], [], []
    for chunk in photos.split(batch):
        real = chunk.to(device).float() / 127.5 - 1
        z = network.encode(real)
        decoded = network.decode(z).clamp(-1, 1)
        squares.append(((decoded - real) / 2).square().mean((1, 2, 3)).cpu())
        distances.append(distance(decoded, real))
        latents.append(z.cpu())
    return {
        "photos": len(photos),
        "size": photos.shape[-1],
        "psnr": round(psnr(torch.cat(squares)).mean().item(), 2),
        "lpips": round(torch.cat(distances).mean().item(), 4),
        "latent_rms": round(torch.cat(latents).square().mean().sqrt().item(), 3),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.autoencoder.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--data", nargs="+", required=True, metavar="PARQUET")
    parser.add_argument("--val", nargs="+", required=True, metavar="PARQUET", help="measured at the end")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--init", type=Path, metavar="FOLDER", help="autoencoder to start from")
    parser.add_argument("--images", type=float, default=math.inf, help="stop after that many crops")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop after that time")
    for field in fields(Recipe)[2:]:
        flag, kind = f"--{field.name.replace('_', '-')}", type(field.default)
        how = {"action": "store_true"} if kind is bool else {"type": kind, "default": field.default}
        if kind is tuple:
            how |= {"type": int, "nargs": len(WIDTHS)}
        parser.add_argument(flag, **how)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(arguments)
    try:
        device = choose_device(args.device)
        recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        whole = recipe.size // STRIDE * STRIDE
        if recipe.decoder_only and not args.init:
            raise ValueError("--decoder-only keeps an encoder; name the autoencoder's folder with --init.")
        photos, val = read_photos(args.data, recipe.size), read_photos(args.val, whole)
        facts = train(photos, val, args.out, recipe, device, args.init)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
