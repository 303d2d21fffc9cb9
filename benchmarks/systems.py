"""Trainers of those compared systems that differ from ours by more than a configuration."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mmdiff.data.examples import Examples
from mmdiff.network.conditioning import KNOWN
from mmdiff.training.masking import Draw
from mmdiff.training.trainer import Trainer


class OneCall(Trainer):
    """All examples have t = T: z_t is noise, and one call of the network predicts everything."""

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> Draw:
        draw = super().draw(examples, rows, generator, augment)
        return dataclasses.replace(draw, t=torch.full_like(draw.t, self.config.model.num_steps))


class MaskedAutoencoder(OneCall):
    """The same with 75 % of the patches hidden in every image (He et al. 2022)."""

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> Draw:
        draw, model = super().draw(examples, rows, generator, augment), self.config.model
        known = draw_known_patches(len(rows), model.image_size, model.patch_size, generator)
        complete = (draw.flags[:, 0] == KNOWN)[:, None, None, None]
        return dataclasses.replace(draw, known=torch.where(complete, draw.known, known))


def draw_known_patches(batch: int, size: int, patch: int, generator: torch.Generator) -> Tensor:
    """Inpainting masks (B, 1, H, W) float in which a random quarter of the patches is known."""
    side = size // patch
    order = torch.rand(batch, side**2, generator=generator, device=generator.device).argsort(1).argsort(1)
    known = (order < round(side**2 / 4)).view(batch, 1, side, side).float()
    return known.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
