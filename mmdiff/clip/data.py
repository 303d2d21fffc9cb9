"""Picture and caption pairs, decoded once into one tensor."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

COLUMNS = ("image", "caption", "label", "source")
SIDE = 96  # pixels; leaves a 64-pixel model room for crops


@dataclass(frozen=True)
class Pairs:
    """N pictures and what is said about them."""

    images: Tensor  # (N, 3, SIDE, SIDE) uint8, the central square of each picture
    captions: list[str]
    labels: Tensor  # (N,) class indices, -1 = unknown
    sources: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def read_pairs(paths: Sequence[str | Path]) -> Pairs:
    """All rows of the parquet files that have a caption."""
    rows = [row for path in paths for row in _read_rows(Path(path)) if row["caption"]]
    if not rows:
        raise ValueError(f"no row with a caption in {[str(path) for path in paths]}; expected at least one")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded: Iterable[np.ndarray] = pool.map(_decode, [row["image"]["bytes"] for row in rows])
        pixels = np.stack(list(tqdm(decoded, total=len(rows), desc="decode", unit="img", mininterval=1)))
    return Pairs(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        captions=[row["caption"] for row in rows],
        labels=torch.tensor([-1 if row["label"] is None else row["label"] for row in rows]),
        sources=[row["source"] for row in rows],
    )


def read_captions(path: str | Path) -> tuple[list[str], list[int]]:
    """Captions and labels of one parquet file, without touching its pictures; an empty cell is None."""
    table = _read_table(Path(path), ("caption", "label"))
    return table["caption"].to_pylist(), table["label"].to_pylist()


def _read_rows(path: Path) -> list[dict]:
    return _read_table(path, COLUMNS).to_pylist()


def _read_table(path: Path, columns: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected parquet with the columns {', '.join(columns)}")
    schema = pq.read_schema(path)
    missing = set(columns) - set(schema.names)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; expected {', '.join(columns)}")
    kind = schema.field("caption").type if "caption" in columns else pa.string()
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise ValueError(f"{path} has captions of type {kind}; expected texts, one a row")
    return pq.read_table(path, columns=list(columns))


def _decode(data: bytes) -> np.ndarray:
    """Encoded picture to (SIDE, SIDE, 3) uint8."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))
