"""Paired examples in memory: read from Parquet once, then cropped, flipped and batched on the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.config import DataConfig
from mmdiff.modalities import Modality
from mmdiff.modalities.base import decode_cell


@dataclass
class Examples:
    """Examples in compact form; a modality that an example lacks is zero there and not `present`.

    Attributes:
        stored: name -> (n, ...) tensor in the compact form of `Modality.store`.
        present: name -> (n,) bool.
        captions: n texts, empty where there is none.
        margin: pixels by which stored pictures are larger than the model's.
        sources: n names of where an example is from, or none at all.
    """

    stored: dict[str, Tensor]
    present: dict[str, Tensor]
    captions: list[str]
    margin: int = 0
    sources: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def take(self, rows: Tensor) -> Examples:
        """The examples ``rows`` (m,) in this order."""
        return Examples(
            {n: values[rows] for n, values in self.stored.items()},
            {n: has[rows] for n, has in self.present.items()},
            [self.captions[row] for row in rows.tolist()],
            self.margin,
            [self.sources[row] for row in rows.tolist()] if self.sources else [],
        )

    def to(self, device: torch.device) -> Examples:
        """The same examples with all tensors on ``device``."""
        move = {n: t.to(device) for n, t in self.stored.items()}
        present = {n: t.to(device) for n, t in self.present.items()}
        return replace(self, stored=move, present=present)


class BrokenRows:
    """Counts rows that are left out because they cannot be decoded, warns, and stops where they are many."""

    SHOWN = 3  # warnings in full, of which the rest are counted only
    ALLOWED, SHARE = 10, 0.05  # whichever allows more

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: Exception) -> None:
        """Note a row whose ``error`` names it."""
        self.count += 1
        if self.count <= self.SHOWN:
            warnings.warn(f"{str(error).rstrip('.')}. The row is left out.", stacklevel=2)
        elif self.count in (self.SHOWN + 1, 10**2, 10**3, 10**4, 10**5):
            warnings.warn(f"{self.count} rows are left out so far; the last is {error}", stacklevel=2)

    def check(self, total: int) -> None:
        """Raise ValueError if more than 5 % (and more than 10) of ``total`` rows are broken."""
        if self.count > max(self.ALLOWED, self.SHARE * total):
            raise ValueError(
                f"{self.count} of {total} rows cannot be read; the warnings name the first ones. Mend the "
                "data, or the columns and classes that the configuration names."
            )


def read_parquet(
    path: str | Path, modalities: Iterable[Modality], config: DataConfig, strict: bool = True
) -> Examples:
    """Read Parquet files whose columns carry the modalities' names (`datasets` layout) or mapped ones.

    Columns that are missing leave their modality absent everywhere; `add_embeddings` may fill it. ``path``
    may be a glob of files, read in order of their names.

    Args:
        strict: raise for the first row that cannot be decoded, by its number. Otherwise such rows, and rows
            without the first modality, are left out with a warning, unless they are many (`BrokenRows`).

    Raises:
        ValueError: no such file, no rows, a row that cannot be decoded, or too many of them.
    """
    modalities, broken, total = list(modalities), BrokenRows(), 0
    rows: list[dict[str, np.ndarray]] = []
    captions: list[str] = []
    sources: list[str] = []
    for file in _parquet_files(path):
        table = _open_parquet(file)
        texts, origins = (_texts(table, config.column(name), file) for name in ("caption", "source"))
        decoded = list(_decode_table(table, modalities, config, file, strict))
        for row, text, origin in zip(decoded, texts, origins, strict=True):
            if isinstance(row, ValueError):
                broken.add(row)
            else:
                rows.append(row)
                captions.append(text)
                sources.append(origin)
        total += len(decoded)
    broken.check(total)
    return collate(rows, captions, config.margin, sources if any(sources) else [])


def _parquet_files(path: str | Path) -> list[Path]:
    if has_glob(path):
        files = [Path(file) for file in sorted(glob(str(path), recursive=True))]
    else:
        files = [Path(path)]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(
            f"no data at {path}; set data.train and data.val, or --train and --val, to Parquet files."
        )
    return files


def has_glob(path: str | Path) -> bool:
    """Whether ``path`` stands for several files."""
    return any(mark in str(path) for mark in "*?[") and not Path(path).exists()


def _open_parquet(path: Path):
    """The file as a `datasets.Dataset` whose pictures are not decoded yet, so that an error names its row."""
    from datasets import Dataset, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    try:
        table = Dataset.from_parquet(str(path), keep_in_memory=True)
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path} is not a Parquet file with rows ({cause}); write it again.") from error
    for name, feature in table.features.items():
        if isinstance(feature, ImageFeature):
            table = table.cast_column(name, ImageFeature(decode=False))
    if len(table) == 0:
        raise ValueError(f"{path} has no rows.")
    return table


def _texts(table, column: str, path: Path) -> list[str]:
    texts = table[column] if column in table.column_names else [""] * len(table)
    return [text_of(text, f"{path}, row {row}: {column}") for row, text in enumerate(texts)]


def text_of(cell: Any, what: str) -> str:
    """A cell of a column of texts, "" if empty. Raises ValueError, naming it as ``what``, if it is none."""
    if not isinstance(cell, str | None):
        raise ValueError(f"{what} is {cell!r}; expected a text.")
    return cell or ""


def _decode_table(
    table, modalities: list[Modality], config: DataConfig, path: Path, strict: bool
) -> Iterator[dict[str, np.ndarray] | ValueError]:
    columns = {m.name: config.column(m.name) for m in modalities}
    there = {name: column for name, column in columns.items() if column in table.column_names}
    anchor = None if strict or not modalities else modalities[0].name

    values = table.with_format("arrow")[:]
    cells = {name: cells_of(values[column]) for name, column in there.items()}

    def one(row: int) -> dict[str, np.ndarray] | ValueError:
        mine = {name: column[row] for name, column in cells.items()}
        try:
            return decode_row(mine, modalities, config, f"{path}, row {row}", anchor)
        except ValueError as error:
            if strict:
                raise
            return error

    with ThreadPoolExecutor() as pool:
        yield from pool.map(one, range(len(table)))


def cells_of(column: pa.ChunkedArray) -> Sequence[Any]:
    """The cells of a column; vectors of equal length as arrays, which is fifty times as fast as as lists."""
    array = column.combine_chunks()
    shape = [len(array)]
    while pa.types.is_list(array.type) and not array.null_count:
        lengths = pc.unique(pc.list_value_length(array)).to_pylist()
        if len(lengths) != 1:
            break
        shape.append(lengths[0])
        array = array.flatten()
    flat = pa.types.is_floating(array.type) and not array.null_count and len(shape) > 1
    return array.to_numpy(zero_copy_only=False).reshape(shape) if flat else column.to_pylist()


def decode_row(
    cells: Mapping[str, Any],
    modalities: Iterable[Modality],
    config: DataConfig,
    place: str,
    anchor: str | None,
) -> dict[str, np.ndarray]:
    """One row in compact form: name -> array as `Modality.store` makes it; what the row lacks is left out.

    Args:
        cells: name of the modality -> cell.
        place: file and row, for the error. anchor: the modality that every row must have, if any.

    Raises:
        ValueError: a cell cannot be decoded, or the row lacks the anchor; names place, column and cause.
    """
    stored = {}
    for modality in modalities:
        name = modality.name
        try:
            value = _store(modality, cells.get(name), config)
            if value is None and name == anchor:
                raise ValueError("there is none, but every row must have one.")
        except Exception as error:
            raise ValueError(f"{place}, column {config.column(name)!r}: {error}") from error
        if value is not None:
            stored[name] = value
    return stored


def _store(modality: Modality, cell: Any, config: DataConfig) -> np.ndarray | None:
    if cell is not None and modality.name in config.class_map:
        cell = _mapped(cell, modality, config.class_map[modality.name])
    if modality.kind == "embedding" and np.ndim(cell) == 2:  # of the photo and of the caption
        return np.stack([modality.store(vector, 0) for vector in cell])
    value = modality.store(
        cell, modality.image_size + (config.margin if config.margin_from == "resize" else 0)
    )
    pad = config.margin if modality.dense and config.margin_from == "pad" else 0
    if value is None or not pad:
        return value
    widths = [(0, 0)] * (value.ndim - 2) + [(pad // 2, pad - pad // 2)] * 2
    return np.pad(value, widths, mode="edge")


def _mapped(cell: Any, modality: Modality, table: Mapping[str, int]) -> Any:
    """A cell with the source's own class numbers or names replaced by ours; "*" stands for all others."""

    def lookup(value: Any) -> int:
        found = table.get(str(value), table.get("*"))
        if found is None:
            raise ValueError(
                f"{value!r} is not in data.class_map.{modality.name}; add it, or a class for '*'."
            )
        return found

    if not modality.dense:
        unknown = cell == -1 and "-1" not in table
        return cell if unknown else lookup(cell)
    picture = decode_cell(cell)
    if len(picture.getbands()) > 1:
        return picture  # which the modality refuses with the reason
    values, index = np.unique(np.asarray(picture), return_inverse=True)
    ours = np.array([lookup(int(value)) for value in values], np.uint8)
    return ours[index].reshape(picture.height, picture.width)


