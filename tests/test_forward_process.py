"""Equations (1), (3) and (4) against each other, Monte Carlo, Bayes' rule on a grid, and Gaussian algebra."""

import math

import pytest
import torch

from mmdiff import forward_process as fp
from mmdiff.first_edition.schedule import FAMILIES
from mmdiff.first_edition.schedule import WeightSchedule as NoiseSchedule

torch.set_num_threads(1)

WEIGHTS = {"mask": "ramp", "label": "joint", "embedding": "none"}
MODALITIES = ("image", *WEIGHTS)


def long(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.long)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def encodings(*shape: int) -> dict[str, torch.Tensor]:
    return {name: normal(*shape, seed=10 + k) for k, name in enumerate(WEIGHTS)}


@pytest.fixture(params=["cosine", "linear"])
def schedule(request) -> NoiseSchedule:
    scales = {"mask": 0.8, "label": -1.3}
    return NoiseSchedule(60, MODALITIES, request.param, WEIGHTS, scales, shift=0.8)


def test_composed_steps_have_the_mean_of_the_marginal(schedule):
    z, e, none = normal(2, 3, 4), encodings(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.float64)
    z0 = z
    for t in range(1, 61):
        z = fp.q_step(schedule, z, long(t, t), e, none)
        assert (z - fp.q_sample(schedule, z0, long(t, t), e, none)).abs().max() < 1e-12
        assert (z - fp.signal(schedule, z0, long(t, t), e)).abs().max() < 1e-12


def test_composed_steps_have_the_variance_of_the_marginal(schedule):
    """z_t is linear in z_0 and in the noise of every step; the response to each unit of noise adds up."""
    nothing, unit = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    variance = 0.0
    for t in range(1, 61):
        response = fp.q_step(schedule, nothing, long(t), {}, unit).item()
        carried = fp.q_step(schedule, unit, long(t), {}, nothing).item()
        variance = carried**2 * variance + response**2
        marginal = fp.q_sample(schedule, nothing, long(t), {}, unit).item()
        assert variance == pytest.approx(marginal**2, abs=1e-12)


def test_composed_steps_have_the_marginal_by_monte_carlo():
    schedule = NoiseSchedule(12, MODALITIES, weights=WEIGHTS)
    count, generator = 200_000, torch.Generator().manual_seed(3)
    z0, e = torch.tensor([0.7, -1.1], dtype=torch.float64), {name: normal(2, seed=5) for name in WEIGHTS}
    z, e = z0.expand(count, 2), {name: encoding.expand(count, 2) for name, encoding in e.items()}
    for t in range(1, 8):
        noise = torch.randn(count, 2, dtype=torch.float64, generator=generator)
        z = fp.q_step(schedule, z, torch.full((count,), t), e, noise)
    direct = fp.q_sample(schedule, z0.expand(count, 2), torch.full((count,), 7), e, normal(count, 2, seed=4))
    margin = 5 / math.sqrt(count)  # five standard errors, each draw has standard deviation below 1
    assert (z.mean(0) - direct.mean(0)).abs().max() < 2 * margin
    torch.testing.assert_close(z.var(0), direct.var(0), rtol=3 * margin, atol=0)
    torch.testing.assert_close(z.var(0), (1 - schedule.abar[7]).expand(2), rtol=2 * margin, atol=0)


