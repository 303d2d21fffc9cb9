"""RePaint on a Gaussian whose unconditional denoiser and conditional distribution are known."""

import numpy as np
import pytest
import torch
from synthetic import lively_model

from benchmarks.repaint import repaint
from benchmarks.trials import RePaintTrial
from mmdiff.config import ModalityConfig, ModelConfig
from mmdiff.data.examples import collate
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import SampleNoise
from mmdiff.schedule import NoiseSchedule

CORRELATION, GIVEN, COUNT, T = 0.9, 2.0, 600, 100
COVARIANCE = torch.tensor([[1.0, CORRELATION], [CORRELATION, 1.0]], dtype=torch.float64)


class Gaussian:
    """E[z_0 | z_t] of two correlated numbers, without conditioning; counts its calls."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule, self.calls = schedule, 0

    def __call__(self, z_t, t):
        self.calls += 1
        abar = self.schedule.abar[t]
        gain = (
            abar.sqrt()
            * COVARIANCE
            @ torch.linalg.inv(abar * COVARIANCE + (1 - abar) * torch.eye(2, dtype=torch.float64))
        )
        return {"image": (z_t.double() @ gain.T).to(z_t)}


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule(T, ("image",))


def filled(schedule, resamples, steps=T):
    """The second number of many samples whose first is given, and the denoiser."""
    z0 = torch.tensor([[GIVEN, 99.0]], dtype=torch.float64).expand(COUNT, -1)
    known = torch.tensor([[True, False]]).expand(COUNT, -1)
    denoiser = Gaussian(schedule)
    out = repaint(schedule, denoiser, z0, known, steps, resamples, SampleNoise(list(range(COUNT))))
    assert (out[:, 0] == GIVEN).all()
    return out[:, 1], denoiser


def test_with_enough_resamples_it_draws_from_the_conditional(schedule):
    values, denoiser = filled(schedule, resamples=8)
    assert values.mean().item() == pytest.approx(CORRELATION * GIVEN, abs=0.08)
    assert values.std().item() == pytest.approx((1 - CORRELATION**2) ** 0.5, abs=0.06)
    assert denoiser.calls == T * 8


def test_without_resampling_known_and_filled_agree_less(schedule):
    once, denoiser = filled(schedule, resamples=1)
    often, _ = filled(schedule, resamples=8)
    truth = CORRELATION * GIVEN
    assert abs(often.mean().item() - truth) < abs(once.mean().item() - truth) - 0.05
    assert denoiser.calls == T


def test_unknown_entries_do_not_matter(schedule):
    known = torch.tensor([[True, False]]).expand(4, -1)
    draws = []
    for hidden in (0.0, 50.0):
        z0 = torch.tensor([[1.0, hidden]], dtype=torch.float64).expand(4, -1)
        draws.append(repaint(schedule, Gaussian(schedule), z0, known, 10, 3, SampleNoise([0, 1, 2, 3])))
    assert torch.equal(*draws)


def test_less_than_one_resample_is_refused(schedule):
    z0 = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="at least 1"):
        repaint(schedule, Gaussian(schedule), z0, z0 > 0, 5, 0, SampleNoise([0]))


def trial(config, seed=0, photos=3, **options):
    pipe = Pipeline(lively_model(config, seed), torch.device("cpu"))
    examples = collate(
        [{"image": np.full((3, 32, 32), 30 * k, np.uint8)} for k in range(photos)], [""] * photos, 0
    )
    settings = EvaluationSettings(steps=9, filling_steps=3, batch=2)
    return RePaintTrial(pipe, examples, settings, used=("image",), **options)


def photos_with(names=("image",), kind="image"):
    """A network of photos, and of labels if they are named."""
    labels = ModalityConfig("label", "label", lead=0.0, options={"classes": ["a", "b"]})
    modalities = (ModalityConfig("image", kind), labels)[: len(names)]
    return ModelConfig(modalities, 32, 8, width=32, depth=2, heads=2, refiner_width=8, core="levels")


def test_its_calls_are_counted(monkeypatch):
    calls = []
    for resamples in (1, 10):
        ev = trial(photos_with(), resamples=resamples, photos=2)
        answer = ev.pipe.model.answer
        monkeypatch.setattr(ev.pipe.model, "answer", lambda *a, answer=answer: calls.append(1) or answer(*a))
        ev.filled(torch.zeros(2, 3, 32, 32), HOLES["half"](2, 32, 0))
        assert len(calls) == ev.calls == 3 * resamples
        calls.clear()


@pytest.mark.parametrize("names", [("image",), ("image", "label")])
@pytest.mark.parametrize("kind", ["image", "latent_image"])
def test_known_pixels_are_kept_and_the_model_fills_the_rest(names, kind):
    photos = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = HOLES["half"](3, 32, 0)
    fills = []
    for seed in (0, 1):
        ev = trial(photos_with(names, kind), seed, resamples=2)
        fills.append(ev.filled(photos, known))
        assert torch.equal(fills[-1].where(known[:, None], 0), photos.where(known[:, None], 0))
        hidden = torch.where(known[:, None], photos, 0)
        assert torch.equal(ev.filled(hidden, known), fills[-1])  # hidden pixels do not matter
    assert (fills[0] - fills[1]).abs().mean() > 0.01
