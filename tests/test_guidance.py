"""Guidance against its definition and against the density it is meant to sample from."""

import pytest
import torch

from mmdiff.guidance import guided
from mmdiff.samplers import Prediction, implied_noise, sample_ddim
from mmdiff.schedule import NoiseSchedule

torch.set_num_threads(1)


def constant(z0: float, mask: float) -> Prediction:
    filled = {"z0": torch.full((2, 3), z0), "mask": torch.full((2, 3), mask)}
    return Prediction(filled["z0"], {"mask": filled["mask"]}, {"image": filled["z0"], "mask": filled["mask"]})


def conditional(z_t, t):
    return constant(1.0, 5.0)


def unconditional(z_t, t):
    return constant(-0.5, 2.0)


def test_scale_one_is_off():
    assert guided(conditional, unconditional, 1) is conditional
    assert guided(conditional, unconditional, 1.0) is conditional


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_extrapolates_from_the_unconditional_prediction(scale):
    prediction = guided(conditional, unconditional, scale)(torch.zeros(2, 3), torch.ones(2).long())
    torch.testing.assert_close(prediction.z0, torch.full((2, 3), -0.5 + scale * 1.5))
    torch.testing.assert_close(prediction.e["mask"], torch.full((2, 3), 2.0 + scale * 3.0))
    assert (prediction.x["image"] == 1.0).all() and (prediction.x["mask"] == 5.0).all()


def test_what_both_predictions_agree_on_stays_exact():
    true = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))

    def knows(shift):
        return lambda z_t, t: Prediction(true + shift, {"mask": true}, {})

    prediction = guided(knows(1.0), knows(-1.0), 3.7)(true, torch.ones(2).long())
    assert torch.equal(prediction.e["mask"], true)


def test_guiding_the_predictions_is_guiding_the_noise():
    schedule, t = NoiseSchedule(50, ("image", "mask")), torch.tensor([3, 40])
    z_t = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    eps = [implied_noise(schedule, z_t, t, denoiser(z_t, t)) for denoiser in (conditional, unconditional)]
    prediction = guided(conditional, unconditional, 4.0)(z_t, t)
    torch.testing.assert_close(implied_noise(schedule, z_t, t, prediction), eps[1] + 4.0 * (eps[0] - eps[1]))


def test_guided_sampling_sharpens_towards_the_condition():
    """z_0 ~ N(0, 1) and, given the condition, N(2, 0.19): guidance by 3 must move samples beyond the
    conditional mean, away from the unconditional one, and narrow them."""
    schedule = NoiseSchedule(200)

    def gaussian(mean, variance):
        def denoise(z_t, t):
            root, noise = schedule.abar[t].sqrt()[:, None], 1 - schedule.abar[t][:, None]
            gain = variance * root / (variance * schedule.abar[t][:, None] + noise)
            return Prediction(mean + gain * (z_t - root * mean), {}, {})

        return denoise

    z_T = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    samples = {}
    for scale in (1.0, 3.0):
        denoiser = guided(gaussian(2.0, 0.19), gaussian(0.0, 1.0), scale)
        *_, last = sample_ddim(schedule, denoiser, z_T, 100)
        samples[scale] = last.z
    assert samples[1.0].mean().item() == pytest.approx(2.0, abs=0.05)
    assert samples[3.0].mean() > 2.05
    assert samples[3.0].std() < samples[1.0].std()
