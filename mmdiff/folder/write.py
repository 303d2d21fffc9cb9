"""Training data of a checked folder, written to Parquet files in the layout of `datasets`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mmdiff.folder.check import Checked, workers
from mmdiff.folder.layout import Photo, readable
from mmdiff.folder.pictures import shrink_photo
from mmdiff.folder.split import order

BATCH = 128  # rows in memory


def write_split(checked: Checked, split: str, path: Path, short_side: int, seed: int) -> int:
    """Write the photos of one split with masks, labels and captions; returns their number.

    Rows are in random order, because validation reads the first ones only.

    Raises:
        ValueError: a photo or mask changed since it was checked and cannot be read any more.
        OSError: the file cannot be written.
    """
    from datasets import Features, Image, Value

    text = Value("string")
    kinds = {"image": Image(), "mask": Image(), "label": Value("int64")}
    schema = Features(kinds | {"caption": text, "source": text, "id": text}).arrow_schema
    photos = sorted((p for p in checked.photos if p.split == split), key=lambda p: order(p, seed))
    part = path.with_name(path.name + ".part")
    bar = tqdm(total=len(photos), desc=f"write {path.name}", unit="photo", disable=None)
    with workers() as pool, pq.ParquetWriter(part, schema) as writer, bar:
        for start in range(0, len(photos), BATCH):
            rows = list(pool.map(lambda p: _row(checked, p, short_side), photos[start : start + BATCH]))
            writer.write_table(pa.Table.from_pylist(rows, schema))
            bar.update(len(rows))
    os.replace(part, path)
    return len(photos)


def _row(checked: Checked, photo: Photo, short_side: int) -> dict[str, Any]:
    try:
        image, size = shrink_photo(photo.path, short_side)
        mask = photo.mask and checked.coding.shrink(photo.mask, checked.masks[photo.mask], size)
    except (ValueError, OSError) as error:
        raise ValueError(f"{photo.name} cannot be read any more ({error}); run the check again.") from error
    return {
        "image": {"bytes": image, "path": f"{photo.key}.webp"},
        "mask": mask and {"bytes": mask, "path": f"{photo.key}.png"},
        "label": -1 if photo.label is None else checked.classes.index(photo.label),
        "caption": photo.caption,
        "source": readable(checked.findings.root.resolve().name),
        "id": photo.name,
    }
