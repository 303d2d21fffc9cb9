"""mmdiff: one diffusion model of several modalities, any subset given, any subset generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mmdiff.pipeline import Output, Pipeline
    from mmdiff.request import Change, Request
    from mmdiff.schedule import NoiseSchedule

_LOCATIONS = {
    "Change": "request",
    "NoiseSchedule": "schedule",
    "Output": "pipeline",
    "Pipeline": "pipeline",
    "Request": "request",
}

__all__ = ["Change", "NoiseSchedule", "Output", "Pipeline", "Request", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used, so that `--help` does not wait for torch."""
    if name not in _LOCATIONS:
        raise AttributeError(f"module 'mmdiff' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"mmdiff.{_LOCATIONS[name]}"), name)
