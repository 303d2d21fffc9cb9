"""Odd files that people have, through every way in: the right answer stands beside each."""

import copy
import io
import struct
import warnings
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from synthetic import SIZE, WordEmbedder, draw_shape, png, tiny_config, write_parquet

from app.controls import adapters
from mmdiff import sample
from mmdiff.checkpoint import build_model, save_checkpoint
from mmdiff.class_maps import VOC, own_numbers, read_class_map
from mmdiff.config import DataConfig, ModalityConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.data.stream import StreamedBatches
from mmdiff.folder.check import check_folder
from mmdiff.images import MOST_PIXELS, open_photo, read
from mmdiff.known_pixels import read_known_pixels
from mmdiff.modalities import build_modality
from mmdiff.modalities.base import class_index, palette
from mmdiff.training.state import start_from

SIDE = 32
TWO, STREET = ("background", "fruit"), ("void", "road", "sky")
ORIENTATION = 0x0112


def modality(kind, **options):
    return build_modality(ModalityConfig(kind, kind, options=options), SIDE, 8)


def truth(classes: int) -> np.ndarray:
    """Stripes of all classes, none of them symmetric."""
    cells = np.zeros((SIDE, SIDE), np.uint8)
    for number in range(1, classes):
        cells[4 * number : 20, 6 * number : 6 * number + 9] = number
    return cells


def indexed(numbers: np.ndarray, colours: np.ndarray, order: list[int]) -> Image.Image:
    """A picture with a palette, in which class k has the index ``order[k]`` and the colour ``colours[k]``."""
    table = np.zeros((256, 3), np.uint8)
    for number, index in enumerate(order):
        table[index] = colours[number]
    picture = Image.fromarray(np.array(order, np.uint8)[numbers])
    picture.putpalette(table.tobytes())
    return picture


def blurred(cells: np.ndarray) -> Image.Image:
    return Image.fromarray(cells * 255).resize((8 * SIDE,) * 2, 0).filter(ImageFilter.BoxBlur(5))


def noisy(cells: np.ndarray) -> Image.Image:
    grain = np.random.default_rng(0).integers(-6, 7, cells.shape)
    return Image.fromarray((cells * 255.0 + grain).clip(0, 255).astype(np.uint8))


def as_jpeg(picture: Image.Image) -> Image.Image:
    data = io.BytesIO()
    picture.resize((6 * SIDE,) * 2, 0).save(data, "JPEG", quality=80)
    return Image.open(data)


def clear_ground(cells: np.ndarray) -> Image.Image:
    rgba = np.dstack([palette(2)[cells], cells * 255])
    return Image.fromarray(rgba.astype(np.uint8))


