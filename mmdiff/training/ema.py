"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn

from mmdiff.training.processes import local


class EMA:
    """Keeps ``model``, a frozen copy whose parameters are running averages; buffers are copied.

    The decay after k updates is min(decay, (1 + k) / (10 + k)), which soon forgets the initial weights. If
    both models are sharded in the same way, each process averages its own shards.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), but is {decay}; 0.999 is a good start.")
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move the average towards ``model``; ``updates`` is the number of updates before this one."""
        decay = min(self.decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(_weights(self.model), _weights(model), 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


def _weights(model: nn.Module) -> list[Tensor]:
    return [local(p.detach()) for p in model.parameters()]
