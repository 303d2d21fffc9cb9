"""Choice of the device that everything runs on."""

from __future__ import annotations

import torch


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU where there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({error}); try 'auto' or 'cpu'.") from None
    return torch.device(name)
