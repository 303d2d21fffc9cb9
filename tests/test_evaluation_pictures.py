"""Inpainting baselines, copies and segmented pictures, against known answers."""

import pytest
import torch
from oracles import SIZE, ColourClassifier, Oracle, make_examples, specs

from mmdiff.evaluate import Evaluation, evaluate
from mmdiff.evaluation.classical_inpainting import CLASSICAL_METHODS
from mmdiff.evaluation.holes import HOLES, Inpainted, compared, interval
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.images import to_uint8

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def examples():
    return make_examples()


def settings(**changes):
    return EvaluationSettings(**{"steps": 2, "batch": 16, "samples": 30} | changes)


@pytest.mark.parametrize("name", CLASSICAL_METHODS)
def test_baselines_keep_known_pixels_and_fill_flat_pictures_flat(name):
    known = HOLES["blocks"](4, 32, 0)
    photos = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    filled = CLASSICAL_METHODS[name](photos, known)
    assert torch.equal(torch.where(known[:, None], filled, 0), torch.where(known[:, None], photos, 0))
    assert not torch.equal(filled, photos)
    flat = torch.full((4, 3, 32, 32), 51 / 127.5 - 1)
    # OpenCV is up to four grey levels off
    torch.testing.assert_close(CLASSICAL_METHODS[name](flat, known), flat, rtol=0, atol=4 / 127.5)


def test_a_slope_is_continued_into_the_hole_better_than_by_the_mean():
    slope = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32).clone()
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    known[:, 12:20, 12:20] = False
    errors = {name: (fill(slope, known) - slope).square().mean() for name, fill in CLASSICAL_METHODS.items()}
    assert errors["telea"] < 0.3 * errors["mean"] and errors["navier_stokes"] < 0.3 * errors["mean"]
    holes = (~known[0]).numpy().astype("uint8")
    by_hand = cv2.inpaint(to_uint8(slope)[0], holes, 3, cv2.INPAINT_TELEA)
    assert (to_uint8(CLASSICAL_METHODS["telea"](slope, known))[0] == by_hand).all()


def test_baselines_and_lpips_are_reported_beside_ours(examples, monkeypatch):
    l1 = lambda a, b: (a - b).abs().mean((1, 2, 3))  # noqa: E731
    monkeypatch.setattr("mmdiff.evaluation.perceptual.load_lpips", lambda device: l1)
    found = evaluate(Evaluation(Oracle(specs(), examples), examples, settings()), ["holes"])["holes"][
        "blocks"
    ]
    assert found["lpips"] == 0
    assert set(found["fillings"]) == {"mean", "telea", "navier_stokes"}
    assert all(filling["lpips"] > 0 for filling in found["fillings"].values())
    assert found["psnr_mean_fill"] == found["fillings"]["mean"]["psnr"]


def test_a_confidence_interval_covers_the_true_mean_in_95_percent():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(200):
        found = interval(0.3 + torch.randn(60, generator=generator))
        covered += found["low"] <= 0.3 <= found["high"]
        assert found["low"] < found["mean"] < found["high"]
    assert 0.88 <= covered / 200 <= 0.99
    alone = interval(torch.tensor([0.5]))
    assert alone == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_differences_are_paired_by_picture():
    easy, hard = torch.linspace(0, 1, 50), torch.linspace(0, 1, 50) + 0.01
    found = compared(Inpainted({}, easy), Inpainted({"psnr": 3.0}, hard))
    assert found["psnr"] == 3.0
    assert found["lpips_difference"]["mean"] == pytest.approx(-0.01)
    assert found["lpips_difference"]["high"] < 0  # though the two overlap far more than they differ
    assert compared(Inpainted({}, None), Inpainted({"psnr": 3.0}, hard)) == {"psnr": 3.0}


def test_copies_of_training_photos_are_detected(examples):
    oracle = Oracle(specs(), examples)  # its pictures are those of the examples
    photos = examples.stored["image"]
    ev = Evaluation(oracle, examples, settings(), train_photos=photos)
    got = evaluate(ev, ["copies"])["copies"]
    assert got["distance"] == pytest.approx(0, abs=1e-3) and got["n"] == 30
    assert got["distance_to_as_many_training_photos"] == pytest.approx(0, abs=1e-3)  # these are all there are
    mirrored = Evaluation(oracle, examples, settings(), train_photos=photos.flip(3))
    assert evaluate(mirrored, ["copies"])["copies"]["distance"] == pytest.approx(0, abs=1e-3)
    noise = torch.randint(0, 256, photos.shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    others = Evaluation(oracle, examples, settings(), train_photos=noise)
    got = evaluate(others, ["copies"])["copies"]
    assert got["distance"] > 0.1 and got["distance_of_unseen_photos"] > 0.1
    assert got["distance_to_unseen_photos"] == pytest.approx(0, abs=1e-3)
    assert got["distance_to_as_many_training_photos"] == pytest.approx(got["distance"], rel=1e-5)
    without = Evaluation(oracle, examples, settings())
    assert "--train" in evaluate(without, ["copies"])["copies"]["skipped"]


class ByRule:
    """A segmenter that knows the objects: everything that is not white."""

    classes = ("object", "background")

    def read(self, images):
        return (images.amin(1) > 0.9).long()


def test_the_segmenter_measures_pictures_made_from_masks(examples):
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), ColourClassifier(), segmenter=ByRule())
    got = evaluate(ev, ["image_from_mask"])["image_from_mask"]
    assert got["segmenter"] == got["segmenter_on_photos"]  # the oracle's pictures are the photos
    assert got["segmenter"]["miou"] > 0.9
    together = evaluate(ev, ["joint"])["joint"]["segmenter"]
    assert together["miou"] == pytest.approx(got["segmenter"]["miou"], abs=0.05)
    strange = ByRule()
    strange.classes = ("cat", "dog")
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), segmenter=strange)
    assert "other classes" in evaluate(ev, ["image_from_mask"])["image_from_mask"]["skipped"]
    assert SIZE == ev.size
