"""Pictures: every one is opened here, made upright RGB, cut to squares, turned into tensors and back.

`read` is the only way in: it bounds memory, looks at the first frame, turns the picture as its EXIF data say,
and notes what it had to assume. Holes are filled smoothly by `smooth_fill`.
"""

import io
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

Image.init()  # or `Image.open` with `formats` would know the commonest only
# without PostScript and the like, which run other programs
KNOWN = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "HEIF")
FORMATS = [name for name in KNOWN if name in Image.OPEN]
MOST_PIXELS = 50_000_000  # of a file; decoded they take 200 MB
COPIES = {"WEBP": 4, "AVIF": 4, "HEIF": 4, "TIFF": 2}  # of the pixels that the decoder holds at once
PROGRESSIVE_COPIES = 2.5  # likewise, as coefficients
LARGE = 2**23  # pixels beyond which a picture is made smaller before anything copies it
WHOLE = "give whole ones of 8 or 16 bits"
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
SIDEWAYS = {TURNS[tag] for tag in (5, 6, 7, 8)}  # those that swap width and height

Size = tuple[int, int]  # width, height


class Unreadable(ValueError):
    """A file that no decoder can read; ``reason`` is what the decoder says."""

    reason: str = ""


class Picture(NamedTuple):
    """A picture as `read` returns it.

    Attributes:
        image: upright and decoded. size: of the upright file, which may be larger.
        notes: sentences on what was assumed. form, mode: of the file, as Pillow names them.
        turned, animated, transparent: whether EXIF data turned it, it has more frames, parts are see-through.
    """

    image: Image.Image
    size: Size
    notes: tuple[str, ...] = ()
    form: str | None = None
    mode: str = ""
    turned: bool = False
    animated: bool = False
    transparent: bool = False


