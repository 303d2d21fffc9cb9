"""Samplers against diffusers, against the forward process, and with exact denoisers of a Gaussian mixture.

In the mixture tests z is 3-dimensional, the image is its first two channels and the other modality its
third, and the exact denoiser sees what is given. The reference moments come from integrating the mixture's
density on a grid, not from the algebra of the oracle.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from driving import drive, final
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from mmdiff import forward_process as fp
from mmdiff.first_edition.schedule import FAMILIES, KINDS
from mmdiff.first_edition.schedule import WeightSchedule as NoiseSchedule
from mmdiff.samplers import (
    SAMPLERS,
    Encodings,
    SampleNoise,
    extrapolate,
    implied_noise,
    jump,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    timesteps,
)
from mmdiff.schedule import NoiseSchedule as LevelSchedule

torch.set_num_threads(1)


def at(t: int, count: int = 4) -> Tensor:
    return torch.full((count,), t)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_noise(count: int):
    """Noise for many samples from one generator: fast, where batch independence is not what is tested."""
    generator = torch.Generator().manual_seed(1)
    return lambda shape: torch.randn(count, *shape, dtype=torch.float64, generator=generator)


def bounded(z_t: Tensor, t: int) -> Encodings:
    """A made-up nonlinear denoiser of one modality."""
    return {"image": torch.tanh(0.7 * z_t + 0.002 * t)}


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", [1, 7, 1000])
def test_timesteps_fall_from_T_to_zero(num_steps):
    for steps in range(1, num_steps + 1, 1 + num_steps // 100):
        times = timesteps(num_steps, steps)
        assert len(times) == steps + 1 and times[0] == num_steps and times[-1] == 0
        assert all(t > s for t, s in pairwise(times))


def test_timesteps_follow_the_parabola_where_there_is_room():
    times = timesteps(1000, 20)
    assert all(abs(t - (1000 - 1000 * (k / 20) ** 2)) <= 0.5 for k, t in enumerate(times))
    gaps = [t - s for t, s in pairwise(times)]
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, True, None])
def test_bad_step_counts_are_refused(steps):
    with pytest.raises(ValueError, match="expected a whole number from 1 to 1000"):
        timesteps(1000, steps)


# --- one modality: equal to diffusers -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, 30, 50, 333])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_equals_diffusers_step_for_step(kind, steps, eta):
    schedule = NoiseSchedule(1000, kind=kind)
    reference = DDIMScheduler(
        num_train_timesteps=1000,
        trained_betas=(1 - schedule.a[1:]).numpy(),
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    torch.testing.assert_close(reference.alphas_cumprod, schedule.abar[1:].float(), rtol=1e-3, atol=1e-6)
    reference.alphas_cumprod = schedule.abar[1:]  # the same numbers, without their rounding to float32

    z_T, times = normal(2, 3, 4, 4), timesteps(1000, steps)
    ours = list(drive(sample_ddim(schedule, z_T, times, SampleNoise([5, 6]), eta), bounded))
    noise, z = SampleNoise([5, 6]), z_T
    assert len(ours) == steps
    for step, (t, s) in zip(ours, pairwise(times), strict=True):
        # diffusers counts times from 0 and derives the next one from the number of steps
        reference.num_inference_steps = Fraction(1000, t - s)
        z0 = bounded(z, t)["image"]
        fresh = noise((3, 4, 4)).double() if eta else torch.zeros_like(z)
        z = reference.step(z0, t - 1, z, eta=eta, variance_noise=fresh).prev_sample
        assert step.t == t
        torch.testing.assert_close(step.z, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(step.prediction["image"], z0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 17, 40])
def test_dpmpp_2m_equals_diffusers_step_for_step(kind, steps, monkeypatch):
    monkeypatch.setattr("mmdiff.samplers.LONGER", math.inf)  # diffusers continues however long a jump is
    schedule = NoiseSchedule(1000, kind=kind)
    reference = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        trained_betas=(1 - schedule.a[1:]).numpy(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
    )
    reference.alphas_cumprod = schedule.abar[1:].numpy()
    times = timesteps(1000, steps)
    reference.set_timesteps(timesteps=[t - 1 for t in times[:-1]])

    z = normal(2, 3, 4, 4)
    ours = list(drive(sample_dpmpp_2m(schedule, z, times), bounded))
    for step, t in zip(ours, reference.timesteps, strict=True):
        z = reference.step(bounded(z, int(t) + 1)["image"], t, z).prev_sample.double()
        torch.testing.assert_close(step.z, z, rtol=0, atol=2e-5)  # diffusers keeps its sigmas in float32


# --- the jump -------------------------------------------------------------------------------------


def several() -> tuple[NoiseSchedule, Tensor, Encodings]:
    schedule = NoiseSchedule(
        80, ("image", "mask", "label"), weights={"mask": "ramp", "label": "joint"}, scales={"label": 0.6}
    )
    clean = {name: normal(4, 2, 3, seed=k) for k, name in enumerate(schedule.modalities, start=1)}
    return schedule, normal(4, 2, 3), clean


def test_a_full_jump_by_one_is_the_posterior():
    schedule, z_t, clean = several()
    noise = normal(4, 2, 3, seed=4)
    for t in range(1, 81):
        mean, variance = fp.q_posterior(schedule, z_t, at(t), clean["image"], clean)
        z_s = jump(schedule, z_t, t, t - 1, clean, noise, eta=1.0)
        torch.testing.assert_close(z_s, mean + variance.sqrt() * noise, rtol=0, atol=1e-11)


def test_a_full_jump_is_the_composed_posterior():
    """Chaining (4) from t down to s, all with the true z_0, must have the mean and variance of one jump."""
    schedule, z_t, clean = several()
    mean, variance = z_t, 0.0
    for t in range(70, 40, -1):
        gain = schedule.a[t].sqrt() * (1 - schedule.abar[t - 1]) / (1 - schedule.abar[t])
        mean, own = fp.q_posterior(schedule, mean, at(t), clean["image"], clean)
        variance = gain**2 * variance + own
    jumped = jump(schedule, z_t, 70, 40, clean, torch.zeros_like(z_t), eta=1.0)
    unit = jump(schedule, z_t, 70, 40, clean, torch.ones_like(z_t), eta=1.0)
    torch.testing.assert_close(jumped, mean, rtol=0, atol=1e-11)
    torch.testing.assert_close((unit - jumped) ** 2, variance.expand_as(unit), rtol=1e-9, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal(eta):
    """With the true clean data, z_s must have the mean and variance of (3), however much noise is new."""
    schedule, z, clean = several()
    none, unit = torch.zeros_like(z), torch.ones_like(z)
    for t in range(1, 81):
        s = t // 3

        def response(eps, noise, t=t, s=s):
            z_t = fp.q_sample(schedule, clean["image"], at(t), clean, eps)
            return jump(schedule, z_t, t, s, clean, noise, eta)

        mean = response(none, none)
        expected = fp.signal(schedule, clean["image"], at(s), clean)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)
        variance = (response(unit, none) - mean) ** 2 + (response(none, unit) - mean) ** 2
        torch.testing.assert_close(variance, (1 - schedule.abar[s]).expand_as(mean), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_jump_to_data_is_exactly_the_prediction(dtype):
    schedule, z_t, clean = several()
    clean = {name: encoding.to(dtype) for name, encoding in clean.items()}
    for t in range(1, 81):
        for noise, eta in ((None, 0.0), (normal(4, 2, 3, seed=4).to(dtype), 1.0)):
            z_0 = jump(schedule, z_t.to(dtype), t, 0, clean, noise, eta)
            assert z_0.dtype == dtype and torch.equal(z_0, clean["image"])


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_an_eta_out_of_range_is_refused(eta):
    schedule, z_t, clean = several()
    with pytest.raises(ValueError, match=f"eta is {eta}, expected a number from 0"):
        jump(schedule, z_t, 40, 20, clean, torch.zeros_like(z_t), eta)
    sampler = sample_ddim(schedule, z_t, timesteps(80, 3), SampleNoise(range(4)), eta)
    with pytest.raises(ValueError, match=f"eta is {eta}, expected a number from 0"):
        list(drive(sampler, bounded))


def test_noise_that_is_missing_or_of_another_shape_is_refused():
    schedule, z_t, clean = several()
    with pytest.raises(ValueError, match="eta is 1.0 and no noise was given"):
        jump(schedule, z_t, 40, 20, clean, None, eta=1.0)
    for eta in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 3\), expected \(4, 2, 3\)"):
            jump(schedule, z_t, 40, 20, clean, z_t[:1], eta)
    with pytest.raises(ValueError, match=r"noise has shape \(3, 2, 3\), expected \(4, 2, 3\)"):
        list(drive(sample_ancestral(schedule, z_t, timesteps(80, 3), SampleNoise(range(3))), bounded))


def test_a_sampler_with_eta_and_no_noise_is_refused():
    schedule, z_t, _ = several()
    with pytest.raises(ValueError, match="eta is 0.5 and no noise was given"):
        list(drive(sample_ddim(schedule, z_t, timesteps(80, 3), eta=0.5), bounded))


# --- the second-order correction ------------------------------------------------------------------


def test_extrapolation_is_linear_and_keeps_what_both_share():
    _, _, now = several()
    before = {"image": now["image"] + 1, "mask": now["mask"], "label": now["label"] - 2}
    factor = torch.tensor(0.3, dtype=torch.float64)
    corrected = extrapolate(now, before, dict.fromkeys(now, factor))
    assert torch.equal(corrected["mask"], now["mask"])
    torch.testing.assert_close(corrected["image"], now["image"] - 0.3)
    torch.testing.assert_close(corrected["label"], now["label"] + 0.6)
    still = extrapolate(now, before, dict.fromkeys(now, 0 * factor))
    assert all(torch.equal(still[name], now[name]) for name in now)


def test_dpmpp_2m_is_first_order_at_both_ends_and_extrapolates_in_half_log_snr_between():
    schedule, z, shared = several()
    half_log_snr = 0.5 * torch.log(schedule.abar / (1 - schedule.abar))

    def denoise(z_t, t):
        return shared | {"image": torch.tanh(z_t), "label": torch.sin(z_t)}

    times = timesteps(80, 7)
    steps = list(drive(sample_dpmpp_2m(schedule, z, times), denoise))
    for k, step in enumerate(steps):
        ratio = 0.0
        if 0 < k < len(steps) - 1:
            before, now, after = half_log_snr[times[k - 1 : k + 2]]
            ratio = (after - now) / (2 * (now - before))
        for name, predicted in step.prediction.items():
            expected = predicted + ratio * (predicted - steps[k - 1].prediction[name])
            torch.testing.assert_close(step.clean[name], expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(step.clean["mask"], shared["mask"])
        if k in (0, len(steps) - 1):
            assert all(torch.equal(step.clean[name], step.prediction[name]) for name in shared)


@pytest.mark.parametrize("family", ["joint", "ramp"])
def test_second_order_converges_faster(family):
    """Both modalities share one channel and are Gaussian, so the exact flow keeps z_t / std(z_t)."""
    schedule = NoiseSchedule(4096, ("image", "mask"), "linear", weights={"mask": family})
    covariance = torch.tensor([[1.5, 0.6], [0.6, 0.8]], dtype=torch.float64)
    gains = torch.stack([schedule.abar.sqrt(), schedule.wbar["mask"]])
    variance = (gains * (covariance @ gains)).sum(0) + 1 - schedule.abar

    def denoise(z_t, t):
        z0, e = (covariance @ gains / variance)[:, t, None, None] * z_t
        return {"image": z0, "mask": e}

    def error(sampler, steps):
        """At 7/16 of the time, three quarters of the steps: the last jump is first order for both."""
        z_T, times = variance[-1:, None].sqrt(), timesteps(4096, steps)
        step = list(drive(sampler(schedule, z_T, times), denoise))[steps * 3 // 4 - 1]
        return abs(step.z.item() - variance[1792].sqrt().item())

    (first_16, first_32), (second_16, second_32) = (
        [error(sampler, steps) for steps in (16, 32)] for sampler in (sample_ddim, sample_dpmpp_2m)
    )
    assert second_32 < first_32 / 3
    assert second_16 / second_32 > 3  # halving the step quarters the error
    assert first_16 / first_32 < 3


@pytest.mark.parametrize("steps", [8, 30])
@pytest.mark.parametrize("leads", [{}, {"label": 0.5}, {"image": 0.3}])
def test_second_order_is_better_whatever_leads(leads, steps):
    """Independent Gaussians, whose exact flow keeps z_t / std(z_t); where one leads, the other waits.

    A level that has hardly begun to rise says nothing of how the prediction will go on.
    """
    schedule = LevelSchedule(1000, ("image", "label"), leads, {"label": 0.35})
    variance = {"image": 0.3, "label": 2.0}
    gains = {"image": schedule.abar.sqrt(), "label": schedule.wbar["label"]}
    deviation = {n: (variance[n] * gains[n] ** 2 + 1 - schedule.abar).sqrt() for n in gains}

    def denoise(z_t, t):
        slope = {n: variance[n] * gains[n][t] / deviation[n][t] ** 2 for n in gains}
        return {
            n: torch.where(torch.arange(2)[:, None, None] == i, slope[n] * z_t, 0.0)
            for i, n in enumerate(("image", "label"))
        }

    def error(sampler):
        z_T = torch.stack([deviation[n][-1] for n in gains]).view(1, 2, 1, 1)
        *_, last = drive(sampler(schedule, z_T, timesteps(1000, steps, schedule.spacing)), denoise)
        return abs(last.z[0, 0].item() / variance["image"] ** 0.5 - 1)  # all that is left at t = 0

    assert error(sample_dpmpp_2m) < 0.8 * error(sample_ddim)


# --- exact denoisers of a Gaussian mixture --------------------------------------------------------

IMAGE, OTHER = [0, 1], [2]
MIXING = torch.tensor([0.65, 0.35], dtype=torch.float64)
MEANS = torch.tensor([[0.8, -0.4, 0.9], [-1.0, 0.7, -0.6]], dtype=torch.float64)
COVARIANCES = torch.tensor(
    [
        [[0.50, 0.15, 0.25], [0.15, 0.40, -0.20], [0.25, -0.20, 0.50]],
        [[0.30, -0.10, 0.05], [-0.10, 0.60, 0.30], [0.05, 0.30, 0.40]],
    ],
    dtype=torch.float64,
)
MIXTURE = MixtureSameFamily(Categorical(MIXING), MultivariateNormal(MEANS, COVARIANCES))


def observe(log_weights, means, covariances, gain, noise, seen):
    """A mixture (B, K), (B, K, D), (K, D, D) after seeing (B, M) = gain (M, D) y + N(0, noise (M, M))."""
    spread = gain @ covariances @ gain.T + noise
    surprise = seen[:, None] - means @ gain.T
    log_weights = log_weights + MultivariateNormal(torch.zeros_like(surprise), spread).log_prob(surprise)
    update = torch.linalg.solve(spread, gain @ covariances).mT
    return (
        log_weights,
        means + (update @ surprise[..., None])[..., 0],
        covariances - update @ gain @ covariances,
    )


@dataclass
class Oracle:
    """The exact denoiser: E[ y | z_t, what is given ] for y = (image, other) of the mixture."""

    schedule: NoiseSchedule
    given: tuple[int, ...] = ()  # channels
    values: Tensor | None = None  # (len(given),)

    def __call__(self, z_t: Tensor, t: int) -> Encodings:
        batch = len(z_t)
        state = MIXING.log().expand(batch, 2), MEANS.expand(batch, 2, 3), COVARIANCES
        identity = torch.eye(3, dtype=torch.float64)
        if self.given:
            pick = identity[list(self.given)]
            exact = torch.zeros(len(pick), len(pick), dtype=torch.float64)
            state = observe(*state, pick, exact, self.values.expand(batch, -1))
        free = [channel for channel in range(3) if channel not in self.given]
        gains = torch.stack([self.schedule.abar[t].sqrt()] * 2 + [self.schedule.wbar["other"][t]])
        pick, noise = (
            (gains[:, None] * identity)[free],
            (1 - self.schedule.abar[t]) * identity[free][:, free],
        )
        log_weights, means, _ = observe(*state, pick, noise, z_t[:, free])
        y = (log_weights.softmax(-1)[..., None] * means).sum(1)
        if self.given:
            y[:, list(self.given)] = self.values
        image, other = y.clone(), y.clone()
        image[:, OTHER], other[:, IMAGE] = 0, 0
        return {"image": image, "other": other}


def moments(points: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of points (M, D)."""
    weights = torch.ones(len(points), dtype=torch.float64) if weights is None else weights
    weights = weights / weights.sum()
    mean = weights @ points
    return mean, (weights[:, None] * (points - mean)).T @ (points - mean)


