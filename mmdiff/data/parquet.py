"""Rows of data sets, decoded into the compact form of each modality, and Parquet files read into memory."""

import itertools
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np

from mmdiff.class_maps import LISTED, own_numbers
from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, collate
from mmdiff.data.sources import Raw, Source, T
from mmdiff.images import decode_cell
from mmdiff.modalities import Modality
from mmdiff.modalities.base import class_index, palette

CAPTION, SOURCE = "caption", "source"  # names of columns of texts


SURE = 100  # classes of the same name and number, after which those of other names have the same number, too


class Row(NamedTuple):
    """A row: its modalities in the compact form of `decode_row`, and its texts."""

    stored: dict[str, np.ndarray]
    caption: str
    source: str


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

    Raises ValueError for no such file, no rows, a row that cannot be decoded, or too many of them.
    """
    named = {m.name: m for m in modalities}
    anchor = None if strict else next(iter(named), None)
    rows, broken = [], BrokenRows()
    for file in _parquet_files(path):
        source, raw = _rows_of(file, named, config)
        with closing(decode_ahead(raw, named, by_names(source, named, config), anchor)) as decoded:
            for _, row in decoded:
                if isinstance(row, Row):
                    rows.append(row)
                elif strict:
                    raise row
                else:
                    broken.add(row)
    broken.check(len(rows) + broken.count)
    return examples_of(rows, config)


def _parquet_files(path: str | Path) -> list[str]:
    """The file, or those of a glob; a file whose name contains a mark of globs is taken literally."""
    files = [str(path)] if Path(path).exists() else sorted(glob(str(path), recursive=True))
    if not files or not all(Path(file).is_file() for file in files):
        raise ValueError(
            f"no data at {path}; set data.train and data.val, or --train and --val, to Parquet files."
        )
    return files


def _rows_of(
    file: str, modalities: Mapping[str, Modality], config: DataConfig
) -> tuple[Source, Raw[tuple[int, int]]]:
    try:
        source = Source(file, config, [*modalities, CAPTION, SOURCE], file=True)
        rows = list(source.rows_in_order())
        if source.columns and not rows:
            raise ValueError("it has none")
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(f"{file} is not a Parquet file with rows ({cause}); write it again.") from error
    return source, (row for row in rows)


def by_names(source: Source, modalities: Mapping[str, Modality], config: DataConfig) -> DataConfig:
    """The configuration with a map from the source's class numbers to ours where the source names them.

    Numbers without names are taken as they are, with a warning; `data.class_map` says something else.

    Raises ValueError if the source has classes that the modality lacks.
    """
    maps = dict(config.class_map)
    for name, column in source.columns.items():
        if name not in modalities or modalities[name].form != "class":
            continue
        theirs, table = source.class_names.get(name), config.class_map.get(name)
        if name in source.numbered and table is None:
            warnings.warn(
                f"column {column!r} has no names of classes; its numbers are taken in the order of the "
                "configuration's.",
                stacklevel=2,
            )
        elif theirs is not None and table is None:
            maps[name] = _table_of(source.where, name, theirs, modalities[name].classes)
        elif theirs is not None:
            maps[name] = {str(i): table[one] for i, one in enumerate(theirs) if one in table} | table
    return replace(config, class_map=maps)


def _table_of(where: str, name: str, theirs: list[str], ours: Sequence[str]) -> dict[str, int]:
    """Their class numbers -> ours, by name. Raises ValueError if names differ."""
    found = [_index_of(one, ours) for one in theirs]
    lacking = [one for one, index in zip(theirs, found, strict=True) if index is None]
    if not lacking:
        return {str(number): index for number, index in enumerate(found)}
    in_place = sum(index == number for number, index in enumerate(found))
    agree = in_place + len(lacking) == len(theirs) == len(ours) and in_place >= max(SURE, len(theirs) / 2)
    if agree:  # as lists of ImageNet, which differ in some names
        warnings.warn(
            f"{where}: {len(lacking)} classes of {name!r}, such as {lacking[0]!r}, are called otherwise in "
            "the configuration; their numbers are taken, as all others have the same name and number.",
            stacklevel=3,
        )
        return {str(number): number for number in range(len(theirs))}
    raise ValueError(
        f"{where} has classes of {name!r} that the configuration lacks: {', '.join(map(repr, lacking[:5]))}"
        f"{' …' if len(lacking) > 5 else ''}; it has {', '.join(map(repr, ours[:5]))}"
        f"{' …' if len(ours) > 5 else ''}. Name them alike, or map each in data.class_map.{name}."
    )


def _index_of(name: str, ours: Sequence[str]) -> int | None:
    """Its number among ours; a name such as "tench, Tinca tinca" says the same twice."""
    parts = [name, *(part.strip() for part in name.split(","))] if "," in name else [name]
    return next((index for part in parts if (index := class_index(part, ours)) is not None), None)


def examples_of(rows: list[Row], config: DataConfig) -> Examples:
    """Decoded rows as one set of examples."""
    sources = [row.source for row in rows]
    captions = [row.caption for row in rows]
    return collate([row.stored for row in rows], captions, config.margin, sources if any(sources) else [])


def decode_ahead(
    rows: Raw[T], modalities: Mapping[str, Modality], config: DataConfig, anchor: str | None
) -> Generator[tuple[T, Row | ValueError], None, None]:
    """The rows in the same order, decoded by `data.workers` threads a few rows ahead, or their errors.

    Args:
        anchor: the modality that every row must have, if any.
    """

    def decode(place: str, cells: dict[str, Any]) -> Row | ValueError:
        try:
            stored = decode_row(cells, modalities.values(), config, place, anchor)
            return Row(stored, *(_text(cells.get(name), f"{place}: {name}") for name in (CAPTION, SOURCE)))
        except ValueError as error:
            return error

    with closing(rows), ThreadPoolExecutor(config.workers) as pool:
        work = ((key, pool.submit(decode, place, cells)) for key, place, cells in rows)
        waiting = deque(itertools.islice(work, 4 * config.workers))
        while waiting:
            key, future = waiting.popleft()
            waiting.extend(itertools.islice(work, 1))
            yield key, future.result()


def _text(cell: Any, what: str) -> str:
    if not isinstance(cell, str | None):
        raise ValueError(f"{what} is {cell!r}; expected a text.")
    return cell or ""


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

    Raises ValueError, with place, column and cause, if a cell cannot be decoded or the row lacks the anchor.
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
    numbers, _ = own_numbers(picture, palette(LISTED))
    if numbers is None:
        return picture  # `Modality.store` knows the colours or raises the error
    values, index = np.unique(numbers, return_inverse=True)
    ours = np.array([lookup(int(value)) for value in values], np.uint8)
    return ours[index].reshape(picture.height, picture.width)
