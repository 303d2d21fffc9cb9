"""Retrieval and zero-shot classification of a CLIP model, every figure beside chance.

python -m mmdiff.clip.evaluate checkpoints/clip-tiny --data val.parquet --out results.json
"""

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.clip.captions import AND, read_caption, with_article
from mmdiff.clip.card import write_card
from mmdiff.clip.data import Pairs, read_captions, read_pairs
from mmdiff.clip.embedder import ClipEmbedder
from mmdiff.clip.vocabulary import embed_distinct, prompt_centres
from mmdiff.device import choose_device

GALLERY = 400
NUM_GALLERIES = 10
RANKS = (1, 5, 10)
TEMPLATES = ("{}", "a photo of {}", "a photo of a {}", "a photo of the {}")

Recalls = dict[str, float]  # "recall@k" and "chance@k"


def retrieval(images: Tensor, texts: Tensor, captions: list[str], seed: int = 0) -> dict[str, Recalls]:
    """Mean recall@1, 5, 10 over random galleries of at most GALLERY pairs.

    images, texts: (N, D) unit vectors; captions: N. In "pairs" only the query's own row is correct, so equal
    captions compete (a tie counts as the average over its orders). "distinct" has each caption once: an
    image must find its caption, a caption any of its images.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = {caption: k for k, caption in enumerate(dict.fromkeys(captions))}
    caption_ids = torch.tensor([numbers[caption] for caption in captions])
    totals: dict[str, Counter] = defaultdict(Counter)
    for _ in range(NUM_GALLERIES):
        rows = torch.randperm(len(captions), generator=generator)[:GALLERY]
        for name, recalls in _gallery_recalls(images[rows], texts[rows], caption_ids[rows]).items():
            totals[name].update(recalls)
    return {name: {k: v / NUM_GALLERIES for k, v in total.items()} for name, total in totals.items()}


def _gallery_recalls(images: Tensor, texts: Tensor, caption_ids: Tensor) -> dict[str, Recalls]:
    similarity = (images @ texts.T).double()  # (M, M) image to text
    distinct, which = caption_ids.unique(return_inverse=True)
    first = torch.stack([(which == c).nonzero()[0, 0] for c in range(len(distinct))])
    is_own = F.one_hot(which, len(distinct)).bool()  # (M, C)
    own_row = torch.eye(len(similarity), dtype=torch.bool)
    to_distinct = similarity[:, first]  # (M, C)
    return {
        "image_to_text_pairs": _recall(similarity, own_row),
        "text_to_image_pairs": _recall(similarity.T, own_row),
        "image_to_text_distinct": _recall(to_distinct, is_own),
        "text_to_image_distinct": _recall(to_distinct.T, is_own.T),
    }


def _recall(scores: Tensor, relevant: Tensor) -> Recalls:
    """Share of queries with a relevant item among the k best, and the same for a random order.

    scores, relevant: (queries, items). The best relevant item ties with equal scores of irrelevant ones
    at their average position, which a model of constant output cannot profit from.
    """
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    above = ((scores > best) & ~relevant).sum(1)
    tied = (torch.isclose(scores, best, rtol=0, atol=1e-6) & (scores <= best) & ~relevant).sum(1)
    recalls = {}
    for k in RANKS:
        # The item is at rank above + j, j = 0 … tied, all equally likely.
        recalls[f"recall@{k}"] = ((k - above) / (tied + 1)).clamp(0, 1).mean().item()
        recalls[f"chance@{k}"] = _chance(relevant.sum(1), scores.shape[1], k)
    return recalls


def _chance(num_relevant: Tensor, num_items: int, k: int) -> float:
    """1 - C(n - r, k) / C(n, k): the probability that k random items hold one of r relevant ones."""
    missed = torch.ones(len(num_relevant), dtype=torch.float64)
    for i in range(min(k, num_items)):
        missed *= ((num_items - num_relevant - i) / (num_items - i)).clamp(min=0)
    return (1 - missed).mean().item()


def zero_shot(
    embedder: ClipEmbedder, images: Tensor, labels: Tensor, prompts: list[Counter[str]]
) -> dict[str, float]:
    """Accuracy when each image takes the class whose mean prompt embedding is nearest.

    images: (N, D) unit vectors; labels: (N,), -1 = unknown; prompts: for each class its prompts and
    their weights. `majority` is the share of the commonest class.
    """
    images, labels = images[labels >= 0], labels[labels >= 0]
    centres = prompt_centres(embedder, prompts)  # (K, D)
    order = (images @ centres.T).argsort(1, descending=True)
    return {
        "accuracy": (order[:, 0] == labels).double().mean().item(),
        "top5": (order[:, :5] == labels[:, None]).any(1).double().mean().item(),
        "chance": 1 / len(prompts),
        "majority": labels.bincount().max().item() / len(labels),
        "images": len(labels),
        "classes": len(prompts),
    }


def caption_prompts(num_classes: int, captions: list[str], labels: list[int]) -> list[Counter[str]]:
    """Each class's own training captions, weighted by how often they occur."""
    prompts: list[Counter[str]] = [Counter() for _ in range(num_classes)]
    for caption, label in zip(captions, labels, strict=True):
        if label is not None and label >= 0:
            prompts[label][caption] += 1
    empty = [label for label, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"classes {empty} have no training caption; expected at least one for each class")
    return prompts


