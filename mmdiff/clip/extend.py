"""Teach the text tower of a trained CLIP model combinations of colour and kind that its captions lack.

python -m mmdiff.clip.extend checkpoints/clip-tiny --data orchard.parquet --keep scenes.parquet --out FOLDER

A tower that was never trained on "a grey tomato" embeds it near something more common. Here it learns to
embed such texts where the image tower embeds recoloured photos (`mmdiff.clip.recolour`). The image tower is
frozen, and texts like the training captions keep their embeddings, so models trained with these still apply.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from open_clip import CLIP
from torch import Tensor
from tqdm import tqdm

from mmdiff.clip.captions import vary
from mmdiff.clip.colours import Said, combinations, parse
from mmdiff.clip.data import read_captions
from mmdiff.clip.embedder import CONFIG_NAME, ClipEmbedder
from mmdiff.clip.recolour import recoloured_copies
from mmdiff.clip.train import save, shuffled_batches
from mmdiff.clip.vocabulary import embed_distinct
from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples
from mmdiff.data.parquet import read_parquet
from mmdiff.device import choose_device
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.mask import MaskModality

SIDE = 96  # pixels of the photos that are recoloured
COPIES = 60  # of each combination of colour and kind
FEWEST = 8  # copies whose mean is a caption's target; with fewer, that of its colour and kind is
VARIANTS = 24  # wordings of each caption
BATCH = 256  # new texts, and as many kept ones
KEEP = 2.0  # weight of the kept texts


class Texts(NamedTuple):
    """Tokens (n, L) and their target embeddings, unit vectors (n, D)."""

    tokens: Tensor
    targets: Tensor


def photos_with_masks(path: str | Path) -> Examples:
    """The photos of a Parquet file at SIDE pixels, with masks of two classes and captions."""
    image = ImageModality("image", SIDE, 8)
    mask = MaskModality("mask", SIDE, 8, ["background", "object"])
    return read_parquet(path, (image, mask), DataConfig())


def new_texts(embedder: ClipEmbedder, photos: Examples, rng: random.Random) -> tuple[Texts, list[Said]]:
    """Wordings of all rare combinations with mean embeddings of recoloured photos; and these combinations.

    Raises ValueError if the captions of the photos lack no combination.
    """
    _, common, rare = combinations(photos.captions)
    if not rare:
        raise ValueError("the captions combine all colours with all kinds, so there is nothing to add.")
    count = COPIES * (len(common) + len(rare))
    copies = recoloured_copies(photos, count, "image", "mask", seed=0, wanted=rare)
    pixels = copies.stored["image"].float() / 127.5 - 1
    vectors = torch.cat([embedder.embed_images(chunk).cpu() for chunk in pixels.split(256)])
    texts: dict[str, Tensor] = {}
    for said in rare:
        own = [k for k, caption in enumerate(copies.captions) if parse(caption) == said]
        texts |= _wordings(said, [copies.captions[k] for k in own], vectors[own], rng)
    return Texts(embedder.tokenizer(list(texts)), torch.stack(list(texts.values()))), rare


def _wordings(said: Said, captions: Sequence[str], vectors: Tensor, rng: random.Random) -> dict[str, Tensor]:
    """Texts that name the colour and the kind, with or without the shape, and their unit vectors (D,)."""
    anyhow = F.normalize(vectors.mean(0), dim=0)
    texts = {}
    for caption in dict.fromkeys(captions):
        own = torch.tensor([other == caption for other in captions])
        exact = F.normalize(vectors[own].mean(0), dim=0) if own.sum() >= FEWEST else anyhow
        shape = caption.split()[-2]
        for text in _varied(caption, rng):
            if f"{said.colour} " in text:
                texts[text] = exact if shape in text.split() else anyhow
    return texts


def kept_texts(
    embedder: ClipEmbedder, captions: Sequence[str], rare: Sequence[Said], rng: random.Random
) -> Texts:
    """Wordings of the captions without rare combinations, and their present embeddings."""
    kept = [caption for caption in dict.fromkeys(filter(None, captions)) if parse(caption) not in rare]
    texts = list(dict.fromkeys(text for caption in kept for text in _varied(caption, rng)))
    return Texts(embedder.tokenizer(texts), embed_distinct(embedder, texts, batch=512))


def _varied(caption: str, rng: random.Random) -> list[str]:
    return [caption, *(vary(caption, rng) for _ in range(VARIANTS))]


def text_tower(model: CLIP) -> list[torch.nn.Parameter]:
    """The parameters that only texts use."""
    seen = {id(p) for p in model.visual.parameters()} | {id(model.logit_scale)}
    return [p for p in model.parameters() if id(p) not in seen]


def distances(model: CLIP, tokens: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine of each text to its target, (n,)."""
    return 1 - (model.encode_text(tokens, normalize=True) * targets).sum(1)


def extend(model: CLIP, new: Texts, kept: Texts, steps: int, lr: float) -> None:
    """Train the text tower in place: new texts move to their targets while kept ones stay."""
    parameters = text_tower(model)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    device = parameters[0].device
    sizes = [len(texts.tokens) for texts in (new, kept)]
    draws = [shuffled_batches(size, min(BATCH, size), torch.device("cpu")) for size in sizes]
    bar = tqdm(range(steps), desc="extend", mininterval=1)
    for step in bar:
        far = [
            distances(model, texts.tokens[rows].to(device), texts.targets[rows].to(device)).mean()
            for texts, rows in zip((new, kept), map(next, draws), strict=True)
        ]
        optimizer.zero_grad()
        (far[0] + KEEP * far[1]).backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            bar.set_postfix(new=f"{far[0].item():.4f}", kept=f"{far[1].item():.4f}")
    model.requires_grad_(False)


@torch.no_grad()
def mean_cosine(model: CLIP, texts: Texts) -> float:
    """Mean cosine of texts to their targets."""
    device = model.logit_scale.device
    chunks = zip(texts.tokens.split(512), texts.targets.split(512), strict=True)
    far = torch.cat([distances(model, tokens.to(device), targets.to(device)) for tokens, targets in chunks])
    return round(1 - far.mean().item(), 4)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder of a CLIP model, see python -m mmdiff.clip.train")
    parser.add_argument("--data", required=True, metavar="PARQUET", help="photos with masks and captions")
    parser.add_argument("--keep", nargs="*", default=[], metavar="PARQUET", help="more captions to keep")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(arguments)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    try:
        embedder = ClipEmbedder(args.checkpoint, choose_device(args.device))
        photos = photos_with_masks(args.data)
        new, rare = new_texts(embedder, photos, rng)
        captions = [*photos.captions, *read_captions(args.keep)[0]]
        kept = kept_texts(embedder, captions, rare, rng)
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    before = mean_cosine(embedder.model, new)
    extend(embedder.model, new, kept, args.steps, args.lr)
    found = {
        "combinations": [" ".join(said) for said in rare],
        "new_texts": len(new.tokens),
        "kept_texts": len(kept.tokens),
        "steps": args.steps,
        "new_cosine": {"before": before, "after": mean_cosine(embedder.model, new)},
        "kept_cosine": mean_cosine(embedder.model, kept),
    }
    config = json.loads((Path(args.checkpoint) / CONFIG_NAME).read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    save(embedder.model, config["model_cfg"], config.get("training", {}) | {"extended": found}, args.out)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
