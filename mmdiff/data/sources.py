"""Sources of any size, read row by row through `datasets` in streaming mode.

A source is one of

    photos/*.parquet                 Parquet shards, or one file
    photos/*.tar                     WebDataset shards
    photos                           a folder that `datasets` can load, such as one folder of photos a class
    hub:owner/name[/config][:split]  a data set of the Hugging Face Hub (default split: train)
    torchvision:OxfordIIITPet[:split], torchvision:Cityscapes[:split]
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from glob import escape, glob
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mmdiff.config import DataConfig

if TYPE_CHECKING:
    from datasets import IterableDataset

T = TypeVar("T")
Cells = tuple[str, dict[str, Any]]  # file and row, for messages; undecoded cells by name
Raw = Generator[tuple[T, str, dict[str, Any]], None, None]  # the same after a key of any type

READ_ROWS = 64  # in one call, ten times as fast as one by one

# Class -> its options, its default split, and the columns of its targets.
TORCHVISION: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "OxfordIIITPet": (
        {"target_types": ["category", "segmentation"], "download": True},
        "trainval",
        ("category", "segmentation"),
    ),
    "Cityscapes": ({"mode": "fine", "target_type": ["semantic"]}, "train", ("semantic",)),
}


class Source:
    """Undecoded rows of a source, shard by shard.

    Args:
        names: modalities, "caption" ...: the columns to read, called as `DataConfig.column` says.
        file: whether ``where`` is one Parquet file. It may lack any column; of another source, the first name
            and those in `data.columns` must have one.

    Attributes:
        columns: name -> its column, if the source has it.
        class_names: name -> the names of the source's class numbers, where it has them.
        numbered: names whose columns hold whole numbers without such names.
        num_shards: number of parts that can be read independently.

    Raises ValueError if the source does not exist or cannot be reached, or a column is missing.
    """

    def __init__(self, where: str, config: DataConfig, names: Sequence[str], file: bool = False) -> None:
        from datasets import List

        self.where = where
        data, self.files = _open_files([where]) if file else open_source(where, config.root)
        there = data.column_names or list(next(iter(data), {}))
        if not there:
            raise ValueError(f"{where} has no rows.")
        wanted = {name: config.column(name) for name in names}
        self.columns = {name: column for name, column in wanted.items() if column in there}
        for name, column in wanted.items():
            if column not in there and not file and (name == names[0] or name in config.columns):
                raise ValueError(
                    f"{where} has no column {column!r} for {name!r}; it has {', '.join(there)}. "
                    "Name the right one in data.columns."
                )
        features = data.features or {}
        named = {column: f.names for column, f in features.items() if hasattr(f, "names")}
        self.class_names = {n: list(named[c]) for n, c in self.columns.items() if c in named}
        whole = {c for c, f in features.items() if "int" in str(getattr(f, "dtype", "")) and c not in named}
        whole |= set(self.columns.values()) if where.startswith("torchvision:") else set()
        self.numbered = {name for name, column in self.columns.items() if column in whole}
        self.num_shards: int = data.num_shards
        if data.features is not None and self.columns:
            data = data.select_columns(list(dict.fromkeys(self.columns.values())))
            vectors = any(isinstance(data.features[column], List) for column in self.columns.values())
            data = data.with_format("arrow") if vectors else data
        self._data = data

    def rows(self, shard: int, start: int = 0, part: int = 0, parts: int = 1) -> Iterator[Cells]:
        """Rows ``start * parts + part``, ``(start + 1) * parts + part`` ... of a shard.

        Rows before ``start`` are read, but not decoded.
        """
        from datasets.distributed import split_dataset_by_node

        data = self._data.shard(self.num_shards, shard)
        data = data.skip(start * parts) if start else data
        data = split_dataset_by_node(data, part, parts) if parts > 1 else data
        place = self._place(shard)
        number = start * parts + part
        for batch in data.iter(READ_ROWS):
            columns = {name: _cells(batch[column]) for name, column in self.columns.items()}
            for row in zip(*columns.values(), strict=True):
                yield f"{place}, row {number}", dict(zip(columns, row, strict=True))
                number += parts

    def rows_in_order(self, shard: int = 0, row: int = 0) -> Raw[tuple[int, int]]:
        """Rows from a place on, each after the place of the next: (shard, row)."""
        for k in range(shard, self.num_shards):
            for place, cells in self.rows(k, row):
                row += 1
                yield (k, row), place, cells
            row = 0

    def _place(self, shard: int) -> str:
        if len(self.files) == self.num_shards:
            return self.files[shard]
        return self.where if self.num_shards == 1 else f"{self.where}, shard {shard}"


def _cells(column: pa.ChunkedArray | Sequence[Any]) -> Sequence[Any]:
    """The cells of a column; vectors of equal length as arrays, fifty times as fast as lists."""
    if not isinstance(column, pa.ChunkedArray):
        return column
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


def open_source(where: str, root: str) -> tuple[IterableDataset, list[str]]:
    """The rows of a source, pictures undecoded, and its shards if they are local files.

    Raises ValueError if there is no such source; the message says what can be given.
    """
    kind, _, name = where.partition(":")
    if kind == "hub" and name:
        return _open_hub(name), []
    if kind == "torchvision" and name:
        return _open_torchvision(name, root), []
    return _open_local(where)


def _open_local(where: str) -> tuple[IterableDataset, list[str]]:
    path = Path(where)
    if path.is_dir():
        return _load(where, str(path)), []
    files = [where] if path.is_file() else sorted(glob(where, recursive=True))
    endings = {Path(file).suffix for file in files}
    if not files:
        raise ValueError(
            f"no data at {where!r}; give Parquet or tar shards (a glob), a folder, hub:OWNER/NAME or "
            "torchvision:NAME."
        )
    if len(endings) > 1 or not endings <= {".parquet", ".tar"}:
        raise ValueError(
            f"{where!r} are files ending in {', '.join(sorted(endings))}; expected .parquet or .tar."
        )
    return _open_files(files, "parquet" if endings == {".parquet"} else "webdataset")


def _open_files(files: list[str], layout: str = "parquet") -> tuple[IterableDataset, list[str]]:
    return _load(", ".join(files), layout, data_files=[escape(file) for file in files]), files


def _open_hub(name: str) -> IterableDataset:
    repository, _, split = name.partition(":")
    parts = repository.split("/")
    if len(parts) not in (2, 3):
        raise ValueError(
            f"'hub:{name}' is no data set; write hub:OWNER/NAME, or hub:OWNER/NAME/CONFIG:SPLIT."
        )
    return _load(f"hub:{name}", "/".join(parts[:2]), *parts[2:], split=split or "train")


def _load(where: str, *arguments: Any, split: str = "train", **options: Any) -> IterableDataset:
    """Pictures stay bytes or paths: threads decode them later, where an error can name the row."""
    from datasets import load_dataset

    try:
        data = load_dataset(*arguments, split=split, streaming=True, **options)
        return data.decode(False) if data.features else data
    except Exception as error:
        remedy = "mend the name or the files"
        if where.startswith("hub:"):
            remedy = (
                "mend the name, check the network, and where the data set has conditions, accept them on its "
                "page and log in with `hf auth login`"
            )
        raise ValueError(f"{where} cannot be opened ({error}); {remedy}.") from error


def torchvision_set(name: str) -> tuple[str, str]:
    """CLASS or CLASS:SPLIT -> class and split, which may be "". Raises ValueError for an unknown class."""
    kind, _, split = name.partition(":")
    if kind not in TORCHVISION:
        raise ValueError(f"torchvision:{kind} is not known here; known: {', '.join(TORCHVISION)}.")
    return kind, split


def _open_torchvision(name: str, root: str) -> IterableDataset:
    import torchvision
    from datasets import IterableDataset

    kind, split = torchvision_set(name)
    options, usual_split, columns = TORCHVISION[kind]
    try:
        examples = getattr(torchvision.datasets, kind)(root, split=split or usual_split, **options)
    except Exception as error:
        raise ValueError(
            f"torchvision:{kind} cannot be opened below {root!r} ({error}); see the documentation of "
            f"torchvision.datasets.{kind} for the files it expects."
        ) from error

    def read(rows: list[int]) -> Iterator[dict[str, Any]]:
        for row in rows:
            photo, target = examples[row]
            targets = target if isinstance(target, tuple) else (target,)
            yield {"image": photo} | dict(zip(columns, targets, strict=True))

    # One shard of all rows: `datasets` divides lists, not tuples.
    return IterableDataset.from_generator(read, gen_kwargs={"rows": tuple(range(len(examples)))})
