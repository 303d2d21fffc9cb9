"""A CLIP space for the embedding modality, through open_clip: pretrained, or a tiny model of our own."""

from mmdiff.clip.embedder import ClipEmbedder

__all__ = ["ClipEmbedder"]