def collate(
    rows: Sequence[Mapping[str, np.ndarray]], captions: list[str], margin: int, sources: Sequence[str] = ()
) -> Examples:
    """Decoded rows as one set of examples. A modality that no row has is left out."""
    stored, present = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        template = next(row[name] for row in rows if name in row)
        blank = np.zeros_like(template)
        stored[name] = torch.from_numpy(np.stack([row.get(name, blank) for row in rows]))
        present[name] = torch.tensor([name in row for row in rows])
    return Examples(stored, present, captions, margin, list(sources))


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
    light: float = 0.0,
    zoom: float = 1.0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Examples ``rows`` as data-space tensors: x name -> (B, *shape), present (B, N) bool.

    With a generator the crop, with ``zoom`` below 1 its size, the flip, the light of photos and the choice
    among stored variants are random; without one the crop is central and the first variant is taken.
    """
    device = rows.device
    size = next(iter(modalities.values())).image_size
    zoomed = generator is not None and zoom < 1
    if zoomed:
        window = _boxes(len(rows), size, size + examples.margin, zoom, generator, flip, device)
    else:
        window = _windows(len(rows), size, examples.margin, generator, flip, device)
    x, present = {}, []
    for name, modality in modalities.items():
        if name not in examples.stored:
            blank = torch.zeros(len(rows), *modality.shape, device=device)
            x[name] = blank.long() if modality.classes else blank
            present.append(torch.zeros(len(rows), dtype=torch.bool, device=device))
            continue
        batch = examples.stored[name][rows]
        if modality.dense and zoomed:
            batch = _resampled(batch, *window, blend=not modality.classes)
        elif modality.dense:
            batch = _crop(batch, *window)
        elif batch.ndim > 1 + len(modality.shape):
            batch = _choose(batch, generator)
        x[name] = modality.from_stored(batch)
        if modality.kind == "image" and light and generator is not None:
            x[name] = _relit(x[name], light, generator)
        present.append(examples.present[name][rows])
    return x, torch.stack(present, dim=1)


def _relit(photos: Tensor, light: float, generator: torch.Generator) -> Tensor:
    """Photos (B, 3, H, W) in [-1, 1] with contrast and brightness changed by up to the share ``light``."""
    change = torch.rand(2, len(photos), 1, 1, 1, generator=generator, device=photos.device) * 2 - 1
    return (photos * (1 + light * change[0]) + light * change[1]).clamp(-1, 1)


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


def _boxes(
    count: int,
    size: int,
    stored: int,
    zoom: float,
    generator: torch.Generator,
    flip: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Where the rows and columns of each example's crop lie in the stored picture, in its pixels: (B, size).

    The crop is a square whose side is a random share of the picture's, from ``zoom`` to 1.
    """
    draws = torch.rand(4, count, 1, generator=generator, device=device)
    side = stored * (zoom + (1 - zoom) * draws[0])
    start = (stored - side) * draws[1:3]
    steps = ((torch.arange(size, device=device) + 0.5) / size).expand(count, -1)
    across = torch.where(draws[3] < (0.5 if flip else 0.0), 1 - steps, steps)
    return start[0] + side * steps, start[1] + side * across


