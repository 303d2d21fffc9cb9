"""Prepare a source for training once: `python -m mmdiff.data.precompute CONFIG`.

Reads `data.train` and `data.val`, whatever their size, and writes Parquet shards: photos and masks cut to the
size that training stores, classes renumbered, and the embeddings of photo and caption beside them, so that
training decodes little and needs no embedder. A run that was cut off goes on with the first missing shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from mmdiff.config import DataConfig, TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.data.examples import BrokenRows, Examples, add_embeddings
from mmdiff.data.sources import Source
from mmdiff.data.stream import CAPTION, Decoded, decode_ahead, embeddings_to_make, examples_of, rows_in_order
from mmdiff.device import choose_device
from mmdiff.modalities import Modality, build_modality

METADATA = b"mmdiff"
ROWS = 4096  # a shard
Place = tuple[int, int]  # shard and row of the source


def prepare(
    config: TrainConfig, part: str, out: Path, embedder: Any = None, rows_per_shard: int = ROWS
) -> int:
    """Write the shards of ``part`` ("train" or "val") that ``out`` lacks; returns how many were written.

    Raises:
        ValueError: the source cannot be read, the embedder is missing, or ``out`` holds something else.
    """
    out.mkdir(parents=True, exist_ok=True)
    data = stored_plain(config.data)
    where = getattr(data, part)
    size, patch = config.model.image_size, config.model.patch_size
    modalities = {m.name: build_modality(m, size, patch) for m in config.model.modalities}
    foreign = [m.name for m in modalities.values() if m.kind not in COLUMNS]
    if foreign:
        raise ValueError(f"{foreign[0]!r} is of a kind that cannot be prepared; leave data.prepared empty.")
    source = Source(where, data, [*modalities, CAPTION])
    to_embed = embeddings_to_make(source, modalities, embedder)
    identity = {
        "source": where,
        "size": size + data.margin,
        "rows": rows_per_shard,
        "columns": source.columns,
        "class_map": data.class_map,
        "embedder": config.model.embedder if to_embed else "",
    }
    written, number, start = 0, 0, (0, 0)
    while start is not None:
        path = out / f"{part}-{number:05d}.parquet"
        if path.exists():
            number, start = number + 1, _end_of(path, identity)
            continue
        with closing(_good_rows(source, modalities, data, start)) as rows:
            start = None
            following = next(rows, None)
            while following is not None and not path.exists():
                taken = [following, *islice(rows, rows_per_shard - 1)]
                following = next(rows, None)
                start = taken[-1][0] if following else None
                examples = examples_of([row for _, row in taken], data)
                for name in to_embed:
                    add_embeddings(examples, name, next(iter(modalities)), embedder, size)
                write_shard(examples, modalities, path, identity | {"end": start})
                written, number = written + 1, number + 1
                path = out / f"{part}-{number:05d}.parquet"
    return written


def stored_plain(data: DataConfig) -> DataConfig:
    """The same sources, cut as training stores them but for a border, which reading adds."""
    return dataclasses.replace(data, margin=0) if data.margin_from == "pad" else data


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


def _good_rows(
    source: Source, modalities: Mapping[str, Modality], data: DataConfig, start: Place
) -> Generator[tuple[Place, Decoded], None, None]:
    broken, seen = BrokenRows(), 0
    decoded = decode_ahead(rows_in_order(source, *start), modalities, data)
    with closing(decoded):
        for place, row in tqdm(decoded, source.where, unit="row", mininterval=2, disable=None):
            seen += 1
            if row.error is None:
                yield place, row
            else:
                broken.add(row.error)
                broken.check(seen)


def write_shard(
    examples: Examples, modalities: Mapping[str, Modality], path: Path, metadata: Mapping[str, Any]
) -> None:
    """Write examples in compact form as a Parquet file that appears whole or not at all."""
    from datasets import Features

    columns = {n: COLUMNS[m.kind](examples, n) for n, m in modalities.items() if n in examples.stored}
    columns[CAPTION] = pa.array(examples.captions, pa.string())
    features = Features({name: _feature(modalities, name) for name in columns})
    schema = features.arrow_schema  # says which columns are pictures
    schema = schema.with_metadata({**(schema.metadata or {}), METADATA: json.dumps(dict(metadata))})
    table = pa.table(columns).cast(schema)
    unfinished = path.with_suffix(".unfinished")
    pq.write_table(table, unfinished, row_group_size=256)
    os.replace(unfinished, path)


def _feature(modalities: Mapping[str, Modality], name: str) -> Any:
    from datasets import Image as ImageFeature
    from datasets import List, Value

    if name == CAPTION:
        return Value("string")
    if modalities[name].dense:
        return ImageFeature()
    return Value("int64") if modalities[name].kind == "label" else List(List(Value("float16")))


def _pictures(examples: Examples, name: str) -> pa.Array:
    def png(value: np.ndarray) -> bytes:
        pixels = np.ascontiguousarray(np.moveaxis(value, 0, -1) if value.ndim == 3 else value)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
        return buffer.getvalue()

    values, present = examples.stored[name].numpy(), examples.present[name].tolist()
    cells = [{"bytes": png(v), "path": None} if p else None for v, p in zip(values, present, strict=True)]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _labels(examples: Examples, name: str) -> pa.Array:
    return pa.array(examples.stored[name].masked_fill(~examples.present[name], -1).tolist(), pa.int64())


def _vectors(examples: Examples, name: str) -> pa.Array:
    """(n, V, D) as lists of V lists; a single vector for each example counts as V = 1."""
    values = examples.stored[name].half().numpy()
    values = values.reshape(len(values), -1, values.shape[-1])
    count, variants, dim = values.shape
    inner = pa.ListArray.from_arrays(np.arange(count * variants + 1, dtype=np.int32) * dim, values.ravel())
    missing = pa.array((~examples.present[name]).tolist())
    return pa.ListArray.from_arrays(
        pa.array(np.arange(count + 1, dtype=np.int32) * variants), inner, mask=missing
    )


# Kind of modality -> its column.
COLUMNS: dict[str, Callable[[Examples, str], pa.Array]] = {
    "image": _pictures,
    "mask": _pictures,
    "label": _labels,
    "embedding": _vectors,
}


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
