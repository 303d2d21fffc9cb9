"""The part of a photo that is used, where it is not square and the visitor wants another than the middle."""

import tempfile
from pathlib import Path

from gradio.processing_utils import save_file_to_cache
from PIL import Image, ImageOps

MIDDLE = 50
PLAIN = ("L", "RGB", "RGBA", "I;16")  # that PNG holds as they are


def cut(path: str | Path, percent: float, cache: str) -> str:
    """The path of a square part of a picture file; 0 is its left or upper end, 100 the other one.

    The part is kept as PNG in the folder `cache`. The middle is the file itself: all else cuts there, too.
    """
    if percent == MIDDLE:
        return str(path)
    with Image.open(path) as file:
        picture = ImageOps.exif_transpose(file)
    short = min(picture.size)
    left, top = (round((side - short) * percent / 100) for side in picture.size)
    part = picture.crop((left, top, left + short, top + short))
    if part.mode not in PLAIN:
        part = part.convert("RGBA" if part.has_transparency_data else "RGB")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / f"{Path(path).stem}.png"
        part.save(target)
        return save_file_to_cache(target, cache)


def is_like(path: str | Path, size: tuple[int, int]) -> bool:
    """Whether a picture file is not square and has the shape of this size, to within a pixel of rounding."""
    with Image.open(path) as file:
        width, height = ImageOps.exif_transpose(file).size
    return width != height and abs(width * size[1] - height * size[0]) <= max(width, height, *size)


def ends(size: tuple[int, int]) -> tuple[str, str]:
    """The names of the two ends of a photo's longer side."""
    return ("left", "right") if size[0] > size[1] else ("top", "bottom")
