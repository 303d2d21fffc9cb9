"""Photos as the latents of an autoencoder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.autoencoder.network import STRIDE, WIDTHS, Autoencoder
from mmdiff.images import smooth_fill
from mmdiff.modalities.base import checked_positive
from mmdiff.modalities.image import ImageModality


class LatentImageModality(ImageModality):
    """RGB photos in [-1, 1]; Z holds the latents of `mmdiff.autoencoder`, folded like pixels.

    The head predicts latents, which the autoencoder decodes only where pixels are needed. It is frozen and
    saved with the model's weights, so that a checkpoint is complete.

    Args:
        autoencoder: folder of the trained autoencoder beside the checkpoints, read when training starts.
        latent_channels, latent_widths: of that autoencoder.
        sigma: standard deviation of the Gaussian around the decoded photo, in units of [-1, 1].
    """

    frozen_encoder = True
    KIND = "latent_image"  # in configurations; `kind` stays "image"

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
        for width in (latent_channels, *latent_widths):
            checked_positive(name, "a number of latent channels", width, 1024)
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

    def visible(self, known: Tensor) -> Tensor:
        # Cells inside a hole, too: they encode a smooth guess, made from known pixels only.
        coverage = self.coverage(known)
        return (coverage.amax((1, 2, 3), keepdim=True) > 0).expand_as(coverage)

    def determined(self, known: Tensor) -> Tensor:
        # An encoding also depends on the cells around its own, and those may hold a guess.
        unknown = F.max_pool2d(F.max_pool2d(1 - known, self.stride), 3, stride=1, padding=1)
        return self.folded((1 - unknown).expand(-1, self.head_channels, -1, -1)) > 0

    def encode_known(self, x: Tensor, known: Tensor, whole: Tensor) -> Tensor:
        shares = known.flatten(1).mean(1)
        holed = ((shares > 0) & (shares < 1)).nonzero()[:, 0]
        if not len(holed):
            return whole
        return whole.index_copy(0, holed, self.encode(smooth_fill(x[holed], known[holed])))

    def predict(self, raw: Tensor) -> Tensor:
        latents = raw.to(self.autoencoder.decoder[0].weight.dtype)
        return self.autoencoder.decode(latents).float().clamp(-1, 1)

    def in_bfloat16(self) -> LatentImageModality:
        fast = copy.deepcopy(self)
        fast.autoencoder.to(torch.bfloat16, memory_format=torch.channels_last)
        return fast

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.folded(raw)

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return (self.folded(raw) - self.encode(x)).square().mean((1, 2, 3))

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return super().nll(self.predict(raw), x)


def _as_buffers(module: nn.Module) -> nn.Module:
    """The module with buffers instead of parameters, so that nothing trains, averages or shards them."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module.eval()
