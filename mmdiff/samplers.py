"""Samplers: generators that take a batch from z_T to z_0, one call of the denoiser a step.

A sampler yields where it stands and is sent what the denoiser predicts there. Scripts, the pictures of a
training run and the serving engine drive the same generator:

    sampler = sample_ddim(schedule, z_T, timesteps(schedule.num_steps, 30, schedule.spacing))
    z, t, _ = next(sampler)
    while t > 0:
        z, t, _ = sampler.send(denoise(z, t))  # name -> (B, *Z), the clean encoding of every modality

They share one rule, (5), the jump from time t to any earlier time s with the clean encodings held fixed. A
new sampler is a generator here and a line in `SAMPLERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mmdiff.forward_process import noise_std, per_sample, signal
from mmdiff.request import is_whole
from mmdiff.schedule import NoiseSchedule
from mmdiff.seeds import folded

LONGER = 2.5  # times the last rise of a level, over which predictions are continued
Encodings = Mapping[str, Tensor]  # name -> (B, *Z), the anchor's is z_0
# yields z (B, *Z), its time t, and the clean encodings on which z stands (None at the start)
Sampler = Generator[tuple[Tensor, int, Encodings | None], Encodings, None]


def sample_ddim(
    schedule: NoiseSchedule,
    z: Tensor,
    times: Sequence[int],
    noise: SampleNoise | None = None,
    eta: float = 0.0,
) -> Sampler:
    """DDIM (Song et al. 2021): (5) as it is.

    Args:
        z: (B, *Z) at times[0]. times: strictly falling, of `timesteps`.
        noise: for `eta` above 0, the share of fresh noise in a jump, 0 to 1.
    """
    clean = None
    for t, s in pairwise(times):
        prediction = yield z, t, clean
        clean = prediction
        fresh = noise(z.shape[1:]).to(z) if eta and noise else None
        z = jump(schedule, z, t, s, clean, fresh, eta)
    yield z, times[-1], clean


def sample_ancestral(schedule: NoiseSchedule, z: Tensor, times: Sequence[int], noise: SampleNoise) -> Sampler:
    """Ancestral sampling: every jump is a draw from q(z_s | z_t, z_0, X), (5) with eta = 1."""
    return sample_ddim(schedule, z, times, noise, eta=1.0)


def sample_dpmpp_2m(
    schedule: NoiseSchedule, z: Tensor, times: Sequence[int], noise: SampleNoise | None = None
) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): (5) after extrapolating to the middle of the jump.

    Predictions are continued linearly in half the log-SNR h, each modality's in its own level. The first
    jump, the last one, which is infinitely long in h, and one that is much longer than that before, as where
    a modality begins that others lead, are first order. `noise` is not used.
    """
    clean, before, t_before = None, None, None
    for t, s in pairwise(times):
        prediction = yield z, t, clean
        clean = prediction
        if before is not None and s > 0:
            factors = {name: _factor(schedule.level[name], s, t, t_before) for name in prediction}
            clean = extrapolate(prediction, before, factors)
        before, t_before = prediction, t
        z = jump(schedule, z, t, s, clean)
    yield z, times[-1], clean


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddim": sample_ddim,
    "ancestral": sample_ancestral,
    "dpmpp_2m": sample_dpmpp_2m,
}


def jump(
    schedule: NoiseSchedule,
    z_t: Tensor,
    t: int,
    s: int,
    clean: Encodings,
    noise: Tensor | None = None,
    eta: float = 0.0,
) -> Tensor:
    """(5): z_s (B, *Z) from z_t (B, *Z) for 0 <= s < t; at s = 0 exactly z0_hat.

    z_s = sqrt(abar_s) z0_hat + m_s + sqrt(1 - abar_s - sigma^2) eps_hat + sigma noise, where
    sigma^2 = eta^2 (1 - abar_s) / (1 - abar_t) (1 - abar_t / abar_s). eta = 0 draws nothing, eta = 1 makes
    the jump a draw from q(z_s | z_t, z_0, X), which for s = t - 1 is (4).

    Raises ValueError if eta is not in [0, 1], or `noise` is not like z_t where eta is above 0.
    """
    _check_noise(z_t, noise, eta)
    log_abar_t, log_abar_s = schedule.log_abar[t], schedule.log_abar[s]
    kept, noise_s, noise_t = torch.exp(log_abar_t - log_abar_s), -log_abar_s.expm1(), -log_abar_t.expm1()
    # 1 - abar_s - sigma^2, rearranged so that nothing cancels when eta is 1
    direction = noise_s * (1 - eta**2 + eta**2 * kept * noise_s / noise_t)
    eps_hat = implied_noise(schedule, z_t, t, clean)
    z_s = clean_signal(schedule, s, clean) + per_sample(direction.sqrt(), z_t) * eps_hat
    if noise is None:
        return z_s
    variance = eta**2 * noise_s / noise_t * -torch.expm1(log_abar_t - log_abar_s)
    return z_s + per_sample(variance.sqrt(), z_t) * noise