C2, C3 = truth(2), truth(3)
ANY = np.array([[200, 9, 9], [9, 200, 9], [0, 99, 255]], np.uint8)
BW = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
# name -> picture, classes, right answer (None: refused), words of the note or of the error
MASKS = {
    "numbers": (Image.fromarray(C3), STREET, C3, ""),
    "numbers as RGB": (Image.fromarray(C3).convert("RGB"), STREET, C3, ""),
    "own colours": (Image.fromarray(palette(3)[C3]), STREET, C3, ""),
    "own palette": (indexed(C3, palette(3), [0, 1, 2]), STREET, C3, ""),
    "own palette, reordered": (indexed(C3, palette(3), [2, 0, 1]), STREET, C3, ""),
    "own colours, quantized": (Image.fromarray(palette(2)[C2]).quantize(2), TWO, C2, ""),
    "own colours, JPEG": (as_jpeg(Image.fromarray(palette(2)[C2])), TWO, C2, "nearest"),
    "black and white": (Image.fromarray(C2 * 255), TWO, C2, "Black is read as background"),
    "black and white as RGB": (Image.fromarray(BW[C2]), TWO, C2, "white as fruit"),
    "black and white, quantized": (Image.fromarray(BW[C2]).quantize(2), TWO, C2, "white as fruit"),
    "black and white, inverted palette": (indexed(C2, BW, [1, 0]), TWO, C2, "white as fruit"),
    "black and white, 16 bits": (Image.fromarray(C2.astype(np.uint16) * 65535), TWO, C2, "white as fruit"),
    "bits": (Image.fromarray(C2 > 0), TWO, C2, ""),
    "soft edges": (blurred(C2), TWO, C2, "nearer"),
    "black and white, JPEG": (as_jpeg(Image.fromarray(C2 * 255)), TWO, C2, "white as fruit"),
    "VOC": (indexed(C3, VOC, [0, 1, 2]), STREET, C3, "PASCAL VOC"),
    "VOC, reordered": (indexed(C3, VOC, [1, 2, 0]), STREET, C3, "PASCAL VOC"),
    "VOC as RGB": (Image.fromarray(VOC.astype(np.uint8)[C3]), STREET, C3, "PASCAL VOC"),
    "255 is void": (Image.fromarray(np.where(C3 == 0, 255, C3).astype(np.uint8)), STREET, C3, "255"),
    "any palette": (indexed(C3, ANY, [0, 1, 2]), STREET, C3, "stand for no class, so its numbers"),
    "transparent ground": (clear_ground(C2), TWO, C2, "Transparent parts became background"),
    "trimap": (Image.fromarray(np.array([0, 128, 255], np.uint8)[C3]), TWO, None, "class number 255"),
    "0, 1 and 255": (Image.fromarray(np.array([0, 1, 255], np.uint8)[C3]), TWO, None, "class number 255"),
    "black and white for three": (Image.fromarray(C2 * 255), STREET, None, "white or void"),
    "unknown colours": (Image.fromarray(ANY[C2]), TWO, None, "stand for no class"),
    "nearly black": (Image.fromarray(np.full_like(C2, 2)), TWO, None, "class number 2"),
    "too many": (Image.fromarray(C3), TWO, None, "class number 2"),
    "numbers, JPEG": (as_jpeg(Image.fromarray(C3)), STREET, None, "JPEG"),
    "clear": (Image.new("RGBA", (SIDE, SIDE)), TWO, None, "transparent everywhere"),
    "floats": (Image.fromarray(C2.astype(np.float32)), TWO, None, "floating-point"),
    "NaN": (Image.fromarray(np.full((SIDE, SIDE), np.nan, np.float32)), TWO, None, "floating-point"),
    "noise": (Image.effect_noise((SIDE, SIDE), 90), TWO, None, "class number"),
}  # fmt: skip


def stored(picture: Image.Image) -> bytes:
    data = io.BytesIO()
    form = picture.format or ("TIFF" if picture.mode in ("F", "I;16") else "PNG")
    picture.save(data, form, **({"quality": "keep"} if form == "JPEG" else {}))
    return data.getvalue()


def by_page(data, classes, tmp_path):
    (tmp_path / "mask.png").write_bytes(data)
    mask = adapters.read_mask(tmp_path / "mask.png", SIDE, classes, palette(len(classes)))
    return mask.cells, " ".join(mask.notes)


