"""Levels and leads: the schedule by its definition, and Bayes' rule."""

import math

import pytest
import torch

from mmdiff import forward_process as fp
from mmdiff.leads import MAX_LEAD
from mmdiff.schedule import LEVEL_MAX, LEVEL_MIN, NoiseSchedule

torch.set_num_threads(1)

NAMES = ("image", "mask", "label")
LEADS = [
    {},
    {"mask": 0.2, "label": 0.5},
    {"image": 0.4},  # the photo first
    {"label": 2.0, "image": 0.1},
]


def lam(tau: float) -> float:
    """log-SNR of the cosine schedule, by its signal and noise."""
    if tau <= 0:
        return math.inf
    signal, noise = math.cos(math.pi / 2 * tau), math.sin(math.pi / 2 * min(tau, 1))
    return math.log(signal**2 / noise**2) if tau < 1 else -math.inf


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_levels_are_those_of_the_definition(leads, num_steps):
    schedule = NoiseSchedule(num_steps, NAMES, leads=leads, scales={"label": 0.5})
    full = {name: leads.get(name, 0.0) - min(leads.get(n, 0.0) for n in NAMES) for name in NAMES}
    longest = max(full.values())
    for t in range(1, num_steps + 1):
        for name in ("mask", "label"):
            tau = min(max((1 + longest) * t / num_steps - full[name], 0), 1)
            scaled = lam(tau) + (2 * math.log(0.5) if name == "label" else 0)
            expected = min(max(scaled, LEVEL_MIN), LEVEL_MAX)
            assert schedule.level[name][t].item() == pytest.approx(expected, abs=1e-9)
        tau = (1 + longest) * t / num_steps - full["image"]
        if 0.001 < tau < 0.99:
            assert schedule.level["image"][t].item() == pytest.approx(lam(tau), abs=1e-9)
    assert (schedule.level["image"].diff() < 0).all(), "every step adds some noise to the photo"


@pytest.mark.parametrize("leads", LEADS)
def test_weights_have_the_levels_and_follow_their_recursion(leads):
    schedule = NoiseSchedule(300, NAMES, leads=leads)
    assert ((schedule.a[1:] > 0) & (schedule.a[1:] < 1)).all() and schedule.abar[0] == 1
    for name in schedule.weighted:
        accumulated = 0.0
        for t in range(1, 301):
            accumulated = math.sqrt(schedule.a[t].item()) * (accumulated + schedule.w[name][t].item())  # (2)
            assert schedule.wbar[name][t].item() == pytest.approx(accumulated, rel=1e-10)
            snr = schedule.wbar[name][t] ** 2 / -torch.expm1(schedule.log_abar[t])
            assert snr.log().item() == pytest.approx(schedule.level[name][t].item(), abs=1e-9)


@pytest.mark.parametrize("leads", LEADS)
def test_composed_steps_are_the_marginal(leads):
    schedule = NoiseSchedule(400, NAMES, leads=leads)
    noise = [torch.randn(2, 3, dtype=torch.float64) for _ in range(3)]
    z = z0 = noise[0]
    e, none = {"mask": noise[1], "label": noise[2]}, torch.zeros_like(z0)
    variance, one = 0.0, torch.ones(1, dtype=torch.float64)
    for t in range(1, 401):
        now = torch.full((2,), t)
        z = fp.q_step(schedule, z, now, e, none)
        assert (z - fp.q_sample(schedule, z0, now, e, none)).abs().max() < 1e-12
        variance = schedule.a[t] * variance + fp.q_step(schedule, 0 * one, now[:1], {}, one).item() ** 2
        assert variance.item() == pytest.approx(-math.expm1(schedule.log_abar[t].item()), abs=1e-12)


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("t", [2, 80, 399, 400])
def test_the_posterior_is_bayes_rule(leads, t):
    """q(z_{t-1} | z_t, z_0, X) ~ q(z_t | z_{t-1}, X) q(z_{t-1} | z_0, X), both Gaussian in z_{t-1}."""
    schedule = NoiseSchedule(400, NAMES, leads=leads)
    z_t, z0, mask, label = torch.randn(4, 1, 1, dtype=torch.float64)
    e, now = {"mask": mask, "label": label}, torch.tensor([t])
    a, prior_variance = schedule.a[t], -torch.expm1(schedule.log_abar[t - 1])
    c = schedule.w["mask"][t] * mask + schedule.w["label"][t] * label
    prior_mean = fp.signal(schedule, z0, now - 1, e)
    precision = a / (1 - a) + 1 / prior_variance
    expected = (a.sqrt() * (z_t - a.sqrt() * c) / (1 - a) + prior_mean / prior_variance) / precision
    mean, variance = fp.q_posterior(schedule, z_t, now, z0, e)
    torch.testing.assert_close(mean, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(variance.flatten(), (1 / precision).flatten(), rtol=1e-8, atol=1e-12)


def test_leads_count_from_the_least_of_them():
    one, other = (
        NoiseSchedule(50, NAMES, {"mask": 0.5}),
        NoiseSchedule(50, NAMES, {"image": 0.3, "mask": 0.8, "label": 0.3}),
    )
    for name in NAMES:
        torch.testing.assert_close(one.level[name], other.level[name])


@pytest.mark.parametrize(
    "leads", [{"depth": 0.1}, {"mask": -0.1}, {"mask": MAX_LEAD + 1}, {"mask": "first"}, {"mask": True}, 0.5]
)
def test_other_leads_are_refused(leads):
    with pytest.raises(ValueError, match="leads"):
        NoiseSchedule(50, NAMES, leads)
