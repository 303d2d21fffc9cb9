"""RePaint (Lugmayr et al. 2022): inpainting by an unconditional model, which never sees the known pixels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.forward_process import gather, noise_std, per_sample, q_sample
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import Encodings, SampleNoise, jump, timesteps
from mmdiff.schedule import NoiseSchedule


@torch.no_grad()
def repaint(
    schedule: NoiseSchedule,
    denoise: Callable[[Tensor, int], Encodings],
    z0: Tensor,
    known: Tensor,
    steps: int,
    resamples: int,
    noise: SampleNoise,
) -> Tensor:
    """Fill the unknown entries of z_0 with an unconditional model: (B, *Z).

    At every time s the known entries are drawn from q(z_s | z_0) and the others from the model; noise is then
    added back and the jump repeated, which makes the two consistent. It takes ``steps * resamples`` calls of
    the network.

    Args:
        z0: (B, *Z), the true values where ``known`` (B, *Z) bool.
        steps: jumps from T to 0. resamples: repetitions of each jump; 1 never adds noise back.

    Raises:
        ValueError: ``resamples`` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; give at least 1, which makes every jump once.")
    times = timesteps(schedule.num_steps, steps, schedule.spacing)
    z = noise(z0.shape[1:]).to(z0)

    def at(t: int) -> Tensor:
        return torch.full((len(z0),), t, dtype=torch.long, device=z0.device)

    for t, s in zip(times, times[1:], strict=False):
        for k in range(resamples):
            fresh = noise(z0.shape[1:]).to(z0)
            filled = jump(schedule, z, t, s, denoise(z, t), fresh, 1.0)
            true = q_sample(schedule, z0, at(s), {}, noise(z0.shape[1:]).to(z0)) if s else z0
            below = torch.where(known, true, filled)
            if k < resamples - 1:
                z = _noised(schedule, below, at(s), at(t), noise(z0.shape[1:]).to(z0))
        z = below
    return z


def _noised(schedule: NoiseSchedule, z_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw from q(z_t | z_s) for s < t, with the anchor alone: (B, *Z)."""
    kept = gather(schedule.log_abar, t) - gather(schedule.log_abar, s)
    return per_sample(torch.exp(0.5 * kept), z_s) * z_s + per_sample(noise_std(kept), z_s) * noise


@torch.no_grad()
def repainted(ev: Evaluation, photos: Tensor, known: Tensor, steps: int, resamples: int) -> Tensor:
    """The photos (n, 3, H, W), inpainted where not ``known`` (n, H, W) without any conditioning."""
    filled = []
    for rows in torch.arange(len(photos)).split(ev.settings.batch):
        x, hole = photos[rows].to(ev.pipe.device), known[rows, None].float().to(ev.pipe.device)
        noise = SampleNoise(ev.seeds(rows), ev.pipe.device)
        filled.append(_filled(ev.pipe, x, hole, steps, resamples, noise).cpu())
    anchor = ev.pipe.model.modalities[ev.pipe.model.anchor]
    return anchor.completed(photos, torch.cat(filled), known[:, None])


def _filled(
    pipe: Pipeline, x: Tensor, known: Tensor, steps: int, resamples: int, noise: SampleNoise
) -> Tensor:
    model, schedule = pipe.model, pipe.schedule
    z0 = model.encode_given({model.anchor: x}, model.encode({model.anchor: x}), known)[model.anchor]
    anchor = model.modalities[model.anchor]
    determined = model.channels.place(model.anchor, anchor.determined(known).to(z0)) > 0
    denoise = model.denoiser(schedule, model.nothing_given(len(x), x.device, (model.anchor,)))

    def unconditional(z: Tensor, t: int) -> Encodings:
        return denoise(z, t)[0]

    z = repaint(schedule, unconditional, z0, determined, steps, resamples, noise)
    return anchor.decode(model.channels.take(model.anchor, z))
