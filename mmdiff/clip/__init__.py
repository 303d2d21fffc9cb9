"""A CLIP space for the embedding modality, through open_clip: pretrained, or a tiny model of our own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmdiff.clip.embedder import ClipEmbedder

__all__ = ["ClipEmbedder"]


def __getattr__(name: str) -> Any:
    """Import open_clip, which takes seconds, only where the embedder is used."""
    if name != "ClipEmbedder":
        raise AttributeError(f"module 'mmdiff.clip' has no attribute {name!r}")
    from mmdiff.clip.embedder import ClipEmbedder

    return ClipEmbedder
