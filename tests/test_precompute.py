"""Prepared shards hold what the source holds, survive interruptions, and train without an embedder."""

import io
import itertools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from synthetic import (
    DIM,
    SIZE,
    WordEmbedder,
    draw_shape,
    make_rows,
    mask_of,
    read_shapes,
    tiny_config,
    write_parquet,
)

from mmdiff.config import DataConfig, ModalityConfig, ModelConfig, TrainConfig
from mmdiff.data import precompute
from mmdiff.data.examples import Examples
from mmdiff.data.parquet import read_parquet
from mmdiff.data.precompute import prepare
from mmdiff.data.stream import StreamedBatches
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion

BREEDS = ("Abyssinian", "american_bulldog", "Bengal")


def config_of(folder, **data) -> TrainConfig:
    settings = {"train": f"{folder}/source-*.parquet", "prepared": f"{folder}/out", "workers": 2, "margin": 2}
    return TrainConfig(tiny_config(), DataConfig(**(settings | data)))


@pytest.fixture
def source(tmp_path):
    """24 shapes in two files and in one."""
    rows = make_rows(24)
    write_parquet(tmp_path / "source-0.parquet", rows[:10])
    write_parquet(tmp_path / "source-1.parquet", rows[10:])
    write_parquet(tmp_path / "whole.parquet", rows)
    return tmp_path


def read_prepared(config: TrainConfig):
    data = config.data.ready()
    return read_parquet(data.train, MultiModalDiffusion(config.model).modalities.values(), data)


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("margin_from", ["pad", "resize"])
def test_prepared_shards_equal_the_source(source, margin_from):
    """Photos, masks, labels and captions bit for bit; embeddings as training would have made them."""
    config = config_of(source, margin_from=margin_from)
    assert prepare(config, "train", source / "out", WordEmbedder(), rows_per_shard=7) == 4
    assert names_in(source / "out") == [f"train-{k:05d}.parquet" for k in range(4)]
    prepared = read_prepared(config)
    expected = read_shapes(source / "whole.parquet", config, WordEmbedder())
    assert prepared.captions == expected.captions and set(prepared.stored) == set(expected.stored)
    for name, values in expected.stored.items():
        assert torch.equal(prepared.stored[name], values), name
        assert torch.equal(prepared.present[name], expected.present[name])
    assert prepared.stored["embedding"].shape == (24, 2, DIM)


def test_datasets_and_pyarrow_read_the_shards(source):
    prepare(config_of(source), "train", source / "out", WordEmbedder(), rows_per_shard=24)
    path = source / "out" / "train-00000.parquet"
    table = load_dataset("parquet", data_files=str(path), split="train")
    assert np.array_equal(np.asarray(table[6]["image"]), draw_shape(2, 6))
    assert np.array_equal(np.asarray(table[6]["mask"]), mask_of(draw_shape(2, 6)))
    assert (table[5]["mask"], table[7]["label"], table[6]["label"]) == (None, -1, 2)
    vectors = pq.read_table(path)["embedding"]
    assert np.array(vectors.to_pylist()).shape == (24, 2, DIM)
    assert vectors.type.value_type.value_type == pa.float16()


def test_training_streams_the_shards_without_an_embedder(source):
    config = config_of(source, stream=True)
    prepare(config, "train", source / "out", WordEmbedder(), rows_per_shard=5)
    stream = StreamedBatches(config.data, MultiModalDiffusion(config.model).modalities, batch=24)
    batch = stream.next_batch()
    stream.close()
    expected = read_prepared(config)
    assert sorted(batch.captions) == sorted(expected.captions)
    order = batch.stored["embedding"].float().sum((1, 2)).sort().values
    torch.testing.assert_close(order, expected.stored["embedding"].float().sum((1, 2)).sort().values)


@pytest.mark.parametrize("missing", [(3,), (1,), (0,), (1, 2), (0, 2), (0, 1, 2, 3)], ids=str)
def test_a_rerun_writes_what_is_missing_and_nothing_else(source, missing):
    config, out = config_of(source), source / "out"
    prepare(config, "train", out, WordEmbedder(), rows_per_shard=7)
    tables = [pq.read_table(out / f"train-{k:05d}.parquet") for k in range(4)]
    for k in missing:
        (out / f"train-{k:05d}.parquet").unlink()
    kept = {path: os.stat(path).st_mtime_ns for path in out.iterdir()}
    assert prepare(config, "train", out, WordEmbedder(), rows_per_shard=7) == len(missing)
    assert all(os.stat(path).st_mtime_ns == time for path, time in kept.items())
    for k, table in enumerate(tables):
        again = pq.read_table(out / f"train-{k:05d}.parquet")
        assert again.equals(table) and again.schema.metadata == table.schema.metadata
    assert prepare(config, "train", out, WordEmbedder(), rows_per_shard=7) == 0


