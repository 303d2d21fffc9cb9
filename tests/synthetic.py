"""A synthetic data set whose masks and labels can be read off its photos, and tiny models for it.

A photo is a coloured shape on white. Its mask is "not white", its label the pair of colour and shape, and
its caption says the same, so tests can recompute every annotation from the pixels.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from mmdiff.checkpoint import build_model
from mmdiff.config import DataConfig, ModalityConfig, ModelConfig, OptimConfig, TrainConfig
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.data.parquet import read_parquet
from mmdiff.model import MultiModalDiffusion

SIZE = 16
CLASSES = ("red disc", "red square", "blue disc", "blue square")
COLOURS = {"red": (200, 30, 40), "blue": (30, 60, 190)}
DIM = 8  # of the embedding


def draw_shape(label: int, seed: int, size: int = SIZE) -> np.ndarray:
    """A shape of class ``label`` at a random place and of random brightness, (size, size, 3) uint8."""
    rng = np.random.default_rng(seed)
    colour, shape = CLASSES[label].split()
    x, y = rng.uniform(0.35, 0.65, 2) * size
    radius = rng.uniform(0.2, 0.45) * size
    rows, columns = np.mgrid[:size, :size] + 0.5
    distance = np.hypot(rows - y, columns - x)
    if shape == "square":
        distance = np.maximum(abs(rows - y), abs(columns - x))
    painted = np.array(COLOURS[colour]) * rng.uniform(0.6, 1.2)
    return np.where((distance < radius)[..., None], painted, 255).astype(np.uint8)


def mask_of(pixels: np.ndarray | torch.Tensor, axis: int = -1):
    """The mask of a photo, from its pixels: 1 where it is not white."""
    return (pixels < 250).any(axis)


def png(array: np.ndarray) -> dict[str, bytes | str | None]:
    """A cell of an image column."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_rows(count: int, size: int = SIZE) -> list[dict]:
    """Rows of a data set: every third lacks its mask, every fourth its label, every fifth its caption."""
    rows = []
    for i in range(count):
        label = i % len(CLASSES)
        photo = draw_shape(label, i, size)
        rows.append(
            {
                "image": png(photo),
                "mask": None if i % 3 == 2 else png(mask_of(photo).astype(np.uint8)),
                "label": -1 if i % 4 == 3 else label,
                "caption": None if i % 5 == 4 else f"a {CLASSES[label]}",
                "source": "synthetic",
                "id": f"shape-{i}",
            }
        )
    return rows


def write_parquet(path: Path, rows: list[dict]) -> Path:
    """Rows as a Parquet file with the columns of the project's data sets."""
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"image": picture, "mask": picture, "label": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


def tiny_config(names: tuple[str, ...] = ("image", "mask", "label", "embedding"), **options) -> ModelConfig:
    """A model of a few thousand weights on 16 x 16 pixels."""
    kinds = {
        "image": {},
        "mask": {"classes": ["background", "shape"]},
        "label": {"classes": list(CLASSES)},
        "embedding": {"dim": DIM},
    }
    modalities = tuple(ModalityConfig(name, name, options=kinds[name]) for name in names)
    sizes = {"image_size": SIZE, "patch_size": 4, "width": 32, "depth": 3, "heads": 2, "refiner_width": 8}
    return ModelConfig(modalities, **({"core": "flags"} | sizes | options))


def tiny_train_config(**optim) -> TrainConfig:
    """A training run of a few small steps."""
    settings = {"images": 64, "batch_size": 8, "warmup_images": 16, "save_every_images": 32}
    return TrainConfig(
        tiny_config(dropout=0.1), DataConfig(margin=2), optim=OptimConfig(**(settings | optim))
    )


def lively_model(config: ModelConfig, seed: int = 0) -> MultiModalDiffusion:
    """A model with random weights everywhere, so that every output depends on every input."""
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for head in model.heads.parameters():
            head += 0.3 * torch.randn_like(head)
    return model.eval()


class WordEmbedder:
    """An embedder without a network: texts by their bytes, photos by their mean colour."""

    dim = DIM

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        seeds = [sum(text.encode()) for text in texts]
        vectors = [torch.randn(DIM, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.nn.functional.normalize(torch.stack(vectors), dim=1)

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        colours = images.mean((2, 3)) + 2  # (B, 3), never zero
        projection = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
        return torch.nn.functional.normalize(colours @ projection, dim=1)


def read_shapes(path: Path, config: TrainConfig, embedder: WordEmbedder) -> Examples:
    """A Parquet file of shapes as training examples, with embeddings."""
    examples = read_parquet(path, build_model(config.model).modalities.values(), config.data)
    add_embeddings(examples, "embedding", "image", embedder, config.model.image_size)
    return examples
