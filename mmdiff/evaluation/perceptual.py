"""LPIPS (Zhang et al. 2018), where its package and the weights of its network are on this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.evaluation.core import Skip

WEIGHTS = "alexnet-owt-7be5be79.pth"


def load_lpips(device: torch.device, batch: int = 64) -> Callable[[Tensor, Tensor], Tensor]:
    """A distance of pictures (n, 3, H, W) in [-1, 1] from others: (n,) on the CPU, 0 where they look alike.

    Nothing is downloaded. Raises `Skip` with the reason where it is not installed.
    """
    try:
        import lpips
    except ImportError:
        raise Skip("the package lpips is not installed") from None
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        raise Skip(f"LPIPS needs the weights of AlexNet from torchvision, {WEIGHTS}, in torch's hub folder")
    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    @torch.no_grad()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(a.split(batch), b.split(batch), strict=True)
        return torch.cat([network(x.to(device), y.to(device)).flatten().cpu() for x, y in pairs])

    return distance
