"""The patch discriminator: says of every part of a photo whether it looks real (Isola et al. 2017)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (48, 96, 192)


class PatchDiscriminator(nn.Module):
    """Photos (B, 3, H, W) in [-1, 1] -> scores (B, 1, H / 8, W / 8), high where they look real."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers.append(nn.Conv2d(inputs, outputs, 4, 2, padding=1))
            if inputs > 3:
                layers.append(nn.GroupNorm(8, outputs))
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, photos: Tensor) -> Tensor:
        return self.layers(photos)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Loss of the discriminator (Lim & Ye 2017) from its scores of real and of decoded photos, any shape."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def combined_gradient(photos: Tensor, reconstruction: Tensor, adversarial: Tensor, share: float) -> Tensor:
    """g + share |g| / |h| h, where g and h are gradients of two losses at decoded photos (B, 3, H, W).

    Balancing the two at the pixels keeps the adversarial term from dominating the reconstruction, whatever
    the scale of the discriminator's scores (Esser et al. 2021 do so at the last layer).

    Args:
        photos: decoded ones, which require gradients. reconstruction, adversarial: scalar losses of them.
    """
    (g,) = torch.autograd.grad(reconstruction, photos)
    (h,) = torch.autograd.grad(adversarial, photos)
    return g + share * g.norm() / h.norm().clamp(min=1e-12) * h
