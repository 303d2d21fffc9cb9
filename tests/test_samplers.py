"""Samplers against diffusers, against the forward process, and with exact denoisers of a Gaussian mixture.

In the mixture tests z is 3-dimensional, the image is its first two channels and the other modality its
third, and the exact denoiser sees what is given. The reference moments come from integrating the mixture's
density on a grid, not from the algebra of the oracle.
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from mmdiff import forward_process as fp
from mmdiff.samplers import (
    SAMPLERS,
    Prediction,
    SampleNoise,
    extrapolate,
    implied_noise,
    jump,
    sample_ancestral,
    sample_ddim,
    sample_dpmpp_2m,
    timesteps,
)
from mmdiff.schedule import FAMILIES, KINDS, NoiseSchedule

torch.set_num_threads(1)


def long(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_noise(count: int):
    """Noise for many samples from one generator: fast, where batch independence is not what is tested."""
    generator = torch.Generator().manual_seed(1)
    return lambda shape: torch.randn(count, *shape, dtype=torch.float64, generator=generator)


def last(trajectory):
    *_, step = trajectory
    return step


def bounded(z_t: Tensor, t: Tensor) -> Prediction:
    """A made-up nonlinear denoiser of one modality."""
    z0 = torch.tanh(0.7 * z_t + 0.002 * t.view(-1, *[1] * (z_t.dim() - 1)))
    return Prediction(z0, {}, {"image": z0})


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
def test_bad_step_counts_are_named(steps):
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

    z_T = normal(2, 3, 4, 4)
    ours = list(sample_ddim(schedule, bounded, z_T, steps, SampleNoise([5, 6]), eta))
    noise, z, times = SampleNoise([5, 6]), z_T, timesteps(1000, steps)
    assert len(ours) == steps
    for step, (t, s) in zip(ours, pairwise(times), strict=True):
        # diffusers counts times from 0 and derives the next one from the number of steps
        reference.num_inference_steps = Fraction(1000, t - s)
        z0 = bounded(z, long(t, t)).z0
        fresh = noise((3, 4, 4)).double() if eta else torch.zeros_like(z)
        z = reference.step(z0, t - 1, z, eta=eta, variance_noise=fresh).prev_sample
        assert step.t == t
        torch.testing.assert_close(step.z, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(step.x_hat["image"], z0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 17, 40])
def test_dpmpp_2m_equals_diffusers_step_for_step(kind, steps):
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
    reference.set_timesteps(timesteps=[t - 1 for t in timesteps(1000, steps)[:-1]])

    z_T = normal(2, 3, 4, 4)
    z = z_T
    for step, t in zip(sample_dpmpp_2m(schedule, bounded, z_T, steps), reference.timesteps, strict=True):
        z = reference.step(bounded(z, long(t + 1, t + 1)).z0, t, z).prev_sample.double()
        torch.testing.assert_close(step.z, z, rtol=0, atol=2e-5)  # diffusers keeps its sigmas in float32


# --- the jump -------------------------------------------------------------------------------------


def several() -> tuple[NoiseSchedule, Tensor, Prediction]:
    schedule = NoiseSchedule(
        80, ("image", "mask", "label"), weights={"mask": "ramp", "label": "joint"}, scales={"label": 0.6}
    )
    prediction = Prediction(
        normal(80, 2, 3, seed=1), {"mask": normal(80, 2, 3, seed=2), "label": normal(80, 2, 3, seed=3)}, {}
    )
    return schedule, normal(80, 2, 3), prediction


def test_full_jump_by_one_is_the_posterior():
    schedule, z_t, prediction = several()
    t, noise = torch.arange(1, 81), normal(80, 2, 3, seed=4)
    mean, variance = fp.q_posterior(schedule, z_t, t, prediction.z0, prediction.e)
    z_s = jump(schedule, z_t, t, t - 1, prediction, noise, eta=1.0)
    torch.testing.assert_close(z_s, mean + variance.sqrt() * noise, rtol=0, atol=1e-11)


def test_full_jump_is_the_composed_posterior():
    """Chaining (4) from t down to s, all with the true z_0, must have the mean and variance of one jump."""
    schedule, z_t, prediction = several()
    z_t, z0, e = z_t[:1], prediction.z0[:1], {name: encoding[:1] for name, encoding in prediction.e.items()}
    mean, variance = z_t, 0.0
    for t in range(70, 40, -1):
        gain = schedule.a[t].sqrt() * (1 - schedule.abar[t - 1]) / (1 - schedule.abar[t])
        mean, own = fp.q_posterior(schedule, mean, long(t), z0, e)
        variance = gain**2 * variance + own
    still = torch.zeros_like(z_t)
    jumped = jump(schedule, z_t, long(70), long(40), Prediction(z0, e, {}), still, eta=1.0)
    unit = jump(schedule, z_t, long(70), long(40), Prediction(z0, e, {}), torch.ones_like(z_t), eta=1.0)
    torch.testing.assert_close(jumped, mean, rtol=0, atol=1e-11)
    torch.testing.assert_close((unit - jumped) ** 2, variance.expand_as(unit), rtol=1e-9, atol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal(eta):
    """With the true clean data, z_s must have the mean and variance of (3), however much noise is new."""
    schedule, _, prediction = several()
    t, s = torch.arange(1, 81), torch.arange(1, 81) // 3
    none, unit = torch.zeros(80, 2, 3, dtype=torch.float64), torch.ones(80, 2, 3, dtype=torch.float64)

    def response(eps, noise):
        z_t = fp.q_sample(schedule, prediction.z0, t, prediction.e, eps)
        return jump(schedule, z_t, t, s, prediction, noise, eta)

    mean = response(none, none)
    torch.testing.assert_close(mean, fp.signal(schedule, prediction.z0, s, prediction.e), rtol=0, atol=1e-12)
    variance = (response(unit, none) - mean) ** 2 + (response(none, unit) - mean) ** 2
    torch.testing.assert_close(
        variance, (1 - schedule.abar[s]).view(-1, 1, 1).expand_as(mean), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jump_to_data_is_exactly_the_prediction(dtype):
    schedule, z_t, prediction = several()
    prediction = Prediction(
        prediction.z0.to(dtype), {name: encoding.to(dtype) for name, encoding in prediction.e.items()}, {}
    )
    t = torch.arange(1, 81)
    for noise, eta in ((None, 0.0), (normal(80, 2, 3, seed=4).to(dtype), 1.0)):
        z_0 = jump(schedule, z_t.to(dtype), t, torch.zeros_like(t), prediction, noise, eta)
        assert z_0.dtype == dtype and torch.equal(z_0, prediction.z0)


def test_samples_in_a_batch_may_differ_in_time_and_eta():
    schedule, z_t, prediction = several()
    noise, t, s = normal(80, 2, 3, seed=4), torch.arange(1, 81), torch.arange(1, 81) // 2
    eta = torch.linspace(0, 1, 80, dtype=torch.float64)
    together = jump(schedule, z_t, t, s, prediction, noise, eta)
    for k in (0, 13, 79):
        row = slice(k, k + 1)
        own = Prediction(prediction.z0[row], {name: e[row] for name, e in prediction.e.items()}, {})
        alone = jump(schedule, z_t[row], t[row], s[row], own, noise[row], eta[k].item())
        assert torch.equal(together[row], alone)


def test_noise_that_does_not_fit_is_named():
    schedule, z_t, prediction = several()
    t = torch.arange(1, 81)
    with pytest.raises(ValueError, match="eta is 1.0 and no noise was given"):
        jump(schedule, z_t, t, t - 1, prediction, None, eta=1.0)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 2, 3\), expected \(80, 2, 3\)"):
        jump(schedule, z_t, t, t - 1, prediction, z_t[:1], eta=1.0)
    with pytest.raises(ValueError, match="eta is 1.5, expected a number from 0"):
        list(sample_ddim(schedule, bounded, z_t, 3, SampleNoise(range(80)), eta=1.5))
    with pytest.raises(ValueError, match="eta is 0.5 and no noise was given"):
        list(sample_ddim(schedule, bounded, z_t, 3, eta=0.5))


# --- the second-order correction ------------------------------------------------------------------


def test_extrapolation_is_first_order_at_both_ends_and_keeps_what_is_given():
    schedule, _, now = several()
    before = Prediction(now.z0 + 1, {"mask": now.e["mask"], "label": now.e["label"] - 2}, {})
    t = torch.full((80,), 40)
    s, t_previous = torch.full((80,), 20), torch.full((80,), 60)
    assert extrapolate(schedule, now, None, t, s, None) is now
    assert torch.equal(extrapolate(schedule, now, before, t, 0 * s, t_previous).z0, now.z0)
    assert torch.equal(extrapolate(schedule, now, before, t, s, t).z0, now.z0)
    corrected = extrapolate(schedule, now, before, t, s, t_previous)
    assert torch.equal(corrected.e["mask"], now.e["mask"])

    half_log_snr = 0.5 * torch.log(schedule.abar / (1 - schedule.abar))
    ratio = (half_log_snr[20] - half_log_snr[40]) / (2 * (half_log_snr[40] - half_log_snr[60]))
    torch.testing.assert_close(corrected.z0, now.z0 - ratio)
    torch.testing.assert_close(corrected.e["label"], now.e["label"] + 2 * ratio)


@pytest.mark.parametrize("family", ["joint", "ramp"])
def test_second_order_converges_faster(family):
    """Both modalities share one channel and are Gaussian, so the exact flow keeps z_t / std(z_t)."""
    schedule = NoiseSchedule(4096, ("image", "mask"), "linear", weights={"mask": family})
    covariance = torch.tensor([[1.5, 0.6], [0.6, 0.8]], dtype=torch.float64)
    gains = torch.stack([schedule.abar.sqrt(), schedule.wbar["mask"]])
    variance = (gains * (covariance @ gains)).sum(0) + 1 - schedule.abar

    def denoise(z_t, t):
        z0, e = (covariance @ gains / variance)[:, t, None] * z_t
        return Prediction(z0, {"mask": e}, {})

    def error(sampler, steps):
        """At 7/16 of the time, three quarters of the steps: the last jump is first order for both."""
        trajectory = list(sampler(schedule, denoise, variance[-1:, None].sqrt(), steps))
        return abs(trajectory[steps * 3 // 4 - 1].z.item() - variance[1792].sqrt().item())

    (first_16, first_32), (second_16, second_32) = (
        [error(sampler, steps) for steps in (16, 32)] for sampler in (sample_ddim, sample_dpmpp_2m)
    )
    assert second_32 < first_32 / 3
    assert second_16 / second_32 > 3  # halving the step quarters the error
    assert first_16 / first_32 < 3


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

    def __call__(self, z_t: Tensor, t: Tensor) -> Prediction:
        batch, time = len(z_t), t[0]
        state = MIXING.log().expand(batch, 2), MEANS.expand(batch, 2, 3), COVARIANCES
        identity = torch.eye(3, dtype=torch.float64)
        if self.given:
            pick = identity[list(self.given)]
            exact = torch.zeros(len(pick), len(pick), dtype=torch.float64)
            state = observe(*state, pick, exact, self.values.expand(batch, -1))
        free = [channel for channel in range(3) if channel not in self.given]
        gains = torch.stack([self.schedule.abar[time].sqrt()] * 2 + [self.schedule.wbar["other"][time]])
        pick, noise = (
            (gains[:, None] * identity)[free],
            (1 - self.schedule.abar[time]) * identity[free][:, free],
        )
        log_weights, means, _ = observe(*state, pick, noise, z_t[:, free])
        y = (log_weights.softmax(-1)[..., None] * means).sum(1)
        if self.given:
            y[:, list(self.given)] = self.values
        image, other = y.clone(), y.clone()
        image[:, OTHER], other[:, IMAGE] = 0, 0
        return Prediction(image, {"other": other}, {"image": y[:, IMAGE], "other": y[:, OTHER]})


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
    """(M, 3) image and other modality, both read off the heads of the last step."""
    noise = batch_noise(6000)
    step = last(SAMPLERS[sampler](schedule, oracle, noise((3,)), steps, noise))
    torch.testing.assert_close(step.z[:, IMAGE], step.x_hat["image"])
    return torch.cat([step.x_hat["image"], step.x_hat["other"]], dim=1)


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
def test_ramp_and_none_recover_the_image_and_the_head_the_other(family, subset):
    """At the end z says nothing about the other modality, so its head gives E[ other | image, given ]:
    exact on average and in its covariance with the image, without a spread of its own."""
    given, values = SUBSETS[subset]
    schedule = mixture_schedule(family)
    points = sampled(schedule, Oracle(schedule, given, values), "dpmpp_2m", 60)
    (mean, covariance), (true_mean, true_covariance) = moments(points), true_moments(given, values)
    close((mean, covariance[:2]), (true_mean, true_covariance[:2]), atol=0.05)
    assert covariance[2, 2] <= true_covariance[2, 2] + 0.05


def test_trap_of_conditioning_without_seeing():
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
            return Prediction((covariance @ gains / variance)[0, t, None] * z_t, {"other": e}, {})

        def seeing(z_t, t, schedule=schedule):
            root, noise = schedule.abar[t, None].sqrt(), 1 - schedule.abar[t, None]
            gain = 0.19 * root / (0.19 * root**2 + noise)
            return Prediction(
                truth + gain * (z_t - schedule.wbar["other"][t, None] * e - root * truth), {"other": e}, {}
            )

        z = normal(count, 1)
        for t in range(200, 0, -1):  # (4') with eps_hat = E[ eps | z_t ] and the true e in c_t
            a, abar, before = schedule.a[t], schedule.abar[t], schedule.abar[t - 1]
            eps = (1 - abar).sqrt() / variance[t] * z
            z = (z - (1 - a) / (1 - abar).sqrt() * eps) / a.sqrt() - schedule.w["other"][t] * e
            z = z + ((1 - a) * (1 - before) / (1 - abar)).sqrt() * normal(count, 1, seed=t)
        assert z.mean() < -1.5

        noise = batch_noise(count)
        z_T = noise((1,))
        biased = last(sample_ancestral(schedule, blind, z_T, 200, noise)).z
        assert biased.mean() > 0.5 and abs(biased.mean() - truth) > 0.15
        right = last(sample_ancestral(schedule, seeing, z_T, 200, noise)).z
        assert right.mean().item() == pytest.approx(truth, abs=0.03)
        assert right.var().item() == pytest.approx(0.19, abs=0.02)


# --- trajectories and noise -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("steps", [1, 2, 13, 50])
def test_trajectories_report_every_step(sampler, family, steps):
    schedule = mixture_schedule(family)
    noise = SampleNoise([3, 4, 5])
    z = noise((3,)).double()
    oracle = Oracle(schedule)
    trajectory = list(SAMPLERS[sampler](schedule, oracle, z, steps, noise))
    assert [step.index for step in trajectory] == list(range(1, steps + 1))
    assert [step.t for step in trajectory] == timesteps(1000, steps)[:-1]
    for step in trajectory:
        assert step.total == steps
        time = torch.full((3,), step.t)
        prediction = oracle(z, time)  # made from the state before the jump
        assert torch.equal(step.x_hat["image"], prediction.x["image"])
        assert torch.equal(step.eps_hat, implied_noise(schedule, z, time, prediction))
        rebuilt = fp.q_sample(schedule, prediction.z0, time, prediction.e, step.eps_hat)
        torch.testing.assert_close(rebuilt, z, rtol=0, atol=1e-12)
        z = step.z
    assert torch.equal(trajectory[-1].z, prediction.z0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samples_do_not_depend_on_their_batch(sampler):
    schedule = NoiseSchedule(100)

    def final(seeds):
        noise = SampleNoise(seeds)
        return last(SAMPLERS[sampler](schedule, bounded, noise((3, 8, 8)), 10, noise)).z

    together = final([11, 12, 13])
    assert torch.equal(together, final([11, 12, 13]))
    assert torch.equal(together[1], final([12])[0])
    assert torch.equal(together[2], final([13, 7])[0])
    assert not torch.equal(together[0], together[1])


def test_sample_noise_is_standard_normal_and_moves_on():
    noise = SampleNoise([0, 1])
    first, second = noise((3, 40, 40)), noise((3, 40, 40))
    assert first.shape == (2, 3, 40, 40) and first.dtype == torch.float32
    assert not torch.equal(first, second)
    assert abs(first.mean()) < 0.06 and abs(first.std() - 1) < 0.05
    assert abs((first[0] * first[1]).mean()) < 0.08 and abs((first * second).mean()) < 0.06


@pytest.mark.parametrize("seeds", [[], [-1], [2**63], [0.5], ["7"]])
def test_bad_seeds_are_named(seeds):
    with pytest.raises(ValueError, match="expected one whole number from 0"):
        SampleNoise(seeds)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    last(sample_ancestral(NoiseSchedule(10), bounded, torch.zeros(2, 3), 5, SampleNoise([0, 1])))
    assert torch.equal(torch.rand(3), expected)
