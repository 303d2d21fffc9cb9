"""Examples are read, cut and ordered without a change, and annotations stay aligned with their photo."""

import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, Value
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
from mmdiff.data.examples import Examples, add_embeddings, balanced, batch_rows
from mmdiff.data.parquet import read_parquet
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.images import decode_cell

NAMES = ("image", "mask", "label")


@pytest.fixture(scope="module")
def modalities():
    return MultiModalDiffusion(tiny_config(NAMES)).modalities


def read(path, modalities, **options) -> Examples:
    return read_parquet(path, modalities.values(), DataConfig(**options))


def batch_of(examples, modalities, rows, seed=None, flip=True):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return draw_batch(examples, modalities, torch.as_tensor(rows), generator, flip)


def levels(image: torch.Tensor) -> torch.Tensor:
    """[-1, 1] -> 0 … 255, as written."""
    return (image + 1) * 127.5


# -- reading -----------------------------------------------------------------------------------------


def test_every_row_comes_back(shapes, modalities):
    examples = read(shapes, modalities)
    rows = pq.read_table(shapes).to_pylist()
    assert len(examples) == len(rows) == 24
    x, present = batch_of(examples, modalities, range(24))
    for i in range(24):
        label = i % 4
        photo = draw_shape(label, i)
        assert np.allclose(levels(x["image"][i]).permute(1, 2, 0), photo, atol=1e-3)
        assert present[i].tolist() == [True, i % 3 != 2, i % 4 != 3]
        if present[i, 1]:
            assert np.array_equal(x["mask"][i], mask_of(photo))
        if present[i, 2]:
            assert x["label"][i] == label
        assert examples.captions[i] == ("" if i % 5 == 4 else f"a {CLASSES[label]}")


def test_missing_values_are_zero(shapes, modalities):
    examples = read(shapes, modalities)
    for name in ("mask", "label"):
        assert (examples.stored[name][~examples.present[name]] == 0).all()
        assert not examples.present[name].all()


def test_a_missing_column_is_absent_everywhere(tmp_path, modalities):
    rows = [{"image": row["image"], "label": row["label"]} for row in make_rows(6)]
    examples = read(write_parquet(tmp_path / "a.parquet", rows), modalities)
    assert set(examples.stored) == {"image", "label"} and examples.captions == [""] * 6
    x, present = batch_of(examples, modalities, range(6), seed=0)
    assert x["mask"].shape == (6, SIZE, SIZE) and x["mask"].dtype == torch.long
    assert not present[:, 1].any() and present[:, 0].all()


def test_a_column_of_missing_values_is_absent_everywhere(tmp_path, modalities):
    rows = [row | {"mask": None, "label": -1} for row in make_rows(3)]
    examples = read(write_parquet(tmp_path / "a.parquet", rows), modalities)
    assert set(examples.stored) == {"image"}


def test_files_written_by_datasets_are_read_the_same(tmp_path, shapes, modalities):
    """`datasets` marks its image columns, which changes how the cells arrive."""
    plain = {"label": Value("int64"), "caption": Value("string")}
    features = Features({"image": Image(), "mask": Image()} | plain)
    rows = [{name: row[name] for name in features} for row in make_rows(24)]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    one, two = read(tmp_path / "a.parquet", modalities), read(shapes, modalities)
    for name in NAMES:
        assert torch.equal(one.stored[name], two.stored[name])
        assert torch.equal(one.present[name], two.present[name])
    rows[5]["image"] = {"bytes": b"not a picture", "path": None}
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet, row 5, column 'image': .*could not be read"):
        read(tmp_path / "b.parquet", modalities)