def true_moments(given: tuple[int, ...], values: Tensor | None) -> tuple[Tensor, Tensor]:
    """Moments of all channels given some, from the density on a grid over the others."""
    axis = torch.linspace(-5, 5, 81, dtype=torch.float64)
    axes = [values[given.index(c)].view(1) if c in given else axis for c in range(3)]
    points = torch.cartesian_prod(*axes)
    return moments(points, MIXTURE.log_prob(points).exp())


def close(ours: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor], atol: float) -> None:
    for sampled, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(sampled, exact, rtol=0, atol=atol)


def mixture_schedule(family: str) -> NoiseSchedule:
    return NoiseSchedule(1000, ("image", "other"), weights={"other": family})


def sampled(schedule: NoiseSchedule, oracle: Oracle, sampler: str, steps: int) -> Tensor:
    """(M, 3) image and other modality, both as predicted in the last step."""
    noise = batch_noise(6000)
    *_, last = drive(SAMPLERS[sampler](schedule, noise((3,)), timesteps(1000, steps), noise), oracle)
    torch.testing.assert_close(last.z, last.prediction["image"])
    return torch.cat([last.prediction["image"][:, IMAGE], last.prediction["other"][:, OTHER]], dim=1)


SUBSETS = {
    "nothing": ((), None),
    "other": ((2,), torch.tensor([0.8], dtype=torch.float64)),
    "image": ((0, 1), torch.tensor([-0.3, 0.5], dtype=torch.float64)),
    "part of the image": ((0,), torch.tensor([-0.2], dtype=torch.float64)),
}


