"""The anchor: the first modality of a model, a photo that may be known in part."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.images import smooth_fill
from mmdiff.modalities.base import Modality


class AnchorModality(Modality):
    """RGB photos in [-1, 1] of which any set of pixels may be known (an inpainting mask).

    The model asks its first modality which entries of Z depend on ``known`` pixels, (B, 1, H, W) of 0 and 1.
    These methods are right where an entry of Z depends on the pixels of its own cell alone, and where the
    head's output, folded into patches, estimates the encoding.

    Attributes:
        fold: positions of the head's output along a side of a patch.
    """

    dense = True
    fold: int

    def folded(self, raw: Tensor) -> Tensor:
        """Head output (B, head_channels, H / head_stride, W / head_stride) -> (B, z_channels, h, w)."""
        return F.pixel_unshuffle(raw, self.fold)

    def decode(self, z: Tensor) -> Tensor:
        return self.predict(F.pixel_shuffle(z, self.fold))

    def coverage(self, known: Tensor) -> Tensor:
        """Share of each entry's cell that is known: (B, z_channels, h, w) in [0, 1]."""
        cells = F.avg_pool2d(known, self.stride) if self.stride > 1 else known
        return self.folded(cells.expand(-1, self.head_channels, -1, -1))

    def visible(self, known: Tensor) -> Tensor:
        """Entries of `encode_known` that the network sees: (B, z_channels, h, w) bool."""
        return self.coverage(known) > 0

    def determined(self, known: Tensor) -> Tensor:
        """Entries of Z that depend on known pixels alone: (B, z_channels, h, w) bool."""
        return self.coverage(known) > 0

    def encode_known(self, x: Tensor, known: Tensor, whole: Tensor) -> Tensor:
        """Encoding (B, z_channels, h, w) of the known pixels of photos x (B, 3, H, W).

        ``whole`` is the encoding of all pixels. Entries that are not `visible` may have any value.
        """
        return whole

    def completed(self, photos: Tensor, made: Tensor, known: Tensor) -> Tensor:
        """The photos where they are ``known`` (B, 1, H, W) bool, elsewhere what was ``made``, without a seam.

        A prediction differs a little from the known pixels around a hole, so that pasting them shows an edge.
        The difference is continued smoothly into the hole: seamless cloning by a membrane (Perez et al. 2003;
        Farbman et al. 2009). All photos are (B, 3, H, W) in [-1, 1].
        """
        seamless = (made + smooth_fill(photos - made, known.float())).clamp(-1, 1)
        return torch.where(known, photos, seamless)