def test_photos_of_another_size_are_cut_like_their_masks(tmp_path, modalities):
    """A photo twice as wide as the model's: both lose the same sides and keep their outline."""
    rows = []
    for i in range(4):
        photo = np.full((64, 96, 3), 255, np.uint8)
        photo[:, 16:80] = draw_shape(i, i, 64)
        rows.append({"image": png(photo), "mask": png(mask_of(photo).astype(np.uint8)), "label": i})
    x, _ = batch_of(read(write_parquet(tmp_path / "a.parquet", rows), modalities), modalities, range(4))
    seen = mask_of(levels(x["image"]), 1)
    disagree = (seen != x["mask"].bool()).float().mean((1, 2))
    assert (disagree < 0.12).all() and (x["mask"].float().mean((1, 2)) > 0.1).all()  # blurred rims only


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": {"bytes": b"no picture", "path": None}}, "column 'image': .*could not be read as"),
        ({"image": {"bytes": None, "path": "nowhere.png"}}, "column 'image': no file at 'nowhere.png'"),
        ({"mask": png(np.full((SIZE, SIZE), 7, np.uint8))}, "column 'mask': .*class number 7"),
        (
            {"mask": png(np.full((SIZE, SIZE, 3), (9, 200, 9), np.uint8))},
            "column 'mask': .*stand for no class",
        ),
        ({"label": 4}, "column 'label': .*class 4 does not exist"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, modalities, change, message):
    rows = make_rows(12)
    rows[7] |= change
    path = write_parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(ValueError, match=f"a.parquet, row 7, {message}"):
        read(path, modalities)


BROKEN = [
    ({"image": {"bytes": b"no picture", "path": None}}, "column 'image': .*could not be read as"),
    ({"mask": png(np.full((SIZE, SIZE), 7, np.uint8))}, "column 'mask': .*class number 7"),
    ({"image": None}, "column 'image': there is none"),
]


@pytest.mark.parametrize("change, message", BROKEN)
def test_training_leaves_a_broken_row_out(tmp_path, modalities, change, message):
    rows = make_rows(12)
    rows[7] |= change
    path = write_parquet(tmp_path / "a.parquet", rows)
    whole = read(write_parquet(tmp_path / "b.parquet", make_rows(12)), modalities)
    with pytest.warns(UserWarning, match=f"a.parquet, row 7, {message}.* The row is left out"):
        examples = read_parquet(path, modalities.values(), DataConfig(), strict=False)
    rest = whole.take(torch.tensor([i for i in range(12) if i != 7]))
    assert examples.captions == rest.captions
    for name in NAMES:
        assert torch.equal(examples.stored[name], rest.stored[name])
        assert torch.equal(examples.present[name], rest.present[name])


@pytest.mark.parametrize(
    "count, broken, fails", [(24, 10, False), (24, 11, True), (400, 20, False), (400, 21, True)]
)
def test_many_broken_rows_are_an_error(tmp_path, count, broken, fails):
    """More than ten and more than one in twenty; three are named, the rest is counted."""
    modalities = MultiModalDiffusion(tiny_config(("image", "label"))).modalities
    rows = [{"image": row["image"], "label": row["label"]} for row in make_rows(count)]
    for row in rows[:broken]:
        row["label"] = 99
    path = write_parquet(tmp_path / "a.parquet", rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if fails:
            with pytest.raises(ValueError, match=f"{broken} of {count} rows cannot be read"):
                read_parquet(path, modalities.values(), DataConfig(), strict=False)
        else:
            assert len(read_parquet(path, modalities.values(), DataConfig(), strict=False)) == count - broken
    messages = [str(w.message) for w in caught]
    assert sum("The row is left out" in m for m in messages) == 3
    assert sum("rows are left out so far" in m for m in messages) == 1


def test_a_glob_is_read_in_order(tmp_path, modalities):
    rows = make_rows(24)
    for k, (start, end) in enumerate([(0, 9), (9, 10), (10, 24)]):
        write_parquet(tmp_path / f"part-{k}.parquet", rows[start:end])
    whole = read(write_parquet(tmp_path / "whole.parquet", rows), modalities)
    parts = read(f"{tmp_path}/part-*.parquet", modalities)
    assert parts.captions == whole.captions
    for name in NAMES:
        assert torch.equal(parts.stored[name], whole.stored[name])
        assert torch.equal(parts.present[name], whole.present[name])
    with pytest.raises(ValueError, match=r"no data at .*none-\*.parquet"):
        read(f"{tmp_path}/none-*.parquet", modalities)


def test_columns_and_classes_can_be_mapped(tmp_path, modalities):
    """A source with names and numbers of its own, 255 for what has no class, equals one with ours."""
    own, ours = [], make_rows(12)
    for row in ours:
        mask = row["mask"] and np.asarray(decode_cell(row["mask"]))
        cell = None if mask is None else png(np.where(mask == 1, 7, 255).astype(np.uint8))
        label = "unknown" if row["label"] < 0 else f"n{row['label']}"
        own.append({"jpg": row["image"], "seg": cell, "wnid": label, "text": row["caption"]})
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types = {"jpg": picture, "seg": picture}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in own[0]])
    pq.write_table(pa.Table.from_pylist(own, schema), tmp_path / "own.parquet")
    columns = {"image": "jpg", "mask": "seg", "label": "wnid", "caption": "text"}
    class_map = {"mask": {"7": 1, "*": 0}, "label": {f"n{i}": i for i in range(4)} | {"unknown": -1}}
    mapped = read(tmp_path / "own.parquet", modalities, columns=columns, class_map=class_map)
    plain = read(write_parquet(tmp_path / "ours.parquet", ours), modalities)
    assert mapped.captions == plain.captions
    for name in NAMES:
        assert torch.equal(mapped.stored[name], plain.stored[name]), name
        assert torch.equal(mapped.present[name], plain.present[name])