@pytest.mark.parametrize("sampler", ["ddim", "ancestral", "dpmpp_2m"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_joint_diffusion_recovers_all_moments(sampler, subset):
    given, values = SUBSETS[subset]
    schedule = mixture_schedule("joint")
    points = sampled(
        schedule, Oracle(schedule, given, values), sampler, 100 if sampler == "ancestral" else 60
    )
    close(moments(points), true_moments(given, values), atol=0.07)  # 60 first-order steps leave up to 0.03


@pytest.mark.parametrize("family", ["ramp", "none"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_ramp_and_none_recover_the_image_and_predict_the_other(family, subset):
    """At the end z says nothing about the other modality, so its prediction is E[ other | image, given ]:
    exact on average and in its covariance with the image, without a spread of its own."""
    given, values = SUBSETS[subset]
    schedule = mixture_schedule(family)
    points = sampled(schedule, Oracle(schedule, given, values), "dpmpp_2m", 60)
    (mean, covariance), (true_mean, true_covariance) = moments(points), true_moments(given, values)
    close((mean, covariance[:2]), (true_mean, true_covariance[:2]), atol=0.05)
    assert covariance[2, 2] <= true_covariance[2, 2] + 0.05


def test_only_a_denoiser_that_sees_the_given_modality_samples_the_conditional():
    """Gaussians z_0 and e of unit variance in one channel, correlation 0.9, given e = 2: z_0 ~ N(1.8, 0.19).

    Putting the true e into (4') while the network predicts eps unconditionally drives samples the wrong
    way; recomputing eps_hat from an unconditional z0_hat as in (5) has the right sign but is biased; only a
    denoiser that sees e is right.
    """
    truth, given, count = 1.8, 2.0, 4000
    covariance = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    e = torch.full((count, 1), given, dtype=torch.float64)
    for family in ("joint", "ramp"):
        schedule = NoiseSchedule(200, ("image", "other"), weights={"other": family})
        gains = torch.stack([schedule.abar.sqrt(), schedule.wbar["other"]])
        variance = (gains * (covariance @ gains)).sum(0) + 1 - schedule.abar  # of z_t, nothing given

        def blind(z_t, t, gains=gains, variance=variance):
            return {"image": (covariance @ gains / variance)[0, t] * z_t, "other": e}

        def seeing(z_t, t, schedule=schedule):
            root, noise = schedule.abar[t].sqrt(), 1 - schedule.abar[t]
            gain = 0.19 * root / (0.19 * root**2 + noise)
            return {"image": truth + gain * (z_t - schedule.wbar["other"][t] * e - root * truth), "other": e}

        z = normal(count, 1)
        for t in range(200, 0, -1):  # (4') with eps_hat = E[ eps | z_t ] and the true e in c_t
            a, abar, before = schedule.a[t], schedule.abar[t], schedule.abar[t - 1]
            eps = (1 - abar).sqrt() / variance[t] * z
            z = (z - (1 - a) / (1 - abar).sqrt() * eps) / a.sqrt() - schedule.w["other"][t] * e
            z = z + ((1 - a) * (1 - before) / (1 - abar)).sqrt() * normal(count, 1, seed=t)
        assert z.mean() < -1.5

        noise = batch_noise(count)
        z_T, times = noise((1,)), timesteps(200, 200)
        biased = final(sample_ancestral(schedule, z_T, times, noise), blind)
        assert biased.mean() > 0.5 and abs(biased.mean() - truth) > 0.15
        right = final(sample_ancestral(schedule, z_T, times, noise), seeing)
        assert right.mean().item() == pytest.approx(truth, abs=0.03)
        assert right.var().item() == pytest.approx(0.19, abs=0.02)


# --- what a sampler yields, and noise -------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 13, 50])
def test_a_sampler_yields_where_it_stands_at_every_time(sampler, family, steps):
    schedule, times = mixture_schedule(family), timesteps(1000, steps)
    noise = SampleNoise([3, 4, 5])
    z_T = noise((3,)).double()
    driven = list(drive(SAMPLERS[sampler](schedule, z_T, times, noise), Oracle(schedule)))
    assert [step.t for step in driven] == times[:-1]
    assert torch.equal(driven[0].before, z_T)
    for step in driven:
        eps = implied_noise(schedule, step.before, step.t, step.prediction)
        time = at(step.t, 3)
        rebuilt = fp.q_sample(schedule, step.prediction["image"], time, step.prediction, eps)
        torch.testing.assert_close(rebuilt, step.before, rtol=0, atol=1e-12)
    assert torch.equal(driven[-1].z, driven[-1].prediction["image"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_clean_encodings_are_those_of_the_last_jump(sampler):
    schedule, times = mixture_schedule("joint"), timesteps(1000, 9)
    noise, replay = SampleNoise([3, 4, 5]), SampleNoise([3, 4, 5])
    z_T = noise((3,)).double()
    replay((3,))
    eta = 1.0 if sampler == "ancestral" else 0.0
    steps = drive(SAMPLERS[sampler](schedule, z_T, times, noise), Oracle(schedule))
    for step, (t, s) in zip(steps, pairwise(times), strict=True):
        fresh = replay((3,)).double() if eta else None
        assert torch.equal(step.z, jump(schedule, step.before, t, s, step.clean, fresh, eta))


def test_a_sampler_can_start_at_any_time():
    schedule, times, z_T = NoiseSchedule(100), timesteps(100, 8), normal(2, 3)
    whole = list(drive(sample_ddim(schedule, z_T, times), bounded))
    rest = list(drive(sample_ddim(schedule, whole[4].before, times[4:]), bounded))
    assert [step.t for step in rest] == times[4:-1]
    for one, other in zip(whole[4:], rest, strict=True):
        assert torch.equal(one.z, other.z)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_do_not_depend_on_their_batch(sampler):
    schedule = NoiseSchedule(100)

    def sampled(seeds):
        noise = SampleNoise(seeds)
        return final(SAMPLERS[sampler](schedule, noise((3, 8, 8)), timesteps(100, 10), noise), bounded)

    together = sampled([11, 12, 13])
    assert torch.equal(together, sampled([11, 12, 13]))
    assert torch.equal(together[1], sampled([12])[0])
    assert torch.equal(together[2], sampled([13, 7])[0])
    assert not torch.equal(together[0], together[1])


def test_sample_noise_is_standard_normal_and_moves_on():
    noise = SampleNoise([0, 1])
    first, second = noise((3, 40, 40)), noise((3, 40, 40))
    assert first.shape == (2, 3, 40, 40) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert abs(first.mean()) < 0.06 and abs(first.std() - 1) < 0.05
    assert abs((first[0] * first[1]).mean()) < 0.08 and abs((first * second).mean()) < 0.06


@pytest.mark.parametrize("seeds", [[], [-1], [2**63], [0.5], ["7"]])
def test_bad_seeds_are_refused(seeds):
    with pytest.raises(ValueError, match="expected one whole number from 0"):
        SampleNoise(seeds)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    final(
        sample_ancestral(NoiseSchedule(10), torch.zeros(2, 3), timesteps(10, 5), SampleNoise([0, 1])), bounded
    )
    assert torch.equal(torch.rand(3), expected)
