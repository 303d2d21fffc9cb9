"""Classifier-free guidance: a denoiser made of several that are told more and less."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmdiff.samplers import Denoiser, Prediction


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """unconditional + scale * (conditional - unconditional) (Ho & Salimans 2022), a case of `composed`.

    scale 1 is off and returns `conditional` itself; above 1 what is given is followed more closely.
    """
    return composed(conditional, [(unconditional, scale)])


def composed(conditional: Denoiser, directions: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """conditional + sum_i (s_i - 1) (conditional - without_i), on z_0 and on every e.

    Each direction is (without_i, s_i), where without_i is not told of a part i of what is given. Its
    difference from `conditional` points along the gradient of log p(x_i | z_t, the rest), so the samples
    follow p(z_t | all) prod_i p(x_i | z_t, the rest)^(s_i - 1). This is the composition of Liu et al. (2022)
    with differences from all conditions in place of differences from none: at scales of 1 it is exactly the
    conditional, also for conditions that depend on each other, which a sum of single ones counts twice.

    A scale of 1 costs nothing, any other runs every sample through the network once more a step.
    `combined` says how the predictions are put together.
    """
    directions = [(without, scale) for without, scale in directions if scale != 1]
    if not directions:
        return conditional

    def denoise(z_t: Tensor, t: Tensor) -> Prediction:
        return combined(conditional(z_t, t), [(without(z_t, t), scale) for without, scale in directions])

    return denoise


def combined(told: Prediction, directions: Sequence[tuple[Prediction, float]]) -> Prediction:
    """told + sum_i (s_i - 1) (told - free_i) of directions (free_i, s_i), on z_0 and on every e.

    As the implied noise is linear in z_0 and e, guiding them is guiding eps_hat. x is that of `told`. A
    modality whose encoding all predictions share, such as the true one, keeps it exactly.
    """
    z0, e = torch.zeros_like(told.z0), {name: torch.zeros_like(v) for name, v in told.e.items()}
    for free, scale in directions:
        z0 = z0 + (scale - 1) * (told.z0 - free.z0)
        e = {name: v + (scale - 1) * (told.e[name] - free.e[name]) for name, v in e.items()}
    return replace(told, z0=told.z0 + z0, e={name: told.e[name] + v for name, v in e.items()})