def test_an_interrupted_run_leaves_whole_shards(source, monkeypatch):
    config, out, calls = config_of(source), source / "out", itertools.count()
    write = precompute.pq.write_table

    def fail_in_the_third(table, path, **options):
        write(table, path, **options)
        if next(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(precompute.pq, "write_table", fail_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, "train", out, WordEmbedder(), rows_per_shard=7)
    assert [n for n in names_in(out) if n.endswith(".parquet")] == [
        "train-00000.parquet",
        "train-00001.parquet",
    ]
    assert prepare(config, "train", out, WordEmbedder(), rows_per_shard=7) == 2
    assert len(read_prepared(config)) == 24 and len(names_in(out)) == 4


@pytest.mark.filterwarnings("ignore:.*left out")
def test_broken_rows_do_not_shift_the_shards(source):
    rows = make_rows(24)
    for i in (0, 6, 7, 22, 23):
        rows[i]["image"] = None
    write_parquet(source / "source-0.parquet", rows[:10])
    write_parquet(source / "source-1.parquet", rows[10:])
    config, out = config_of(source), source / "out"
    prepare(config, "train", out, WordEmbedder(), rows_per_shard=6)
    sizes = [pq.read_metadata(path).num_rows for path in sorted(out.iterdir())]
    assert sizes == [6, 6, 6, 1] and len(read_prepared(config)) == 19
    (out / "train-00001.parquet").unlink()
    assert prepare(config, "train", out, WordEmbedder(), rows_per_shard=6) == 1
    expected = [row["caption"] or "" for row in rows if row["image"]]
    assert read_prepared(config).captions == expected


def test_shards_of_other_settings_are_refused(source):
    config, out = config_of(source), source / "out"
    prepare(config, "train", out, WordEmbedder(), rows_per_shard=7)
    with pytest.raises(
        ValueError, match="train-00000.parquet was made with rows 7, not 8; use another folder"
    ):
        prepare(config, "train", out, WordEmbedder(), rows_per_shard=8)
    with pytest.raises(ValueError, match="needs model.embedder"):
        prepare(config, "train", source / "new", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(1, 2, 4, 4, dtype=torch.uint8), r"'map' has values of shape \(2, 4, 4\) and type uint8"),
        (torch.zeros(1, 4, 4), "type float32, which no PNG holds; store whole numbers"),
        (torch.full((1, 4, 4), 2**16), "type int64"),
        (torch.full((1, 1, 4, 4), -1), "type int64"),
    ],
)
def test_pictures_that_fit_into_no_png_are_refused(tmp_path, values, message):
    modality = MultiModalDiffusion(tiny_config(("image", "mask"))).modalities["mask"]
    examples = Examples({"map": values}, {"map": torch.ones(1, dtype=torch.bool)}, [""])
    with pytest.raises(ValueError, match=message):
        precompute.write_shard(examples, {"map": modality}, tmp_path / "a.parquet", {})
    assert not list(tmp_path.iterdir())


# -- torchvision ----------------------------------------------------------------------------------------


def write_pets(root, split: str, count: int) -> None:
    """The files of Oxford-IIIT Pet: a trimap has 1 = pet, 2 = background, 3 = border."""
    base = root / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True, exist_ok=True)
    (base / "annotations" / "trimaps").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        name = f"{BREEDS[i % 3]}_{split}{i}"
        photo = draw_shape(i % 4, i)
        trimap = np.where(mask_of(photo), 1, 2).astype(np.uint8)
        trimap[0] = 3
        Image.fromarray(photo).save(base / "images" / f"{name}.jpg", quality=95)
        Image.fromarray(trimap).save(base / "annotations" / "trimaps" / f"{name}.png")
        lines.append(f"{name} {i % 3 + 1} 1 1\n")
    (base / "annotations" / f"{split}.txt").write_text("".join(lines))


def test_pets_from_torchvision(tmp_path):
    write_pets(tmp_path, "trainval", 8)
    write_pets(tmp_path, "test", 4)
    names = {
        "image": {},
        "mask": {"classes": ["void", "pet", "background"]},
        "label": {"classes": list(BREEDS)},
    }
    model = ModelConfig(
        tuple(ModalityConfig(n, n, options=o) for n, o in names.items()),
        image_size=SIZE,
        patch_size=4,
        width=32,
    )
    data = DataConfig(
        train="torchvision:OxfordIIITPet",
        val="torchvision:OxfordIIITPet:test",
        prepared=str(tmp_path / "out"),
        root=str(tmp_path),
        columns={"mask": "segmentation", "label": "category"},
        class_map={"mask": {"1": 1, "2": 2, "3": 0}},
        workers=2,
    )
    config = TrainConfig(model, data)
    assert prepare(config, "train", tmp_path / "out", rows_per_shard=3) == 3
    assert prepare(config, "val", tmp_path / "out", rows_per_shard=3) == 2
    examples = read_prepared(config)
    assert examples.stored["label"].tolist() == [i % 3 for i in range(8)]
    for i in range(8):
        expected = np.where(mask_of(draw_shape(i % 4, i)), 1, 2)
        expected[0] = 0
        assert np.array_equal(examples.stored["mask"][i], expected)
        path = tmp_path / "oxford-iiit-pet" / "images" / f"{BREEDS[i % 3]}_trainval{i}.jpg"
        photo = np.asarray(Image.open(io.BytesIO(path.read_bytes())))
        assert np.array_equal(examples.stored["image"][i].permute(1, 2, 0), photo)


def test_the_command(source, tmp_path, capsys, monkeypatch):
    text = """
[model]
image_size = 16
patch_size = 4
[[model.modalities]]
name = "image"
kind = "image"
[data]
train = "{0}/whole.parquet"
val = "{0}/source-0.parquet"
"""
    path = tmp_path / "run.toml"
    path.write_text(text.format(source))
    with pytest.raises(SystemExit, match="give --out, or data.prepared"):
        precompute.main([str(path)])
    precompute.main([str(path), "--out", str(tmp_path / "out"), "--rows", "12"])
    assert "train: 2 shards written" in capsys.readouterr().out
    assert names_in(tmp_path / "out") == ["train-00000.parquet", "train-00001.parquet", "val-00000.parquet"]
