"""`Skip`: a measurement that the data, the model or the installation does not allow."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Skip(ValueError):
    """Why something cannot be measured here."""


def or_reason(measure: Callable[[], T]) -> T | dict[str, str]:
    """What ``measure`` returns, or {"skipped": reason} if it raises `Skip`."""
    try:
        return measure()
    except Skip as reason:
        return {"skipped": str(reason)}
