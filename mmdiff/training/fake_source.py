"""Made-up rows in the layout of a real source: its file format, its columns, its class numbers."""

import dataclasses
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from mmdiff.config import DataConfig
from mmdiff.data.sources import torchvision_set
from mmdiff.images import encoded
from mmdiff.modalities import Modality

HEIGHT, WIDTH = 80, 120  # not square, as photos are
SHARDS, ROWS = 2, 4


def write_fake(
    data: DataConfig, modalities: Mapping[str, Modality], made: set[str], folder: Path
) -> DataConfig:
    """Write two shards of four rows like those of `data.train`; returns the configuration that reads them.

    Args:
        made: modalities without a column, which an embedder makes.
        folder: an empty folder to write to.

    Raises ValueError for a data set of torchvision that `mmdiff.data.sources` does not know.
    """
    cells = {name: m for name, m in modalities.items() if name not in made}
    rows = [_row(k, cells, data) for k in range(SHARDS * ROWS)]
    kind, _, name = data.train.partition(":")
    if kind == "torchvision":
        TORCHVISION[torchvision_set(name)[0]](rows, data, folder)
        return dataclasses.replace(data, root=str(folder))
    write = _write_tars if data.train.endswith(".tar") else _write_parquet
    return dataclasses.replace(data, train=write(rows, folder))


def _row(number: int, modalities: Mapping[str, Modality], data: DataConfig) -> dict[str, Any]:
    """column -> cell: a picture, a class number or name of the source, vectors or a text."""
    rng = np.random.default_rng(number)
    row = {data.column(name): _cell(m, data, rng) for name, m in modalities.items()}
    return row | {data.column("caption"): f"photo {number}"}


def _cell(modality: Modality, data: DataConfig, rng: np.random.Generator) -> Any:
    if modality.form == "picture":
        return modality.made_up(rng, (HEIGHT, WIDTH))
    if modality.form == "vector":
        return rng.normal(size=(2, *modality.shape)).astype(np.float16)
    table = data.class_map.get(modality.name)
    values: list[Any] = _raw_values(table) if table else list(range(len(modality.classes)))
    if modality.form == "class_map":
        areas = np.resize(rng.permutation(np.array(values, np.uint8)), (4, 5))
        return Image.fromarray(np.kron(areas, np.ones((HEIGHT // 4, WIDTH // 5), np.uint8)))
    return values[rng.integers(len(values))]


def _raw_values(table: Mapping[str, int]) -> list[Any]:
    """Numbers or names of a source that ``table`` renumbers; for "*", one that is not in it."""
    numbers = all(key == "*" or key.removeprefix("-").isdigit() for key in table)
    if not numbers:
        return [key if key != "*" else "something else" for key in table]
    other = next(n for n in range(255, -1, -1) if str(n) not in table) if "*" in table else None
    return [other if key == "*" else int(key) for key in table if int(key if key != "*" else 0) >= 0]


def _write_parquet(rows: list[dict[str, Any]], folder: Path) -> str:
    from datasets import Dataset

    table = Dataset.from_list(rows).data.table
    for k in range(SHARDS):
        pq.write_table(table.slice(k * ROWS, ROWS), folder / f"part-{k}.parquet")
    return f"{folder}/part-*.parquet"


def _write_tars(rows: list[dict[str, Any]], folder: Path) -> str:
    for k in range(SHARDS):
        with tarfile.open(folder / f"part-{k}.tar", "w") as tar:
            for number in range(k * ROWS, (k + 1) * ROWS):
                for column, cell in rows[number].items():
                    info = tarfile.TarInfo(f"{number:06d}.{column}")
                    data = _as_file(cell, column)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return f"{folder}/part-*.tar"


def _as_file(cell: Any, column: str) -> bytes:
    if isinstance(cell, Image.Image):
        return encoded(cell, "JPEG" if f".{column}".endswith((".jpg", ".jpeg")) else "PNG")
    if isinstance(cell, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, cell)
        return buffer.getvalue()
    return str(cell).encode()


def _write_pets(rows: list[dict[str, Any]], data: DataConfig, folder: Path) -> None:
    base, split = folder / "oxford-iiit-pet", data.train.split(":")[2:] or ["trainval"]
    (base / "images").mkdir(parents=True)
    (base / "annotations" / "trimaps").mkdir(parents=True)
    lines = []
    for number, row in enumerate(rows):
        name = f"Breed{row['category']}_{number}"
        row["image"].save(base / "images" / f"{name}.jpg")
        row["segmentation"].save(base / "annotations" / "trimaps" / f"{name}.png")
        lines.append(f"{name} {row['category'] + 1} 1 1\n")
    (base / "annotations" / f"{split[0]}.txt").write_text("".join(lines), encoding="utf-8")


def _write_cityscapes(rows: list[dict[str, Any]], data: DataConfig, folder: Path) -> None:
    split = (data.train.split(":")[2:] or ["train"])[0]
    photos, masks = folder / "leftImg8bit" / split / "town", folder / "gtFine" / split / "town"
    photos.mkdir(parents=True)
    masks.mkdir(parents=True)
    for number, row in enumerate(rows):
        row["image"].save(photos / f"town_{number}_leftImg8bit.png")
        row["semantic"].save(masks / f"town_{number}_gtFine_labelIds.png")


TORCHVISION = {"OxfordIIITPet": _write_pets, "Cityscapes": _write_cityscapes}