@pytest.mark.parametrize(
    "class_map, message",
    [
        ({"mask": {"0": 0}}, r"row 0, column 'mask': 1 is not in data.class_map.mask; add it"),
        ({"label": {"0": 0}}, r"row 1, column 'label': 1 is not in data.class_map.label"),
        ({"mask": {"0": 0, "1": 9}}, r"column 'mask': mask: found class number 9"),
    ],
)
def test_a_class_missing_from_the_map_is_named(shapes, modalities, class_map, message):
    with pytest.raises(ValueError, match=message):
        read(shapes, modalities, class_map=class_map)


@pytest.mark.parametrize("form", ["photo", "photo and caption", "with a gap"])
def test_embeddings_can_be_columns(tmp_path, form):
    """One vector an example, or two of which a batch draws one; read as arrays or, with gaps, as lists."""
    model = MultiModalDiffusion(tiny_config(("image", "embedding")))
    vectors = np.random.default_rng(0).normal(size=(6, 2, DIM)).astype(np.float16)
    cells = vectors[:, 0].tolist() if form == "photo" else vectors.tolist()
    if form == "with a gap":
        cells[3] = None
    depth = pa.list_(pa.float16()) if form == "photo" else pa.list_(pa.list_(pa.float16()))
    table = pa.table({"image": pa.array([row["image"] for row in make_rows(6)])})
    pq.write_table(table.append_column("embedding", pa.array(cells, depth)), tmp_path / "a.parquet")
    examples = read(tmp_path / "a.parquet", model.modalities)
    stored = examples.stored["embedding"]
    assert examples.present["embedding"].tolist() == [i != 3 or form != "with a gap" for i in range(6)]
    expected = torch.from_numpy(vectors[:, 0] if form == "photo" else vectors)
    there = examples.present["embedding"]
    assert stored.dtype == torch.float16 and torch.equal(stored[there], expected[there])
    x, _ = batch_of(examples, model.modalities, range(6), seed=0)
    torch.testing.assert_close(x["embedding"][there].norm(dim=1), torch.ones(int(there.sum())))


def test_captions_that_are_no_text_are_named(tmp_path, modalities):
    table = pq.read_table(write_parquet(tmp_path / "texts.parquet", make_rows(3)))
    lists = pa.array([["a disc", "a round thing"]] * 3)
    table = table.set_column(table.column_names.index("caption"), "caption", lists)
    pq.write_table(table, tmp_path / "lists.parquet")
    with pytest.raises(ValueError, match=r"lists.parquet, row 0: caption is \['a disc'.*expected a text"):
        read(tmp_path / "lists.parquet", modalities)