def by_library(data, classes, tmp_path, how="parse"):
    mask = modality("mask", classes=classes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cells = mask.parse(data) if how == "parse" else mask.store({"bytes": data, "path": None}, SIDE)
    return np.asarray(cells), " ".join(str(w.message) for w in caught)


def by_parquet(data, classes, tmp_path):
    return by_library(data, classes, tmp_path, "store")


WAYS = {"page": by_page, "library": by_library, "Parquet": by_parquet}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_means_the_same_by_every_way(tmp_path, name, way):
    picture, classes, right, words = MASKS[name]
    data = stored(picture)
    if right is None:
        with pytest.raises(ValueError, match=words):
            WAYS[way](data, classes, tmp_path)
        return
    cells, said = WAYS[way](data, classes, tmp_path)
    wrong = (cells != right).mean()
    assert wrong <= (0.02 if "JPEG" in name or "soft" in name else 0), wrong
    assert words in said


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("way", WAYS)
def test_masks_are_turned_as_photos_are(tmp_path, way, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = io.BytesIO()
    Image.fromarray(C2).save(data, "PNG", exif=exif)
    photo = read(data, "photo", photo=True).image
    cells, _ = WAYS[way](data.getvalue(), TWO, tmp_path)
    assert np.array_equal(cells, np.asarray(photo)[..., 0]) and not np.array_equal(cells, C2)


def test_arrays_and_tensors_are_masks():
    mask = modality("mask", classes=TWO)
    for form in (C2, C2.astype(np.int64), C2 > 0, torch.from_numpy(C2), C2 * 255, palette(2)[C2]):
        assert np.array_equal(mask.parse(form), C2)


# -- photos ------------------------------------------------------------------------------------------


def photo_of(tmp_path, name, picture, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


def test_photos_of_16_bits_and_a_small_range_are_seen_and_said(tmp_path):
    ramp = np.linspace(0, 4095, SIDE * SIDE).reshape(SIDE, SIDE)
    path = photo_of(tmp_path, "twelve.png", Image.fromarray(ramp.astype(np.uint16)))
    read_back = adapters.read_photo(path, SIDE)
    assert abs(np.asarray(read_back.for_model)[..., 0] - ramp / 4095 * 255).max() < 2
    assert "reach only 4095, so 4095 is read as white" in " ".join(read_back.notes)
    with pytest.warns(UserWarning, match="4095 is read as white"):
        value = modality("image").parse(path)
    assert value.max() == 1


def test_the_first_frame_is_taken_with_a_word(tmp_path):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    path = photo_of(tmp_path, "film.gif", frames[0], save_all=True, append_images=frames[1:])
    read_back = adapters.read_photo(path, SIDE)
    assert np.asarray(read_back.for_model)[0, 0].argmax() == 0 and "several frames" in read_back.notes[0]
    with pytest.warns(UserWarning, match="several frames; the first one is used"):
        modality("image").parse(path)


def test_a_phone_photo_with_damaged_exif_is_read_upright(tmp_path):
    """A rational without its numbers beside the tag of the orientation."""
    end = 8 + 2 + 12 * 2 + 4
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    exif += struct.pack("<HHII", 0x9201, 10, 1, end) + struct.pack("<I", 0) + struct.pack("<ii", -1, 0)
    path = photo_of(tmp_path, "phone.jpg", Image.new("RGB", (120, 96), "red"), exif=exif)
    assert adapters.read_photo(path, SIDE).size == (96, 120)
    assert read(path, "photo", photo=True).size == (96, 120)


@pytest.mark.parametrize("value", [b"", b"no picture", "nowhere.png", 5, np.zeros((4, 4, 3))], ids=str)
def test_what_is_no_photo_is_refused_by_a_sentence(value):
    with pytest.raises(ValueError, match="give "):
        modality("image").parse(value)


def test_bytes_arrays_and_tensors_are_photos():
    pixels = draw_shape(0, 0, SIDE)
    image = modality("image")
    expected = image.parse(Image.fromarray(pixels))
    for form in (png(pixels)["bytes"], pixels, torch.from_numpy(pixels)):
        assert torch.equal(image.parse(form), expected)
    with pytest.raises(ValueError, match="channels come last"):
        image.parse(torch.from_numpy(pixels).permute(2, 0, 1))


@pytest.mark.parametrize("side, mode, form", [(7400, "1", "PNG"), (4000, "RGB", "WEBP")])
def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side, mode, form):
    path = photo_of(tmp_path, f"huge.{form.lower()}", Image.new(mode, (side, side)))
    for photo in (True, False):
        with pytest.raises(
            ValueError, match=f"too many pixels .{side} x {side}.; at most .* million are read"
        ):
            read(path, "photo", photo)
    with pytest.raises(ValueError, match="huge.*too many pixels"):
        adapters.read_photo(path, SIDE)


def test_large_pictures_are_made_smaller_first_and_stay_the_same(tmp_path):
    quarters = np.kron(np.array([[0, 80], [160, 240]], np.uint8), np.ones((2500, 2000), np.uint8))
    path = photo_of(tmp_path, "large.png", Image.fromarray(quarters))
    photo, mask = read(path, "photo", photo=True), read(path, "mask")
    assert photo.size == mask.size == (4000, 5000) and MOST_PIXELS > 20_000_000
    for picture in (photo.image.convert("L"), mask.image):
        assert picture.width * picture.height <= 2**23
        small = np.asarray(picture.resize((2, 2), Image.Resampling.NEAREST))
        assert np.array_equal(small, [[0, 80], [160, 240]])


# -- labels, texts, vectors -----------------------------------------------------------------------------


def test_labels_are_chosen_by_their_exact_name_first():
    names = ("apple", "Apple", "plum ", "plum", "stra\u00dfe", "caf\u00e9", "\u0130")
    assert [class_index(name, names) for name in names] == list(range(len(names)))
    assert class_index("cafe\u0301", names) == 5 and class_index(" STRASSE", names) == 4
    assert class_index("pear", names) is None
    with pytest.raises(ValueError, match="could be any of the classes 'apple', 'Apple'"):
        class_index("APPLE", names)


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True)])
def test_true_is_no_class_number(value):
    with pytest.raises(ValueError, match="class name or number"):
        modality("label", classes=["a", "b"]).parse(value)


