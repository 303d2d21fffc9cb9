"""Streams: every row once an epoch over all processes, exact resume, whatever the layout of the files."""

import dataclasses
import io
import json
import tarfile
import threading
import warnings
from collections import Counter

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from synthetic import (
    CLASSES,
    DIM,
    SIZE,
    WordEmbedder,
    draw_shape,
    make_rows,
    mask_of,
    png,
    tiny_config,
    write_parquet,
)

from mmdiff.config import DataConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples
from mmdiff.data.parquet import read_parquet
from mmdiff.data.stream import StreamedBatches, first_examples
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion

NAMES = ("image", "mask", "label")


@pytest.fixture(scope="module")
def modalities():
    return MultiModalDiffusion(tiny_config(NAMES)).modalities


def numbered(count: int, first: int = 0) -> list[dict]:
    """Rows whose captions are their numbers, so that an order of rows can be read off."""
    return [row | {"caption": str(i)} for i, row in enumerate(make_rows(first + count))][first:]


def write_shards(folder, sizes, change=None) -> str:
    """Parquet shards of the given sizes with rows numbered throughout; returns their glob."""
    rows = numbered(sum(sizes))
    for number, cells in (change or {}).items():
        rows[number] |= cells
    for k, size in enumerate(sizes):
        start = sum(sizes[:k])
        write_parquet(folder / f"part-{k}.parquet", rows[start : start + size])
    return f"{folder}/part-*.parquet"


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_tars(folder, sizes) -> str:
    """WebDataset shards of shapes with train ids as Cityscapes has them: 255 for what has no class."""
    number = 0
    for k, size in enumerate(sizes):
        with tarfile.open(folder / f"part-{k}.tar", "w") as tar:
            for _ in range(size):
                photo = draw_shape(number % 4, number)
                ids = np.where(mask_of(photo), 0, 255).astype(np.uint8)
                add_file(tar, f"{number:04d}.png", png(photo)["bytes"])
                add_file(tar, f"{number:04d}.label_trainIds.png", png(ids)["bytes"])
                add_file(tar, f"{number:04d}.cls", str(number % 4).encode())
                add_file(tar, f"{number:04d}.txt", str(number).encode())
                number += 1
    return f"{folder}/part-*.tar"


TAR_COLUMNS = {"image": "png", "mask": "label_trainIds.png", "label": "cls", "caption": "txt"}


def config_of(where: str, **options) -> DataConfig:
    settings = {"stream": True, "shuffle_rows": 5, "workers": 2}
    return DataConfig(train=where, **(settings | options))


def captions(stream: StreamedBatches, batches: int) -> list[int]:
    return [int(text) for _ in range(batches) for text in stream.next_batch().captions]


@pytest.fixture
def make(modalities):
    """Makes streams that are closed at the end."""
    opened = []

    def open_stream(config, batch=4, names=modalities, **options) -> StreamedBatches:
        opened.append(StreamedBatches(config, names, batch, **options))
        return opened[-1]

    yield open_stream
    for stream in opened:
        stream.close()


def assert_same(one: Examples, two: Examples) -> None:
    assert set(one.stored) == set(two.stored) and one.captions == two.captions
    assert all(torch.equal(one.stored[n], two.stored[n]) for n in one.stored)
    assert all(torch.equal(one.present[n], two.present[n]) for n in one.present)


# -- what comes out --------------------------------------------------------------------------------------


def test_rows_equal_those_of_the_same_file_in_memory(tmp_path, modalities, make):
    where = write_shards(tmp_path, (12, 12))
    config = config_of(where, margin=4)
    memory = read_parquet(where, modalities.values(), config)
    assert memory.captions == [str(i) for i in range(24)]
    stream = make(config, batch=6)
    for _ in range(4):
        batch = stream.next_batch()
        assert len(batch) == 6 and batch.margin == 4
        same = memory.take(torch.tensor([int(text) for text in batch.captions]))
        assert all(torch.equal(batch.stored[n], same.stored[n]) for n in NAMES)
        assert all(torch.equal(batch.present[n], same.present[n]) for n in NAMES)
        generator = torch.Generator().manual_seed(0)
        x, present = draw_batch(batch, modalities, torch.arange(6), generator, flip=True)
        assert x["image"].shape == (6, 3, SIZE, SIZE) and present.shape == (6, 3)


