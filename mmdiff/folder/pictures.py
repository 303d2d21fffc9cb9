"""Photos of a folder: opened in any known format, inspected, and shrunk with antialiasing."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmdiff.images import Picture, Unreadable, encoded, read

LONGEST = 8  # a photo may be this many times longer than it is wide
WEBP_QUALITY = 90


@dataclass(frozen=True)
class PhotoFacts:
    """Facts about one photo: ``digest`` is equal for exact copies, ``size`` (width, height) when upright."""

    digest: str
    size: tuple[int, int]
    mode: str
    animated: bool
    turned: bool
    transparent: bool


def open_picture(data: bytes, photo: bool = False) -> Picture:
    """A picture, see `mmdiff.images.read`. Raises ValueError that says why it cannot be opened."""
    try:
        return read(data, "photo" if photo else "mask", photo)
    except Unreadable as error:
        raise ValueError(error.reason) from None
    except ValueError as error:
        raise ValueError(str(error).removeprefix("the photo: ")) from None


def inspect_photo(path: Path) -> PhotoFacts:
    """Decode a photo completely. Raises ValueError or OSError if it cannot be read or is a stripe."""
    data = path.read_bytes()
    photo = open_picture(data, photo=True)
    if max(photo.size) > LONGEST * min(photo.size):
        raise ValueError(f"{photo.size[0]} x {photo.size[1]} pixels are a stripe")
    digest = hashlib.sha256(data).hexdigest()
    return PhotoFacts(digest, photo.size, photo.mode, photo.animated, photo.turned, photo.transparent)


def shrink_photo(path: Path, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """A photo as stored, in WebP, and its (width, height). Raises ValueError or OSError.

    The short side is cut down to ``short_side``; small photos keep their size.
    """
    image = open_picture(path.read_bytes(), photo=True).image
    scale = min(1, short_side / min(image.size))
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    return encoded(image, "WEBP", quality=WEBP_QUALITY), image.size
