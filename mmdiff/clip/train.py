"""Train a small CLIP model on pictures and captions, into a folder that open_clip loads.

python -m mmdiff.clip.train --data A.parquet B.parquet --val C.parquet --out FOLDER --max-minutes 2
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import CLIP, SimpleTokenizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from mmdiff.clip.card import write_card
from mmdiff.clip.data import CaptionTexts, Pairs, read_pairs
from mmdiff.clip.embedder import CONFIG_NAME, WEIGHTS_NAME, ClipEmbedder, resize_square
from mmdiff.clip.evaluate import evaluate
from mmdiff.clip.loss import pair_loss
from mmdiff.device import choose_device
from mmdiff.files import write_weights
from mmdiff.options import add_options, from_options, option
from mmdiff.training.learning_rate import warm_cosine
from mmdiff.training.loop import MetricsLog
from mmdiff.training.recipe import TimedRecipe

SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 20  # steps; reading the loss waits for the device
CHECK_EVERY = 0.05  # of the training, between two validation losses
VAL_BATCH = 256
WARMUP = 0.05  # of the training
MAX_LOGIT_SCALE = math.log(100)
PATCH = 8  # pixels; side of the squares that augmentation hides
PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


@dataclass(frozen=True)
class Recipe(TimedRecipe):
    """How to train; `images` counts pairs."""

    batch: int = option(1024, "pairs a step")
    weight_decay: float = option(0.2, "on matrices")


class Validation:
    """The loss on validation pairs, in fixed batches, without augmentation."""

    def __init__(self, pairs: Pairs, size: int, context_length: int, device: torch.device):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
        captions = [pairs.captions[i] for i in order]
        self.images = resize_square(pairs.images[order].float() / 127.5 - 1, size).to(device)
        self.tokens = SimpleTokenizer(context_length=context_length)(captions).to(device)
        self.next_check = 0.0

    @torch.no_grad()
    def loss(self, model: CLIP, progress: float) -> float:
        """The mean loss; NaN, for speed, if it was measured within the last `CHECK_EVERY` of the training."""
        if progress < min(self.next_check, 1):
            return math.nan
        self.next_check = progress + CHECK_EVERY
        model.eval()
        losses = []
        for images, tokens in zip(self.images.split(VAL_BATCH), self.tokens.split(VAL_BATCH), strict=True):
            matches = (tokens[:, None] == tokens).all(2)
            losses.append(pair_loss(model, images, tokens, matches))
        model.train()
        return torch.stack(losses).mean().item()


def augment(images: Tensor, rows: Tensor, size: int, rng: random.Random) -> Tensor:
    """Random crops of at least 80 % of the side, mirror images, grey patches, a trace of light and noise.

    images: (N, 3, S, S) uint8; rows: (B,); returns (B, 3, size, size) in about [-1, 1]. Captions name
    colours, never left and right: hue and saturation stay, and a mirror image keeps its caption.
    """
    device, full, count = images.device, images.shape[-1], len(rows)
    side = rng.randint(round(0.8 * full), full)  # one for the batch, so that one resize serves all
    span = torch.arange(side, device=device)
    ys = torch.randint(full - side + 1, (count, 1), device=device) + span  # (B, side)
    xs = torch.randint(full - side + 1, (count, 1), device=device) + span
    xs = torch.where(torch.rand(count, 1, device=device) < 0.5, xs, xs.flip(1))
    channels = torch.arange(3, device=device)[:, None, None]
    crops = images[rows[:, None, None, None], channels, ys[:, None, :, None], xs[:, None, None, :]]
    x = resize_square(crops.float() / 127.5 - 1, size)
    x = x + 0.04 * torch.randn(count, 1, 1, 1, device=device) + 0.02 * torch.randn_like(x)
    hidden = 0.5 * torch.rand(count, 1, 1, 1, device=device)  # share of the patches, per picture
    kept = (torch.rand(count, 1, size // PATCH, size // PATCH, device=device) >= hidden).float()
    return x * F.interpolate(kept, scale_factor=PATCH, mode="nearest")


def shuffled_batches(count: int, batch: int, device: torch.device) -> Iterator[Tensor]:
    """Row numbers (batch,) without end, no row twice in an epoch."""
    while True:
        for rows in torch.randperm(count, device=device).split(batch):
            if len(rows) == batch:
                yield rows


def make_optimizer(model: CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def update(model: CLIP, optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """One step at learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)


def save(model: CLIP, config: dict, record: dict, folder: Path) -> None:
    """The folder as open_clip's "local-dir:" loads it, weights in half precision."""
    content = {"model_cfg": config, "preprocess_cfg": PREPROCESS, "training": record}
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n")
    write_weights(model.state_dict(), folder / WEIGHTS_NAME)