def colour_pairs(embedder: ClipEmbedder, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Is "a photo of a red and black butterfly" nearer to photos that have both colours than to photos with
    one?

    images: (N, D) unit vectors; captions: N, which say the colours of each. For every two colours that a
    caption joins, "both_above_one" counts how often a photo with both is nearer to their sentence than one
    with only one of them; each photo with both weighs the same. Empty if no caption joins two colours.
    """
    said = [read_caption(caption) for caption in captions]
    joined = [
        next((frozenset(a.split(f" {AND} ")) for a in s.attributes if f" {AND} " in a), None) for s in said
    ]
    colours = [pair or frozenset(s.attributes) for pair, s in zip(joined, said, strict=True)]
    hits = []
    for pair in sorted(set(filter(None, joined)), key=sorted):
        both = [k for k, own in enumerate(colours) if pair <= own]
        one = [k for k, own in enumerate(colours) if len(pair & own) == 1]
        if one:
            hits.append(_nearer(embedder, images, pair, said[both[0]].noun, both, one))
    if not hits:
        return {}
    return {"both_above_one": torch.cat(hits).mean().item(), "chance": 0.5, "pairs": len(hits)}


def _nearer(
    embedder: ClipEmbedder, images: Tensor, pair: frozenset[str], noun: str, both: list[int], one: list[int]
) -> Tensor:
    """For each of the photos ``both`` the share of the photos ``one`` that are farther from the sentences
    that say the pair's colours in either order.
    """
    orders = (f" {AND} ".join(sorted(pair, reverse=reverse)) for reverse in (False, True))
    texts = [f"a photo of {with_article('a', f'{colours} {noun}')}" for colours in orders]
    similarity = images @ embed_distinct(embedder, texts).mean(0)
    return (similarity[both, None] > similarity[one]).float().mean(1)


def embed_pairs(embedder: ClipEmbedder, pairs: Pairs, batch: int = 256) -> tuple[Tensor, Tensor]:
    """(N, D) image and (N, D) text embeddings on the CPU."""
    images = [embedder.embed_images(chunk.float() / 127.5 - 1).cpu() for chunk in pairs.images.split(batch)]
    return torch.cat(images), embed_distinct(embedder, pairs.captions, batch)


def evaluate(
    embedder: ClipEmbedder,
    data: str | Path,
    classes: str | Path | None = None,
    train: str | Path | None = None,
) -> dict:
    """All measurements on one parquet file.

    classes: class names, one a line; train: a parquet file. They default to `classes.txt` and
    `train.parquet` beside the data; without class names there is no zero-shot measurement.
    """
    data = Path(data)
    pairs = read_pairs([data])
    images, texts = embed_pairs(embedder, pairs)
    results = {
        "data": f"{data.parent.name}/{data.name}",
        "images": len(pairs),
        "distinct_captions": len(set(pairs.captions)),
        "gallery": min(GALLERY, len(pairs)),
        "galleries": NUM_GALLERIES,
        "retrieval": retrieval(images, texts, pairs.captions),
    }
    if colours := colour_pairs(embedder, images, pairs.captions):
        results["colour_pairs"] = colours
    classes = Path(classes or data.parent / "classes.txt")
    if classes.is_file() and (pairs.labels >= 0).any():
        names = [name for name in classes.read_text().splitlines() if name.strip()]
        kind, prompts = class_prompts(names, set(pairs.captions), train or data.parent / "train.parquet")
        results["zero_shot"] = {"prompts": kind, **zero_shot(embedder, images, pairs.labels, prompts)}
    return results


def class_prompts(names: list[str], captions: set[str], train: str | Path) -> tuple[str, list[Counter[str]]]:
    """The kind of prompts, and the prompts of each class.

    They are made of the class names if captions mention all of them; names such as "Apple 11" mean nothing to
    the model, so the training captions of the class are used.
    """
    if all(any(name.lower() in caption for caption in captions) for name in names):
        return "class names", [Counter(t.format(name.lower()) for t in TEMPLATES) for name in names]
    return "training captions of the class", caption_prompts(len(names), *read_captions([train]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="folder, or an open_clip model/tag")
    parser.add_argument("--data", nargs="+", required=True, metavar="PARQUET")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON")
    parser.add_argument("--classes", metavar="TXT", help="class names, one a line [classes.txt beside]")
    parser.add_argument("--train", metavar="PARQUET", help="captions of the classes [train.parquet beside]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args()
    try:
        embedder = ClipEmbedder(args.checkpoint, choose_device(args.device))
        results = [evaluate(embedder, data, args.classes, args.train) for data in args.data]
    except (ValueError, RuntimeError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(results, indent=2) + "\n")
    if Path(args.checkpoint).is_dir():
        write_card(Path(args.checkpoint), results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
