"""Prepare a source for training once: `python -m mmdiff.data.precompute CONFIG`.

Reads `data.train` and `data.val`, whatever their size, and writes Parquet shards: pictures cut to the size
that training stores, classes renumbered, and the embeddings of photo and caption, so that training decodes
little and needs no embedder. An interrupted run continues with the first missing shard.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmdiff.config import DataConfig, TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.data.parquet import CAPTION, BrokenRows, Row, by_names, examples_of
from mmdiff.data.sources import Source
from mmdiff.data.stream import embeddings_to_make, good_rows
from mmdiff.device import choose_device
from mmdiff.images import encoded
from mmdiff.modalities import Modality, build_modality
from mmdiff.modalities.label import UNKNOWN_CLASS

METADATA = b"mmdiff"
ROWS = 4096  # of a shard
Place = tuple[int, int]  # shard and row of the source


def prepare(
    config: TrainConfig, part: str, out: Path, embedder: Any = None, rows_per_shard: int = ROWS
) -> int:
    """Write the shards of ``part`` ("train" or "val") that ``out`` lacks; returns how many were written.

    Raises ValueError if the source cannot be read, the embedder is missing, ``out`` holds something else, or
    a modality's values fit into no column.
    """
    out.mkdir(parents=True, exist_ok=True)
    # Training repeats the border around stored pictures when it reads them.
    data = replace(config.data, margin=0) if config.data.margin_from == "pad" else config.data
    size, patch = config.model.image_size, config.model.patch_size
    modalities = {m.name: build_modality(m, size, patch) for m in config.model.modalities}
    source = Source(getattr(data, part), data, [*modalities, CAPTION])
    by_name = by_names(source, modalities, data)
    to_embed = embeddings_to_make(source, modalities, embedder)
    identity = {
        "source": source.where,
        "size": size + data.margin,
        "rows": rows_per_shard,
        "columns": source.columns,
        "class_map": data.class_map,
        "embedder": config.model.embedder if to_embed else "",
    }
    paths = (out / f"{part}-{number:05d}.parquet" for number in itertools.count())
    path, start, written = next(paths), (0, 0), 0
    while start is not None:
        if path.exists():
            path, start = next(paths), _end_of(path, identity)
            continue
        with closing(_shards(source, modalities, by_name, start, rows_per_shard)) as shards:
            for start, rows in shards:
                examples = examples_of(rows, data)
                for name in to_embed:
                    add_embeddings(examples, name, next(iter(modalities)), embedder, size)
                write_shard(examples, modalities, path, identity | {"end": start})
                path, written = next(paths), written + 1
                if path.exists():
                    break
            else:  # the source ended
                start = None
    return written


def _shards(
    source: Source, modalities: Mapping[str, Modality], data: DataConfig, start: Place, count: int
) -> Generator[tuple[Place | None, list[Row]], None, None]:
    """Where the next shard begins (None after the last), and the rows of this one, from ``start`` on."""
    good = good_rows(source.rows_in_order(*start), modalities, data, BrokenRows())
    with closing(good):
        rows = iter(tqdm(good, source.where, unit="row", mininterval=2, disable=None))
        following = next(rows, None)
        while following is not None:
            taken = [following, *itertools.islice(rows, count - 1)]
            following = next(rows, None)
            yield taken[-1][0] if following else None, [row for _, row in taken]


def _end_of(path: Path, identity: Mapping[str, Any]) -> Place | None:
    """Where the shard after ``path`` begins in the source; None after the last."""
    said = json.loads((pq.read_schema(path).metadata or {}).get(METADATA, b"{}"))
    end = said.pop("end", None)
    different = [name for name in identity if said.get(name) != identity[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"{path} was made with {name} {said.get(name)!r}, not {identity[name]!r}; use another folder."
        )
    return tuple(end) if end else None


def write_shard(
    examples: Examples, modalities: Mapping[str, Modality], path: Path, metadata: Mapping[str, Any]
) -> None:
    """Write examples in compact form as a Parquet file that appears whole or not at all.

    Raises ValueError if values of a modality fit into no column.
    """
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    makers = {name: COLUMNS[m.form] for name, m in modalities.items() if name in examples.stored}
    columns = {n: make(n, examples.stored[n], examples.present[n]) for n, make in makers.items()}
    table = pa.table(columns | {CAPTION: pa.array(examples.captions, pa.string())})
    features = Features.from_arrow_schema(table.schema)
    features |= {name: ImageFeature() for name, make in makers.items() if make is _pictures}
    features |= {n: ClassLabel(names=list(modalities[n].classes)) for n in makers if makers[n] is _classes}
    schema = features.arrow_schema  # says which columns are pictures, and what classes are called
    schema = schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(dict(metadata))})
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table.cast(schema), unfinished, row_group_size=256)
    os.replace(unfinished, path)


def _pictures(name: str, values: Tensor, present: Tensor) -> pa.Array:
    """(n, H, W) or (n, C, H, W) -> PNGs."""
    there = zip(values.numpy(), present.tolist(), strict=True)
    cells = [{"bytes": _png(name, value), "path": None} if has else None for value, has in there]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _png(name: str, value: np.ndarray) -> bytes:
    """(H, W), (1, H, W) or (3, H, W); three channels have 8 bits, one has 8 or 16."""
    pixels = value.reshape(-1, *value.shape[-2:])
    pixels = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    wide = pixels.dtype != np.uint8 and pixels.dtype.kind in "iu" and pixels.ndim == 2
    if wide and 0 <= pixels.min() and pixels.max() < 2**16:
        pixels = pixels.astype(np.uint16)
    elif pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"{name!r} has values of shape {value.shape} and type {value.dtype}, which no PNG holds; store "
            "whole numbers, up to 255 in three channels or 65535 in one, or leave data.prepared empty."
        )
    return encoded(Image.fromarray(np.ascontiguousarray(pixels)), compress_level=3)


def _classes(name: str, values: Tensor, present: Tensor) -> pa.Array:
    """(n,) -> class numbers, -1 where there is none."""
    return pa.array(values.masked_fill(~present, UNKNOWN_CLASS).tolist(), pa.int64())


def _vectors(name: str, values: Tensor, present: Tensor) -> pa.Array:
    """(n, V, D), or (n, D) as if V were 1 -> lists of V lists of D numbers."""
    array = values.numpy()
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name!r} has values that are no vectors and no pictures; leave data.prepared empty."
        )
    array = array.reshape(len(array), -1, array.shape[-1])
    count, variants, dim = array.shape
    inner = pa.ListArray.from_arrays(np.arange(count * variants + 1, dtype=np.int32) * dim, array.ravel())
    outer = pa.array(np.arange(count + 1, dtype=np.int32) * variants)
    return pa.ListArray.from_arrays(outer, inner, mask=pa.array((~present).tolist()))


# Form of a modality's values -> the column made of its name, stored values (n, ...) and their presence (n,).
COLUMNS = {"picture": _pictures, "class_map": _pictures, "class": _classes, "vector": _vectors}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.data.precompute", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", help="TOML file, see configs/")
    parser.add_argument("--out", help="folder of the shards (default: data.prepared of the configuration)")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of a shard (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="where the embedder runs: auto, cpu, cuda ...")
    args = parser.parse_args(arguments)
    try:
        config = load_train_config(args.config)
        out = args.out or config.data.prepared
        if not out or args.rows < 1:
            raise ValueError("give --out, or data.prepared in the configuration, and --rows of at least 1.")
        embedder = make_embedder(config, args.embedder, choose_device(args.device))
        for part in ("train", "val"):
            if getattr(config.data, part):
                written = prepare(config, part, Path(out), embedder, args.rows)
                print(f"{part}: {written} shards written to {out}")
    except ValueError as error:
        sys.exit(f"mmdiff.data.precompute: {error}")


if __name__ == "__main__":
    main()
