"""How visitors are told apart, and how many runs all of them may have at a time."""

from typing import Any

MAX_RUNS = 80  # the step engine takes at most 64, and lets 12 more wait


def address_of(visit: Any) -> str:
    """By which visitors are told apart, of a request of Gradio or Starlette; "" if it is not known."""
    return getattr(getattr(visit, "client", None), "host", "")