def train(
    pairs: Pairs,
    val: Pairs | None,
    config: dict,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    init: str = "",
) -> None:
    """Train an open_clip model of `config` and save it to `out`, with metrics.csv beside it.

    The learning rate follows the nearer limit of the recipe, so that it ends at 0. init: folder of such a
    model to start from. Raises ValueError if there are fewer pairs than in a batch, or no such model.
    """
    if len(pairs) < recipe.batch:
        raise ValueError(f"{len(pairs)} pairs make no batch of {recipe.batch}; lower --batch or add data")
    model, rng = make_model(config, recipe.seed, init).to(device), random.Random(recipe.seed)
    optimizer = make_optimizer(model, recipe)
    size, pixels = config["vision_cfg"]["image_size"], pairs.images.to(device)
    texts = CaptionTexts(pairs.captions, model.context_length, recipe.seed, device)
    validation = Validation(val, size, model.context_length, device) if val else None
    record = describe(pairs, model, recipe, device) | before(init)
    out.mkdir(parents=True, exist_ok=True)
    log = MetricsLog(out / "metrics.csv", -1)  # of this training alone
    start = last_save = time.monotonic()
    progress = 0.0
    with progress_bar(recipe) as bar:
        for step, rows in enumerate(shuffled_batches(len(pairs), recipe.batch, device), 1):
            rate = warm_cosine(progress, recipe.lr, WARMUP)
            loss = pair_loss(model, augment(pixels, rows, size, rng), *texts.sample(rows))
            update(model, optimizer, loss, rate)
            now = time.monotonic()
            progress = recipe.share(step * recipe.batch, now - start)
            record |= {"images_seen": step * recipe.batch, "seconds": round(now - start, 1)}
            bar.update(recipe.batch)
            if step % LOG_EVERY == 1 or progress >= 1:
                val_loss = validation.loss(model, progress) if validation else math.nan
                log.write(row(record, loss.item(), val_loss, model, rate))
                bar.set_postfix(loss=f"{loss.item():.3f}")
            if progress >= 1:
                break
            if now - last_save > SAVE_EVERY:
                save(model, config, record, out)
                last_save = now
    save(model, config, record, out)


def progress_bar(recipe: Recipe) -> tqdm:
    """Of pairs; without an end if only time limits the training."""
    total = recipe.images if math.isfinite(recipe.images) else None
    return tqdm(total=total, desc="train", unit="pair", unit_scale=True, mininterval=1)


def row(record: dict, loss: float, val_loss: float, model: CLIP, rate: float) -> dict[str, float]:
    """A line of metrics.csv."""
    seen = {"images": record["images_seen"], "seconds": record["seconds"]}
    scale = model.logit_scale.exp().item()
    return seen | {"loss": loss, "val_loss": val_loss, "logit_scale": scale, "lr": rate}


def make_model(config: dict, seed: int, init: str) -> CLIP:
    """With random weights, or those in the folder ``init``. Raises ValueError if they are of another size."""
    torch.manual_seed(seed)
    model = CLIP(**config)
    if init:
        try:
            model.load_state_dict(load_file(Path(init, WEIGHTS_NAME)))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"cannot start from {init} ({error}); name a folder of such a model.") from error
    return model


def describe(pairs: Pairs, model: CLIP, recipe: Recipe, device: torch.device) -> dict:
    """Facts of the training for the checkpoint, as JSON values."""
    return {
        "pairs": len(pairs),
        "distinct_captions": len(set(pairs.captions)),
        "sources": sorted(set(pairs.sources)),
        "parameters": sum(p.numel() for p in model.parameters()),
        "recipe": recipe.as_dict(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "torch": torch.__version__,
    }


def before(init: str) -> dict:
    """Where a training goes on from, and the pairs seen before it; empty without ``init``."""
    if not init:
        return {}
    trained = json.loads(Path(init, CONFIG_NAME).read_text())["training"]
    return {"init": Path(init).name, "seen_before": trained["images_seen"] + trained.get("seen_before", 0)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, metavar="PARQUET")
    parser.add_argument("--val", nargs="*", default=[], metavar="PARQUET", help="measured at the end")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--config", type=Path, default=Path("configs/clip-tiny.json"), metavar="JSON")
    parser.add_argument("--init", default="", metavar="FOLDER", help="such a model, to start from")
    add_options(parser, Recipe)
    given = parser.parse_args()
    try:
        device = choose_device(given.device)
        recipe = from_options(Recipe, given)
        config = json.loads(given.config.read_text())
        val = read_pairs(given.val) if given.val else None
        train(read_pairs(given.data), val, config, given.out, recipe, device, given.init)
        embedder = ClipEmbedder(given.out, device)
        results = [evaluate(embedder, path) for path in given.val]
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    write_card(given.out, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
