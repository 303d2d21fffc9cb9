"""The device that everything runs on, and its fast precision."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU where there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({error}); try 'auto' or 'cpu'.") from None
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """float32, bfloat16, or by "auto" bfloat16 where it is fast. Raises ValueError for another name."""
    if name not in PRECISIONS:
        raise ValueError(f"precision is {name!r}; choose among {', '.join(PRECISIONS)}.")
    if name == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    return getattr(torch, name)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32: on GPUs, and on processors with AMX or AVX512_BF16."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda"


@contextmanager
def usual_defaults() -> Iterator[None]:
    """float32 and the CPU for tensors that say nothing else, whatever other code has set as default."""
    dtype, elsewhere = torch.get_default_dtype(), torch.get_default_device().type != "cpu"
    if dtype is torch.float32 and not elsewhere:  # as nearly always; a mode of torch slows every call down
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(dtype)