def test_marginal_at_zero_is_the_data(schedule):
    z0, e = normal(2, 5), encodings(2, 5)
    assert torch.equal(fp.q_sample(schedule, z0, long(0, 0), e, normal(2, 5, seed=9)), z0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("t", [2, 9, 20])
def test_posterior_is_bayes_rule_on_a_grid(family, t):
    schedule = NoiseSchedule(20, ("image", "mask"), "linear", {"mask": family}, {"mask": 1.4})
    z_t, z0, encoding = 0.9, -0.6, 1.7
    a, w = schedule.a.tolist(), schedule.w["mask"].tolist()
    before_mean, before_variance = z0, 0.0  # of q(z_{t-1} | z_0, X), by recursion over (1)
    for step in range(1, t):
        before_mean = math.sqrt(a[step]) * (before_mean + w[step] * encoding)
        before_variance = a[step] * before_variance + 1 - a[step]

    grid = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    log_prior = -((grid - before_mean) ** 2) / (2 * before_variance)
    log_likelihood = -((z_t - math.sqrt(a[t]) * (grid + w[t] * encoding)) ** 2) / (2 * (1 - a[t]))
    density = torch.softmax(log_prior + log_likelihood, 0)
    grid_mean = (density * grid).sum()
    grid_variance = (density * (grid - grid_mean) ** 2).sum()

    one = torch.ones(1, 1, dtype=torch.float64)
    mean, variance = fp.q_posterior(schedule, z_t * one, long(t), z0 * one, {"mask": encoding * one})
    assert mean.item() == pytest.approx(grid_mean.item(), abs=1e-9)
    assert variance.item() == pytest.approx(grid_variance.item(), rel=1e-9)


def test_posterior_mean_equals_its_noise_form(schedule):
    t = torch.arange(1, 61)
    z0, e, eps = normal(60, 2, 3), encodings(60, 2, 3), normal(60, 2, 3, seed=7)
    z_t = fp.q_sample(schedule, z0, t, e, eps)
    mean, _ = fp.q_posterior(schedule, z_t, t, z0, e)

    a, abar = schedule.a[t].view(-1, 1, 1), schedule.abar[t].view(-1, 1, 1)
    c_t = sum(schedule.w[name][t].view(-1, 1, 1) * encoding for name, encoding in e.items())
    noise_form = (z_t - (1 - a) / torch.sqrt(1 - abar) * eps) / torch.sqrt(a) - c_t  # (4')
    torch.testing.assert_close(mean, noise_form, rtol=0, atol=1e-10)


def test_posterior_of_the_first_step_is_the_data(schedule):
    z_t, z0, e = normal(1, 4), normal(1, 4, seed=1), encodings(1, 4)
    mean, variance = fp.q_posterior(schedule, z_t, long(1), z0, e)
    assert torch.equal(mean, z0) and variance.item() == 0


def test_every_sample_has_its_own_time(schedule):
    t, z0, e, noise = long(0, 1, 30, 60), normal(4, 2, 2), encodings(4, 2, 2), normal(4, 2, 2, seed=2)
    together = fp.q_sample(schedule, z0, t, e, noise)
    for k in range(4):
        own = {name: encoding[k : k + 1] for name, encoding in e.items()}
        alone = fp.q_sample(schedule, z0[k : k + 1], t[k : k + 1], own, noise[k : k + 1])
        assert torch.equal(together[k], alone[0])


def test_a_missing_modality_is_a_zero_encoding(schedule):
    t, z, e = long(5, 40), normal(2, 3), encodings(2, 3)
    zeroed, left_out = dict(e, mask=torch.zeros(2, 3, dtype=torch.float64)), dict(e)
    del left_out["mask"]
    for function in (fp.q_sample, fp.q_step):
        assert torch.equal(function(schedule, z, t, zeroed, z), function(schedule, z, t, left_out, z))
    assert torch.equal(
        fp.q_posterior(schedule, z, t, z, zeroed)[0], fp.q_posterior(schedule, z, t, z, left_out)[0]
    )


def test_a_weighted_anchor_is_z0_itself():
    schedule = NoiseSchedule(10, weights={"image": "joint"})
    z0, noise, none = normal(1, 3), normal(1, 3, seed=1), torch.zeros(1, 3, dtype=torch.float64)
    z1 = fp.q_step(schedule, z0, long(1), {"image": z0}, noise)
    assert (z1 - fp.q_sample(schedule, z0, long(1), {}, noise)).abs().max() < 1e-12
    torch.testing.assert_close(fp.signal(schedule, z0, long(4), {}), 2 * schedule.abar[4].sqrt() * z0)
    z4 = fp.q_sample(schedule, z0, long(4), {}, none)
    torch.testing.assert_close(
        fp.q_posterior(schedule, z4, long(4), z0, {})[0], fp.signal(schedule, z0, long(3), {})
    )


def test_tables_and_samples_keep_their_dtype(schedule):
    t, z, e = long(3, 50), normal(2, 3), encodings(2, 3)
    single = {name: encoding.float() for name, encoding in e.items()}
    for function in (fp.q_sample, fp.q_step):
        result = function(schedule, z.float(), t, single, z.float())
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), function(schedule, z, t, e, z), rtol=0, atol=1e-5)
    mean, variance = fp.q_posterior(schedule, z.float(), t, z.float(), single)
    assert mean.dtype == variance.dtype == torch.float32 and variance.shape == (2, 1)


def test_an_unknown_modality_is_named(schedule):
    with pytest.raises(ValueError, match="encoding of 'depth', expected names among image, mask"):
        fp.q_sample(schedule, normal(1, 2), long(1), {"depth": normal(1, 2)}, normal(1, 2))