def test_webdataset_rows_equal_what_the_tar_files_hold(tmp_path, modalities, make):
    """Masks are renumbered: train id 0 becomes class 1 and 255 becomes class 0."""
    where = write_tars(tmp_path, (7, 5))
    class_map = {"mask": {"0": 1, "255": 0}}
    stream = make(config_of(where, columns=TAR_COLUMNS, class_map=class_map), batch=3)
    raw = {}
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as tar:
            raw |= {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
    seen = []
    for _ in range(4):
        batch = stream.next_batch()
        x, present = draw_batch(batch, modalities, torch.arange(3), None, flip=False)
        assert present.all()
        for k, number in enumerate(map(int, batch.captions)):
            photo = np.asarray(Image.open(io.BytesIO(raw[f"{number:04d}.png"])))
            ids = np.asarray(Image.open(io.BytesIO(raw[f"{number:04d}.label_trainIds.png"])))
            assert np.array_equal(((x["image"][k] + 1) * 127.5).round().permute(1, 2, 0), photo)
            assert np.array_equal(x["mask"][k], ids == 0)
            assert x["label"][k] == int(raw[f"{number:04d}.cls"])
            seen.append(number)
    assert sorted(seen) == list(range(12))


def test_a_folder_of_photos_equals_what_datasets_reads(tmp_path, make):
    for i in range(9):
        folder = tmp_path / "train" / CLASSES[i % 4]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_shape(i % 4, i)).save(folder / f"{i}.png")
    modalities = MultiModalDiffusion(tiny_config(("image", "label"))).modalities
    loaded = load_dataset(str(tmp_path), split="train")
    names = loaded.features["label"].names
    assert sorted(names) == sorted(CLASSES)
    ours = [CLASSES.index(name) for name in names]  # another order than that of the folders
    assert ours != sorted(ours)
    expected = Counter((np.asarray(row["image"]).tobytes(), ours[row["label"]]) for row in loaded)
    seen = Counter()
    stream = make(config_of(str(tmp_path)), batch=3, names=modalities)
    for _ in range(3):
        batch = stream.next_batch()
        photos = batch.stored["image"].permute(0, 2, 3, 1).contiguous().numpy()
        seen.update((p.tobytes(), int(n)) for p, n in zip(photos, batch.stored["label"], strict=True))
    assert seen == expected


def test_photos_at_an_address_are_fetched(tmp_path, modalities, make):
    """As in folders on the Hub; one that is not there is a broken row."""
    memory = fsspec.filesystem("memory")
    rows = numbered(8)
    for i, row in enumerate(rows):
        if i != 5:
            memory.pipe(f"/photos/{i}.png", row["image"]["bytes"])
        row["image"] = {"bytes": None, "path": f"memory://photos/{i}.png"}
    where = str(write_parquet(tmp_path / "a.parquet", rows))
    stream = make(config_of(where), batch=7)
    with pytest.warns(UserWarning, match="a.parquet, row 5, column 'image': .*5.png"):
        batch = stream.next_batch()
    for photo, number in zip(batch.stored["image"], map(int, batch.captions), strict=True):
        assert np.array_equal(photo.permute(1, 2, 0), draw_shape(number % 4, number))


def test_names_of_classes_can_be_mapped(tmp_path, modalities, make):
    rows = [row | {"label": f"n{i % 4}"} for i, row in enumerate(numbered(8))]
    names = [{"image": r["image"], "wnid": r["label"], "caption": r["caption"]} for r in rows]
    where = str(write_parquet(tmp_path / "a.parquet", names))
    table = {"n0": 2, "n1": 3, "*": 1}
    batch = make(
        config_of(where, columns={"label": "wnid"}, class_map={"label": table}), batch=8
    ).next_batch()
    assert [table.get(f"n{int(c) % 4}", 1) for c in batch.captions] == batch.stored["label"].tolist()


def test_embeddings_are_made_or_read(tmp_path, make, modalities):
    names = MultiModalDiffusion(tiny_config(("image", "embedding"))).modalities
    where = write_shards(tmp_path, (8,))
    with pytest.raises(ValueError, match="'embedding' needs model.embedder, or a column.*precompute"):
        make(config_of(where), names=names)
    batch = make(config_of(where), batch=4, names=names, embedder=WordEmbedder()).next_batch()
    assert batch.stored["embedding"].shape == (4, 2, DIM)
    texts = WordEmbedder().embed_texts(batch.captions)
    torch.testing.assert_close(batch.stored["embedding"][:, 1].float(), texts, atol=1e-3, rtol=0)


