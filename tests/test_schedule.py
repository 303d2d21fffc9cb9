"""Levels and leads: the schedule by its definition, Bayes' rule, and a Gaussian whose answer is known."""

import itertools
import math

import pytest
import torch

from mmdiff import forward_process as fp
from mmdiff.leads import MAX_LEAD
from mmdiff.samplers import SAMPLERS, SampleNoise, jump, timesteps
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


# -- a Gaussian of three modalities, whose conditionals are known ---------------------------------

SIZES = {"image": 2, "mask": 1, "label": 1}
WHERE = {"image": [0, 1], "mask": [2], "label": [3]}
ROOT = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.6, 0.7, 0.0, 0.0], [0.5, -0.4, 0.6, 0.0], [-0.3, 0.5, 0.4, 0.6]],
    dtype=torch.float64,
)
COVARIANCE = ROOT @ ROOT.T
MEAN = torch.tensor([0.5, -0.2, 0.3, 0.1], dtype=torch.float64)
VALUES = torch.tensor([0.9, -0.5, 0.7, -0.8], dtype=torch.float64)
SUBSETS = [s for k in range(3) for s in itertools.combinations(NAMES, k)]


def conditional(given, of):
    """Mean and covariance of the entries ``of``, if those of the modalities ``given`` are VALUES."""
    g = [i for name in given for i in WHERE[name]]
    gain = COVARIANCE[of][:, g] @ torch.linalg.inv(COVARIANCE[g][:, g])
    return MEAN[of] + gain @ (VALUES[g] - MEAN[g]), COVARIANCE[of][:, of] - gain @ COVARIANCE[g][:, of]


def exact_denoiser(schedule, given, ignored=()):
    """(z, t) -> E[e | what is seen of z, what is given], by Gaussian algebra."""
    seen = [i for name in NAMES if name not in ignored for i in WHERE[name]]
    known = [i for name in given for i in WHERE[name]]

    def denoise(z, t):
        scale, noise = torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        for name in NAMES:
            if name not in given:
                table = schedule.wbar[name] if name != "image" else schedule.abar.sqrt()
                scale[WHERE[name]] = table[t]
                noise[WHERE[name]] = -torch.expm1(schedule.log_abar[t])
        observed = torch.where(
            torch.isin(torch.arange(4), torch.tensor(known, dtype=torch.long)), VALUES, z[:, :, 0]
        )
        a = torch.diag(scale)[seen]
        gain = COVARIANCE @ a.T @ torch.linalg.inv(a @ COVARIANCE @ a.T + torch.diag(noise[seen]))
        clean = MEAN + (observed[:, seen] - a @ MEAN) @ gain.T
        encodings = {}
        for name in NAMES:
            own = torch.zeros_like(z)
            value = VALUES.expand(len(z), -1) if name in given else clean
            own[:, WHERE[name], 0] = value[:, WHERE[name]] * (name not in ignored)
            encodings[name] = own
        return encodings

    return denoise


def run(schedule, sampler, denoise, count, steps):
    noise = SampleNoise([0])  # one generator for all, as the samples need not be told apart
    draw = lambda shape: noise((count, *shape))[0].double()  # noqa: E731
    steps = timesteps(schedule.num_steps, steps, schedule.spacing)
    generator = SAMPLERS[sampler](schedule, draw((4, 1)), steps, draw)
    z, t, _ = next(generator)
    while t > 0:
        clean = denoise(z, t)
        z, t, _ = generator.send(clean)
    return sum(clean.values())[:, :, 0]


@pytest.mark.slow
@pytest.mark.parametrize("given", SUBSETS, ids=lambda g: "+".join(g) or "nothing")
@pytest.mark.parametrize("leads", LEADS, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_have_the_exact_conditional(sampler, leads, given):
    """Within three standard errors of the samples, and what the steps leave.

    Where the photo is first, its noise, which all share, vanishes within a few steps. Ancestral sampling
    draws it anew there, so that it needs shorter ones.
    """
    schedule = NoiseSchedule(2000, NAMES, leads=leads)
    coarse = sampler == "ancestral" and "image" in leads
    count, steps, slack = (5_000, 2000, 0.06) if coarse else (20_000, 300, 0.03)
    samples = run(schedule, sampler, exact_denoiser(schedule, given), count, steps)
    free = [i for name in NAMES if name not in given for i in WHERE[name]]
    mean, covariance = conditional(given, free)
    error = 3 * covariance.diagonal().amax().item() / math.sqrt(count)
    assert (samples[:, free].mean(0) - mean).abs().max() < error + 0.012
    assert (samples[:, free].T.cov() - covariance).abs().max() < 1.5 * error + slack


@pytest.mark.slow
@pytest.mark.parametrize("leads", LEADS, ids=str)
def test_ignoring_a_modality_is_marginalising_it(leads):
    schedule, count = NoiseSchedule(2000, NAMES, leads=leads), 20_000
    samples = run(schedule, "ddim", exact_denoiser(schedule, ("label",), ("mask",)), count, 300)
    mean, covariance = conditional(("label",), WHERE["image"])
    assert (samples[:, :2].mean(0) - mean).abs().max() < 0.03
    assert (samples[:, :2].T.cov() - covariance).abs().max() < 0.05


def test_without_leads_it_is_plain_diffusion_of_the_concatenation():
    """DDIM of the vector of all encodings with one alpha bar, written out (Song et al. 2021, equation 12)."""
    schedule, generator = NoiseSchedule(1000, NAMES), torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    z = plain = torch.randn(5, 4, 1, generator=generator, dtype=torch.float64)
    times = timesteps(1000, 30, schedule.spacing)[1:]  # at T the level is -10, not minus infinity
    for t, s in itertools.pairwise(times):
        clean = torch.tanh(plain[:, :, 0] @ mix)[:, :, None]
        abar_t, abar_s = (math.cos(math.pi / 2 * x / 1000) ** 2 for x in (t, s))
        noise = (plain - math.sqrt(abar_t) * clean) / math.sqrt(1 - abar_t)
        plain = math.sqrt(abar_s) * clean + math.sqrt(1 - abar_s) * noise
        split = {n: clean * torch.isin(torch.arange(4), torch.tensor(WHERE[n]))[:, None] for n in NAMES}
        z = jump(schedule, z, t, s, split)
        expected = plain if s else plain * torch.tensor([1.0, 1, 0, 0])[:, None]  # z_0 is the photo alone
        torch.testing.assert_close(z, expected, rtol=1e-4, atol=1e-4)
