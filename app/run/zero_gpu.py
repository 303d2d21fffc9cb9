"""ZeroGPU of Hugging Face Spaces, where a GPU is lent for the length of a call; everywhere else nothing.

There the package `spaces` must be imported before torch, so this module comes before all that imports torch.
A function marked with `gpu` runs in a process of its own: its arguments and what it yields are pickled, what
it closes over (the model) is inherited, and what the caller changes meanwhile does not reach it.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

MAX_SECONDS = 120  # a day's quota of a visitor who has not signed in

ON_ZERO_GPU = (
    os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    and importlib.util.find_spec("spaces") is not None
)
if ON_ZERO_GPU:
    import spaces


def gpu(duration: Callable[..., float]) -> Callable[[F], F]:
    """Marks a function or generator function that needs the GPU.

    Args:
        duration: seconds that a call will take at most, from the same arguments as the function's. ZeroGPU
            ends what takes longer, and serves short calls sooner. It is kept between 1 and `MAX_SECONDS`.

    Returns:
        The decorator: `spaces.GPU` on ZeroGPU; elsewhere one that returns the function itself.
    """
    if not ON_ZERO_GPU:
        return lambda function: function

    def seconds(*args: Any, **kwargs: Any) -> int:
        return min(MAX_SECONDS, max(1, math.ceil(duration(*args, **kwargs))))

    return spaces.GPU(duration=seconds)
