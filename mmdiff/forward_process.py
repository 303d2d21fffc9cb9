"""The forward process of several modalities in one space: equations (1), (3) and (4).

(1) q(z_t | z_{t-1}, X) = N( sqrt(a_t) (z_{t-1} + c_t), (1 - a_t) I ),  c_t = sum_i w_t^(i) e_i
(3) q(z_t | z_0, X)     = N( sqrt(abar_t) z_0 + m_t, (1 - abar_t) I ),  m_t = sum_i wbar_t^(i) e_i

Shapes: z and every encoding e[name] are (B, *Z); t is (B,) long, in 0 … T, or in 1 … T where a step t-1 -> t
is meant. A modality missing from `e` contributes nothing, and an example without a modality has a zero
encoding there. Coefficients are computed per sample in float64 and only then cast to the dtype of z.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmdiff.schedule import NoiseSchedule


def gather(table: Tensor, t: Tensor) -> Tensor:
    """(T+1,) table, (B,) long -> (B,) table values at t, on the table's device."""
    return table[t.to(table.device)]


def per_sample(coefficient: Tensor, z: Tensor) -> Tensor:
    """(B,) float64 coefficient -> (B, 1, …, 1) with the dtype and device of z (B, *Z)."""
    # cast before the move: not every device knows float64
    return coefficient.to(z.dtype).to(z.device).view(-1, *[1] * (z.dim() - 1))


def q_step(
    schedule: NoiseSchedule, z_prev: Tensor, t: Tensor, e: Mapping[str, Tensor], noise: Tensor
) -> Tensor:
    """(1): draw z_t from z_{t-1} and standard normal noise (B, *Z). A weighted anchor must be in `e`."""
    log_a = gather(schedule.log_a, t)
    c_t = _weighted_sum(schedule, schedule.w, t, e, z_prev)
    sqrt_a, std = per_sample(torch.exp(0.5 * log_a), z_prev), per_sample(noise_std(log_a), z_prev)
    return sqrt_a * (z_prev + c_t) + std * noise


def signal(schedule: NoiseSchedule, z0: Tensor, t: Tensor, e: Mapping[str, Tensor]) -> Tensor:
    """Mean of (3): sqrt(abar_t) z_0 + m_t, (B, *Z). The anchor's encoding is z_0 unless `e` has another."""
    sqrt_abar = torch.exp(0.5 * gather(schedule.log_abar, t))
    m_t = _weighted_sum(schedule, schedule.wbar, t, {schedule.anchor: z0, **e}, z0)
    return per_sample(sqrt_abar, z0) * z0 + m_t


def q_sample(
    schedule: NoiseSchedule, z0: Tensor, t: Tensor, e: Mapping[str, Tensor], noise: Tensor
) -> Tensor:
    """(3): draw z_t directly from z_0 and standard normal noise (B, *Z)."""
    std = noise_std(gather(schedule.log_abar, t))
    return signal(schedule, z0, t, e) + per_sample(std, z0) * noise


def q_posterior(
    schedule: NoiseSchedule, z_t: Tensor, t: Tensor, z0: Tensor, e: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """(4): mean (B, *Z) and variance (B, 1, …, 1) of q(z_{t-1} | z_t, z_0, X); at t = 1 exactly z_0 and 0."""
    log_a, log_abar = gather(schedule.log_a, t), gather(schedule.log_abar, t)
    sqrt_a, step_noise, noise_now = torch.exp(0.5 * log_a), -torch.expm1(log_a), -torch.expm1(log_abar)
    noise_before = -torch.expm1(gather(schedule.log_abar, t - 1))
    from_noisy = per_sample(sqrt_a * noise_before / noise_now, z_t)  # A
    from_clean = per_sample(step_noise / noise_now, z_t)  # B
    c_t = _weighted_sum(schedule, schedule.w, t, {schedule.anchor: z0, **e}, z_t)
    mean = from_noisy * (z_t - per_sample(sqrt_a, z_t) * c_t) + from_clean * signal(schedule, z0, t - 1, e)
    return mean, per_sample(step_noise * noise_before / noise_now, z_t)


def noise_std(log_signal: Tensor) -> Tensor:
    """sqrt(1 - exp(log_signal)), without cancellation where exp(log_signal) is near 1."""
    return torch.sqrt(-torch.expm1(log_signal))


def _weighted_sum(
    schedule: NoiseSchedule, tables: Mapping[str, Tensor], t: Tensor, e: Mapping[str, Tensor], z: Tensor
) -> Tensor:
    """sum_i tables[i][t] e_i, shaped like z."""
    for name in e:
        if name not in schedule.modalities:
            raise ValueError(
                f"e has an encoding of {name!r}, expected names among {', '.join(schedule.modalities)}; "
                "add it to the schedule's modalities or leave it out."
            )
    total = torch.zeros_like(z)
    for name, encoding in e.items():
        if name in schedule.weighted:
            total = total + per_sample(gather(tables[name], t), z) * encoding
    return total