def read(value: Any, what: str, photo: bool = False) -> Picture:
    """PIL image, uint8 array or tensor, bytes, path or file -> its first frame, upright.

    Of more than `LARGE` pixels fewer are kept. A ``photo`` is blended for that and becomes RGB of 8 bits,
    transparent parts white; other pictures keep their mode, and some of their pixels as they are.

    Raises ValueError for anything else and for a file of too many pixels, calling it ``what``; `Unreadable`
    for a file that is damaged or no picture.
    """
    image = _opened(value, what)
    size, notes, animated = image.size, [], _is_animated(image)
    if animated:
        notes.append(f"The {what} has several frames; the first one is used.")
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ()))
    factor = _factor(image)
    if photo and factor > 1 and not isinstance(value, Image.Image):
        image.draft(image.mode, (image.width // factor, image.height // factor))
    _load(image, value, what, size)
    turn, form, mode = turn_of(image), image.format, image.mode
    if photo:
        image, transparent = _rgb(image, what, notes)
        if deep and mode[0] != "I" and 0 < max(high for _, high in image.getextrema()) < 64:
            notes.append(f"The {what} uses few of its 16 bits, so it is nearly black; brighten it first.")
    else:
        kept = (max(1, image.width // factor), max(1, image.height // factor))
        image = image if factor == 1 else image.resize(kept, Image.Resampling.NEAREST)
        transparent = is_transparent(image)
    size = size[::-1] if turn in SIDEWAYS else size
    image = image if turn is None else _turned(image, turn)
    return Picture(image, size, tuple(notes), form, mode, turn is not None, animated, transparent)


def open_image(value: Any, what: str) -> Image.Image:
    """The picture of `read` as it is stored; its notes become warnings."""
    return _with_warnings(read(value, what))


def open_photo(value: Any, what: str = "photo") -> Image.Image:
    """The picture of `read` as RGB; its notes become warnings."""
    return _with_warnings(read(value, what, photo=True))


def cell_source(cell: Any) -> Any:
    """What `read` takes for an image cell of a Parquet file, {"bytes": ..., "path": ...}, or itself."""
    return (cell.get("bytes") or cell.get("path")) if isinstance(cell, dict) else cell


def decode_cell(cell: Any) -> Image.Image:
    """An image cell of a Parquet file ({"bytes": ..., "path": ...}) or a PIL image -> PIL image."""
    return open_image(cell_source(cell), "picture")


def warn(notes: tuple[str, ...]) -> None:
    """Each note as a warning, which Python shows once."""
    for note in notes:
        warnings.warn(note, stacklevel=3)


def to_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor of any device and precision as an array; fractions become float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _with_warnings(picture: Picture) -> Image.Image:
    warn(picture.notes)
    return picture.image


def _opened(value: Any, what: str) -> Image.Image:
    """The picture, whose pixels may be still to be decoded."""
    if value is None:
        raise ValueError(f"no {what} was given; give a picture, an array or the path of a file.")
    if isinstance(value, Tensor):
        value = to_numpy(value)
    if isinstance(value, np.ndarray):
        return Image.fromarray(_checked_array(value, what))
    if isinstance(value, Image.Image):
        return value
    try:
        return Image.open(io.BytesIO(value) if isinstance(value, bytes) else value, formats=FORMATS)
    except FileNotFoundError:
        raise ValueError(f"no file at {_shown(value)}; give the path of an existing {what}.") from None
    except Image.DecompressionBombError:
        raise _too_many(what) from None
    except Exception as error:
        raise _unreadable(value, what, error) from None


def _checked_array(array: np.ndarray, what: str) -> np.ndarray:
    channels = array.shape[2:] in ((), (3,), (4,))
    if array.ndim >= 2 and channels and array.size and array.dtype == np.uint8:
        return array
    remedy = "give (H, W, 3), (H, W, 4) or (H, W) of type uint8"
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and not channels:
        remedy += "; channels come last, see np.moveaxis(x, 0, -1)"
    if array.dtype.kind == "f":
        remedy += "; numbers from 0 to 1 are to be multiplied by 255 and rounded"
    raise ValueError(f"the {what} is an array of shape {array.shape} and type {array.dtype}; {remedy}.")


def _load(image: Image.Image, value: Any, what: str, size: Size) -> None:
    """Decode it. Raises ValueError before if it has too many pixels, or if it is damaged or empty."""
    progressive = "progressive" in image.info or "progression" in image.info
    width, height = size if progressive else image.size  # a draft of a progressive JPEG decodes all of it
    copies = PROGRESSIVE_COPIES if progressive else COPIES.get(image.format, 1)
    if image.format and width * height * copies > MOST_PIXELS:
        raise _too_many(what, size, image.format, int(MOST_PIXELS / copies))
    try:
        image.load()
    except Exception as error:
        raise _unreadable(value, what, error) from None
    if 0 in image.size:
        raise ValueError(f"the {what} has no pixels ({image.width} x {image.height}); give another one.")


def _too_many(what: str, size: Size = (), form: str = "picture", most: int = MOST_PIXELS) -> ValueError:
    shown = f" ({size[0]} x {size[1]})" if size else ""
    return ValueError(
        f"the {what} has too many pixels{shown}; at most {most // 10**6} million are read from such a "
        f"{form}. Scale it down first."
    )


def _unreadable(value: Any, what: str, error: Exception) -> Unreadable:
    unreadable = Unreadable(f"{_shown(value)} could not be read as a {what}; give a PNG, JPEG or WebP file.")
    known = "empty file" if value == b"" else "no picture in a known format"
    said = str(error) or type(error).__name__
    unreadable.reason = known if isinstance(error, Image.UnidentifiedImageError) else said
    return unreadable


def _shown(value: Any) -> str:
    return repr(str(value)) if isinstance(value, (str, Path)) else "what was given"


def _is_animated(image: Image.Image) -> bool:
    try:  # a stereo photo of a phone is a format of two frames, not an animation
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # the first frame may be good, the list of the others is damaged
        return False


def _factor(image: Image.Image) -> int:
    """By which both sides are divided so that at most `LARGE` pixels are left."""
    return max(1, math.ceil(math.sqrt(image.width * image.height / LARGE)))


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The picture as a file of this form; the options are those of `Image.save`."""
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB of 8 bits a channel, see `read`; transparency becomes white.

    Raises ValueError for floating-point pixels, whose range is unknown.
    """
    return _with_warnings(read(image, "photo", photo=True))


def _rgb(image: Image.Image, what: str, notes: list[str]) -> tuple[Image.Image, bool]:
    """RGB of 8 bits and at most `LARGE` pixels, and whether parts were transparent; adds to the notes."""
    if image.mode == "F":
        raise ValueError(f"the {what}: its pixels are floating-point numbers; {WHOLE}.")
    if image.mode.startswith("I;16") and image.mode != "I;16":
        image = image.convert("I")  # of the other order of bytes
    white = _white_of(image, what, notes) if image.mode.startswith("I") else 255
    factor, transparent = _factor(image), False
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, strip in _strips(image, factor):
        if white != 255 or strip.mode.startswith("I"):
            strip = Image.fromarray((np.asarray(strip).astype(np.int64) * 255 // white).astype(np.uint8))
        if is_transparent(strip):
            transparent, rgba = True, strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        strip = strip.convert("RGB")
        if factor == 1 and strip.size == image.size:
            small = strip
        else:
            small.paste(strip if factor == 1 else strip.reduce(factor), (0, top // factor))
    if transparent:
        notes.append("Transparent parts became white.")
    return small, transparent


def _strips(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom in parts that are small enough to be copied, each after its row."""
    if factor == 1:
        yield 0, image
        return
    rows = factor * max(1, LARGE // 4 // (image.width * factor))
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _white_of(image: Image.Image, what: str, notes: list[str]) -> int:
    """The value that is white in a picture of more than 8 bits."""
    low, high = image.getextrema()
    if low < 0 or high > 65535:
        raise ValueError(f"the {what}: its pixels go from {low} to {high}; {WHOLE}.")
    bits = next(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
    # the levels of 8 bits, stretched to 16, are multiples of 257
    if bits == 16 or all((np.asarray(s) % 257 == 0).all() for _, s in _strips(image, _factor(image))):
        return 65535
    notes.append(f"The {what}’s pixels of 16 bits reach only {high}, so {2**bits - 1} is read as white.")
    return 2**bits - 1


def is_transparent(image: Image.Image) -> bool:
    """Whether a part of the picture is see-through."""
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def _turned(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    turned = image.transpose(turn)
    # EXIF data can stand in several places of `info`; it would be turned a second time
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


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
