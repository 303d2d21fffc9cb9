"""What the denoiser sees of a request, in the space Z, for a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

UNKNOWN, KNOWN, ABSENT = 0, 1, 2  # flags: generated, given, ignored


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser sees beside z_t.

    Attributes:
        e: name -> (B, C, h, w), clean encodings; zero where a modality is not given.
        flags: (B, N) long, `UNKNOWN`, `KNOWN` or `ABSENT` for each modality in order.
        known_pixels: (B, 1, H, W) float, 1 where the anchor's pixel is given.
        pixels: (B, 4, H, W), known pixels and their map for the reader; None if there are none.
        read: the reader's features of them, if they were computed before.
        hidden: name -> (B, C, h, w), encodings that z_t carries and that a guidance branch must not see.
    """

    e: Mapping[str, Tensor]
    flags: Tensor
    known_pixels: Tensor
    pixels: Tensor | None = None
    read: Tensor | None = None
    hidden: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.flags)


# one call of the network: z_t (B, *Z), the levels (B, N) or, of the first edition, one log SNR (B,), and what
# it sees
Call = tuple[Tensor, Tensor, Conditioning]


def joined(calls: Sequence[Call]) -> Call:
    """Several calls as one batch. What one of them lacks is zero there, which means the same.

    Raises ValueError for known pixels that were not read: features can be joined, pixels cannot.
    """
    if len(calls) == 1:
        return calls[0]
    z, log_snr, seen = zip(*calls, strict=True)
    if any(own.pixels is not None for own in seen):
        raise ValueError("known pixels were not read yet; pass model.read(conditioning) to the network.")
    names = dict.fromkeys(name for s in seen for name in s.e)
    zeros = [torch.zeros_like(own) for own in z]
    e = {n: torch.cat([s.e.get(n, zero) for s, zero in zip(seen, zeros, strict=True)]) for n in names}
    flags, known = torch.cat([s.flags for s in seen]), torch.cat([s.known_pixels for s in seen])
    conditioning = Conditioning(e, flags, known, read=_joined_features([s.read for s in seen], zeros))
    return torch.cat(z), torch.cat(log_snr), conditioning


def _joined_features(features: Sequence[Tensor | None], zeros: Sequence[Tensor]) -> Tensor | None:
    shape = next((f.shape[1:] for f in features if f is not None), None)
    if shape is None:
        return None
    blank = [zero.new_zeros(len(zero), *shape) for zero in zeros]
    return torch.cat([none if f is None else f for f, none in zip(features, blank, strict=True)])
