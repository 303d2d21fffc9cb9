"""Fixtures that several test modules share; what they are made of is in synthetic.py."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from chromium import browser  # noqa: F401
from synthetic import WordEmbedder, lively_model, make_rows, tiny_config, write_parquet

from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.pipeline import Pipeline

CACHE = tempfile.TemporaryDirectory(prefix="mmdiff-tests-")
os.environ.setdefault("HF_DATASETS_CACHE", CACHE.name)  # takes effect where `datasets` is imported, later
# Gradio names files by their contents and deletes those of a page that ends: not those of another process.
os.environ["GRADIO_TEMP_DIR"] = os.path.join(CACHE.name, "gradio")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A Parquet file of 24 shapes."""
    return write_parquet(tmp_path_factory.mktemp("data") / "shapes.parquet", make_rows(24))


@pytest.fixture(scope="session")
def embedder() -> WordEmbedder:
    return WordEmbedder()


@pytest.fixture(scope="session")
def model() -> MultiModalDiffusion:
    """A lively tiny model of all four modalities; not to be changed."""
    return lively_model(tiny_config())


@pytest.fixture(scope="session")
def pipe(embedder) -> Pipeline:
    """A pipeline around such a model; not to be changed."""
    return Pipeline(lively_model(tiny_config(), seed=1), torch.device("cpu"), embedder)
