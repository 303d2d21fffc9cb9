"""Trainers of the compared systems: what every example shows the network, and in what it has a loss.

All of them train the same network, with a level for every modality. What a system does not use is taken away
from its examples and ignored in all of them, so systems have equally many parameters and share their weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import torch
from torch import Tensor

from mmdiff.config import TrainConfig
from mmdiff.data.examples import Examples
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.schedule import LEVEL_MIN
from mmdiff.training.masking import chance, per_pixel
from mmdiff.training.objective import LevelDraw
from mmdiff.training.trainer import Trainer

DROPPED = 0.1  # share of the examples of class-conditional diffusion without their label, for guidance


class EveryExample(Trainer):
    """Every example has a loss: where all that it has would be given, its photo is to be generated.

    Modalities that none of the examples has are always ignored.
    """

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> LevelDraw:
        draw = super().draw(examples, rows, generator, augment)
        unused = [
            i for i, name in enumerate(self.model.names) if not self.batches.examples.present[name].any()
        ]
        flags = draw.flags.clone()
        flags[:, unused] = ABSENT
        draw = self.changed(dataclasses.replace(draw, flags=flags), generator)
        idle = ~carries_a_loss(draw)
        flags = draw.flags.clone()
        flags[:, 0] = flags[:, 0].masked_fill(idle, UNKNOWN)
        return dataclasses.replace(draw, flags=flags, known=draw.known.masked_fill(per_pixel(idle), 0.0))

    def changed(self, draw: LevelDraw, generator: torch.Generator) -> LevelDraw:
        """What the system trains on in place of the draw of ours."""
        return draw


class Reconstruction(EveryExample):
    """Everything in one call: what is not given is noise alone, and no diffusion is left."""

    def changed(self, draw: LevelDraw, generator: torch.Generator) -> LevelDraw:
        return dataclasses.replace(draw, levels=torch.full_like(draw.levels, LEVEL_MIN))


class MaskedAutoencoder(Reconstruction):
    """The same with 75 % of the patches hidden in every photo (He et al. 2022)."""

    def changed(self, draw: LevelDraw, generator: torch.Generator) -> LevelDraw:
        model = self.config.model
        known = draw_known_patches(len(draw.flags), model.image_size, model.patch_size, generator)
        return dataclasses.replace(super().changed(draw, generator), known=known)


class ClassConditional(EveryExample):
    """Photos of labels, which are always given, but for a tenth that is dropped (Ho and Salimans 2022)."""

    def changed(self, draw: LevelDraw, generator: torch.Generator) -> LevelDraw:
        label = self.model.names.index("label")
        dropped = chance(DROPPED, len(draw.flags), generator)
        flags = torch.full_like(draw.flags, ABSENT)
        flags[:, 0] = UNKNOWN
        flags[:, label] = torch.where(draw.present[:, label] & ~dropped, KNOWN, ABSENT)
        return dataclasses.replace(draw, flags=flags, known=torch.zeros_like(draw.known))


class NoisyClassifier(EveryExample):
    """p(label | z_t) of noisy photos, for classifier guidance (Dhariwal and Nichol 2021).

    Its configuration gives the photo no weight in the loss.
    """

    def changed(self, draw: LevelDraw, generator: torch.Generator) -> LevelDraw:
        label = self.model.names.index("label")
        flags, levels = torch.full_like(draw.flags, ABSENT), draw.levels.clone()
        flags[:, [0, label]] = UNKNOWN
        levels[:, label] = LEVEL_MIN
        return dataclasses.replace(draw, flags=flags, levels=levels, known=torch.zeros_like(draw.known))


def carries_a_loss(draw: LevelDraw) -> Tensor:
    """(B,) bool, examples with a prediction that is scored: of a modality, or of a hidden pixel."""
    supervised = draw.supervised
    supervised[:, 0] &= (draw.known < 1).flatten(1).any(1)
    return supervised.any(1)


def draw_known_patches(batch: int, size: int, patch: int, generator: torch.Generator) -> Tensor:
    """Inpainting masks (B, 1, H, W) float in which a random quarter of the patches is known."""
    side = size // patch
    order = torch.rand(batch, side**2, generator=generator, device=generator.device).argsort(1).argsort(1)
    known = (order < round(side**2 / 4)).view(batch, 1, side, side).float()
    return known.repeat_interleave(patch, 2).repeat_interleave(patch, 3)


def restricted(examples: Examples, used: Collection[str]) -> Examples:
    """The examples without the modalities that a system does not use."""
    present = {name: has if name in used else torch.zeros_like(has) for name, has in examples.present.items()}
    return dataclasses.replace(examples, present=present)


def fine_tuned(trainer: Trainer, config: TrainConfig, examples: Examples) -> Trainer:
    """A training of ``config`` that starts from the averaged weights of another one.

    Raises RuntimeError if their networks differ.
    """
    tuned = EveryExample(config, examples, trainer.device)
    for model in (tuned.model, tuned.ema.model):
        model.load_state_dict(trainer.ema.model.state_dict())
    while tuned.images < config.optim.images:
        tuned.train_step()
    return tuned
