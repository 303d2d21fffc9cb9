"""Photos by way of an autoencoder: Z holds its latents instead of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.autoencoder.network import STRIDE, WIDTHS, Autoencoder
from mmdiff.modalities.image import ImageModality
from mmdiff.smooth_fill import smooth_fill


class LatentImageModality(ImageModality):
    """RGB photos in [-1, 1]; Z holds the latents of `mmdiff.autoencoder`, folded like pixels.

    The head predicts latents, and the autoencoder turns them into pixels where somebody looks at them. It is
    frozen and part of the model's weights, so that a checkpoint needs nothing beside it.

    Args:
        autoencoder: name of the folder that training takes it from, in the folder of the checkpoints.
        latent_channels, latent_widths: of that autoencoder.
        sigma: as for pixels; the Gaussian is around the decoded photo.
    """

    KIND = "latent_image"  # in configurations; to everyone else it is an image

    def __init__(
        self,
        name: str,
        image_size: int,
        patch_size: int,
        autoencoder: str = "autoencoder",
        latent_channels: int = 6,
        latent_widths: Sequence[int] = WIDTHS,
        sigma: float = 0.1,
    ) -> None:
        super().__init__(name, image_size, patch_size, sigma)
        if patch_size % STRIDE:
            raise ValueError(f"{name}: patch_size is {patch_size}; make it a multiple of {STRIDE}.")
        self.stride = self.head_stride = STRIDE
        self.fold = patch_size // STRIDE
        self.source = autoencoder
        self.autoencoder = _as_buffers(Autoencoder(latent_channels, latent_widths))
        self.z_channels = latent_channels * self.fold**2
        self.head_channels = latent_channels

    def train(self, mode: bool = True) -> LatentImageModality:
        """The autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    def load_pretrained(self, folder: Path) -> None:
        try:
            self.autoencoder.take_weights(folder / self.source)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error} Set its options to match.") from None

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        return self.folded(self.autoencoder.encode(x))

    def coverage(self, known: Tensor) -> Tensor:
        cells = F.avg_pool2d(known, self.stride)
        return self.folded(cells.expand(-1, self.head_channels, -1, -1))

    def visible(self, known: Tensor) -> Tensor:
        # In a hole, too: there the encoding is of a smooth guess, from known pixels alone.
        coverage = self.coverage(known)
        return (coverage.amax((1, 2, 3), keepdim=True) > 0).expand_as(coverage)

    def determined(self, known: Tensor) -> Tensor:
        # An encoding looks at what lies around its cell, and there it may be a guess.
        unknown = F.max_pool2d(F.max_pool2d(1 - known, self.stride), 3, stride=1, padding=1)
        return self.folded((1 - unknown).expand(-1, self.head_channels, -1, -1)) > 0

    def encode_known(self, x: Tensor, known: Tensor, whole: Tensor) -> Tensor:
        shares = known.flatten(1).mean(1)
        holed = ((shares > 0) & (shares < 1)).nonzero()[:, 0]
        if not len(holed):
            return whole
        return whole.index_copy(0, holed, self.encode(smooth_fill(x[holed], known[holed])))

    def predict(self, raw: Tensor) -> Tensor:
        return self.autoencoder.decode(raw).clamp(-1, 1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.folded(raw)

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return (self.folded(raw) - self.encode(x)).square().mean((1, 2, 3))

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return super().nll(self.predict(raw), x)


def _as_buffers(module: nn.Module) -> nn.Module:
    """The module with constants in the place of its parameters, which nothing trains, averages or shards."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module.eval()
