"""Figures found in a tree of results by dotted paths, such as "tasks.holes.blocks.psnr"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]


def look_up(tree: Any, path: str) -> Any:
    """The value at a path, None if there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def number(tree: Any, path: str) -> float | None:
    """The number at a path, None if there is none. Raises ValueError for anything else.

    `mmdiff.evaluate` writes {"skipped": reason} for a figure that it cannot measure; that counts as none.
    """
    value = look_up(tree, path)
    if isinstance(value, dict) and "skipped" in value:
        return None
    if value is None or isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a number")


def group(tree: Any, path: str) -> dict[str, Any]:
    """The dictionary at a path, empty if there is none. Raises ValueError for anything else."""
    value = look_up(tree, path)
    if value is None or isinstance(value, dict):
        return value or {}
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a group of figures")


def examples(results: Results, path: str) -> int:
    """Number of examples behind a figure: the nearest "n" above it, else that of the whole evaluation."""
    keys = path.split(".")
    for end in range(len(keys) - 1, 1, -1):
        n = number(results, ".".join([*keys[:end], "n"]))
        if n is not None:
            return int(n)
    return int(number(results, "examples") or 0)
