"""Rows of data sets: Parquet files read, their cells decoded into the compact form of each modality."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, collate
from mmdiff.images import decode_cell
from mmdiff.modalities import Modality

if TYPE_CHECKING:
    from datasets import Dataset


class BrokenRows:
    """Counts rows that cannot be decoded and are left out, warns of them, and raises where they are many."""

    SHOWN = 3  # rows that are warned of one by one
    ALLOWED, SHARE = 10, 0.05  # rows and share of all rows; the larger of the two may be broken

    def __init__(self) -> None:
        self.count = 0

    def add(self, error: Exception) -> None:
        """Count a row; its ``error`` names it."""
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
    """Read Parquet files that have a column for each modality, called like it or as `config.columns` says.

    A modality without a column is absent everywhere; `add_embeddings` can make embeddings. ``path`` may be a
    glob of files, which are read in order of their names.

    Args:
        strict: raise for the first row that cannot be decoded. Otherwise such rows, and rows without the
            first modality, are left out with a warning, unless they are many (`BrokenRows`).

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
    """The file, or those of a glob; a file whose name contains a mark of globs is taken literally."""
    exists = Path(path).exists()
    files = [Path(path)] if exists else [Path(file) for file in sorted(glob(str(path), recursive=True))]
    if not files or not all(file.is_file() for file in files):
        raise ValueError(
            f"no data at {path}; set data.train and data.val, or --train and --val, to Parquet files."
        )
    return files


def _open_parquet(path: Path) -> Dataset:
    """The file with its pictures undecoded, so that an error can name the row."""
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


def _texts(table: Dataset, column: str, path: Path) -> list[str]:
    texts = table[column] if column in table.column_names else [""] * len(table)
    return [text_of(text, f"{path}, row {row}: {column}") for row, text in enumerate(texts)]


def text_of(cell: Any, what: str) -> str:
    """A cell of a column of texts, "" if empty. Raises ValueError, calling it ``what``, if it is no text."""
    if not isinstance(cell, str | None):
        raise ValueError(f"{what} is {cell!r}; expected a text.")
    return cell or ""


def _decode_table(
    table: Dataset, modalities: list[Modality], config: DataConfig, path: Path, strict: bool
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
    """The cells of a column; vectors of equal length as arrays, fifty times as fast as lists."""
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
    """One row in compact form, name -> array of `Modality.store`; modalities that it lacks are left out.

    Args:
        cells: name of the modality -> cell.
        place: file and row, for errors. anchor: the modality that every row must have, if any.

    Raises:
        ValueError: a cell cannot be decoded, or the row lacks the anchor; it names place, column and cause.
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
    if isinstance(cell, Mapping) and not cell.get("bytes") and "://" in str(cell.get("path")):
        with fsspec.open(cell["path"], "rb") as file:  # a picture at an address, as in folders of the Hub
            cell = {"bytes": file.read()}
    if cell is not None and modality.name in config.class_map:
        cell = _mapped(cell, modality, config.class_map[modality.name])
    if modality.form == "vector" and np.ndim(cell) == 2:  # variants, such as of the photo and of the caption
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
        return picture  # `Modality.store` raises the error
    values, index = np.unique(np.asarray(picture), return_inverse=True)
    ours = np.array([lookup(int(value)) for value in values], np.uint8)
    return ours[index].reshape(picture.height, picture.width)
