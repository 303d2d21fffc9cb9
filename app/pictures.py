"""Pictures as bytes, as data URIs and as colours of classes."""

import base64
from typing import Any

import numpy as np
from PIL import Image

from mmdiff.images import encoded


def data_uri(picture: Image.Image, form: str = "PNG", **options: Any) -> str:
    """`encoded` as text that a browser takes for an address."""
    return f"data:image/{form.lower()};base64,{base64.b64encode(encoded(picture, form, **options)).decode()}"


def quick_png(picture: Image.Image, **options: Any) -> str:
    """The data URI of a PNG that is made quickly, not as small as it could be."""
    return data_uri(picture, compress_level=1, **options)


def colour_mask(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class map (H, W) -> palette picture whose pixel values are the class numbers."""
    image = Image.fromarray(mask.astype(np.uint8))  # mode L
    image.putpalette(np.ascontiguousarray(palette, dtype=np.uint8).tobytes())
    return image
