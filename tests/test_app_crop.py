"""The part of a photo that is not square."""

import gradio as gr
import numpy as np
import pytest
from fakes import FakePipeline, photo
from PIL import Image

from app.controls.crop import MIDDLE, cut, ends, is_like
from app.controls.inputs import PHOTO_FIRST, ImageInput


@pytest.mark.parametrize("size", [(120, 60), (60, 120)])
@pytest.mark.parametrize("percent, start", [(0, 0), (100, 60), (25, 15)])
def test_the_square_is_where_it_was_asked_for(tmp_path, size, percent, start):
    picture = photo(size)
    picture.save(tmp_path / "a.png")
    with Image.open(cut(tmp_path / "a.png", percent, str(tmp_path / "cache"))) as part:
        found = np.asarray(part)
    pixels = np.asarray(picture)
    wanted = pixels[:, start : start + 60] if size[0] > size[1] else pixels[start : start + 60]
    assert np.array_equal(found, wanted)


def test_the_middle_is_the_file_itself(tmp_path):
    assert cut(tmp_path / "a.png", MIDDLE, "") == str(tmp_path / "a.png")


def test_a_turned_photo_is_cut_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    photo((120, 60)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(cut(tmp_path / "a.jpg", 0, str(tmp_path / "cache"))) as part:
        assert part.size == (60, 60)
        upright = np.asarray(Image.open(tmp_path / "a.jpg").transpose(Image.Transpose.ROTATE_270))
        assert np.array_equal(np.asarray(part), upright[:60])
    assert is_like(tmp_path / "a.jpg", (60, 120)) and not is_like(tmp_path / "a.jpg", (120, 60))


@pytest.mark.parametrize("mode", ["CMYK", "P", "1", "LA"])
def test_any_kind_of_picture_is_cut(tmp_path, mode):
    photo((40, 20)).convert(mode).save(tmp_path / "a.tiff")
    with Image.open(cut(tmp_path / "a.tiff", 0, str(tmp_path / "cache"))) as part:
        assert part.size == (20, 20)


def test_the_ends_have_names():
    assert ends((2, 1)) == ("left", "right") and ends((1, 2)) == ("top", "bottom")


def test_a_hole_or_another_part_of_no_photo_is_explained(tmp_path):
    photo((20, 20)).save(tmp_path / "hole.png")
    with gr.Blocks():
        image = ImageInput(FakePipeline().modalities["image"], "task")
    assert image._accept_hole(tmp_path / "hole.png", None, MIDDLE) == (gr.skip(), PHOTO_FIRST)
    assert image._cut(20, None) == image._cut(20, (None, (9, 5))) == (gr.skip(), PHOTO_FIRST, gr.skip())