def test_one_name_in_two_forms_of_unicode_is_one_class():
    with pytest.raises(ValueError, match="two or more different"):
        modality("label", classes=["caf\u00e9", "cafe\u0301"])


def test_a_path_is_no_text(tmp_path):
    embedding = modality("embedding", dim=8)
    embedding.attach(WordEmbedder())
    path = photo_of(tmp_path, "photo.png", Image.fromarray(draw_shape(0, 0, SIDE)))
    with pytest.raises(ValueError, match="looks like the path of a picture"):
        embedding.parse(str(path))
    assert torch.equal(embedding.parse(path), embedding.parse(Image.open(path)))


def test_vectors_come_in_any_precision_and_with_gradients():
    embedding = modality("embedding", dim=8)
    vector = torch.arange(1.0, 9.0)
    for form in (vector.bfloat16(), vector.half(), vector.clone().requires_grad_(), vector.double()):
        torch.testing.assert_close(embedding.parse(form), vector / vector.norm())


# -- data sets -----------------------------------------------------------------------------------------


def specs(classes):
    return {"image": modality("image"), "label": modality("label", classes=classes)}


def named_parquet(tmp_path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as Picture

    features = Features({"image": Picture(), "label": ClassLabel(names=["cat", "dog"])})
    rows = [{"image": png(draw_shape(0, i)), "label": i % 2} for i in range(8)]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "named.parquet")
    return str(tmp_path / "named.parquet")


def class_folder(tmp_path):
    for name, value in (("cat", 10), ("dog", 200)):
        (tmp_path / "folder" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (SIZE, SIZE), (value, i, 0)).save(tmp_path / "folder" / name / f"{i}.png")
    return str(tmp_path / "folder")


def streamed(where, modalities, **options):
    stream = StreamedBatches(DataConfig(train=where, stream=True, workers=1, **options), modalities, 8)
    try:
        return stream.next_batch()
    finally:
        stream.close()


