"""Guidance against its definition and against the densities it is meant to sample from."""

import pytest
import torch
from driving import final

from mmdiff.first_edition.schedule import WeightSchedule as NoiseSchedule
from mmdiff.guidance import guide
from mmdiff.samplers import implied_noise, sample_ddim, timesteps

torch.set_num_threads(1)


def constant(image: float, mask: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((2, 3), v).double() for name, v in (("image", image), ("mask", mask))}


CONDITIONAL, UNCONDITIONAL, WITHOUT_MASK = constant(1.0, 5.0), constant(-0.5, 2.0), constant(0.8, 1.0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("branches", [[], [(UNCONDITIONAL, 1)], [(UNCONDITIONAL, 1.0), (WITHOUT_MASK, 1.0)]])
def test_scales_of_one_and_no_branches_are_exactly_the_conditional(branches):
    conditional = {name: normal(2, 3, seed=k) for k, name in enumerate(CONDITIONAL)}
    guided = guide(conditional, branches)
    assert set(guided) == set(conditional)
    assert all(torch.equal(guided[name], conditional[name]) for name in conditional)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_extrapolates_from_the_unconditional_prediction(scale):
    guided = guide(CONDITIONAL, [(UNCONDITIONAL, scale)])
    torch.testing.assert_close(guided, constant(-0.5 + scale * 1.5, 2.0 + scale * 3.0))
    torch.testing.assert_close(CONDITIONAL, constant(1.0, 5.0), rtol=0, atol=0)  # not changed in place


def test_encodings_that_all_predictions_share_stay_exact():
    true = normal(2, 3)
    guided = guide({"image": true + 1, "mask": true}, [({"image": true - 1, "mask": true}, 3.7)])
    assert torch.equal(guided["mask"], true)


@pytest.mark.parametrize("t", [3, 40])
def test_guiding_the_predictions_is_guiding_the_noise(t):
    schedule, z_t = NoiseSchedule(50, ("image", "mask")), normal(2, 3, seed=1)
    conditional, unconditional = (
        implied_noise(schedule, z_t, t, clean) for clean in (CONDITIONAL, UNCONDITIONAL)
    )
    guided = implied_noise(schedule, z_t, t, guide(CONDITIONAL, [(UNCONDITIONAL, 4.0)]))
    torch.testing.assert_close(guided, unconditional + 4.0 * (conditional - unconditional))


def test_guided_sampling_sharpens_towards_the_condition():
    """z_0 ~ N(0, 1) and, given the condition, N(2, 0.19): guidance by 3 must move samples beyond the
    conditional mean, away from the unconditional one, and narrow them."""
    schedule = NoiseSchedule(200)

    def gaussian(z_t, t, mean, variance):
        abar = schedule.abar[t]
        gain = variance * abar.sqrt() / (variance * abar + 1 - abar)
        return {"image": mean + gain * (z_t - abar.sqrt() * mean)}

    z_T = normal(4000, 1)
    samples = {}
    for scale in (1.0, 3.0):

        def denoise(z_t, t, scale=scale):
            return guide(gaussian(z_t, t, 2.0, 0.19), [(gaussian(z_t, t, 0.0, 1.0), scale)])

        samples[scale] = final(sample_ddim(schedule, z_T, timesteps(200, 100)), denoise)
    assert samples[1.0].mean().item() == pytest.approx(2.0, abs=0.05)
    assert samples[3.0].mean() > 2.05
    assert samples[3.0].std() < samples[1.0].std()


# -- several branches --------------------------------------------------------------------------------


def test_branches_add_up():
    guided = guide(CONDITIONAL, [(UNCONDITIONAL, 3.0), (WITHOUT_MASK, 0.5)])
    expected = constant(1.0 + 2 * 1.5 - 0.5 * 0.2, 5.0 + 2 * 3.0 - 0.5 * 4.0)
    torch.testing.assert_close(guided, expected)


def test_a_branch_of_scale_one_adds_nothing():
    guided = guide(CONDITIONAL, [(WITHOUT_MASK, 1.0), (UNCONDITIONAL, 2.0)])
    torch.testing.assert_close(guided, guide(CONDITIONAL, [(UNCONDITIONAL, 2.0)]))


SIGMA = 0.4
U, V = torch.tensor([0.6, 0.8, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()  # orthogonal
A, B = 1.5, -0.7


def linear_gaussian(schedule, z_t, t, knows_a, knows_b):
    """E[z_0 | z_t] of z_0 = a U + b V + SIGMA n; a, b and n are standard normal, a = A and b = B if known."""
    mean = knows_a * A * U + knows_b * B * V
    covariance = SIGMA**2 * torch.eye(3).double()
    covariance = covariance + (not knows_a) * torch.outer(U, U) + (not knows_b) * torch.outer(V, V)
    abar = schedule.abar[t]
    gain = abar.sqrt() * covariance @ torch.linalg.inv(abar * covariance + (1 - abar) * torch.eye(3))
    return {"image": mean + (z_t - abar.sqrt() * mean) @ gain.T}


def guided_gaussian(schedule, scale_a, scale_b):
    def denoise(z_t, t):
        both, without_a, without_b = (
            linear_gaussian(schedule, z_t, t, *known)
            for known in ((True, True), (False, True), (True, False))
        )
        return guide(both, [(without_a, scale_a), (without_b, scale_b)])

    return denoise


@pytest.mark.parametrize(("scale_a", "scale_b"), [(3.0, 1.0), (1.0, 2.5), (0.0, 4.0), (2.0, 2.0)])
def test_each_scale_moves_along_its_own_direction_by_the_closed_form(scale_a, scale_b):
    schedule, t, z_t = NoiseSchedule(100), 60, normal(2, 3, seed=2)
    plain = linear_gaussian(schedule, z_t, t, True, True)["image"]
    moved = guided_gaussian(schedule, scale_a, scale_b)(z_t, t)["image"] - plain
    abar = schedule.abar[t]

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
    schedule, z_T = NoiseSchedule(200), normal(2000, 3)
    ends = {}
    for scales in ((1.0, 1.0), (4.0, 1.0), (0.0, 1.0)):
        sampler = sample_ddim(schedule, z_T, timesteps(200, 60))
        ends[scales] = final(sampler, guided_gaussian(schedule, *scales))
    for scales in ((4.0, 1.0), (0.0, 1.0)):
        torch.testing.assert_close(ends[scales] @ V, ends[1.0, 1.0] @ V)
    along = {scales: (end @ U).mean().item() for scales, end in ends.items()}
    assert along[1.0, 1.0] == pytest.approx(A, abs=0.03)
    assert along[4.0, 1.0] > A + 0.03
    # scale 0 takes the condition back altogether
    assert along[0.0, 1.0] == pytest.approx(0, abs=0.06)
