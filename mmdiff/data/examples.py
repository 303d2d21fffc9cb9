"""Paired examples in memory, and the order in which epochs show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class Examples:
    """Examples in compact form; where one lacks a modality, its values are zero and `present` is False.

    Attributes:
        stored: name -> (n, ...) tensor in the compact form of `Modality.store`.
        present: name -> (n,) bool.
        captions: n texts, "" where there is none.
        margin: pixels by which stored pictures are larger than the model's.
        sources: n names of the data sets that the examples come from, or empty.
        views: random views that are stored of each dense modality, (n, views, ...); 0: one picture, to be
            cut.
    """

    stored: dict[str, Tensor]
    present: dict[str, Tensor]
    captions: list[str]
    margin: int = 0
    sources: list[str] = field(default_factory=list)
    views: int = 0

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Tensor) -> Examples:
        """The examples ``rows`` (m,), in this order."""
        return Examples(
            {n: values[rows] for n, values in self.stored.items()},
            {n: has[rows] for n, has in self.present.items()},
            [self.captions[row] for row in rows.tolist()],
            self.margin,
            [self.sources[row] for row in rows.tolist()] if self.sources else [],
            self.views,
        )

    def to(self, device: torch.device) -> Examples:
        """The same examples with all tensors on ``device``."""
        move = {n: t.to(device) for n, t in self.stored.items()}
        present = {n: t.to(device) for n, t in self.present.items()}
        return replace(self, stored=move, present=present)


def encoded_name(name: str) -> str:
    """Under which the encoding of a modality is stored beside it."""
    return f"{name}/encoded"


def collate(
    rows: Sequence[Mapping[str, np.ndarray]], captions: list[str], margin: int, sources: Sequence[str] = ()
) -> Examples:
    """Decoded rows, name -> compact form, as one set of examples. A modality that no row has is left out."""
    stored, present = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        template = next(row[name] for row in rows if name in row)
        blank = np.zeros_like(template)
        stored[name] = torch.from_numpy(np.stack([row.get(name, blank) for row in rows]))
        present[name] = torch.tensor([name in row for row in rows])
    return Examples(stored, present, captions, margin, list(sources))


def add_embeddings(
    examples: Examples, name: str, image: str, embedder: Any, size: int, batch: int = 512
) -> None:
    """Add the embedding modality ``name``, (n, 2, D) in half precision: of photo and of caption.

    Without a caption the photo's embedding stands in both places. A training batch draws one of the two, so
    that the model learns from texts and from photos.

    Args:
        image: name of the photos' modality. size: pixels a side of their central part that is embedded.
        embedder: a `mmdiff.clip.ClipEmbedder`. batch: photos or texts embedded in one call.
    """
    stored = examples.stored[image]
    low = (stored.shape[-1] - size) // 2
    photos = stored[..., low : low + size, low : low + size].split(batch)
    photo = torch.cat([embedder.embed_images(pixels.float() / 127.5 - 1).cpu() for pixels in photos])
    texts = sorted(set(examples.captions))
    vectors = [embedder.embed_texts(texts[i : i + batch]).cpu() for i in range(0, len(texts), batch)]
    row = {text: i for i, text in enumerate(texts)}
    captions = torch.cat(vectors)[[row[c] for c in examples.captions]]
    captions = torch.where(torch.tensor([bool(c) for c in examples.captions])[:, None], captions, photo)
    examples.stored[name] = torch.stack([photo, captions], dim=1).half()
    examples.present[name] = torch.ones(len(examples), dtype=torch.bool)


def balanced(sources: Sequence[str], power: float) -> np.ndarray:
    """Probability of each example (n,) if a source of m examples has a share proportional to m^power."""
    names, index, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    shares = counts**power / (counts**power).sum()
    return (shares / counts)[index]


def epoch_order(count: int, epoch: int, seed: int, weights: np.ndarray | None = None) -> Tensor:
    """Random order of the examples in an epoch, a function of epoch and seed alone: (count,) long.

    With ``weights`` (count,), which add up to 1, an example occurs count * weight times, rounded up or down
    at random, otherwise once.
    """
    random = np.random.default_rng([seed, epoch])
    if weights is None:
        return torch.from_numpy(random.permutation(count))
    points = (random.random() + np.arange(count)) / count  # systematic resampling
    rows = np.searchsorted(np.cumsum(weights), points).clip(max=count - 1)
    return torch.from_numpy(random.permutation(rows))


def batch_rows(
    count: int, step: int, batch_size: int, seed: int, weights: np.ndarray | None = None
) -> Tensor:
    """Rows of the batch of a step (0, 1, ...) of epochs laid end to end: (batch_size,) long."""
    first = step * batch_size
    epochs = range(first // count, (first + batch_size - 1) // count + 1)
    order = torch.cat([epoch_order(count, e, seed, weights) for e in epochs])
    start = first - (first // count) * count
    return order[start : start + batch_size]