def implied_noise(schedule: NoiseSchedule, z_t: Tensor, t: int, clean: Encodings) -> Tensor:
    """eps_hat of (5): (z_t - sqrt(abar_t) z0_hat - m_t) / sqrt(1 - abar_t), (B, *Z), for t above 0."""
    return (z_t - clean_signal(schedule, t, clean)) / per_sample(noise_std(schedule.log_abar[t]), z_t)


def clean_signal(schedule: NoiseSchedule, t: int, clean: Encodings) -> Tensor:
    """sqrt(abar_t) z_0 + m_t of the encodings, (B, *Z)."""
    z0 = clean[schedule.anchor]
    return signal(schedule, z0, torch.full((len(z0),), t, device=z0.device), clean)


def extrapolate(now: Encodings, before: Encodings, factors: Mapping[str, Tensor]) -> Encodings:
    """now + factor (now - before) by name; exactly `now` for what both share, such as a given modality."""
    return {n: now[n] + per_sample(factors[n], now[n]) * (now[n] - before[n]) for n in now}


def _factor(level: Tensor, s: int, t: int, t_before: int) -> Tensor:
    """(h_s - h_t) / (2 (h_t - h_before)) with h = level / 2; 0 if that continues much more than there was."""
    h = 0.5 * level
    rise, next_rise = h[t] - h[t_before], h[s] - h[t]
    return torch.where((rise > 0) & (next_rise <= LONGER * rise), next_rise / (2 * rise), 0.0)


def timesteps(num_steps: int, steps: int, power: float = 2.0) -> list[int]:
    """`steps` + 1 strictly falling times from T = num_steps to 0, t_k = T (1 - (k / steps)^power).

    With a power above 1 they are close together where t is near T.
    """
    if not is_whole(steps) or not 1 <= steps <= num_steps:
        raise ValueError(
            f"steps is {steps!r}, expected a whole number from 1 to {num_steps}, the length of the noise "
            f"schedule; try {min(30, num_steps)}."
        )
    times = [num_steps]
    for k in range(1, steps + 1):
        times.append(min(times[-1] - 1, round(num_steps * (1 - (k / steps) ** power))))
    return times


class SampleNoise:
    """Standard normal noise in which sample k depends on the k-th seed and on nothing else in the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        if not seeds or not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
            raise ValueError(
                f"seeds is {seeds!r}, expected one whole number from 0 to 2**63 - 1 per sample; "
                "pass a list such as [0, 1, 2]."
            )
        self.device = torch.device(device)
        # on the CPU, where the same seed means the same numbers whatever the device
        self.generators = [torch.Generator().manual_seed(folded(seed)) for seed in seeds]

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Shape of one sample -> (B, *shape) float32 on the device; every call draws further numbers."""
        samples = [torch.randn(*shape, generator=generator) for generator in self.generators]
        return torch.stack(samples).to(self.device)


def _check_noise(z_t: Tensor, noise: Tensor | None, eta: float) -> None:
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}, expected a number from 0 (deterministic) to 1 (ancestral); try 0.")
    if noise is None and eta != 0:
        raise ValueError(
            f"eta is {eta} and no noise was given; pass standard normal noise like z_t, or eta=0."
        )
    if noise is not None and noise.shape != z_t.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}, expected {tuple(z_t.shape)} as z_t; "
            "draw it for each sample."
        )