def test_files_that_cannot_be_read(tmp_path, modalities):
    with pytest.raises(ValueError, match="no data at .*nowhere.parquet; set data.train"):
        read(tmp_path / "nowhere.parquet", modalities)
    (tmp_path / "text.parquet").write_text("image,label\n")
    with pytest.raises(ValueError, match=r"text.parquet is not a Parquet file with rows \(.+\)"):
        read(tmp_path / "text.parquet", modalities)
    empty = write_parquet(tmp_path / "whole.parquet", make_rows(1))
    pq.write_table(pq.read_table(empty).slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet is not a Parquet file with rows"):
        read(tmp_path / "empty.parquet", modalities)


# -- cropping and flipping -----------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [0, 1, 4])
@pytest.mark.parametrize("margin_from", ["pad", "resize"])
def test_crops_and_flips_move_photo_and_mask_together(tmp_path, modalities, margin, margin_from):
    """Every mask can still be computed from its photo, and the cuts do differ."""
    size = SIZE + (margin if margin_from == "resize" else 0)  # so that nothing is resampled
    rows = [row for row in make_rows(24, size) if row["mask"]]
    path = write_parquet(tmp_path / "a.parquet", rows)
    examples = read(path, modalities, margin=margin, margin_from=margin_from)
    assert examples.stored["image"].shape[-1] == examples.stored["mask"].shape[-1] == SIZE + margin
    x, _ = batch_of(examples, modalities, [0, 1, 2] * 40, seed=0)
    assert x["image"].shape == (120, 3, SIZE, SIZE)
    assert torch.equal(mask_of(levels(x["image"]), 1), x["mask"].bool())
    different = torch.unique(x["mask"][::3].flatten(1), dim=0)
    assert len(different) > min(2 * margin, 8)
    assert len(different) <= 2 * (margin + 1) ** 2


def test_flips_mirror_half_of_the_examples(shapes, modalities):
    examples = read(shapes, modalities)
    original, _ = batch_of(examples, modalities, range(24))
    rows = torch.arange(24).repeat(40)
    x, _ = batch_of(examples, modalities, rows, seed=0)
    mirrored = (x["image"] == original["image"][rows].flip(-1)).flatten(1).all(1)
    straight = (x["image"] == original["image"][rows]).flatten(1).all(1)
    assert (mirrored | straight).all()
    assert 0.4 < mirrored[~(mirrored & straight)].float().mean() < 0.6
    x, _ = batch_of(examples, modalities, rows, seed=0, flip=False)
    assert torch.equal(x["image"], original["image"][rows])


def test_without_a_generator_the_crop_is_central(tmp_path, modalities):
    path = write_parquet(tmp_path / "a.parquet", make_rows(12))
    padded, plain = read(path, modalities, margin=4), read(path, modalities)
    one, two = (batch_of(examples, modalities, range(12))[0] for examples in (padded, plain))
    assert all(torch.equal(one[name], two[name]) for name in NAMES)


def test_padding_repeats_the_border(tmp_path, modalities):
    path = write_parquet(tmp_path / "a.parquet", make_rows(2))
    stored = read(path, modalities, margin=3).stored["image"]
    assert torch.equal(stored[..., 1:-2, 0], stored[..., 1:-2, 1])  # one column before, two behind
    assert torch.equal(stored[..., 1:-2, -1], stored[..., 1:-2, -3])


def test_the_same_generator_makes_the_same_batch(shapes, modalities):
    examples = read(shapes, modalities, margin=4)
    one, two, three = (batch_of(examples, modalities, range(24), seed=s)[0] for s in (5, 5, 6))
    assert torch.equal(one["image"], two["image"]) and not torch.equal(one["image"], three["image"])


# -- embeddings ----------------------------------------------------------------------------------------


def test_embeddings_are_of_photo_or_caption(shapes):
    model = MultiModalDiffusion(tiny_config())
    examples = read_parquet(shapes, list(model.modalities.values())[:3], DataConfig(margin=4))
    embedder = WordEmbedder()
    add_embeddings(examples, "embedding", "image", embedder, SIZE, batch=7)
    assert examples.stored["embedding"].shape == (24, 2, DIM) and examples.present["embedding"].all()
    photos = torch.stack([torch.from_numpy(draw_shape(i % 4, i)) for i in range(24)])
    of_photo = embedder.embed_images(photos.permute(0, 3, 1, 2) / 127.5 - 1)
    captioned = torch.tensor([bool(c) for c in examples.captions])
    of_caption = of_photo.clone()
    of_caption[captioned] = embedder.embed_texts([c for c in examples.captions if c])
    rows = torch.arange(24).repeat(20)
    x = batch_of(examples, model.modalities, rows, seed=0)[0]["embedding"]
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(rows)))
    is_photo = torch.isclose(x, of_photo[rows], atol=2e-3).all(1)
    is_caption = torch.isclose(x, of_caption[rows], atol=2e-3).all(1)
    assert (is_photo | is_caption).all()
    assert 0.4 < is_photo[captioned[rows]].float().mean() < 0.6
    central = batch_of(examples, model.modalities, range(24))[0]["embedding"]
    torch.testing.assert_close(central, of_photo, atol=2e-3, rtol=0)


