"""Train the autoencoder on photos: L1 + LPIPS, later also a patch discriminator; measure it on others.

    python -m mmdiff.autoencoder.train --data A.parquet B.parquet --val C.parquet --out OUT --images 200000

Captions, masks and labels are ignored. Ctrl-C or SIGTERM saves the state; the same command resumes it.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from mmdiff.autoencoder.card import card
from mmdiff.autoencoder.network import STRIDE, Autoencoder, read_config
from mmdiff.autoencoder.training import Recipe, Training, draw_crops
from mmdiff.config import DataConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.device import choose_device
from mmdiff.evaluation.metrics import psnr
from mmdiff.evaluation.perceptual import load_lpips
from mmdiff.modalities.image import ImageModality
from mmdiff.options import add_options, from_options
from mmdiff.training.loop import MetricsLog
from mmdiff.training.signals import signals_stop

STATE_FILE = "training_state.safetensors"
SAVE_EVERY = 180.0  # seconds
LOG_EVERY = 20  # steps
NORM_BATCHES = 32  # of 64 photos, for the statistics of the latents


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


def train(
    photos: Tensor, val: Tensor, out: Path, recipe: Recipe, device: torch.device, init: Path | None = None
) -> dict:
    """Train on photos (n, 3, S, S) uint8 and save to ``out`` with metrics.csv; returns the facts.

    The saved weights are an exponential moving average. A state in ``out`` is resumed. init: folder of the
    autoencoder to start from. Raises ValueError where LPIPS is not installed, or the autoencoder of that
    folder or the state in ``out`` has another size.
    """
    torch.manual_seed(recipe.seed)  # the initial weights
    network = Autoencoder(recipe.latent_channels, recipe.widths)
    before = None
    if init:
        network.start_from(init)
        before = read_config(init)["training"]
    training = Training(network, photos, recipe, device)
    out.mkdir(parents=True, exist_ok=True)
    state = out / STATE_FILE
    if state.exists():
        training.load_state(state)
    log, stopped = MetricsLog(out / "metrics.csv", training.images), []
    last_save = time.monotonic()
    total = recipe.images if math.isfinite(recipe.images) else None
    bar = tqdm(total=total, initial=training.images, unit="photo", unit_scale=True, mininterval=2)
    with bar, signals_stop(stopped):
        while training.share < 1 and not stopped:
            terms = training.train_step()
            bar.update(recipe.batch)
            if training.step % LOG_EVERY == 0:
                values = dict.fromkeys(("l1", "lpips", "critic"), math.nan)  # there may be no critic yet
                values |= {name: value.item() for name, value in terms.items()}
                log.write({"images": training.images, "seconds": training.seconds} | values)
                bar.set_postfix(l1=f"{values['l1']:.3f}", lpips=f"{values['lpips']:.3f}")
            if time.monotonic() - last_save > SAVE_EVERY:
                training.save_state(state)
                _save(training, out, {}, before)
                last_save = time.monotonic()
    training.save_state(state)
    average = training.average.module
    if not recipe.decoder_only:
        normalise_latents(average, training.photos, recipe)
    return _save(training, out, measure(average, val, device), before)


@torch.no_grad()
def normalise_latents(network: Autoencoder, photos: Tensor, recipe: Recipe) -> None:
    """Compute the latents' mean and variance anew, since those averaged in training are of other weights."""
    generator = torch.Generator().manual_seed(recipe.seed)
    crops = (draw_crops(photos, 64, recipe.crop, generator) for _ in range(NORM_BATCHES))
    update_bn(map(network.encoder, crops), network.norm)
    network.eval()


def _save(training: Training, out: Path, figures: dict, before: dict | None) -> dict:
    network = training.average.module
    facts = {
        "init": before,  # the facts of what it started from
        "photos": len(training.photos),
        "parameters": sum(p.numel() for p in network.parameters()),
        "recipe": training.recipe.as_dict(),
        "images_seen": training.images,
        "seconds": round(training.seconds, 1),
        "device": training.device.type,
        "val": figures,
    }
    network.save(out, facts, card(facts))
    return facts


@torch.no_grad()
def measure(network: Autoencoder, photos: Tensor, device: torch.device, batch: int = 64) -> dict[str, float]:
    """Mean PSNR (dB) and LPIPS of decoded photos (n, 3, S, S) uint8, and the RMS of their latents."""
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
    add_options(parser, Recipe)
    args = parser.parse_args(arguments)
    try:
        device = choose_device(args.device)
        recipe = from_options(Recipe, args)
        torch.backends.cudnn.benchmark = True  # all batches have one shape
        if recipe.decoder_only and not args.init:
            raise ValueError("--decoder-only keeps an encoder; name the autoencoder's folder with --init.")
        photos = read_photos(args.data, recipe.size)
        val = read_photos(args.val, recipe.size // STRIDE * STRIDE)
        facts = train(photos, val, args.out, recipe, device, args.init)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