@pytest.mark.parametrize("classes", [("cat", "dog"), ("dog", "cat"), ("Dog", "cow", "CAT")])
def test_names_of_classes_decide_in_files_and_streams(tmp_path, classes):
    where, modalities = named_parquet(tmp_path), specs(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        read_back = read_parquet(where, modalities.values(), DataConfig())
    names = [classes[k].lower() for k in read_back.stored["label"].tolist()]
    assert names == ["cat", "dog"] * 4
    folder = class_folder(tmp_path)
    batch = streamed(folder, modalities)
    for picture, label in zip(batch.stored["image"], batch.stored["label"].tolist(), strict=True):
        assert classes[label].lower() == ("cat" if picture[0, 0, 0] < 100 else "dog")


def test_classes_that_the_configuration_lacks_are_named(tmp_path):
    with pytest.raises(
        ValueError, match="has classes of 'label' that the configuration lacks: 'dog'; it has"
    ):
        read_parquet(named_parquet(tmp_path), specs(("cat", "cow")).values(), DataConfig())
    class_map = {"label": {"dog": 1, "cat": 0}}
    read_back = read_parquet(
        tmp_path / "named.parquet", specs(("kitten", "puppy")).values(), DataConfig(class_map=class_map)
    )
    assert read_back.stored["label"].tolist() == [0, 1] * 4


def test_numbers_without_names_are_said(tmp_path):
    rows = [{"image": png(draw_shape(0, i)), "label": i % 2} for i in range(4)]
    where = str(write_parquet(tmp_path / "plain.parquet", rows))
    with pytest.warns(
        UserWarning, match="'label' has no names of classes; its numbers are taken in the order"
    ):
        read_parquet(where, specs(("a", "b")).values(), DataConfig())


# -- folders of photos -----------------------------------------------------------------------------------


def photo_file(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)


def checked(root):
    return check_folder(root, SIDE, 0.25, 0)


def said(found):
    return "\n".join(map(str, [*found.findings.problems, *found.findings.notes]))


def test_folders_of_any_capitals_are_understood(tmp_path):
    for k, (split, name) in enumerate([("Training", "cat"), ("Training", "dog"), ("Validation", "cat")]):
        for i in range(3):
            photo_file(tmp_path / split / name / f"{i}.png", 10 * k + i)
            (tmp_path / "Masks" / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(C2).save(tmp_path / "Masks" / split / name / f"{i}.png")
    photo_file(tmp_path / "Training" / "@eaDir" / "0.png", 99)
    (tmp_path / "Training" / "metadata.csv").write_text("file_name,text\ncat/0.png,a red, round cat\n")
    found = checked(tmp_path)
    assert found.classes == ("cat", "dog") and len(found.photos) == 9 and len(found.masks) == 9
    assert {p.split for p in found.photos if "Validation" in p.name} == {"val"}
    assert [p.caption for p in found.photos if p.caption] == ["a red, round cat"]
    assert "Folders that are taken for masks: Masks." in said(found)


def test_the_layout_of_voc_has_no_classes_of_folders(tmp_path):
    for i in range(4):
        photo_file(tmp_path / "JPEGImages" / f"{i}.jpg", i)
        for folder in ("SegmentationClass", "SegmentationObject"):
            (tmp_path / folder).mkdir(exist_ok=True)
            indexed(np.where(C3 == 2, 15, C3), VOC[:16], list(range(16))).save(tmp_path / folder / f"{i}.png")
    found = checked(tmp_path)
    assert found.classes == () and len(found.photos) == len(found.masks) == 4
    assert found.coding.classes == ("class 0", "class 1", "class 15")
    assert "Masks of single objects (4): SegmentationObject/0.png" in said(found)


def folder_of_masks(tmp_path, *masks):
    for i, mask in enumerate(masks):
        photo_file(tmp_path / "a" / f"{i}.png", i)
        (tmp_path / "masks" / "a").mkdir(parents=True, exist_ok=True)
        mask.save(tmp_path / "masks" / "a" / f"{i}.png")
    return checked(tmp_path)


COLOURS = np.array([[250, 10, 10], [10, 10, 250]], np.uint8)


@pytest.mark.parametrize("colours", [BW, palette(2)], ids=["black and white", "own"])
def test_the_same_colours_with_other_indices_are_the_same_classes(tmp_path, colours):
    found = folder_of_masks(tmp_path, indexed(C2, colours, [0, 1]), indexed(C2, colours, [1, 0]))
    for path, facts in found.masks.items():
        data = found.coding.shrink(path, facts, (SIDE, SIDE))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), C2)


def test_palettes_of_unknown_colours_that_disagree_are_refused(tmp_path):
    found = folder_of_masks(tmp_path, indexed(C2, COLOURS, [0, 1]), indexed(C2, COLOURS, [1, 0]))
    assert not found.masks and "Masks whose palettes disagree" in said(found)
    (tmp_path / "masks" / "classes.txt").write_text("red 250 10 10\nblue 10 10 250\n")
    assert len(checked(tmp_path).masks) == 2


