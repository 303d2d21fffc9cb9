"""The sampling command: its files hold the samples of the pipeline, and a mistake is reported in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from mmdiff import sample
from mmdiff.checkpoint import save_checkpoint
from mmdiff.clip.vocabulary import Vocabulary
from mmdiff.images import square
from mmdiff.known_pixels import read_known_pixels
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from tests.synthetic import CLASSES, WordEmbedder, draw_shape, lively_model, tiny_config


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("mmdiff.pipeline.load_embedder", lambda *_: WordEmbedder())
    save_checkpoint(lively_model(tiny_config()), tmp_path / "toy")
    Vocabulary({"a red disc": 2}, {CLASSES[0]: {"a red disc": 2}}, ("red",)).save(tmp_path / "toy")
    return tmp_path / "toy"


def run(checkpoint, *words):
    out = checkpoint.parent / "out"
    sample.main([str(checkpoint), "--out", str(out), "--steps", "3", *words])
    return out, json.loads((out / "results.json").read_text())


def test_files_hold_the_samples_of_the_pipeline(checkpoint):
    out, results = run(checkpoint, "--given", "label=blue disc", "--num-samples", "2", "--seed", "5")
    pipe = Pipeline.from_pretrained(checkpoint)
    expected = pipe({"label": "blue disc"}, (), steps=3, seed=5, num_samples=2)
    pictures = sorted(out.glob("*_image.png"))
    assert len(pictures) == 2
    for path, picture in zip(pictures, expected.image, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(picture))
    np.testing.assert_allclose(results["embedding"], expected.embedding, rtol=1e-6)
    assert results["nearest"] == [words.as_dict() for words in pipe.describe(expected.embedding)]
    assert results["settings"]["seed"] == 5


def test_guidance_by_name_is_that_of_the_pipeline(checkpoint):
    words = ["--given", "label=1", "embedding=a red disc", "--wanted", "image", "--num-samples", "1"]
    out, _ = run(checkpoint, *words, "--guidance", "label=2", "embedding=3")
    guided = np.asarray(Image.open(next(out.glob("*_image.png"))))
    pipe = Pipeline.from_pretrained(checkpoint)
    given = {"label": 1, "embedding": "a red disc"}
    expected = pipe(given, ("image",), steps=3, guidance_scale={"label": 2, "embedding": 3}).image[0]
    assert np.array_equal(guided, np.asarray(expected))
    assert not np.array_equal(guided, np.asarray(pipe(given, ("image",), steps=3).image[0]))


def test_every_option_is_part_of_the_request(checkpoint):
    words = ["--given", "embedding=a red disc", "--wanted", "image", "--sample-first", "label"]
    words += [
        "--guidance",
        "label=2",
        "--sampler",
        "ddim",
        "--eta",
        "0.5",
        "--seed",
        "3",
        "--num-samples",
        "2",
    ]
    args = sample.parse_arguments([str(checkpoint), "--steps", "4", *words])
    request = sample.make_request(args, Pipeline.from_pretrained(checkpoint))
    assert request == Request(
        given={"embedding": "a red disc"},
        wanted=["image"],
        guidance_scale={"label": 2.0},
        sample_first=["label"],
        steps=4,
        seed=3,
        num_samples=2,
        eta=0.5,
    )


def test_known_pixels_come_back_unchanged(checkpoint, tmp_path):
    photo = draw_shape(0, 0)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    known = np.zeros(photo.shape[:2], np.uint8)
    known[:, :8] = 255
    Image.fromarray(known).save(tmp_path / "known.png")
    words = ["--given", f"image={tmp_path / 'photo.png'}", "--known-pixels", str(tmp_path / "known.png")]
    out, _ = run(checkpoint, *words, "--wanted", "image", "--num-samples", "1")
    filled = np.asarray(Image.open(next(out.glob("*_image.png"))))
    assert np.array_equal(filled[:, :8], photo[:, :8]) and not np.array_equal(filled[:, 8:], photo[:, 8:])


def test_known_pixels_are_cropped_and_rotated_like_the_photo(tmp_path):
    """A grey photo that is also the picture of its own known pixels, wider than high and held sideways."""
    levels = np.zeros((30, 50), np.uint8)
    levels[5:12, 17:33] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(levels).save(tmp_path / "wide.png", exif=exif)
    known = read_known_pixels(tmp_path / "wide.png", 30)
    photo = np.asarray(square(Image.open(tmp_path / "wide.png"), 30))
    assert np.array_equal(known, photo[..., 0] > 127) and 0 < known.mean() < 0.5


def test_the_name_of_a_class_comes_before_its_number():
    names = ("1", "10", "2", "Plum")
    assert [sample.as_class(text, names) for text in ("10", "2", "plum")] == ["10", "2", "plum"]
    assert [sample.as_class(text, names) for text in ("0", "3", "²")] == [0, 3, "²"]


def test_guidance_is_read():
    assert sample.parse_guidance(["1"]) == 1.0
    assert sample.parse_guidance(["mask=1.5", "label=0"]) == {"mask": 1.5, "label": 0.0}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--given", "label"], "NAME=VALUE"),
        (["--given", "label=plum"], "plum"),
        (["--wanted", "sound"], "no modality is called 'sound'"),
        (["--guidance", "much"], "'much' is no number"),
        (["--guidance", "2", "label=3"], "one number for all"),
        (["--given", "label=1", "--guidance", "mask=2"], "is not given"),
        (["--guidance", "label=2"], "'label', which is not given; .* or name it in sample_first"),
        (["--sample-first", "mask"], "sample_first names 'mask'"),
        (["--given", "image=nowhere.png"], "no file at"),
        (["--guidance", "label=2"], "is not given"),
        (["--sample-first", "mask"], "sample_first names 'mask'"),
    ],
)
def test_a_mistake_is_reported_in_one_line(checkpoint, words, message):
    with pytest.raises(SystemExit, match=message) as stopped:
        run(checkpoint, *words)
    assert str(stopped.value).startswith("mmdiff.sample: ") and "\n" not in str(stopped.value)
    assert not (checkpoint.parent / "out").exists()
