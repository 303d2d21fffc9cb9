"""Do photos made from texts of two colours show both, in the object? The task `two_colours`.

    python benchmarks/two_colours.py CHECKPOINT --data PARQUET --train PARQUET --segmenter FOLDER \
        --out results.json --tasks two_colours

takes the arguments of `python -m mmdiff.evaluate`, measures the same and knows this task, too. Which colours
an object has is read off the pixels that the segmenter finds, by neither the model nor its embedder.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdiff.clip.captions import AND, read_caption, with_article
from mmdiff.evaluate import main
from mmdiff.evaluation.evaluation import Evaluation, Outcome
from mmdiff.evaluation.skip import Skip
from mmdiff.evaluation.tasks import TASKS

TEXTS = 200
COMMON = 20  # training captions that join two colours, so that texts join them, too
LEARNT = 100  # training captions that say a colour, so that it can be told from the pixels
CELLS = 6  # of the colour cube along each of red, green and blue
RIDGE = 1e-4  # penalty on the squared weights
WORDINGS = (
    "a photo of {}",
    "{}",
    "a photo of {} on a green background",
    "{} with open wings",
    "a photo of {} on a plain white background",
)


def said_colours(caption: str) -> tuple[str, ...]:
    """("orange", "black") of "a photo of an orange and black butterfly, …"."""
    attributes = read_caption(caption).attributes
    return tuple(attributes[0].split(f" {AND} ")) if attributes else ()


def shares(images: Tensor, inside: Tensor) -> Tensor:
    """Square roots of the share of each cell of the colour cube in the pixels inside: (n, CELLS^3).

    images: (n, 3, H, W) in [-1, 1]. inside: (n, H, W) bool.
    """
    steps = ((images + 1) / 2 * CELLS).long().clamp(0, CELLS - 1)
    cell = (steps[:, 0] * CELLS + steps[:, 1]) * CELLS + steps[:, 2]
    counts = torch.zeros(len(images), CELLS**3)
    counts.scatter_add_(1, cell.flatten(1), inside.flatten(1).float())
    return (counts / counts.sum(1, keepdim=True).clamp(min=1)).sqrt()


@dataclass(frozen=True)
class ColourFinder:
    """Which colours an object has, by a logistic regression on `shares` for each colour.

    Attributes:
        weight: (CELLS^3, K). bias: (K,), such that as many of the photos it was fitted to have a colour as
            their captions say it.
    """

    colours: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    @classmethod
    def fitted(cls, features: Tensor, captions: Sequence[str]) -> ColourFinder:
        """From photos' `shares` (n, CELLS^3) and captions. `Skip` if too few colours are said often."""
        said = [said_colours(caption) for caption in captions]
        counts = Counter(colour for colours in said for colour in colours)
        colours = tuple(colour for colour, count in counts.most_common() if count >= LEARNT)
        if len(colours) < 2:
            raise Skip(f"fewer than two colours are said by {LEARNT} training captions")
        says = torch.tensor([[colour in own for colour in colours] for own in said], dtype=torch.float32)
        weight, bias = _regression(features, says)
        scores = features @ weight + bias
        bounds = [scores[:, k].sort(descending=True).values[int(n)] for k, n in enumerate(says.sum(0))]
        return cls(colours, weight, bias - torch.stack(bounds))

    def find(self, features: Tensor) -> Tensor:
        """(n, K) bool: whether each photo has each colour."""
        return features @ self.weight + self.bias > 0


def _regression(features: Tensor, says: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases of a logistic regression for each column of ``says``, with a penalty."""
    weight = torch.zeros(features.shape[1], says.shape[1], requires_grad=True)
    bias = torch.zeros(says.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = F.binary_cross_entropy_with_logits(features @ weight + bias, says, reduction="none")
        total = nats.mean(0).sum() + RIDGE * (weight**2).sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weight.detach(), bias.detach()


def common_pairs(captions: Sequence[str], colours: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of these colours that at least `COMMON` captions join, the commonest first."""
    said = (tuple(sorted(own)) for own in map(said_colours, captions) if len(own) == 2)
    counts = Counter(pair for pair in said if set(pair) <= set(colours))
    return [pair for pair, count in counts.most_common() if count >= COMMON]


def write_texts(pairs: Sequence[tuple[str, str]], noun: str, count: int) -> list[tuple[str, tuple[str, str]]]:
    """``count`` texts that cycle through the pairs, in other words and the other order in turn."""
    texts = []
    for k in range(count):
        turn, pair = k // len(pairs), pairs[k % len(pairs)]
        colours = f" {AND} ".join(pair if turn % 2 else pair[::-1])
        texts.append((WORDINGS[turn % len(WORDINGS)].format(with_article("a", f"{colours} {noun}")), pair))
    return texts


def two_colours(ev: Evaluation) -> Outcome:
    """Share of photos of texts with two colours in which both are found, and that of each of the two.

    "photos" is that of real photos whose captions join two such colours: the upper limit. "another_text" is
    how often a photo has the colours of the next text, which has others: chance.
    """
    ev.require("embedding", "mask")
    if not ev.train_captions:
        raise Skip("no training captions: give --train the Parquet file that the model was trained on")
    finder = ColourFinder.fitted(_features(ev, ev.train_photos), ev.train_captions)
    pairs = common_pairs(ev.train_captions, finder.colours)
    if not pairs:
        raise Skip("the training captions do not join two colours")
    noun = Counter(read_caption(caption).noun for caption in ev.train_captions).most_common(1)[0][0]
    texts, asked = zip(*write_texts(pairs, noun, TEXTS), strict=True)
    images = ev.images_from("two colours", TEXTS, embedding=ev.embed_texts(texts))
    found = finder.find(_features(ev, images))
    rows, captions = ev.with_captions(ev.rows_with("image"))
    said = [tuple(sorted(said_colours(caption))) for caption in captions]
    known = [k for k, pair in enumerate(said) if pair in pairs]
    real = finder.find(_features(ev, ev.read(rows[known])["image"]))
    figures = {"colours": len(finder.colours), "pairs": len(pairs)}
    figures |= _agreement(finder, found, asked) | {
        "photos": _agreement(finder, real, [said[k] for k in known])
    }
    figures["another_text"] = _agreement(finder, found, asked[1:] + asked[:1])
    return Outcome(figures, [ev.picture(images)], texts)


def _features(ev: Evaluation, images: Tensor) -> Tensor:
    """`shares` of pictures (n, 3, H, W), uint8 or in [-1, 1], in what the segmenter finds in them."""
    rows = []
    for chunk in images.split(256):
        chunk = chunk.float() / 127.5 - 1 if chunk.dtype == torch.uint8 else chunk
        rows.append(shares(chunk, ev.segment(chunk) == 1))
    return torch.cat(rows)


def _agreement(finder: ColourFinder, found: Tensor, asked: Sequence[tuple[str, str]]) -> dict[str, float]:
    columns = torch.tensor([[finder.colours.index(colour) for colour in pair] for pair in asked])
    hits = found.gather(1, columns)
    return {"n": len(asked), "both": hits.all(1).double().mean().item(), "each": hits.double().mean().item()}


if __name__ == "__main__":
    TASKS["two_colours"] = two_colours
    main()
