"""The training objective: the reweighted bound by name, "L1" of the anchor and "L2/<name>" of the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.frequencies import cosine_transform
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import Conditioning


@dataclass(frozen=True)
class Weights:
    """Of squared errors: by level (B, N), and of the anchor's by frequency (B, side, side), None: 1 each."""

    level: Tensor
    frequency: Tensor | None = None


def level_weight(level: Tensor, cap: float) -> Tensor:
    """min(SNR + 1, cap): min-SNR (Hang et al. 2023) that keeps some weight where SNR is near zero."""
    return (level.exp() + 1).clamp(max=cap)


def training_losses(
    model: MultiModalDiffusion,
    raw: Mapping[str, Tensor],
    x: Mapping[str, Tensor],
    z0: Tensor,
    condition: Conditioning,
    weights: Weights,
    supervised: Tensor,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The reweighted bound of a batch, each term a scalar: "L1" (z_0) and "L2/<name>" of every other
    modality.

    Absent and given modalities have no term, and in a photo with holes only the holes have a loss. Terms are
    averages over the examples they apply to, so that a rare annotation keeps its weight.

    Args:
        z0: (B, *Z), encoding of the anchor in ``x``. weights: of the errors of what is regressed.
        supervised: (B, N) bool, which predictions have a loss.
        counts: (N,), supervised examples of each modality in the whole batch that these are part of, so that
            terms of all parts add up to those of the whole. None: these are the whole batch.
    """
    terms: dict[str, Tensor] = {}
    counts = supervised.sum(0) if counts is None else counts
    for i, (name, modality) in enumerate(model.modalities.items()):
        if name == model.anchor:
            error = _anchor_error(model, raw[name], z0, condition.known_pixels, weights.frequency)
        else:
            error = modality.loss(raw[name], x[name])
        if not modality.classes:
            error = weights.level[:, i] * error
        key = "L1" if name == model.anchor else f"L2/{name}"
        terms[key] = torch.where(supervised[:, i], error, 0).sum() / counts[i].clamp(min=1)
    return terms


def _anchor_error(
    model: MultiModalDiffusion, raw: Tensor, z0: Tensor, known_pixels: Tensor, frequencies: Tensor | None
) -> Tensor:
    """Mean squared error of z_0 (B,), of the whole photo: a small hole has few entries and little weight."""
    anchor = model.modalities[model.anchor]
    hidden = ~anchor.determined(known_pixels)
    error = (anchor.folded(raw) - model.channels.take(model.anchor, z0)) * hidden
    if frequencies is None:
        return error.square().mean((1, 2, 3))
    coefficients = cosine_transform(F.pixel_shuffle(error.float(), anchor.fold))
    return (coefficients.square() * frequencies[:, None]).mean((1, 2, 3))


def total_loss(model: MultiModalDiffusion, terms: Mapping[str, Tensor]) -> Tensor:
    """sum_i lambda_i times the term of modality i."""
    weights = {m.name: m.loss_weight for m in model.config.modalities}
    anchor = weights.pop(model.anchor)
    return anchor * terms["L1"] + sum(weight * terms[f"L2/{name}"] for name, weight in weights.items())