@pytest.mark.parametrize("mask", [blurred(C2), noisy(C2)], ids=["soft", "noisy"])
def test_soft_edges_and_noise_make_no_classes(tmp_path, mask):
    mask = mask.resize((SIDE, SIDE), Image.Resampling.BOX)
    found = folder_of_masks(tmp_path, mask, Image.fromarray(C2 * 255))
    assert found.coding.classes == ("background", "foreground")
    assert "soft edges or noise: masks/a/0.png" in said(found)


def test_numbers_of_many_classes_stay_numbers():
    ids = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 34
    numbers, how = own_numbers(Image.fromarray(np.where(ids == 33, 255, ids).astype(np.uint8)), palette(32))
    assert how == "numbers" and set(np.unique(numbers)) == {*range(33), 255}


def test_a_palette_picture_of_numbers_keeps_their_order():
    """Pillow sorts the colours of what it quantizes."""
    picture = read(Image.fromarray(C3).quantize(3), "mask")
    assert np.array_equal(read_class_map(picture, STREET, palette(3)).cells, C3)


# -- known pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers, right", [((0, 255), True), ((0, 1), True), ((0, 65535), True)])
def test_known_pixels_are_read_in_any_depth(tmp_path, numbers, right):
    values = np.array(numbers)[C2]
    path = photo_of(
        tmp_path, "known.png", Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8))
    )
    assert np.array_equal(read_known_pixels(path, SIDE), C2 > 0)
    with pytest.raises(ValueError, match="their shapes differ"):
        read_known_pixels(photo_of(tmp_path, "wide.png", Image.new("L", (40, 30))), SIDE, (30, 40))
    with pytest.raises(ValueError, match="transparent parts"):
        read_known_pixels(photo_of(tmp_path, "clear.png", Image.new("RGBA", (SIDE, SIDE))), SIDE)


def test_numbers_are_taken_for_classes_only_where_no_class_is_called_so():
    assert sample.as_class("2", ("2 ", "x")) == "2" and sample.as_class("1", ("2 ", "x")) == 1


# -- weights of another run -----------------------------------------------------------------------------


def model_of(classes):
    label = ModalityConfig("label", "label", options={"classes": list(classes)})
    config = tiny_config(("image",))
    return build_model(replace(config, modalities=(*config.modalities, label)))


@pytest.mark.parametrize(
    "classes, message",
    [
        (("dog", "cat", "cow"), "classes of 'label' in another order: 'dog' is number 1 there and 0 in"),
        (("cat", "cow", "pig"), "'cow' is number 2 there and 1 in the configuration"),
    ],
)
def test_weights_to_start_from_have_their_classes_in_the_same_order(tmp_path, classes, message):
    save_checkpoint(model_of(("cat", "dog", "cow")), tmp_path / "first")
    model = model_of(classes)
    trainer = SimpleNamespace(model=model, ema=SimpleNamespace(model=copy.deepcopy(model)))
    with pytest.raises(ValueError, match=message):
        start_from(trainer, str(tmp_path / "first"))


def test_weights_to_start_from_may_be_of_other_classes_with_a_word(tmp_path):
    first = model_of(("cat", "dog", "cow"))
    save_checkpoint(first, tmp_path / "first")
    model = model_of(("cat", "dog", "pig"))
    trainer = SimpleNamespace(model=model, ema=SimpleNamespace(model=copy.deepcopy(model)))
    with pytest.warns(UserWarning, match="of 'label', the weights of 'cow' as 'pig' are taken"):
        start_from(trainer, str(tmp_path / "first"))
    for one in (trainer.model, trainer.ema.model):
        taken = one.state_dict()
        assert all(torch.equal(taken[n], t.half().float()) for n, t in first.state_dict().items())


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """(H, W, 3) uint16 -> a PNG of RGB, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_colour_photos_of_16_bits_that_would_be_black_are_said_to_be():
    pixels = np.random.default_rng(0).random((20, 20, 3))
    with pytest.warns(UserWarning, match="uses few of its 16 bits, so it is nearly black; brighten it first"):
        assert np.asarray(open_photo(png_of_16_bits((800 * pixels).astype(np.uint16)))).max() < 4
    bright = (60_000 * pixels).astype(np.uint16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(np.asarray(open_photo(png_of_16_bits(bright)), float) - bright / 257).max() < 1.01