# -- order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, batch_size", [(24, 8), (24, 7), (5, 8), (3, 10), (1, 4)])
def test_epochs_cover_every_example_exactly_once(count, batch_size):
    epochs = 6
    steps = -(-epochs * count // batch_size)
    batches = [batch_rows(count, step, batch_size, seed=0) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    order = torch.cat(batches)[: epochs * count].view(epochs, count)
    assert torch.equal(order.sort(1).values, torch.arange(count).expand(epochs, -1))
    if count > 4:
        assert len({tuple(epoch.tolist()) for epoch in order}) == epochs  # each in an order of its own


def test_the_order_depends_on_the_seed_and_the_step_alone():
    assert torch.equal(batch_rows(24, 17, 7, seed=3), batch_rows(24, 17, 7, seed=3))
    assert not torch.equal(batch_rows(24, 17, 7, seed=3), batch_rows(24, 17, 7, seed=4))


def test_examples_move_to_a_device_whole(shapes, modalities):
    examples = read(shapes, modalities, margin=2)
    moved = examples.to(torch.device("meta"))
    assert all(t.is_meta for t in (*moved.stored.values(), *moved.present.values()))
    assert (moved.captions, moved.margin) == (examples.captions, 2)


# -- sources -------------------------------------------------------------------------------------------


def test_sources_come_with_the_examples(tmp_path, modalities):
    rows = [row | {"source": name} for row, name in zip(make_rows(3), ("a", "b", "a"), strict=True)]
    examples = read(write_parquet(tmp_path / "some.parquet", rows), modalities)
    assert examples.sources == ["a", "b", "a"]
    assert examples.take(torch.tensor([2, 1])).sources == ["a", "b"]
    assert examples.to(torch.device("cpu")).sources == ["a", "b", "a"]


@pytest.mark.parametrize(("power", "shares"), [(1.0, (0.64, 0.36)), (0.5, (4 / 7, 3 / 7)), (0.0, (0.5, 0.5))])
def test_balance_sets_the_share_of_every_source(power, shares):
    sources = ["many"] * 64 + ["few"] * 36
    weights = balanced(sources, power)
    epochs = [batch_rows(100, step, 100, seed=0, weights=weights) for step in range(40)]
    many = np.array([(epoch < 64).sum() for epoch in epochs]) / 100
    assert abs(many.mean() - shares[0]) < 0.005 and np.abs(many - shares[0]).max() <= 0.02
    counts = torch.cat(epochs).bincount(minlength=100).double() / 40  # times an epoch shows each example
    expected = torch.tensor([shares[0] / 0.64] * 64 + [shares[1] / 0.36] * 36)
    torch.testing.assert_close(counts, expected.double(), atol=0.3, rtol=0)
    assert all(not torch.equal(a, b) for a, b in zip(epochs, epochs[1:], strict=False))


def test_a_balanced_order_depends_on_seed_and_step_alone():
    weights = balanced(["a"] * 20 + ["b"] * 4, 0.0)
    assert torch.equal(
        batch_rows(24, 17, 7, seed=3, weights=weights), batch_rows(24, 17, 7, seed=3, weights=weights)
    )


@pytest.mark.parametrize("options", [{"balance": -0.1}, {"balance": 1.5}, {"balance": 0.5, "stream": True}])
def test_invalid_balance_is_refused(options):
    with pytest.raises(ValueError, match="balance"):
        DataConfig(**options)


# -- light ---------------------------------------------------------------------------------------------


def test_light_changes_every_photo_by_a_gain_and_an_offset(shapes, modalities):
    examples = read(shapes, modalities)
    rows = torch.arange(8)
    plain, changed = (
        draw_batch(examples, modalities, rows, torch.Generator().manual_seed(4), False, light)[0]
        for light in (0.0, 0.1)
    )
    assert torch.equal(plain["mask"], changed["mask"])
    for before, after in zip(plain["image"].double(), changed["image"].double(), strict=True):
        inside = after.abs() < 1  # not cut off
        gain, offset = np.polyfit(before[inside].numpy(), after[inside].numpy(), 1)
        assert 0.9 <= gain <= 1.1 and -0.1 <= offset <= 0.1 and abs(gain - 1) + abs(offset) > 1e-3
        expected = (before * gain + offset).clamp(-1, 1)
        torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
    central = draw_batch(examples, modalities, rows, None, False, 0.1)[0]["image"]
    assert torch.equal(central, draw_batch(examples, modalities, rows, None, False)[0]["image"])


# -- zoom ----------------------------------------------------------------------------------------------

RAMP = 48  # pixels a side of the pictures


@pytest.fixture(scope="module")
def ramps(modalities):
    """Photos whose red says the column and green the row, and masks of which the right half is class 1."""
    column = torch.arange(RAMP).expand(RAMP, RAMP)
    photo = torch.stack([column * 5, column.T * 5, column * 0]).to(torch.uint8)
    mask = (column >= RAMP // 2).to(torch.uint8)
    stored = {"image": photo.expand(64, -1, -1, -1), "mask": mask.expand(64, -1, -1)}
    here = torch.ones(64, dtype=torch.bool)
    return Examples(stored, {name: here for name in stored}, [""] * 64, margin=RAMP - SIZE)


def test_zoom_shows_squares_of_random_size_and_place(ramps, modalities):
    generator = torch.Generator().manual_seed(0)
    x, _ = draw_batch(ramps, modalities, torch.arange(64), generator, True, zoom=0.5)
    columns = levels(x["image"][:, 0]).mean(1) / 5  # (64, SIZE), where each column of the crop is from
    rows = levels(x["image"][:, 1]).mean(2) / 5
    inner = slice(2, -2)  # the picture's border repeats itself
    steps = [places[:, inner].diff(dim=1) for places in (columns, rows)]
    for step in steps:
        assert (step - step.mean(1, keepdim=True)).abs().max() < 0.25  # evenly spaced, up to whole levels
    across, down = (step.mean(1) * SIZE / RAMP for step in steps)
    torch.testing.assert_close(across.abs(), down, atol=0.02, rtol=0)  # squares
    assert 0.48 < down.min() < 0.6 and 0.9 < down.max() < 1.02
    assert 16 < (across < 0).sum() < 48  # mirrored
    centres = torch.stack([columns.mean(1), rows.mean(1)])
    assert centres.std(1).min() > 2 and (centres - (RAMP - 1) / 2).mean(1).abs().max() < 2


def test_zoomed_masks_stay_on_their_photos(ramps, modalities):
    generator = torch.Generator().manual_seed(1)
    x, _ = draw_batch(ramps, modalities, torch.arange(64), generator, True, zoom=0.5)
    assert set(x["mask"].unique().tolist()) <= {0, 1}
    columns = levels(x["image"][:, 0]) / 5
    expected = columns >= RAMP // 2 - 0.5  # the border between the two columns
    beside = (columns - (RAMP // 2 - 0.5)).abs() < 0.2
    assert ((x["mask"] == expected) | beside).all() and 0.3 < x["mask"].float().mean() < 0.7


def test_without_a_generator_nothing_is_zoomed(ramps, modalities):
    rows = torch.arange(2)
    plain, zoomed = (
        draw_batch(ramps, modalities, rows, None, True, zoom=zoom)[0]["image"] for zoom in (1.0, 0.5)
    )
    assert torch.equal(plain, zoomed)


@pytest.mark.parametrize("zoom", [0.0, -1.0, 1.5])
def test_invalid_zoom_is_refused(zoom):
    with pytest.raises(ValueError, match="zoom"):
        DataConfig(zoom=zoom)
