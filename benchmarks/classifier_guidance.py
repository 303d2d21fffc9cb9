"""Classifier guidance (Dhariwal and Nichol 2021): diffusion of photos, steered by a classifier's gradient.

The classifier reads noisy photos. As E[z_0 | z_t] = (z_t + (1 - abar) grad log p(z_t)) / sqrt(abar) and
log p(z_t | y) = log p(z_t) + log p(y | z_t) + const, a prediction moves by
scale (1 - abar) / sqrt(abar) grad log p(y | z_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mmdiff.forward_process import per_sample
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, UNKNOWN
from mmdiff.samplers import Encodings, Sampler
from mmdiff.schedule import LEVEL_MIN, NoiseSchedule

Scores = Callable[[Tensor, int], Tensor]  # z (B, *Z), t -> log p(y | z_t), (B,)


def guided(
    schedule: NoiseSchedule,
    sampler: Sampler,
    denoise: Callable[[Tensor, int], Encodings],
    scores: Scores,
    scale: float,
    most: float = math.inf,
) -> Encodings:
    """The clean encodings at the end of a run of the sampler.

    Args:
        denoise: (z_t, t) -> clean encodings without a condition. scores: log p(y | z_t), differentiable in z.
        scale: of the gradient; 1 samples p(z | y) where denoiser and classifier are exact.
        most: largest value of z_0, to which it is held, as Dhariwal and Nichol do with pixels.
    """
    z, t, clean = next(sampler)
    while t > 0:
        predicted = dict(denoise(z, t))
        move = score_gradient(scores, z, t) * _gain(schedule, t, scale, z)
        predicted[schedule.anchor] = (predicted[schedule.anchor] + move).clamp(-most, most)
        z, t, clean = sampler.send(predicted)
    return clean


def score_gradient(scores: Scores, z: Tensor, t: int) -> Tensor:
    """The gradient of log p(y | z_t) in z_t, (B, *Z)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(scores(z, t).sum(), z)
    return gradient


def _gain(schedule: NoiseSchedule, t: int, scale: float, z: Tensor) -> Tensor:
    """scale (1 - abar) / sqrt(abar), which float64 holds at every t."""
    log_abar = schedule.log_abar[t]
    gain = -scale * torch.expm1(log_abar) * torch.exp(-0.5 * log_abar)
    return per_sample(gain.expand(len(z)), z)


def noisy_scores(model: MultiModalDiffusion, schedule: NoiseSchedule, labels: Tensor) -> Scores:
    """log p(label | z_t) of a network that `benchmarks.systems.NoisyClassifier` has trained; labels (B,)."""

    def scores(z: Tensor, t: int) -> Tensor:
        return log_probabilities(model, schedule, z, t).gather(1, labels[:, None].to(z.device))[:, 0]

    return scores


def log_probabilities(model: MultiModalDiffusion, schedule: NoiseSchedule, z: Tensor, t: int) -> Tensor:
    """log p(label | z_t) of every class, (B, K), from the photo's channels of z (B, *Z) alone."""
    label, size = model.names.index("label"), model.config.image_size
    flags = torch.full((len(z), len(model.names)), ABSENT, device=z.device)
    flags[:, [0, label]] = UNKNOWN
    levels = torch.full((len(z), len(model.names)), LEVEL_MIN, dtype=z.dtype, device=z.device)
    levels[:, 0] = float(schedule.level[model.anchor][t])
    seen = model.condition({}, flags, torch.zeros(len(z), 1, size, size, device=z.device))
    return model(z, levels, seen)["label"].log_softmax(1)
