"""Paired examples in memory: read from Parquet once, then cropped, flipped and batched on the device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmdiff.config import DataConfig
from mmdiff.modalities import Modality


@dataclass
class Examples:
    """Examples in compact form; a modality that an example lacks is zero there and not `present`.

    Attributes:
        stored: name -> (n, ...) tensor in the compact form of `Modality.store`.
        present: name -> (n,) bool.
        captions: n texts, empty where there is none.
        margin: pixels by which stored pictures are larger than the model's.
    """

    stored: dict[str, Tensor]
    present: dict[str, Tensor]
    captions: list[str]
    margin: int = 0

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Tensor) -> Examples:
        """The examples ``rows`` (m,) in this order."""
        return Examples(
            {n: values[rows] for n, values in self.stored.items()},
            {n: has[rows] for n, has in self.present.items()},
            [self.captions[row] for row in rows.tolist()],
            self.margin,
        )

    def to(self, device: torch.device) -> Examples:
        """The same examples with all tensors on ``device``."""
        move = {n: t.to(device) for n, t in self.stored.items()}
        return Examples(move, {n: t.to(device) for n, t in self.present.items()}, self.captions, self.margin)


def read_parquet(path: str | Path, modalities: Iterable[Modality], config: DataConfig) -> Examples:
    """Read a Parquet file whose columns carry the modalities' names (`datasets` layout).

    Columns that are missing leave their modality absent everywhere; `add_embeddings` may fill it.

    Raises:
        ValueError: no such file, no rows, or a row that cannot be decoded (named by its number).
    """
    from datasets import Dataset, disable_progress_bars
    from datasets import Image as ImageFeature

    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"no data at {path}; set data.train and data.val, or --train and --val, to Parquet files."
        )
    disable_progress_bars()
    try:
        table = Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path} is not a Parquet file with rows ({cause}); write it again.") from error
    for name, feature in table.features.items():
        if isinstance(feature, ImageFeature):  # decoded below, where an error names its row
            table = table.cast_column(name, ImageFeature(decode=False))
    if len(table) == 0:
        raise ValueError(f"{path} has no rows.")
    stored, present = {}, {}
    for modality in modalities:
        if modality.name not in table.column_names:
            continue
        cells = _store_column(table, modality, config, path)
        template = next((c for c in cells if c is not None), None)
        if template is None:
            continue
        filled = [np.zeros_like(template) if c is None else c for c in cells]
        stored[modality.name] = torch.from_numpy(np.stack(filled))
        present[modality.name] = torch.tensor([c is not None for c in cells])
    captions = table["caption"] if "caption" in table.column_names else [""] * len(table)
    return Examples(stored, present, [c or "" for c in captions], config.margin)


def _store_column(table, modality: Modality, config: DataConfig, path: Path) -> list[np.ndarray | None]:
    pad = config.margin if modality.dense and config.margin_from == "pad" else 0
    size = modality.image_size + (config.margin if config.margin_from == "resize" else 0)

    def one(item: tuple[int, object]) -> np.ndarray | None:
        row, cell = item
        try:
            value = modality.store(cell, size)
        except Exception as error:
            raise ValueError(f"{path}, row {row}, column {modality.name!r}: {error}") from error
        if value is None or not pad:
            return value
        widths = [(0, 0)] * (value.ndim - 2) + [(pad // 2, pad - pad // 2)] * 2
        return np.pad(value, widths, mode="edge")

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, enumerate(table[modality.name])))


def add_embeddings(examples: Examples, name: str, image: str, embedder, size: int, batch: int = 512) -> None:
    """Fill the embedding modality ``name`` in place: of the photo, and of the caption where there is one.

    Stored as (n, 2, D); a batch draws one of the two, so that both texts and photos can be given later.
    ``embedder`` is a `mmdiff.clip.ClipEmbedder`.
    """
    low = examples.margin // 2
    photos = []
    for start in range(0, len(examples), batch):
        pixels = examples.stored[image][start : start + batch, :, low : low + size, low : low + size]
        photos.append(embedder.embed_images(pixels.float() / 127.5 - 1).cpu())
    texts = sorted(set(examples.captions))
    vectors = torch.cat(
        [embedder.embed_texts(texts[i : i + batch]).cpu() for i in range(0, len(texts), batch)]
    )
    row = {text: i for i, text in enumerate(texts)}
    captions = vectors[[row[c] for c in examples.captions]]
    photo = torch.cat(photos)
    captions = torch.where(torch.tensor([bool(c) for c in examples.captions])[:, None], captions, photo)
    examples.stored[name] = torch.stack([photo, captions], dim=1).half()
    examples.present[name] = torch.ones(len(examples), dtype=torch.bool)


def draw_batch(
    examples: Examples,
    modalities: Mapping[str, Modality],
    rows: Tensor,
    generator: torch.Generator | None,
    flip: bool,
) -> tuple[dict[str, Tensor], Tensor]:
    """Examples ``rows`` as data-space tensors: x name -> (B, *shape), present (B, N) bool.

    With a generator the crop, the flip and the choice among stored variants are random; without one the
    crop is central and the first variant is taken.
    """
    device = rows.device
    size = next(iter(modalities.values())).image_size
    window = _windows(len(rows), size, examples.margin, generator, flip, device)
    x, present = {}, []
    for name, modality in modalities.items():
        if name not in examples.stored:
            blank = torch.zeros(len(rows), *modality.shape, device=device)
            x[name] = blank.long() if modality.classes else blank
            present.append(torch.zeros(len(rows), dtype=torch.bool, device=device))
            continue
        batch = examples.stored[name][rows]
        if modality.dense:
            batch = _crop(batch, *window)
        elif batch.ndim > 1 + len(modality.shape):
            batch = _choose(batch, generator)
        x[name] = modality.from_stored(batch)
        present.append(examples.present[name][rows])
    return x, torch.stack(present, dim=1)


def _choose(batch: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of the stored variants of each example: (B, V, ...) -> (B, ...)."""
    if generator is None:
        return batch[:, 0]
    pick = torch.randint(batch.shape[1], (len(batch),), generator=generator, device=batch.device)
    return batch[torch.arange(len(batch), device=batch.device), pick]


