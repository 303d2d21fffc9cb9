"""Uploads and paintings reach the model aligned to the pixel, and bad files are named."""

import re

import numpy as np
import pytest
from fakes import photo
from PIL import Image

from app.controls import adapters
from app.controls.painter import from_text, to_text
from app.pictures import colour_mask
from mmdiff.images import to_rgb

CLASSES = ("void", "sky", "road")
PALETTE = np.array([[38, 42, 51], [90, 160, 220], [150, 90, 140]], dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(image, name="file.png", **options):
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def test_a_photo_of_the_models_size_is_not_touched(save):
    original = photo((64, 64))
    read = adapters.read_photo(save(original), 64)
    assert np.array_equal(np.asarray(read.for_model), np.asarray(original))
    assert read.larger.size == (adapters.SHOWN_SIZE,) * 2
    assert read.size == (64, 64) and read.notes == ()


def test_a_photo_of_another_shape_is_cut_and_a_note_gives_the_sizes(save):
    read = adapters.read_photo(save(photo((400, 300))), 64)
    assert read.size == (400, 300)
    assert read.notes == (
        "The photo is 400 × 300 pixels; its central 300 × 300 are used, scaled to 64 × 64.",
    )
    assert "looks soft" in " ".join(adapters.read_photo(save(photo((40, 40))), 64).notes)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_hole_or_mask_is_put_upright(save, orientation):
    """Each EXIF orientation, undone by the turn that the standard names."""
    wide = np.zeros((20, 40, 3), dtype=np.uint8)
    wide[:10, :20] = 255  # upper left quarter
    turned = {  # how an upright picture is stored
        1: wide,
        2: wide[:, ::-1],
        3: wide[::-1, ::-1],
        4: wide[::-1],
        5: wide.transpose(1, 0, 2),
        6: np.rot90(wide),
        7: wide[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(wide, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(np.ascontiguousarray(turned)), exif=exif)
    read = adapters.read_photo(path, 20)
    assert read.size == (40, 20)
    expected = wide[:, 10:30]
    assert np.array_equal(np.asarray(read.for_model), expected)
    assert np.array_equal(adapters.read_hole(path, 20, (40, 20)).cells, expected[..., 0] > 0)
    black_white = np.array([[0, 0, 0], [255, 255, 255]])
    assert np.array_equal(adapters.read_mask(path, 20, "ab", black_white).cells, expected[..., 0] > 0)


def test_photo_hole_and_mask_are_cut_alike(save):
    """A wide picture that is left, middle, right = red, green, blue: only the middle square is seen."""
    thirds = np.zeros((40, 120, 3), dtype=np.uint8)
    for k in range(3):
        thirds[:, 40 * k : 40 * (k + 1), k] = 255
    for_model = adapters.read_photo(save(Image.fromarray(thirds)), 20).for_model
    assert (np.asarray(for_model)[:, 3:-3] == (0, 255, 0)).all()
    middle = np.zeros((40, 120), dtype=np.uint8)
    middle[:20, 40:80] = 255  # upper half of the middle square
    hole = adapters.read_hole(save(Image.fromarray(middle)), 20, (120, 40)).cells
    assert hole[:10].all() and not hole[10:].any()
    mask = adapters.read_mask(save(Image.fromarray(middle // 255)), 20, CLASSES, PALETTE).cells
    assert np.array_equal(mask == 1, hole)


def test_transparency_becomes_white(save):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    read = adapters.read_photo(save(clear), 32)
    assert (np.asarray(read.for_model) == 255).all()
    assert read.notes == ("Transparent parts became white.",)
    half = np.dstack([np.full((32, 32, 3), 100, np.uint8), np.full((32, 32), 128, np.uint8)])
    assert abs(np.asarray(to_rgb(Image.fromarray(half))).astype(int) - 177).max() <= 1


HALF = np.repeat([[255], [0]], 8, 0).repeat(16, 1).astype(np.uint8)  # 16 x 16, upper half white


def read_hole(path, size=16, photo_size=(16, 16)):
    read = adapters.read_hole(path, size, photo_size)
    return read.cells, " ".join(read.notes)


def rgba(colour, alpha):
    """One colour under an alpha channel (H, W)."""
    return np.dstack([np.broadcast_to(np.array(colour, np.uint8), (*alpha.shape, 3)), alpha])


def test_a_hole_of_the_models_size_is_read_as_it_is(save):
    hole, notes = read_hole(save(HALF))
    assert np.array_equal(hole, HALF > 0)
    assert notes == "The hole covers 50% of the photo."


@pytest.mark.parametrize("hole_size, photo_size", [((40, 30), (400, 300)), ((401, 300), (640, 480))])
def test_a_hole_shaped_like_the_photo_is_cut_like_it(save, hole_size, photo_size):
    width, height = hole_size
    values = np.zeros((height, width), np.uint8)
    values[: height // 2] = 255
    hole, notes = read_hole(save(values), 10, photo_size)
    assert np.array_equal(hole, np.arange(10)[:, None].repeat(10, 1) < 5)
    assert f"{width} × {height} pixels; its central {height} × {height} are used" in notes


def test_a_square_hole_lies_on_the_central_square_unblended(save):
    checks = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 255
    hole, notes = read_hole(save(checks), 8, (300, 200))
    assert np.array_equal(hole, np.indices((8, 8)).sum(0) % 2 == 1)
    assert "photo’s central square" in notes and "from 32 × 32 to 8 × 8 pixels, unblended" in notes


@pytest.mark.parametrize(
    "photo_size, remedy", [((400, 300), "for its central square"), ((90, 90), "another")]
)
def test_a_hole_of_another_shape_is_refused_with_both_sizes(save, photo_size, remedy):
    with pytest.raises(ValueError, match=f"160 × 90.*{photo_size[0]} × {photo_size[1]}.*differ.*{remedy}"):
        read_hole(save(np.zeros((90, 160), np.uint8)), 16, photo_size)


def test_grey_is_split_at_128_with_a_note(save):
    values = HALF.copy()
    values[0, :4], values[15, :4] = 128, 127
    hole, notes = read_hole(save(values))
    assert np.array_equal(hole, HALF > 0)
    assert "3% of its pixels are neither black nor white" in notes  # 8 of 256


@pytest.mark.parametrize("form", ["bits", "0 and 1", "16 bits", "palette", "colours", "JPEG"])
def test_every_form_of_black_and_white_is_the_same_hole(save, form):
    images = {
        "bits": Image.fromarray(HALF > 0),
        "0 and 1": Image.fromarray(HALF // 255),
        "16 bits": Image.fromarray(HALF.astype(np.uint16) * 257),
        "palette": Image.fromarray(HALF).convert("P"),
        "colours": Image.fromarray(HALF).convert("RGB"),
        "JPEG": Image.fromarray(HALF),
    }
    hole, notes = read_hole(save(images[form], "hole.jpg" if form == "JPEG" else "hole.png"))
    assert np.array_equal(hole, HALF > 0)
    assert ("0 and 1" in notes) == (form == "0 and 1")


def test_a_hole_that_is_nearly_everything_says_so(save):
    values = np.full((16, 16), 255, np.uint8)
    values[:2] = 0  # 87.5% are white
    assert "nearly everything" in read_hole(save(values))[1]
    assert "press “Invert”" in read_hole(save(values))[1]
    assert "Invert" not in read_hole(save(255 - values))[1]


@pytest.mark.parametrize("value, words", [(0, "black everywhere"), (255, "white everywhere")])
def test_a_hole_of_one_colour_is_refused(save, value, words):
    with pytest.raises(ValueError, match=words):
        read_hole(save(np.full((16, 16), value, np.uint8)))


def test_paint_on_a_transparent_ground_is_the_hole(save):
    few = np.zeros((16, 16), np.uint8)
    few[2:6, 3:9] = 255
    for colour in ((255, 0, 0), (0, 0, 0), (255, 255, 255)):
        hole, notes = read_hole(save(rgba(colour, few)))
        assert np.array_equal(hole, few > 0)
        assert "kept" in notes and "transparent" in notes


def test_the_transparent_part_of_a_photo_or_a_black_sheet_is_the_hole(save):
    most = np.full((16, 16), 255, np.uint8)
    most[2:6, 3:9] = 0
    cut = np.dstack([np.asarray(photo((16, 16))), most])
    for picture in (cut, rgba((0, 0, 0), most)):
        hole, notes = read_hole(save(picture))
        assert np.array_equal(hole, most == 0)
        assert "Its transparent parts are what is filled in." in notes


def test_black_white_and_clear_is_white(save):
    values = rgba((0, 0, 0), np.full((16, 16), 255, np.uint8))
    values[:4, :, :3] = 255
    values[8:, :, 3] = 0
    hole, notes = read_hole(save(values))
    assert np.array_equal(hole, np.arange(16)[:, None].repeat(16, 1) < 4)
    assert "count as black" in notes


def test_a_hole_that_is_all_clear_is_refused(save):
    with pytest.raises(ValueError, match="transparent everywhere"):
        read_hole(save(rgba((0, 0, 0), np.zeros((16, 16), np.uint8))))


def test_pixels_outside_the_hole_are_known():
    hole = np.zeros((4, 4), dtype=bool)
    hole[1, 2] = True
    assert np.array_equal(adapters.known_pixels(hole), ~hole)


@pytest.mark.parametrize("value, words", [(False, "empty"), (True, "whole photo")])
def test_a_hole_needs_an_inside_and_an_outside(value, words):
    with pytest.raises(ValueError, match=words):
        adapters.known_pixels(np.full((4, 4), value))


def expected_mask():
    return np.repeat(np.repeat([[0, 1], [2, 1]], 8, 0), 8, 1)


@pytest.mark.parametrize("form", ["numbers", "palette", "colours", "antialiased", "numbers as colours"])
def test_every_form_of_a_mask_means_the_same(save, form):
    mask = expected_mask()
    images = {
        "numbers": Image.fromarray(mask.astype(np.uint8)),
        "palette": colour_mask(mask, PALETTE),
        "colours": Image.fromarray(PALETTE[mask]),
        "antialiased": Image.fromarray((PALETTE[mask].astype(int) + 9).astype(np.uint8)),
        "numbers as colours": Image.fromarray(mask.astype(np.uint8)).convert("RGB"),
    }
    read = adapters.read_mask(save(images[form]), 16, CLASSES, PALETTE).cells
    assert read.dtype == np.int64 and np.array_equal(read, mask)


def test_changes_to_a_mask_are_noted(save):
    mask = expected_mask()

    def notes(image):
        read = adapters.read_mask(save(image), 16, CLASSES, PALETTE)
        assert np.array_equal(read.cells, mask)
        return " ".join(read.notes)

    assert notes(PALETTE[mask]) == ""
    assert notes(PALETTE[mask].repeat(3, 0).repeat(3, 1)) == (
        "The mask was scaled from 48 × 48 to 16 × 16 pixels, unblended (nearest pixel)."
    )
    wide = np.pad(PALETTE[mask], [(0, 0), (4, 4), (0, 0)])
    assert notes(wide) == "The mask is 24 × 16 pixels; its central 16 × 16 are used."
    off = PALETTE[mask].copy()
    off[:4, :4] += 5
    assert "6% of its pixels have no colour of the palette" in notes(off)
    clear = np.dstack([PALETTE[mask], np.where(mask == 0, 0, 255).astype(np.uint8)])
    clear[mask == 0, :3] = 200
    assert notes(clear) == "Transparent parts became void."


def test_black_and_white_is_a_mask_of_two_classes(save):
    mask = expected_mask() == 1
    read = adapters.read_mask(
        save(Image.fromarray((255 * mask).astype(np.uint8))), 16, ("background", "fruit"), PALETTE[:2]
    ).cells
    assert np.array_equal(read, mask)


def test_a_mask_with_unknown_classes_is_refused(save):
    with pytest.raises(ValueError, match="number 7.*0 = void, 1 = sky, 2 = road"):
        path = save(Image.fromarray(np.full((16, 16), 7, np.uint8)))
        adapters.read_mask(path, 16, CLASSES, PALETTE)
    with pytest.raises(ValueError, match="sky = #5aa0dc"):
        adapters.read_mask(save(photo((16, 16))), 16, CLASSES, PALETTE)


def test_the_saved_mask_is_exact(save):
    mask = expected_mask()
    saved = Image.open(save(colour_mask(mask, PALETTE)))
    assert np.array_equal(np.asarray(saved), mask)
    assert np.array_equal(np.asarray(saved.convert("RGB")), PALETTE[mask])


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_a_file_that_is_no_picture_is_named_without_its_folder(tmp_path, content):
    (tmp_path / "holiday.png").write_bytes(content)
    with pytest.raises(ValueError, match="“holiday.png” cannot be read") as caught:
        adapters.read_photo(tmp_path / "holiday.png", 64)
    assert str(tmp_path) not in str(caught.value)


def test_a_gigantic_picture_is_refused(save, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        adapters.read_photo(save(photo((64, 64))), 64)


def test_painted_cells_survive_the_way_to_the_page_and_back():
    cells = np.random.default_rng(0).integers(0, 7, (12, 12))
    assert np.array_equal(from_text(to_text(cells), 12, 7), cells)
    assert to_text(np.zeros((12, 12))) is None
    assert not from_text(None, 12, 7).any()


@pytest.mark.parametrize("value", ["0101", "9" * 16, "é€" * 8, " " * 16])
def test_a_damaged_painting_is_refused(value):
    with pytest.raises(ValueError, match=re.escape("Clear it and paint again")):
        from_text(value, 4, 2)
