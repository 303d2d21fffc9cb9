"""What people upload and paint reaches the model aligned to the pixel, and bad files are named."""

import re

import numpy as np
import pytest
from fakes import photo
from PIL import Image

from app import adapters
from app.painter import from_text, to_text

CLASSES = ("void", "sky", "road")
PALETTE = np.array([[38, 42, 51], [90, 160, 220], [150, 90, 140]], dtype=np.uint8)


@pytest.fixture
def save(tmp_path):
    def save(image, name="file.png"):
        image.save(tmp_path / name)
        return str(tmp_path / name)

    return save


def test_a_photo_of_the_models_size_is_not_touched(save):
    original = photo((64, 64))
    for_model, larger = adapters.read_photo(save(original), 64)
    assert np.array_equal(np.asarray(for_model), np.asarray(original))
    assert larger.size == (adapters.SHOWN_SIZE,) * 2


def test_photo_hole_and_mask_are_cut_alike(save):
    """A wide picture that is left, middle, right = red, green, blue: only the middle square is seen."""
    thirds = np.zeros((40, 120, 3), dtype=np.uint8)
    for k in range(3):
        thirds[:, 40 * k : 40 * (k + 1), k] = 255
    for_model, _ = adapters.read_photo(save(Image.fromarray(thirds)), 20)
    assert (np.asarray(for_model)[:, 3:-3] == (0, 255, 0)).all()
    middle = np.zeros((40, 120), dtype=np.uint8)
    middle[:20, 40:80] = 255  # upper half of the middle square
    hole = adapters.hole_from_file(save(Image.fromarray(middle)), 20)
    assert hole[:10].all() and not hole[10:].any()
    mask = adapters.mask_from_file(save(Image.fromarray(middle // 255)), 20, CLASSES, PALETTE)
    assert np.array_equal(mask == 1, hole)


def test_transparency_becomes_white(save):
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    assert (np.asarray(adapters.read_photo(save(clear), 32)[0]) == 255).all()


def test_known_pixels_are_those_outside_the_hole():
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
        "palette": adapters.colour_mask(mask, PALETTE),
        "colours": Image.fromarray(PALETTE[mask]),
        "antialiased": Image.fromarray((PALETTE[mask].astype(int) + 9).astype(np.uint8)),
        "numbers as colours": Image.fromarray(mask.astype(np.uint8)).convert("RGB"),
    }
    read = adapters.mask_from_file(save(images[form]), 16, CLASSES, PALETTE)
    assert read.dtype == np.int64 and np.array_equal(read, mask)


def test_black_and_white_is_a_mask_of_two_classes(save):
    mask = expected_mask() == 1
    read = adapters.mask_from_file(
        save(Image.fromarray((255 * mask).astype(np.uint8))), 16, ("background", "fruit"), PALETTE[:2]
    )
    assert np.array_equal(read, mask)


def test_a_mask_with_unknown_classes_is_refused(save):
    with pytest.raises(ValueError, match="number 7.*0 = void, 1 = sky, 2 = road"):
        path = save(Image.fromarray(np.full((16, 16), 7, np.uint8)))
        adapters.mask_from_file(path, 16, CLASSES, PALETTE)
    with pytest.raises(ValueError, match="sky = #5aa0dc"):
        adapters.mask_from_file(save(photo((16, 16))), 16, CLASSES, PALETTE)


def test_the_saved_mask_is_exact(save):
    mask = expected_mask()
    saved = Image.open(save(adapters.colour_mask(mask, PALETTE)))
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
