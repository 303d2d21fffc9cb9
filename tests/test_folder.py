"""A folder becomes training data with the same content, and every flaw of a folder is named."""

import csv
import io
import json
import os
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image, ImageOps
from synthetic import CLASSES, draw_shape, mask_of

from mmdiff import train
from mmdiff.config import load_train_config
from mmdiff.data.parquet import read_parquet
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.folder import __main__ as folder
from mmdiff.folder.masks import read_classes
from mmdiff.folder.write import render

ROOT = Path(__file__).parents[1]
SIZE = 16  # of the model; stored photos have a short side of 18
EXIF_TURNED = 6


def save(path: Path, picture, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path, **options)
    return path


def photo(seed: int, width: int = 24, height: int = 18) -> np.ndarray:
    """Noise, so that no two are copies."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def fill(root: Path, *classes: str, count: int = 4, first: int = 0) -> Path:
    """A folder with ``count`` photos of each class."""
    for c, name in enumerate(classes):
        for i in range(count):
            save(root / name / f"{i}.png", photo(first + 100 * c + i))
    return root


def shapes_folder(root: Path, count: int = 24, size: int = 54) -> Path:
    """Three classes; a mask for every second photo, a caption for every third."""
    for i in range(count):
        label = i % 3
        pixels = draw_shape(label, i, size)
        save(root / CLASSES[label] / f"{i}.png", pixels)
        if i % 2:
            save(root / "masks" / CLASSES[label] / f"{i}.png", mask_of(pixels).astype(np.uint8))
        if i % 3 == 1:
            (root / CLASSES[label] / f"{i}.txt").write_text(f"a {CLASSES[label]}\n")
    return root


def run(capsys, *words) -> tuple[int, str]:
    """Exit status and everything said, in the size of the tests."""
    try:
        folder.main([*map(str, words), *([] if "--size" in words else ["--size", str(SIZE)])])
        status, error = 0, ""
    except SystemExit as stopped:
        error = stopped.code if isinstance(stopped.code, str) else ""
        status = 1 if error else stopped.code
    return status, capsys.readouterr().out + error


def rows(out: Path) -> dict[str, dict]:
    """Rows of both splits by id, each with its split."""
    return {
        row["id"]: row | {"split": split}
        for split in ("train", "val")
        for row in pq.read_table(out / f"{split}.parquet").to_pylist()
    }


def decode(cell) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def convert(capsys, root: Path, out: Path, *words) -> dict[str, dict]:
    status, said = run(capsys, root, "--out", out, *words)
    assert status == 0, said
    return rows(out)


# -- what is written ---------------------------------------------------------------------------------


def test_written_files_hold_what_the_folder_holds(tmp_path, capsys):
    """Read in two ways that know nothing of the writer."""
    root, out = shapes_folder(tmp_path / "mine"), tmp_path / "out"
    written = convert(capsys, root, out)
    assert len(written) == 24
    config = load_train_config(out / "config.toml")
    modalities = MultiModalDiffusion(config.model).modalities
    assert modalities["label"].classes == tuple(sorted(CLASSES[:3]))
    assert modalities["mask"].classes == ("class 0", "class 1")
    for split in ("train", "val"):
        table = Dataset.from_parquet(str(out / f"{split}.parquet"), cache_dir=str(tmp_path / split))
        assert table.column_names == ["image", "mask", "label", "caption", "source", "id"]
        examples = read_parquet(out / f"{split}.parquet", modalities.values(), config.data)
        assert len(examples) == len(table) > 0
        for k, row in enumerate(table):
            name, number = row["id"].split("/")
            i = int(number.removesuffix(".png"))
            original = Image.fromarray(draw_shape(i % 3, i, 54))
            small = np.asarray(original.resize((18, 18), Image.Resampling.LANCZOS)).astype(int)
            assert row["image"].format == "WEBP" and row["image"].size == (18, 18)
            assert abs(np.asarray(row["image"]).astype(int) - small).mean() < 6  # WebP is lossy
            assert np.array_equal(examples.stored["image"][k].permute(1, 2, 0), np.asarray(row["image"]))
            assert modalities["label"].classes[row["label"]] == name
            assert examples.stored["label"][k] == row["label"]
            centres = np.arange(18) * 3 + 1
            if i % 2:
                expected = mask_of(np.asarray(original)).astype(np.uint8)[np.ix_(centres, centres)]
                assert np.array_equal(np.asarray(row["mask"]), expected)
                assert np.array_equal(examples.stored["mask"][k], expected)
            else:
                assert row["mask"] is None and not examples.present["mask"][k]
            assert row["caption"] == (f"a {name}" if i % 3 == 1 else "") == examples.captions[k]
            assert row["source"] == "mine"


def test_photos_are_shrunk_to_their_short_side_and_never_enlarged(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "b")
    save(root / "a" / "wide.png", photo(50, 90, 60))
    save(root / "b" / "small.png", photo(51, 12, 10))
    written = convert(capsys, root, tmp_path / "out")
    assert decode(written["a/wide.png"]["image"]).shape == (18, 27, 3)
    assert decode(written["b/small.png"]["image"]).shape == (10, 12, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright_as_pil_turns_them(tmp_path, capsys, orientation):
    root = fill(tmp_path / "in", "a", "b")
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = np.asarray(Image.fromarray(photo(1, 4, 3)).resize((60, 40), Image.Resampling.BICUBIC))
    path = save(root / "a" / "turned.jpg", smooth, exif=exif, quality=95)
    upright = ImageOps.exif_transpose(Image.open(path))
    save(root / "masks" / "a" / "turned.png", np.asarray(upright.convert("L")) // 128)
    written = convert(capsys, root, tmp_path / "out")["a/turned.jpg"]
    size = (27, 18) if orientation < 5 else (18, 27)
    expected = np.asarray(upright.resize(size, Image.Resampling.LANCZOS)).astype(int)
    assert abs(decode(written["image"]).astype(int) - expected).mean() < 5
    nearest = upright.convert("L").resize(size, Image.Resampling.NEAREST)
    assert np.array_equal(decode(written["mask"]), np.asarray(nearest) // 128)


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: Image.new("CMYK", (20, 20), (0, 255, 255, 0)), (255, 0, 0)),
        (lambda: Image.new("RGBA", (20, 20), (200, 0, 0, 0)), (255, 255, 255)),
        (lambda: Image.new("LA", (20, 20), (0, 0)), (255, 255, 255)),
        (lambda: Image.fromarray(np.full((20, 20), 128 * 257, np.uint16)), (128, 128, 128)),
        (lambda: Image.new("1", (20, 20), 1), (255, 255, 255)),
        (lambda: Image.new("P", (20, 20), 0), (0, 0, 0)),
        (lambda: Image.fromarray(np.full((20, 20), 128 * 257, np.int32)), (128, 128, 128)),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, capsys, make, expected):
    root = fill(tmp_path / "in", "a", "b")
    save(root / "a" / "odd.tif", make())
    pixels = decode(convert(capsys, root, tmp_path / "out")["a/odd.tif"]["image"])
    assert pixels.shape == (18, 18, 3) and abs(pixels - np.array(expected)).max() <= 6


def test_animations_give_their_first_frame(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "b")
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    save(root / "a" / "film.gif", frames[0], save_all=True, append_images=frames[1:])
    written = convert(capsys, root, tmp_path / "out")
    assert decode(written["a/film.gif"]["image"])[9, 9].argmax() == 0
    assert "Pictures of several frames: a/film.gif." in run(capsys, root)[1]


# -- masks -------------------------------------------------------------------------------------------


def mask_values(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (18, 24)).astype(np.uint8)


@pytest.mark.parametrize(
    "values, classes, table",
    [
        ((0, 1, 2), ["class 0", "class 1", "class 2"], [0, 1, 2]),
        ((0, 1, 255), ["void", "class 0", "class 1"], [1, 2, 0]),
        ((0, 100, 200), ["class 0", "class 100", "class 200"], [0, 1, 2]),
        ((0, 255), ["background", "foreground"], [0, 1]),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_masks_without_a_list_of_classes(tmp_path, capsys, values, classes, table, mode):
    root, drawn = fill(tmp_path / "in", "a", "b"), mask_values(0, len(values))
    picture = Image.fromarray(np.array(values, np.uint8)[drawn])
    if mode == "P":
        picture.putpalette([(37 * i + 70 * c) % 256 for i in range(256) for c in (1, 2, 5)])  # says nothing
    save(root / "masks" / "a" / "1.png", picture if mode == "P" else picture.convert(mode))
    written = convert(capsys, root, tmp_path / "out")
    assert np.array_equal(decode(written["a/1.png"]["mask"]), np.array(table)[drawn])
    assert load_train_config(tmp_path / "out" / "config.toml").model.modalities[1].options == {
        "classes": classes
    }


@pytest.mark.parametrize("listing", ["txt", "json-table", "json-list"])
def test_masks_of_colours_and_of_numbers_agree(tmp_path, capsys, listing):
    """Void in the middle of the list becomes number 0, and so does 255."""
    colours = {"sky": (70, 130, 180), "Void": (0, 0, 0), "road": (128, 64, 128), "tree": (0, 255, 0)}
    root = fill(tmp_path / "in", "a", "b")
    drawn = mask_values(3, 4)
    save(root / "masks" / "a" / "0.png", np.array(list(colours.values()), np.uint8)[drawn])
    save(root / "masks" / "a" / "1.png", drawn)
    save(root / "masks" / "a" / "2.png", np.array([0, 255, 2, 3], np.uint8)[drawn])
    flat = Image.fromarray(np.array(list(colours.values()), np.uint8)[drawn]).quantize(4)
    save(root / "masks" / "a" / "3.png", flat)
    text = {
        "txt": "\n".join(f"{n} {' '.join(map(str, c))}" for n, c in colours.items()),
        "json-table": json.dumps({n: "#{:02x}{:02x}{:02x}".format(*c) for n, c in colours.items()}),
        "json-list": json.dumps([{"name": n, "color": c} for n, c in colours.items()]),
    }[listing]
    (root / "masks" / f"classes.{listing[:4].removesuffix('-')}").write_text(text)
    written = convert(capsys, root, tmp_path / "out")
    expected = np.array([1, 0, 2, 3])[drawn]
    for i in range(4):
        assert np.array_equal(decode(written[f"a/{i}.png"]["mask"]), expected), i
    modality = load_train_config(tmp_path / "out" / "config.toml").model.modalities[1]
    assert modality.options["classes"] == ["void", "sky", "road", "tree"]


def test_a_palette_in_any_order_is_read_by_its_colours(tmp_path, capsys):
    colours = {"sky": (70, 130, 180), "road": (128, 64, 128), "tree": (0, 255, 0)}
    root, drawn = fill(tmp_path / "in", "a", "b"), mask_values(4, 3)
    palette = Image.fromarray(np.array([2, 0, 1], np.uint8)[drawn])
    table = list(colours.values())
    palette.putpalette(bytes(sum((table[1], table[2], table[0]), ())))
    save(root / "masks" / "a" / "0.png", palette)
    (root / "masks" / "classes.txt").write_text("sky #4682b4\nroad,128,64,128\ntree: 0 255 0\n")
    written = convert(capsys, root, tmp_path / "out")
    assert np.array_equal(decode(written["a/0.png"]["mask"]), drawn)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
@pytest.mark.parametrize(
    "listing, table",
    [("cat 255 255 255\nrest 0 0 0\n", [1, 0]), ("void 255 255 255\ncat 0 0 0\nrest 9 9 9\n", [1, 0])],
)
def test_black_and_white_may_be_colours(tmp_path, capsys, mode, listing, table):
    root, drawn = fill(tmp_path / "in", "a", "b"), mask_values(5, 2)
    save(root / "masks" / "a" / "0.png", Image.fromarray(drawn * np.uint8(255)).convert(mode))
    (root / "masks" / "classes.txt").write_text(listing)
    written = convert(capsys, root, tmp_path / "out")
    assert np.array_equal(decode(written["a/0.png"]["mask"]), np.array(table)[drawn])


def test_255_is_void_beside_listed_numbers(tmp_path, capsys):
    root, drawn = fill(tmp_path / "in", "a", "b"), mask_values(5, 4)
    save(root / "masks" / "a" / "0.png", np.array([0, 1, 2, 255], np.uint8)[drawn])
    (root / "masks" / "classes.txt").write_text("one\ntwo\nthree\n")
    written = convert(capsys, root, tmp_path / "out")
    assert np.array_equal(decode(written["a/0.png"]["mask"]), np.array([1, 2, 3, 0])[drawn])
    assert "Masks with the value 255: masks/a/0.png. It means ignored" in run(capsys, root)[1]


def test_masks_of_another_size_are_resized_with_their_photo(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "b")
    halves = np.zeros((36, 48), np.uint8)
    halves[:, 24:] = 1
    save(root / "masks" / "0.png", np.zeros((18, 24), np.uint8))  # flat, but two photos are called 0
    save(root / "masks" / "a" / "1.png", halves)
    save(root / "masks" / "a" / "2.png", halves[:, :24])
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0
    assert "Masks of another size than their photo: masks/a/1.png: 48 x 36, photo 24 x 18." in said
    assert "Masks of another shape than their photo: masks/a/2.png: 24 x 36, photo 24 x 18. Left out" in said
    assert "Masks whose name fits several photos: masks/0.png." in said
    written = rows(tmp_path / "out")
    assert np.array_equal(decode(written["a/1.png"]["mask"]), halves[:18, 12:36])
    assert written["a/2.png"]["mask"] is None


def test_photos_of_one_name_share_a_mask_if_it_fits(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "b")
    save(root / "a" / "0.jpg", photo(70))
    save(root / "a" / "0.webp", photo(71, 18, 24))
    save(root / "masks" / "a" / "0.png", mask_values(0, 2))
    written = convert(capsys, root, tmp_path / "out")
    for name in ("a/0.png", "a/0.jpg"):
        assert np.array_equal(decode(written[name]["mask"]), mask_values(0, 2))
    assert written["a/0.webp"]["mask"] is None


def test_a_flat_mask_is_found_by_a_unique_name(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "b")
    save(root / "b" / "only.jpg", photo(70))
    save(root / "masks" / "only.png", mask_values(0, 2))
    written = convert(capsys, root, tmp_path / "out")
    assert np.array_equal(decode(written["b/only.jpg"]["mask"]), mask_values(0, 2))


@pytest.mark.parametrize(
    "text, names, colours",
    [
        ("sky\n\nroad 2\n", ("sky", "road 2"), (None, None)),
        ("a b, 1, 2, 3\nvoid #ff0000", ("a b", "void"), ((1, 2, 3), (255, 0, 0))),
        ("\ufeffwald\r\nhimmel\r\n", ("wald", "himmel"), (None, None)),
    ],
)
def test_lists_of_classes(tmp_path, text, names, colours):
    (tmp_path / "classes.txt").write_text(text, newline="", encoding="utf-8")
    listed = read_classes(tmp_path / "classes.txt")
    assert (tuple(listed), tuple(listed.values())) == (names, colours)


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("txt", "", "names 0 classes"),
        ("txt", "a\na\n", "twice"),
        ("txt", "a 1 2 300", "no colour"),
        ("txt", "a #12", "unknown color"),
        ("json", "{", "Expecting"),
        ("json", "3", "neither a list"),
        ("json", "[1]", "names no class"),
        ("json", '{"a": [1, 2]}', "no colour"),
        ("json", '{"a": [1e400, 2, 3]}', "no colour"),
        ("json", "[" * 100_000, "recursion"),
    ],
)
def test_lists_of_classes_that_cannot_be_read_are_a_problem(tmp_path, capsys, name, text, message):
    root = fill(tmp_path, "a", "b")
    save(root / "masks" / "a" / "0.png", mask_values(0, 2))
    (root / "masks" / f"classes.{name}").write_text(text)
    status, said = run(capsys, root)
    assert status == 0 and re.search(f"list of mask classes that cannot be read: .*{message}", said)


# -- captions ----------------------------------------------------------------------------------------


def test_captions_come_from_tables_and_texts(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "bäume")
    save(root / "a" / "only.png", photo(70))
    with (root / "captions.csv").open("w", newline="", encoding="utf-8-sig") as file:
        pairs = [("a/0.png", 'a "red",\nround one'), ("bäume\\1", "two trees"), ("only.png", "alone")]
        csv.writer(file).writerows([("file", "caption"), *pairs, ("a/2.png", ""), ("0.png", "which?")])
    lines = [{"file": "./a/3.png", "caption": "from lines"}, {"file": "nowhere.png", "caption": "lost"}]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (root / "a" / "0.txt").write_text(" beside\nit ")
    (root / "a" / "9.txt").write_text("of nothing")
    (root / "bäume" / "0.txt").write_bytes(b"\xff\xfe\xff")
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0
    captions = {name: row["caption"] for name, row in rows(tmp_path / "out").items() if row["caption"]}
    expected = {"a/0.png": "beside it", "bäume/1.png": "two trees", "a/only.png": "alone"}
    assert captions == expected | {"a/3.png": "from lines"}
    lost = "0.png in captions.csv, nowhere.png in captions.jsonl, a/9.txt"
    assert f"Captions of photos that are not there (3): {lost}." in said
    assert "Empty captions: a/2.png in captions.csv." in said
    assert "Files of captions that cannot be read: bäume/0.txt: 'utf-8' codec" in said
    assert "embedder" in (tmp_path / "out" / "config.toml").read_text()


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("captions.csv", "photo,text\na/0.png,red\n", "its first line is"),
        ("captions.csv", "", "its first line is None"),
        ("captions.csv", "file,caption\na/0.png," + "x" * 200_000, "field larger than"),
        ("captions.jsonl", '{"file": "a/0.png", "caption": "red"}\n{"file": 1}', "line 2 is not"),
        ("captions.jsonl", "[" * 100_000, "line 1 is not"),
    ],
)
def test_tables_of_captions_that_cannot_be_read(tmp_path, capsys, name, text, message):
    root = fill(tmp_path, "a", "b")
    (root / name).write_text(text)
    status, said = run(capsys, root)
    assert status == 0 and re.search(rf"Files of captions that cannot be read: {name}: {message}", said)


# -- the split ---------------------------------------------------------------------------------------


def test_every_class_gives_its_share_to_validation(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", count=40)
    fill(root, "b", count=20, first=1000)
    fill(root, "unlabelled", count=10, first=2000)
    for i in range(10):
        save(root / f"top{i}.png", photo(3000 + i))
    written = convert(capsys, root, tmp_path / "out", "--val-share", "0.2")
    counts = Counter((row["split"], row["label"]) for row in written.values())
    assert counts == {
        ("train", 0): 32, ("val", 0): 8, ("train", 1): 16, ("val", 1): 4, ("train", -1): 16, ("val", -1): 4,
    }  # fmt: skip
    labels = [row["label"] for row in written.values() if row["split"] == "val"]
    assert len(set(labels[:8])) > 1  # validation looks at the first rows, so classes must be mixed


def test_the_split_depends_on_paths_and_seed_alone(tmp_path, capsys):
    def held_out(root: Path, out: str, *words) -> set[str]:
        written = convert(capsys, root, tmp_path / out, "--val-share", "0.25", *words)
        return {name for name, row in written.items() if row["split"] == "val"}

    first = held_out(fill(tmp_path / "one", "a", "b", count=12), "1")
    assert first == held_out(fill(tmp_path / "two", "a", "b", count=12, first=500), "2")
    assert (tmp_path / "1" / "val.parquet").read_bytes() != (tmp_path / "2" / "val.parquet").read_bytes()
    assert first != held_out(tmp_path / "one", "3", "--seed", "1")
    held_out(tmp_path / "one", "4")
    assert (tmp_path / "1" / "val.parquet").read_bytes() == (tmp_path / "4" / "val.parquet").read_bytes()


def test_folders_train_and_val_are_respected(tmp_path, capsys):
    root = fill(tmp_path / "in" / "train", "a", "b").parent
    fill(root / "val", "a", "b", count=2, first=500)
    for key in ("train/a/0", "val/a/0"):  # the same name on both sides
        save(root / "masks" / f"{key}.png", mask_values(len(key), 2))
    save(root / "val" / "masks" / "b" / "1.png", mask_values(9, 2))
    save(root / "stray.png", photo(9))
    (root / "val" / "captions.csv").write_text("file,caption\na/0.png,seen\n")
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0 and "Photos outside of train/ and val/: stray.png. Left out" in said
    written = rows(tmp_path / "out")
    assert len(written) == 12 and all(name.startswith(row["split"]) for name, row in written.items())
    masks = {name: decode(row["mask"]) for name, row in written.items() if row["mask"]}
    assert set(masks) == {"train/a/0.png", "val/a/0.png", "val/b/1.png"}
    assert np.array_equal(masks["train/a/0.png"], mask_values(9, 2))
    assert np.array_equal(masks["val/a/0.png"], mask_values(7, 2))
    assert {n for n, row in written.items() if row["caption"]} == {"val/a/0.png"}


def test_copies_are_on_one_side(tmp_path, capsys):
    root = tmp_path / "in"
    for i in range(12):
        for copy in "xy":
            save(root / "ab"[i % 2] / f"{i}{copy}.png", photo(i))
    written = convert(capsys, root, tmp_path / "out", "--val-share", "0.4")
    for i in range(12):
        sides = {written[f"{'ab'[i % 2]}/{i}{copy}.png"]["split"] for copy in "xy"}
        assert len(sides) == 1
    assert "Photos that are exact copies of another (12): a/0x.png = a/0y.png" in run(capsys, root)[1]


def test_copies_across_given_splits_go_to_train(tmp_path, capsys):
    root = fill(tmp_path / "in" / "train", "a", "b").parent
    fill(root / "val", "a", "b", count=2, first=500)
    save(root / "val" / "b" / "copy.png", photo(0))  # of train/a/0.png
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0 and rows(tmp_path / "out")["val/b/copy.png"]["split"] == "train"
    assert "Photos that lie both in train/ and in val/: train/a/0.png." in said
    assert "Photos of which copies lie in different classes: train/a/0.png = val/b/copy.png." in said


def test_without_val_the_split_is_drawn_from_train(tmp_path, capsys):
    root = fill(tmp_path / "in" / "train", "a", "b").parent
    written = convert(capsys, root, tmp_path / "out")
    assert Counter(row["split"] for row in written.values()) == {"train": 6, "val": 2}
    assert {row["label"] for row in written.values()} == {0, 1}


def test_masks_beside_train_alone_are_named_like_its_photos(tmp_path, capsys):
    root = fill(tmp_path / "in" / "train", "a").parent
    save(root / "masks" / "a" / "0.png", mask_values(9, 2))
    written = convert(capsys, root, tmp_path / "out")
    assert [row["mask"] is not None for row in written.values()].count(True) == 1


# -- findings ----------------------------------------------------------------------------------------


def broken(root):
    data = save(root / "a" / "whole.jpg", photo(80, 60, 60)).read_bytes()
    (root / "a" / "half.jpg").write_bytes(data[: len(data) // 2])
    (root / "a" / "empty.png").touch()
    (root / "a" / "text.png").write_text("no picture")


def lossy(root):
    save(root / "masks" / "a" / "0.jpg", mask_values(0, 2) * 255)


def no_photo(root):
    save(root / "a" / "numbers.tif", np.zeros((20, 20), np.float32))


def bomb(root):
    save(root / "a" / "bomb.png", Image.new("1", (20_000, 20_000)))


def circle(root):
    (root / "a" / "again").symlink_to(root, target_is_directory=True)
    (root / "b" / "self.png").symlink_to(root / "b" / "self.png")


def orphan(root):
    save(root / "masks" / "a" / "77.png", mask_values(0, 2))


def blended(root):
    save(root / "masks" / "a" / "0.png", np.arange(18 * 24, dtype=np.uint16).reshape(18, 24).astype(np.uint8))


def beyond(root):
    save(root / "masks" / "a" / "0.png", mask_values(0, 5))
    (root / "masks" / "classes.txt").write_text("one\ntwo\nthree\n")


def coloured(root):
    save(root / "masks" / "a" / "0.png", photo(0))


def unlisted(root):
    save(root / "masks" / "a" / "0.png", np.full((18, 24, 3), (1, 2, 3), np.uint8))
    (root / "masks" / "classes.txt").write_text("one 0 0 0\ntwo 255 0 0\n")


def see_through(root):
    save(root / "masks" / "a" / "0.png", Image.new("RGBA", (24, 18), (0, 0, 0, 9)))


def one_mask_class(root):
    save(root / "masks" / "a" / "0.png", np.zeros((18, 24), np.uint8))


def all_void(root):
    save(root / "masks" / "a" / "0.png", np.full((18, 24), 255, np.uint8))
    save(root / "masks" / "a" / "1.png", mask_values(0, 2))


def partly(root):
    save(root / "masks" / "a" / "0.png", mask_values(0, 2))


def never(root):
    save(root / "masks" / "a" / "0.png", mask_values(0, 2))
    (root / "masks" / "classes.txt").write_text("one\ntwo\nthree\n")


def strange_files(root):
    (root / "README.md").write_text("mine")
    (root / "a" / "raw.HEIC").write_text("phone")
    (root / ".hidden.png").write_text("not seen")


def many(root):
    fill(root, "a", count=50, first=500)


def odd_names(root):
    fill(root, "A", " été\n", first=900)


@pytest.mark.parametrize(
    "change, message",
    [
        (broken, r"Photos that cannot be read \(3\): a/empty.png: empty file, a/half.jpg: .*trunc.*text.png"),
        (no_photo, r"Photos that cannot be read: a/numbers.tif: its pixels are floating-point"),
        (bomb, r"cannot be read: a/bomb.png: the photo has too many pixels; at most 50 million"),
        (lossy, r"Masks that cannot be used: masks/a/0.jpg: saved as JPEG.* Left out; save masks as PNG"),
        (see_through, r"Masks that cannot be used: masks/a/0.png: has transparent pixels"),
        (circle, r"Links to a folder that was seen already: a/again\."),
        (circle, r"Photos that cannot be read: b/self.png: Too many levels"),
        (orphan, r"Masks without a photo: masks/a/77.png\. Left out; .*masks/CLASS/x.png"),
        (blended, r"too many different values for class numbers: masks/a/0.png: 0, 1, 2 …\. Left out"),
        (beyond, r"values beyond the 3 classes of masks/classes.txt: masks/a/0.png: 3, 4\. .*0 to 2"),
        (coloured, r"Masks in colours, but nothing says .*: masks/a/0.png\. .*write masks/classes.txt"),
        (unlisted, r"colours that masks/classes.txt does not list: masks/a/0.png: 1 2 3\."),
        (one_mask_class, r"Masks that all show one class only: masks/a/0.png\."),
        (all_void, r"Masks that are void everywhere: masks/a/0.png\."),
        (partly, r"Photos without a mask \(7\): a/1.png, a/2.png, a/3.png and 4 more\. That is fine"),
        (partly, r"called by their value \(2\): class 0, class 1\. Name them in masks/classes.txt"),
        (never, r"Classes that no mask shows: three\."),
        (strange_files, r"Files that are no pictures: README.md\."),
        (strange_files, r"Camera files that cannot be read: a/raw.HEIC\. Left out"),
        (many, r"Very unbalanced classes \(2\): a: 50, b: 4\."),
        (many, r"Classes of fewer than 10 photos: b: 4\."),
        (odd_names, r"Class names with odd characters: ' été\\n'\."),
        (odd_names, r"Class names that differ in capitals only \(2\): A, a\."),
    ],
)
def test_every_flaw_is_named_and_the_rest_can_be_used(tmp_path, capsys, change, message):
    root = fill(tmp_path / "in", "a", "b")
    change(root)
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0 and re.search(message, said), said
    config = load_train_config(tmp_path / "out" / "config.toml")
    modalities = MultiModalDiffusion(config.model).modalities
    for split in ("train", "val"):
        assert len(read_parquet(tmp_path / "out" / f"{split}.parquet", modalities.values(), config.data))


def test_small_and_long_photos_are_noted(tmp_path, capsys):
    root = fill(tmp_path, "a", "b")
    save(root / "a" / "long.png", photo(5, 100, 20))
    save(root / "a" / "stripe.png", photo(6, 300, 20))
    save(root / "b" / "small.png", photo(7, 10, 12))
    _, said = run(capsys, root)
    assert "Photos smaller than 16 pixels: b/small.png. They are enlarged" in said
    assert "Photos over 2.5 times longer than wide: a/long.png." in said
    assert "Photos that cannot be read: a/stripe.png: 300 x 20 pixels are a stripe." in said


@pytest.mark.parametrize("labelled", [True, False])
def test_without_several_classes_there_are_no_labels_to_train(tmp_path, capsys, labelled):
    root = fill(tmp_path / "in", "only" if labelled else "unlabelled")
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 0 and "Labels are not trained" in said
    names = [m.name for m in load_train_config(tmp_path / "out" / "config.toml").model.modalities]
    assert names == ["image"]
    assert {row["label"] for row in rows(tmp_path / "out").values()} == {0 if labelled else -1}


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photos_are_not_usable(tmp_path, capsys, count):
    root = tmp_path / "in"
    root.mkdir()
    fill(root, "a", count=count)
    status, said = run(capsys, root, "--out", tmp_path / "out")
    assert status == 1 and "Not usable yet" in said and not (tmp_path / "out").exists()
    assert ("No photos found" if count == 0 else "A side of the split without a usable photo: val.") in said


def test_names_that_are_no_unicode(tmp_path, capsys):
    root = fill(tmp_path / "in", "a", "ünï ©ode 猫")
    try:
        save(root / "a" / "plain.png", photo(60)).rename(os.fsdecode(bytes(root / "a") + b"/\xff.png"))
    except OSError:
        pytest.skip("this file system takes Unicode only")
    written = convert(capsys, root, tmp_path / "out")
    assert {"a/\ufffd.png", "ünï ©ode 猫/0.png"} <= set(written)


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere"], "there is no folder nowhere"),
        (["{in}", "--size", "50"], "--size is 50; give a multiple of 8"),
        (["{in}", "--size", "8"], "--size is 8; .*at least 16"),
        (["{in}", "--val-share", "0"], "--val-share is 0.0; give a number above 0"),
        (["{in}", "--out", "{in}/out"], "lies inside"),
        (["{in}", "--out", "{in}/../file"], "exists"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, words, message):
    fill(tmp_path / "in", "a", "b")
    (tmp_path / "file").touch()
    status, said = run(capsys, *(word.replace("{in}", str(tmp_path / "in")) for word in words))
    assert status == 1 and re.search(f"^mmdiff.folder: .*{message}", said.splitlines()[-1])


# -- the configuration and what the page says ----------------------------------------------------------


def test_the_documented_configuration_is_what_is_written():
    expected = render(
        size=96,
        train="data/mine/train.parquet",
        val="data/mine/val.parquet",
        photos=2000,
        classes=("cat", "dog"),
        mask_classes=("void", "background", "animal"),
        captions=True,
    )
    assert (ROOT / "configs" / "your-folder.toml").read_text() == expected


def test_class_names_survive_the_configuration(tmp_path):
    names = ('say "so"', "back\\slash", "new\nline", "\x7f\x01", "猫")
    (tmp_path / "config.toml").write_text(render(64, "a", "b", 1, names), encoding="utf-8")
    assert load_train_config(tmp_path / "config.toml").model.modalities[1].options["classes"] == list(names)


def page_commands() -> list[list[str]]:
    """The commands of docs/your-data.md, without `python -m`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "your-data.md").read_text(), re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith("python -m")]


@pytest.mark.slow
def test_commands_of_the_page_work(tmp_path, monkeypatch, capsys):
    """Check, convert and train as the page says, at a size and length that take seconds."""
    check, convert, training = page_commands()[:3]
    shapes_folder(tmp_path / "my-photos")
    monkeypatch.chdir(tmp_path)
    assert [words[0] for words in (check, convert, training)] == ["mmdiff.folder"] * 2 + ["mmdiff.train"]
    status, said = run(capsys, *check[1:])
    assert status == 0 and "Usable. Next: python -m mmdiff.folder my-photos" in said
    status, said = run(capsys, *convert[1:])
    assert said.rstrip().endswith(f"Next: {shlex.join(['python', '-m', *training])}")
    shrunk = ["--images", "8", "--batch-size", "4", "--log-every", "1", "--device", "cpu"]
    train.main([*training[1:], *shrunk])
    log = list(csv.DictReader((tmp_path / "data/mine/run/metrics.csv").open()))
    assert [int(row["step"]) for row in log] == [1, 2, 2]
    assert all(float(row[term]) > 0 for row in log[:2] for term in ("L1", "L2/mask", "L2/label"))
