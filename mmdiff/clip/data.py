"""Pictures and captions, decoded and tokenised once, before the training."""

import os
import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from open_clip import SimpleTokenizer
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmdiff.clip.captions import vary
from mmdiff.images import open_photo

COLUMNS = ("image", "caption", "label", "source")
SIDE = 96  # pixels; leaves a 64-pixel model room for crops
VARIANTS = 24  # texts a caption is tokenised into, half of them the caption itself


@dataclass(frozen=True)
class Pairs:
    """N pictures with captions."""

    images: Tensor  # (N, 3, SIDE, SIDE) uint8, the central square of each picture
    captions: list[str]
    labels: Tensor  # (N,) class indices, -1 = unknown
    sources: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def read_pairs(paths: Sequence[str | Path]) -> Pairs:
    """All rows of the parquet files that have a caption."""
    rows = [row for path in paths for row in _read_table(path, COLUMNS).to_pylist() if row["caption"]]
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


def read_captions(paths: Iterable[str | Path]) -> tuple[list[str | None], list[int | None]]:
    """Captions and labels of all rows of the parquet files, without touching their pictures."""
    rows = [row for path in paths for row in _read_table(path, ("caption", "label")).to_pylist()]
    return [row["caption"] for row in rows], [row["label"] for row in rows]


class CaptionTexts:
    """Every distinct caption, tokenised once in VARIANTS ways, on the training device."""

    def __init__(self, captions: list[str], context_length: int, seed: int, device: torch.device):
        tokenizer = SimpleTokenizer(context_length=context_length)
        rng, distractors = random.Random(seed), _vocabulary_words(tokenizer)
        distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        texts: list[str] = []
        for caption in distinct:
            texts += [caption] * (VARIANTS // 2)
            texts += [vary(caption, rng, distractors) for _ in range(VARIANTS - VARIANTS // 2)]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self.tokens = tokenizer(list(numbers)).to(device)  # (texts, context_length)
        self.table = torch.tensor([numbers[text] for text in texts], device=device).view(-1, VARIANTS)
        self.caption_ids = torch.tensor([distinct[caption] for caption in captions], device=device)  # (N,)

    def sample(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, context_length) of one text for each row, and which image and text match, (B, B)."""
        captions = self.caption_ids[rows]
        texts = self.table[captions, torch.randint(VARIANTS, rows.shape, device=rows.device)]
        matches = (captions[:, None] == captions) | (texts[:, None] == texts)
        return self.tokens[texts], matches


def _read_table(path: str | Path, columns: Sequence[str]) -> pa.Table:
    """Columns, with "caption" among them, of a Parquet file."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; expected parquet with the columns {', '.join(columns)}")
    schema = pq.read_schema(path)
    missing = set(columns) - set(schema.names)
    if missing:
        raise ValueError(f"{path} lacks the columns {sorted(missing)}; expected {', '.join(columns)}")
    kind = schema.field("caption").type
    if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
        raise ValueError(f"{path} has captions of type {kind}; expected texts, one a row")
    return pq.read_table(path, columns=list(columns))


def _decode(data: bytes) -> np.ndarray:
    """Encoded picture to (SIDE, SIDE, 3) uint8."""
    image = open_photo(data)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def _vocabulary_words(tokenizer: SimpleTokenizer) -> list[str]:
    """The whole words of the vocabulary."""
    words = sorted(token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 2]
