"""Records keep the predictions; uncertainty and areas against closed forms."""

import numpy as np
import pytest
from fakes import FakePipeline
from records import add
from scipy.stats import entropy

from app.run.history import Record, areas, uncertainty
from mmdiff.request import Change, Request

PIPE = FakePipeline(modalities=("image", "mask", "label", "embedding"))


def record(request):
    return Record(request, "fake", {n: s for n, s in PIPE.modalities.items() if n in request.shown})


def added(image, mask):
    kept = record(Request(wanted=("image", "mask")))
    return add(kept, 1000, image=image, mask=mask)


def test_a_frame_keeps_classes_exactly_and_probabilities_nearly():
    rng = np.random.default_rng(0)
    mask = rng.dirichlet((1, 1), (2, 8, 8)).transpose(0, 3, 1, 2).astype(np.float32)
    mask[0, :, 0, 0] = 0.5001, 0.4999  # the same in 255 levels
    image = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    frame = added(image, mask)
    assert np.array_equal(frame.classes["mask"], mask.argmax(1))
    assert np.abs(frame.x["mask"] / 255 - mask).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(frame.x["image"], image)


def test_samples_that_agree_are_certain_and_black_against_white_is_the_least():
    image = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    image[1, 0] = 255
    mask = np.zeros((2, 2, 4, 4), dtype=np.float32)
    mask[:, 0] = 1
    mask[1, :, 0] = [[0], [1]]  # one sample says the second class where the other says the first
    frame = added(image, mask)
    expected = np.zeros((4, 4))
    expected[0] = 1
    np.testing.assert_allclose(uncertainty(frame, PIPE.modalities["image"]), expected, atol=1e-6)
    np.testing.assert_allclose(uncertainty(frame, PIPE.modalities["mask"]), expected, atol=1e-5)


def test_uncertainty_is_the_entropy_of_the_mean_and_the_standard_deviation():
    rng = np.random.default_rng(1)
    mask = rng.dirichlet((1, 2), (5, 6, 6)).transpose(0, 3, 1, 2).astype(np.float32)
    image = rng.integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    frame = added(image, mask)
    reference = entropy(mask.mean(0), base=2, axis=0)
    np.testing.assert_allclose(uncertainty(frame, PIPE.modalities["mask"]), reference, atol=0.01)
    spread = np.sqrt((np.std(image / 255.0, axis=0) ** 2).mean(-1)) * 2
    np.testing.assert_allclose(uncertainty(frame, PIPE.modalities["image"]), spread, atol=1e-5)


def test_areas_are_shares_of_the_picture():
    mask = np.zeros((1, 2, 4, 4), dtype=np.float32)
    mask[0, 0], mask[0, 1, :, 0] = 0.5, 0.9
    frame = added(np.zeros((1, 4, 4, 3), dtype=np.uint8), mask)
    assert areas(frame, PIPE.modalities["mask"]) == pytest.approx(np.array([[0.75, 0.25]]))


def test_roles_are_as_after_the_last_change():
    known = np.eye(64, dtype=bool)
    fork = Change(3, Request({"image": None, "label": "x"}, ("image",), known))
    kept = record(Request(wanted=("image", "label", "mask"), changes=(fork,)))
    assert [kept.role(n) for n in ("image", "label", "mask")] == ["filled in", "given", "ignored"]