# -- order ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes, world",
    [
        ((10, 6, 8), 1),
        ((10, 6), 2),
        ((6, 6, 6, 6), 2),
        ((10, 7, 7), 2),
        ((24,), 2),
        ((9, 6, 9), 3),
        ((5, 7), 3),
    ],
    ids=str,
)
def test_processes_together_see_every_row_once_an_epoch(tmp_path, make, sizes, world):
    """With shards of their own (a multiple of the processes) or sharing the rows of every shard."""
    where = write_shards(tmp_path, sizes)
    for epoch in range(3):
        seen = []
        for rank in range(world):
            stream = make(config_of(where), batch=1, rank=rank, world=world)
            while stream.epoch <= epoch:
                caption = captions(stream, 1)[0]
                if stream.epoch == epoch:
                    seen.append(caption)
            stream.close()
        assert sorted(seen) == list(range(sum(sizes)))


def test_every_epoch_has_an_order_of_its_own(tmp_path, make):
    stream = make(config_of(write_shards(tmp_path, (6, 6, 6, 6)), shuffle_rows=8), batch=24)
    orders = [tuple(captions(stream, 1)) for _ in range(4)]
    assert len(set(orders)) == 4 and all(sorted(order) == list(range(24)) for order in orders)
    assert tuple(range(24)) not in orders
    assert len({tuple(i // 6 for i in order) for order in orders}) > 1  # of the shards too
    other = make(config_of(write_shards(tmp_path, (6, 6, 6, 6)), shuffle_rows=8), batch=24, seed=1)
    assert tuple(captions(other, 1)) not in orders


@pytest.mark.parametrize("layout", ["parquet", "tar"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_stream_equals_an_uninterrupted_one(tmp_path, make, layout, world):
    """From every step of more than two epochs, through JSON, in blocks that shards do not align with."""
    if layout == "parquet":
        config = config_of(write_shards(tmp_path, (7, 5, 4)))
    else:
        table = {"mask": {"0": 1, "255": 0}}
        config = config_of(write_tars(tmp_path, (7, 5, 4)), columns=TAR_COLUMNS, class_map=table)
    whole = make(config, batch=3, world=world, rank=world - 1)
    states, batches = [whole.state_dict()], []
    for _ in range(13):
        batches.append(whole.next_batch())
        states.append(json.loads(json.dumps(whole.state_dict())))
    for k in range(0, 12, 1 if layout == "parquet" else 4):
        resumed = make(config, batch=3, world=world, rank=world - 1)
        resumed.load_state_dict(states[k])
        assert resumed.state_dict() == states[k]
        for batch in batches[k : k + 3]:
            assert_same(resumed.next_batch(), batch)
        resumed.close()


def test_a_stream_can_return_to_an_earlier_state(tmp_path, make):
    stream = make(config_of(write_shards(tmp_path, (12,))))
    state = stream.state_dict()
    one = captions(stream, 3)
    stream.load_state_dict(state)
    assert captions(stream, 3) == one


def test_prepared_embeddings_resume_and_divide(tmp_path, make):
    """Vectors are read as Arrow tables, which `datasets` skips and divides in another way."""
    names = MultiModalDiffusion(tiny_config(("image", "embedding"))).modalities
    vectors = np.random.default_rng(0).normal(size=(13, 2, DIM)).astype(np.float16)
    rows = numbered(13)
    table = pa.table(
        {
            "image": pa.array([row["image"] for row in rows]),
            "caption": [row["caption"] for row in rows],
            "embedding": pa.array(vectors.tolist(), pa.list_(pa.list_(pa.float16()))),
        }
    )
    pq.write_table(table.slice(0, 8), tmp_path / "part-0.parquet")
    pq.write_table(table.slice(8), tmp_path / "part-1.parquet")
    for world in (1, 3):
        seen = []
        for rank in range(world):
            stream, order = make(config_of(f"{tmp_path}/*.parquet"), 1, names, rank=rank, world=world), []
            while stream.epoch == 0:
                state, batch = stream.state_dict(), stream.next_batch()
                resumed = make(config_of(f"{tmp_path}/*.parquet"), 1, names, rank=rank, world=world)
                resumed.load_state_dict(state)
                assert_same(resumed.next_batch(), batch)
                resumed.close()
                number = int(batch.captions[0])
                assert np.array_equal(batch.stored["embedding"][0], vectors[number])
                order.append(number)
            seen += order[:-1]  # the last is of the next epoch
        assert sorted(seen) == list(range(13))


def test_a_state_of_another_run_is_refused(tmp_path, make):
    where = write_shards(tmp_path, (8, 8))
    state = make(config_of(where), world=2).state_dict()
    with pytest.raises(ValueError, match="'world': 2.*as many processes and the same seed"):
        make(config_of(where)).load_state_dict(state)


def test_closing_ends_every_thread(tmp_path, make):
    before = threading.active_count()
    stream = make(config_of(write_shards(tmp_path, (12,))))
    stream.next_batch()
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


# -- what goes wrong --------------------------------------------------------------------------------------


BROKEN = {"image": {"bytes": b"no picture", "path": None}}


def test_broken_rows_are_left_out_with_a_warning(tmp_path, make):
    where = write_shards(tmp_path, (12, 12), {5: BROKEN, 15: {"label": 9}, 20: {"image": None}})
    stream = make(config_of(where), batch=21)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        seen = captions(stream, 1)
        stream.close()
    assert sorted(seen) == [i for i in range(24) if i not in (5, 15, 20)]
    texts = "\n".join(str(w.message) for w in caught)
    assert "part-0.parquet, row 5, column 'image'" in texts and "The row is left out" in texts
    assert "part-1.parquet, row 3, column 'label': label: class 9 does not exist" in texts
    assert "part-1.parquet, row 8, column 'image': there is none" in texts
    assert stream.broken >= 3


@pytest.mark.filterwarnings("ignore:.*left out")
def test_too_many_broken_rows_end_the_stream(tmp_path, make):
    where = write_shards(tmp_path, (24,), {i: BROKEN for i in range(11)})
    stream = make(config_of(where), batch=13)
    for _ in range(2):  # and it stays so
        with pytest.raises(ValueError, match="11 of .* rows cannot be read; the warnings name the first"):
            captions(stream, 2)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": "jpg"}, "no column 'jpg' for 'image'; it has image, mask, label.*data.columns"),
        ({"label": "cls"}, "no column 'cls' for 'label'"),
        ({"caption": "txt"}, "no column 'txt' for 'caption'"),
    ],
)
def test_a_wrong_column_is_named(tmp_path, make, columns, message):
    with pytest.raises(ValueError, match=message):
        make(config_of(write_shards(tmp_path, (4,)), columns=columns))


def test_sources_that_cannot_be_opened(tmp_path, make, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "a.csv").write_text("image\n")
    (tmp_path / "b.parquet").write_text("image\n")
    for where, message in [
        ("hub:nobody/nothing", "hub:nobody/nothing cannot be opened .*check the network.*hf auth login"),
        ("hub:nothing", "write hub:OWNER/NAME"),
        ("torchvision:Nothing", "torchvision:Nothing is not known here; known: OxfordIIITPet"),
        ("torchvision:Cityscapes", "torchvision:Cityscapes cannot be opened below"),
        (f"{tmp_path}/*.tar", "no data at .*tar'; give Parquet or tar shards"),
        (f"{tmp_path}/*.csv", "files ending in .csv; expected .parquet or .tar"),
        (f"{tmp_path}/b.parquet", "b.parquet cannot be opened"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(config_of(where, root=str(tmp_path)))


def test_more_processes_than_rows(tmp_path, make):
    stream = make(config_of(write_shards(tmp_path, (1,))), batch=1, rank=1, world=2)
    with pytest.raises(ValueError, match="no rows for process 1 of 2"):
        stream.next_batch()


def test_invalid_ranks_are_refused(tmp_path, make):
    where = write_shards(tmp_path, (4,))
    for options in ({"batch": 0}, {"rank": 2, "world": 2}):
        with pytest.raises(ValueError, match="expected batch >= 1 and 0 <= rank < world"):
            make(config_of(where), **options)


# -- the first rows, for validation -------------------------------------------------------------------------


def test_the_first_rows_come_in_order(tmp_path, modalities):
    where = write_shards(tmp_path, (5, 5, 5))
    config = dataclasses.replace(config_of("nowhere"), val=where)
    examples = first_examples(config, modalities, 8)
    whole = read_parquet(where, modalities.values(), config)
    assert_same(examples, whole.take(torch.arange(8)))
    assert len(first_examples(config, modalities, 100)) == 15
    assert len(pq.read_table(f"{tmp_path}/part-0.parquet")) == 5
