"""Photos of a folder: opened in any known format, inspected, and shrunk with antialiasing."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmdiff.images import encoded, to_rgb, turn_of

Image.init()
FORMATS = [name for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF") if name in Image.OPEN]
LONGEST = 8  # a photo may be this many times longer than it is wide
WEBP_QUALITY = 90


@dataclass(frozen=True)
class PhotoFacts:
    """Facts about one photo: ``digest`` is equal for exact copies, ``size`` (width, height) when upright."""

    digest: str
    size: tuple[int, int]
    mode: str
    frames: int
    turned: bool
    transparent: bool


def open_picture(data: bytes) -> Image.Image:
    """A decoded picture, its first frame. Raises ValueError that says why it cannot be opened."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except Image.DecompressionBombError:
        raise ValueError("more than 170 million pixels") from None
    except Image.UnidentifiedImageError:
        raise ValueError("empty file" if not data else "no picture in a known format") from None
    except Exception as error:  # each format's decoder has errors of its own
        raise ValueError(str(error) or type(error).__name__) from None
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    return image


def inspect_photo(path: Path) -> PhotoFacts:
    """Decode a photo completely. Raises ValueError or OSError if it cannot be read or is a stripe."""
    data = path.read_bytes()
    image = open_picture(data)
    rgb = to_rgb(image)
    if max(rgb.size) > LONGEST * min(rgb.size):
        raise ValueError(f"{rgb.width} x {rgb.height} pixels are a stripe")
    return PhotoFacts(
        hashlib.sha256(data).hexdigest(),
        rgb.size,
        image.mode,
        _frames(image),
        turn_of(image) is not None,
        image.has_transparency_data,
    )


def shrink_photo(path: Path, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """A photo as stored, in WebP, and its (width, height). Raises ValueError or OSError.

    The short side is cut down to ``short_side``; small photos keep their size.
    """
    image = to_rgb(open_picture(path.read_bytes()))
    scale = min(1, short_side / min(image.size))
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    return encoded(image, "WEBP", quality=WEBP_QUALITY), image.size


def _frames(image: Image.Image) -> int:
    try:
        # A stereo photo of a phone is a format of two frames, not an animation.
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # the first frame is good, the list of the others is damaged
        return 1
