"""A Gaussian of three modalities, whose conditionals are known, sampled with any leads, any subset given."""

import itertools
import math

import pytest
import torch
from test_schedule import LEADS, NAMES

from mmdiff.samplers import SAMPLERS, SampleNoise, jump, timesteps
from mmdiff.schedule import NoiseSchedule

torch.set_num_threads(1)

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
