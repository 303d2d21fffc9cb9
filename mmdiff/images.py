"""Pictures: opened, made upright RGB, cut to squares, turned into tensors and back, holes filled smoothly."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

SWEEPS = 32  # of relaxation in `smooth_fill`, which starts from a guess that is close already
ORIENTATION = 0x0112  # EXIF tag; TURNS has its values and what makes such a photo upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(value: Any, what: str) -> Image.Image:
    """PIL image, uint8 array, path or file -> loaded PIL image.

    Raises ValueError for anything else, calling it ``what``.
    """
    if value is None:
        raise ValueError(f"no {what} was given; give a picture, an array or the path of a file.")
    if isinstance(value, np.ndarray):
        channels = value.shape[2:] in ((), (3,), (4,))
        if value.ndim < 2 or not channels or value.size == 0 or value.dtype != np.uint8:
            raise ValueError(
                f"the {what} is an array of shape {value.shape} and type {value.dtype}; "
                "give (H, W, 3), (H, W, 4) or (H, W) of type uint8."
            )
        return Image.fromarray(value)
    shown = repr(value) if isinstance(value, (str, Path)) else "what was given"
    try:
        image = value if isinstance(value, Image.Image) else Image.open(value)
        image.load()
    except FileNotFoundError:
        raise ValueError(f"no file at {shown}; give the path of an existing {what}.") from None
    except Exception:
        raise ValueError(f"{shown} could not be read as a {what}; give a PNG, JPEG or WebP file.") from None
    if 0 in image.size:
        raise ValueError(f"the {what} has no pixels ({image.width} x {image.height}); give another one.")
    return image


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The picture as a file of this form; the options are those of `Image.save`."""
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def decode_cell(cell: Any) -> Image.Image:
    """An image cell of a Parquet file ({"bytes": ..., "path": ...}) or a PIL image -> PIL image."""
    if isinstance(cell, dict):
        cell = io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]
    return open_image(cell, "picture")


def read_known_pixels(path: str | Path, size: int) -> np.ndarray:
    """A black-and-white picture -> (size, size) bool, True where it is white; cut like the photo.

    Raises ValueError if it cannot be read.
    """
    picture = to_rgb(open_image(path, "known-pixels picture")).convert("L")
    return np.asarray(nearest_square(picture, size)) > 127


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of 8 bits a channel; transparency becomes white, 16 bits become 8.

    Raises ValueError for floating-point pixels, whose range is unknown.
    """
    image = upright(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; give whole ones of 8 or 16 bits.")
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; None if it is upright."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # metadata can be damaged in many ways while the pixels are good
        return None


def square(image: Image.Image, size: int) -> Image.Image:
    """Upright RGB, cut to the central square and resized to size x size; ValueError as of `to_rgb`."""
    image = to_rgb(image)
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def nearest_square(image: Image.Image, size: int) -> Image.Image:
    """The central square, resized to size x size by the nearest pixel: class numbers have no mean."""
    return ImageOps.fit(image, (size, size), Image.Resampling.NEAREST)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(pixels: Tensor | np.ndarray) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded to the nearest level."""
    array = np.asarray(pixels.detach().cpu() if isinstance(pixels, Tensor) else pixels, dtype=np.float32)
    levels = np.clip(np.rint((array + 1) * 127.5), 0, 255).astype(np.uint8)
    return np.moveaxis(levels, -3, -1)


def smooth_fill(photos: Tensor, known: Tensor) -> Tensor:
    """Photos with every hole filled from its border, an approximate solution of the Laplace equation.

    A pyramid makes a coarse guess (pull-push, Gortler et al. 1996), then each hidden pixel is replaced by the
    mean of its four neighbours, `SWEEPS` times. Known pixels stay, hidden ones have no influence, and a photo
    without a known pixel becomes zero.

    Args:
        photos: (B, C, H, W). known: (B, 1, H, W) of 0 and 1.
    """
    known = known.to(photos.dtype)
    true = photos * known
    filled = torch.where(known > 0, true, _pull_push(true, known))
    for _ in range(SWEEPS):
        padded = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        beside = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
        above = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
        filled = torch.where(known > 0, true, (beside + above) / 4)
    return filled


def _pull_push(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of known pixels, each over the smallest cells of the pyramid that hold some.

    ``values`` are multiplied by their ``weights``, which are in [0, 1].
    """
    height, width = values.shape[-2:]
    if height == width == 1:
        return values / weights.clamp(min=1e-8)
    pooled = [F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (values, weights)]
    coarse = F.interpolate(_pull_push(*pooled), (height, width), mode="bilinear", align_corners=False)
    return values + (1 - weights) * coarse