def _windows(
    count: int, size: int, margin: int, generator: torch.Generator | None, flip: bool, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Row and column indices of each example's crop, (B, size) each; columns reversed where flipped."""
    axis = torch.arange(size, device=device)
    if generator is None:
        centre = (axis + margin // 2).expand(count, -1)
        return centre, centre
    start = torch.randint(margin + 1, (2, count, 1), generator=generator, device=device)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < (0.5 if flip else 0.0)
    columns = torch.where(mirrored, axis.flip(0), axis)
    return start[0] + axis, start[1] + columns


def _crop(batch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather each example's window: (B, ..., H, W) -> (B, ..., size, size)."""
    lead = batch.shape[1:-2]
    flat = batch.reshape(batch.shape[0], -1, *batch.shape[-2:])
    index = torch.arange(len(batch), device=batch.device)[:, None, None, None]
    channel = torch.arange(flat.shape[1], device=batch.device)[None, :, None, None]
    cut = flat[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cut.reshape(len(batch), *lead, *cut.shape[-2:])


def epoch_order(count: int, epoch: int, seed: int) -> Tensor:
    """Random order of the examples in an epoch, the same whenever it is asked for: (count,) long."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def batch_rows(count: int, step: int, batch_size: int, seed: int) -> Tensor:
    """Rows of the batch of a step (0, 1, ...), as if epochs were laid end to end: (batch_size,) long."""
    first = step * batch_size
    epochs = range(first // count, (first + batch_size - 1) // count + 1)
    order = torch.cat([epoch_order(count, e, seed) for e in epochs])
    start = first - (first // count) * count
    return order[start : start + batch_size]


__all__ = ["Examples", "add_embeddings", "batch_rows", "draw_batch", "read_parquet"]
