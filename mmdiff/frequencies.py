"""Spatial frequencies of a picture: which of them can be known under how much noise, and weights after that.

Under much noise only the coarse frequencies of a photo can be known, a few numbers of thousands, and the
squared error is almost all of what nobody can know: its gradient is noise, in which shapes drown. Weights on
the error of each frequency change nothing about the best prediction, the conditional mean, which minimises
the expected square of every frequency by itself; they change what a training step hears.
"""

import math

import torch
from torch import Tensor


def cosine_matrix(side: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II) of ``side`` numbers, (side, side)."""
    places = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi / side * (places + 0.5) * places[:, None]) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def cosine_transform(x: Tensor) -> Tensor:
    """Coefficients of pictures (..., side, side), the coarse ones first; sums of squares stay."""
    matrix = cosine_matrix(x.shape[-1]).to(x)
    return matrix @ x @ matrix.T


def known_share(level: Tensor, side: int) -> Tensor:
    """Share of each frequency's variance that the best linear denoiser recovers: (B,) -> (B, side, side).

    Photos, and encodings that keep their places, have about 1 / (1 + f^2) of variance at frequency f (Field
    1987), here scaled to a mean of 1, the variance of encodings.
    """
    places = torch.arange(side, device=level.device)
    variance = 1 / (1.0 + places**2 + places[:, None] ** 2)
    return torch.sigmoid(level[:, None, None] + (variance / variance.mean()).log())


def frequency_weights(level: Tensor, side: int, share: float) -> Tensor:
    """Weights of squared errors by frequency, (B, side, side), at levels (B,).

    They leave the total error of the best linear denoiser as it is, so that no level gains over others. Its
    error at each frequency is variance (1 - known) = known exp(-level), which is why `known` alone scales.

    share: 0 to 1, of the error that is weighed in proportion to `known_share`; the rest has a weight of 1.
    """
    known = known_share(level, side)
    scale = known.sum((1, 2), keepdim=True) / known.square().sum((1, 2), keepdim=True)
    return 1 - share + share * scale * known