def _resampled(batch: Tensor, rows: Tensor, columns: Tensor, blend: bool) -> Tensor:
    """The pictures at those places (see `_boxes`), bilinear if they may ``blend``, otherwise the nearest
    pixel's: (B, ..., H, W) -> (B, ..., size, size).
    """
    count, size = rows.shape
    places = torch.stack(
        [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], -1
    )
    flat = batch.reshape(count, -1, *batch.shape[-2:]).float()
    mode = "bilinear" if blend else "nearest"
    grid = places * (2 / batch.shape[-1]) - 1
    drawn = F.grid_sample(flat, grid, mode, padding_mode="border", align_corners=False)
    drawn = drawn if batch.is_floating_point() else drawn.round()
    return drawn.reshape(count, *batch.shape[1:-2], size, size).to(batch.dtype)


def _crop(batch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gather each example's window: (B, ..., H, W) -> (B, ..., size, size)."""
    lead = batch.shape[1:-2]
    flat = batch.reshape(batch.shape[0], -1, *batch.shape[-2:])
    index = torch.arange(len(batch), device=batch.device)[:, None, None, None]
    channel = torch.arange(flat.shape[1], device=batch.device)[None, :, None, None]
    cut = flat[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return cut.reshape(len(batch), *lead, *cut.shape[-2:])


def balanced(sources: Sequence[str], power: float) -> np.ndarray:
    """Probability of each example (n,) if a source of m examples has a share proportional to m^power."""
    names, index, counts = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    shares = counts**power / (counts**power).sum()
    return (shares / counts)[index]


def epoch_order(count: int, epoch: int, seed: int, weights: np.ndarray | None = None) -> Tensor:
    """Random order of the examples in an epoch, the same whenever it is asked for: (count,) long.

    With ``weights`` (count,), which add up to 1, an example is there count * weight times, rounded up or down
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
    """Rows of the batch of a step (0, 1, ...), as if epochs were laid end to end: (batch_size,) long."""
    first = step * batch_size
    epochs = range(first // count, (first + batch_size - 1) // count + 1)
    order = torch.cat([epoch_order(count, e, seed, weights) for e in epochs])
    start = first - (first // count) * count
    return order[start : start + batch_size]


__all__ = [
    "BrokenRows",
    "Examples",
    "add_embeddings",
    "balanced",
    "batch_rows",
    "cells_of",
    "collate",
    "decode_row",
    "draw_batch",
    "has_glob",
    "read_parquet",
]
