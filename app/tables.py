"""Tables of figures, and how figures are looked up in the JSON that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text under a head; `rows[0]` is as long as `head`."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def look_up(tree: Any, path: str) -> Any:
    """What stands at a dotted path, None if there is nothing."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(tree: Any, path: str) -> float | None:
    """The number at a dotted path, None if there is none. Raises ValueError for anything else.

    What `mmdiff.evaluate` could not measure says why, as {"skipped": reason}, and counts as none.
    """
    value = look_up(tree, path)
    if isinstance(value, dict) and "skipped" in value:
        return None
    if value is None or isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a number")


def examples(results: Any, path: str) -> int:
    """How many examples a figure is of: the nearest "n" above it, otherwise all that were measured."""
    keys = path.split(".")
    for end in range(len(keys) - 1, 1, -1):
        n = number(results, ".".join([*keys[:end], "n"]))
        if n is not None:
            return int(n)
    return int(number(results, "examples") or 0)
