"""Where the modalities' encodings lie in Z: in channels of their own, or all in the same ones."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OwnChannels(nn.Module):
    """Every modality has channels of Z to itself, one after the other.

    sizes: name -> number of channels of its encoding. total: channels of Z.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.total = sum(sizes.values())
        self.offsets: dict[str, int] = {}
        for name in sizes:
            self.offsets[name] = sum(sizes[n] for n in self.offsets)

    def place(self, name: str, encoding: Tensor) -> Tensor:
        """(B, sizes[name], h, w) -> (B, total, h, w), zero in the channels of the others."""
        before = self.offsets[name]
        after = self.total - before - self.sizes[name]
        return F.pad(encoding, (0, 0, 0, 0, before, after))

    def take(self, name: str, z: Tensor) -> Tensor:
        """The channels of ``name``: (B, total, h, w) -> (B, sizes[name], h, w)."""
        return z[:, self.offsets[name] : self.offsets[name] + self.sizes[name]]


class SharedChannels(nn.Module):
    """All modalities overlap in as many channels as the largest of them has.

    The first, the anchor, lies there as it is; every other one is turned by a fixed random map with
    orthonormal columns, which keeps its norm and can be undone where nothing overlaps.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.total = max(sizes.values())
        generator = torch.Generator().manual_seed(0)
        for i, (name, size) in enumerate(sizes.items()):
            columns = torch.randn(self.total, size, generator=generator, dtype=torch.float64)
            columns = torch.eye(self.total, size) if i == 0 else torch.linalg.qr(columns)[0].float()
            self.register_buffer(f"map_{name}", columns)

    def place(self, name: str, encoding: Tensor) -> Tensor:
        """(B, sizes[name], h, w) -> (B, total, h, w)."""
        return torch.einsum("zc,bchw->bzhw", self.get_buffer(f"map_{name}"), encoding)

    def take(self, name: str, z: Tensor) -> Tensor:
        """What of z lies along the map of ``name``: (B, total, h, w) -> (B, sizes[name], h, w)."""
        return torch.einsum("zc,bzhw->bchw", self.get_buffer(f"map_{name}"), z)


CHANNELS: dict[str, type[OwnChannels] | type[SharedChannels]] = {
    "own": OwnChannels,
    "shared": SharedChannels,
}
