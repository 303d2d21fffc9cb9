"""Samplers driven as a script drives them, with everything that happens in a step at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mmdiff.samplers import Encodings, Sampler


@dataclass(frozen=True)
class Driven:
    """One step: from `before` at time t to `z`.

    prediction: of the denoiser. clean: the encodings on which z stands, as the sampler yields them.
    """

    t: int
    before: Tensor
    prediction: Encodings
    z: Tensor
    clean: Encodings


def drive(sampler: Sampler, denoise: Callable[[Tensor, int], Encodings]) -> Iterator[Driven]:
    """The steps of a sampler from where it starts to t = 0, where it must end."""
    z, t, clean = next(sampler)
    assert clean is None
    while t > 0:
        prediction = denoise(z, t)
        before, at = z, t
        z, t, clean = sampler.send(prediction)
        yield Driven(at, before, prediction, z, clean)
    assert next(sampler, None) is None


def final(sampler: Sampler, denoise: Callable[[Tensor, int], Encodings]) -> Tensor:
    """z_0, (B, *Z)."""
    *_, last = drive(sampler, denoise)
    return last.z
