"""Guidance against its definition and against the densities it is meant to sample from."""

import pytest
import torch

from mmdiff.guidance import composed, guided
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


# -- several directions ------------------------------------------------------------------------------


def test_directions_add_up():
    def without_mask(z_t, t):
        return constant(0.8, 1.0)

    prediction = composed(conditional, [(unconditional, 3.0), (without_mask, 0.5)])(
        torch.zeros(2, 3), torch.ones(2).long()
    )
    torch.testing.assert_close(prediction.z0, torch.full((2, 3), 1.0 + 2 * 1.5 - 0.5 * 0.2))
    torch.testing.assert_close(prediction.e["mask"], torch.full((2, 3), 5.0 + 2 * 3.0 - 0.5 * 4.0))
    assert (prediction.x["image"] == 1.0).all()


def test_directions_of_scale_one_are_never_asked():
    def forbidden(z_t, t):
        raise AssertionError("asked for nothing")

    assert composed(conditional, [(forbidden, 1.0), (forbidden, 1)]) is conditional
    prediction = composed(conditional, [(forbidden, 1.0), (unconditional, 2.0)])(
        torch.zeros(2, 3), torch.ones(2).long()
    )
    torch.testing.assert_close(prediction.z0, torch.full((2, 3), 2.5))


SIGMA = 0.4
U, V = torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()  # orthogonal
A, B = 1.5, -0.7


def linear_gaussian(schedule, knows_a, knows_b):
    """E[z_0 | z_t] of z_0 = a U + b V + SIGMA n; a, b and n are standard normal, a = A and b = B if known."""
    mean = knows_a * A * U + knows_b * B * V
    covariance = SIGMA**2 * torch.eye(3).double()
    covariance = covariance + (not knows_a) * torch.outer(U, U) + (not knows_b) * torch.outer(V, V)

    def denoise(z_t, t):
        abar = schedule.abar[t[0]]
        gain = abar.sqrt() * covariance @ torch.linalg.inv(abar * covariance + (1 - abar) * torch.eye(3))
        return Prediction(mean + (z_t - abar.sqrt() * mean) @ gain.T, {}, {})

    return denoise


def composed_gaussian(schedule, scale_a, scale_b):
    return composed(
        linear_gaussian(schedule, True, True),
        [
            (linear_gaussian(schedule, False, True), scale_a),
            (linear_gaussian(schedule, True, False), scale_b),
        ],
    )


@pytest.mark.parametrize(("scale_a", "scale_b"), [(3.0, 1.0), (1.0, 2.5), (0.0, 4.0), (2.0, 2.0)])
def test_each_scale_moves_along_its_own_direction_by_the_closed_form(scale_a, scale_b):
    schedule, t = NoiseSchedule(100), torch.tensor([60, 60])
    z_t = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = linear_gaussian(schedule, True, True)(z_t, t).z0
    moved = composed_gaussian(schedule, scale_a, scale_b)(z_t, t).z0 - plain
    abar = schedule.abar[60]

    def difference(direction, value):
        """Along the direction: E[. | z_t, value] - E[. | z_t], two scalar Gaussians."""
        seen = z_t @ direction
        means = []
        for mean, variance in ((value, SIGMA**2), (0.0, SIGMA**2 + 1)):
            gain = abar.sqrt() * variance / (abar * variance + 1 - abar)
            means.append(mean + gain * (seen - abar.sqrt() * mean))
        return means[0] - means[1]

    expected = (scale_a - 1) * difference(U, A)[:, None] * U + (scale_b - 1) * difference(V, B)[:, None] * V
    torch.testing.assert_close(moved, expected)


def test_guiding_one_condition_leaves_samples_alone_where_it_says_nothing():
    schedule = NoiseSchedule(200)
    z_T = torch.randn(2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ends = {}
    for scales in ((1.0, 1.0), (4.0, 1.0), (0.0, 1.0)):
        *_, last = sample_ddim(schedule, composed_gaussian(schedule, *scales), z_T, 60)
        ends[scales] = last.z
    for scales in ((4.0, 1.0), (0.0, 1.0)):
        torch.testing.assert_close(ends[scales] @ V, ends[1.0, 1.0] @ V)
    along = {scales: (end @ U).mean().item() for scales, end in ends.items()}
    assert along[1.0, 1.0] == pytest.approx(A, abs=0.03)
    assert along[4.0, 1.0] > A + 0.03
    # scale 0 takes the condition back altogether
    assert along[0.0, 1.0] == pytest.approx(0, abs=0.06)
