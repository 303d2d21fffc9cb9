"""A run's settings as JSON that alone restores it: in a file of its own, in a PNG, or in our zip.

Text is parsed as JSON, every entry is checked, and nothing is evaluated. Pictures are inside as data URIs of
lossless PNG: RGB for photos, class numbers for masks, black and white for known pixels.
"""

import base64
import codecs
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.pictures import encoded
from app.run.defaults import ANCHOR, LIMITS, MAX_SIDE
from mmdiff.images import to_rgb
from mmdiff.modalities import Modality
from mmdiff.modalities.base import class_index
from mmdiff.request import Change, Request

FORMAT, VERSION = "mmdiff settings", 3  # version 1 had no sample_first, version 2 no leads
PNG_KEY = "mmdiff"  # of the text chunk
ZIP_ENTRY = "settings.json"
URI = "data:image/png;base64,"
MAX_SETTINGS = 16 * 2**20  # bytes of JSON
MAX_FILE = 64 * 2**20  # bytes of a PNG or zip to look into
MAX_TEXT, MAX_NAME, MAX_CHANGES = 2000, 200, 100

Specs = Mapping[str, Modality]
Check = tuple[str, Callable[[Any], bool]]  # what to say of an entry that does not pass


def is_name(value: Any) -> bool:
    """Whether it can be the name of a checkpoint, a task or a sampler."""
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


def _are_names(value: Any) -> bool:
    are_texts = isinstance(value, list) and all(isinstance(name, str) for name in value)
    return are_texts and len(set(value)) == len(value)


def _are_scales(value: Any) -> bool:
    scales = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(scale, int | float) for scale in scales)


def _are_leads(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _are_scales(value))


ANY: Check = ("", lambda value: True)
NAME: Check = ("is not a name", is_name)
NAMES: Check = ("is not a list of names, none of them twice", _are_names)
WHOLE: Check = ("is not a whole number", lambda value: type(value) is int)
LISTED = (
    f"is not a list of at most {MAX_CHANGES} changes",
    lambda v: isinstance(v, list) and len(v) <= MAX_CHANGES,
)
# Entries of settings: the head, fields of a request as they are, and those that may change on the way.
HEAD = {"format": ANY, "version": ANY, "checkpoint": NAME, "task": NAME, "changes": LISTED}
PLAIN = {"steps": WHOLE, "seed": WHOLE, "num_samples": WHOLE, "sampler": NAME}
LEADS: dict[str, Check] = {"leads": ("is not an object of numbers", _are_leads)}
CONDITION: dict[str, Check] = {
    "given": ("is not an object", lambda value: isinstance(value, dict)),
    "wanted": NAMES,
    "known_pixels": ANY,
    "guidance_scale": ("is neither a number nor an object of numbers", _are_scales),
    "sample_first": NAMES,
}


@dataclass(frozen=True)
class SavedRun:
    """A run as a file or a link describes it.

    Attributes:
        request: complete but for missing values. checkpoint, task: names, "" if there are none.
        missing: names of given modalities, and “hole”, that did not fit into a link.
    """

    request: Request
    checkpoint: str
    task: str
    missing: tuple[str, ...] = ()


# -- writing -------------------------------------------------------------------------------------------


def to_dict(request: Request, checkpoint: str, task: str) -> dict[str, Any]:
    """The settings as JSON values.

    Raises ValueError for a value that has no place in them, such as a photo over 1024 pixels a side.
    """
    head = {"format": FORMAT, "version": VERSION, "checkpoint": checkpoint, "task": task}
    changes = [{"after": change.after} | _condition_to_dict(change.request) for change in request.changes]
    plain = {name: getattr(request, name) for name in PLAIN | LEADS}
    return head | plain | _condition_to_dict(request) | {"changes": changes}


def are_alike(one: Request, other: Request) -> bool:
    """Whether two conditions of a run are the same; False where a value has no place in settings."""
    try:
        return _condition_to_dict(one) == _condition_to_dict(other)
    except ValueError:
        return False


def to_json(request: Request, checkpoint: str, task: str) -> str:
    """The text of a settings file; ASCII."""
    return json.dumps(to_dict(request, checkpoint, task), indent=1) + "\n"


def stamp(request: Request, checkpoint: str, task: str) -> PngInfo:
    """For `Image.save(path, pnginfo=...)`: a picture that `read` can restore the settings from."""
    info = PngInfo()
    info.add_itxt(PNG_KEY, to_json(request, checkpoint, task))
    return info


def _condition_to_dict(request: Request) -> dict[str, Any]:
    known, scales = request.known_pixels, request.guidance_scale
    return {
        "given": {name: _value(name, value) for name, value in request.given.items()},
        "wanted": list(request.wanted),
        "known_pixels": None if known is None else _png(known),
        "guidance_scale": dict(scales) if isinstance(scales, Mapping) else scales,
        "sample_first": list(request.sample_first),
    }


def _value(name: str, value: Any) -> str | dict[str, str]:
    if isinstance(value, str):
        return value
    if isinstance(value, Image.Image) and max(value.size) > MAX_SIDE:
        raise ValueError(
            f"The photo for “{name}” is {value.width} × {value.height} px, too large to be kept in the "
            f"settings. Scale it down to {MAX_SIDE} px or less first."
        )
    if isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim == 2):
        return _png(value)
    raise ValueError(f"What is given for “{name}” cannot be kept in the settings.")


def png_bytes(value: Image.Image | np.ndarray) -> bytes:
    """A photo as RGB, a class map (H, W) as class numbers or a bool map (H, W) as black and white: PNG."""
    if isinstance(value, Image.Image):
        picture = to_rgb(value)  # as the model reads it
    else:
        picture = Image.fromarray(value if value.dtype == bool else value.astype(np.uint8))
    return encoded(picture, optimize=True)


def _png(value: Image.Image | np.ndarray) -> dict[str, str]:
    return {"png": URI + base64.b64encode(png_bytes(value)).decode()}


# -- reading -------------------------------------------------------------------------------------------


def from_dict(data: Any, modalities: Specs) -> SavedRun:
    """The run that JSON values describe. Raises ValueError, in words for the page."""
    _check_version(data)
    condition = {name: CONDITION[name] for name in CONDITION if data["version"] > 1 or name != "sample_first"}
    plain = PLAIN | (LEADS if data["version"] > 2 else {})
    _check(data, HEAD | plain | condition)
    for change in data["changes"]:
        _check(change, {"after": WHOLE} | condition)
    request = replace(
        _condition(data, modalities),
        **{name: data[name] for name in plain},
        changes=tuple(Change(change["after"], _condition(change, modalities)) for change in data["changes"]),
    )
    return SavedRun(checked(request, modalities), data["checkpoint"], data["task"])


def checked(request: Request, modalities: Specs) -> Request:
    """The request with nothing left open. Raises ValueError if the page does not run it.

    In settings and links from before `sample_first`, guidance of a label that is not given has its meaning;
    models with leads are guided by what they generate as it is.
    """
    changes = [Change(c.after, _with_sample_first(c.request, modalities)) for c in request.changes]
    request = replace(_with_sample_first(request, modalities), changes=tuple(changes))
    return request.checked(modalities, LIMITS.steps, LIMITS)


def _with_sample_first(request: Request, modalities: Specs) -> Request:
    scales = request.guidance_scale
    if not isinstance(scales, Mapping):
        return request
    ungiven = {name: spec for name, spec in modalities.items() if name not in request.given}
    early = [name for name, spec in ungiven.items() if spec.drawable and spec.lead is None]
    implied = [n for n in scales if n in early and scales[n] != 1 and n not in request.sample_first]
    first = (*request.sample_first, *implied)
    kept = {name: scale for name, scale in scales.items() if name not in early or name in first}
    return replace(request, guidance_scale=kept, sample_first=first)


def from_json(text: str | bytes, modalities: Specs) -> SavedRun:
    """The text of a settings file, see `from_dict`."""
    if len(text) > MAX_SETTINGS:
        raise ValueError(f"These settings are larger than {MAX_SETTINGS >> 20} MB, so they are not read.")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        raise _damaged("they are not JSON") from None
    return from_dict(data, modalities)


def read(path: str | Path, modalities: Specs) -> SavedRun:
    """The settings in a settings file, in a PNG that carries them or in our zip, see `from_dict`."""
    path = Path(path)
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"“{path.name}” is larger than {MAX_FILE >> 20} MB, so it is not read.")
    with path.open("rb") as file:
        start = file.read(8)
    if start == b"\x89PNG\r\n\x1a\n":
        return from_json(_from_png(path), modalities)
    if start.startswith(b"PK"):
        return from_json(_from_zip(path), modalities)
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # some editors add it
    if not text.lstrip().startswith(b"{"):
        raise _without_settings(path)
    return from_json(text, modalities)


def _from_png(path: Path) -> str:
    try:
        with Image.open(path, formats=["PNG"]) as image:  # its pixels are not even decoded
            text = image.info.get(PNG_KEY)
    except Exception:
        raise ValueError(f"“{path.name}” cannot be read as a picture; the file is damaged.") from None
    if not isinstance(text, str):
        raise _without_settings(path)
    return text


def _from_zip(path: Path) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if ZIP_ENTRY not in archive.namelist():
                raise _without_settings(path)
            if archive.getinfo(ZIP_ENTRY).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise NotImplementedError  # other methods can ask for any amount of memory
            with archive.open(ZIP_ENTRY) as entry:
                return entry.read(MAX_SETTINGS + 1)  # the size in the archive may be wrong
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, zlib.error):
        raise ValueError(f"“{path.name}” cannot be read as a zip file; the file is damaged.") from None


def _without_settings(path: Path) -> ValueError:
    return ValueError(
        f"“{path.name}” has no settings in it. Use a settings file, a zip or a PNG of a result saved by "
        "this page. Pictures of single steps, overlays, films, and copies by another program have none. "
        "Where a large photo was given, use the zip."
    )


def _check_version(data: Any) -> None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError("This is no settings file of this page. Use one that was saved with “Settings”.")
    version = data.get("version")
    if type(version) is not int:
        raise _damaged("they do not say which version they are of")
    if not 1 <= version <= VERSION:
        raise ValueError(
            f"These settings are of version {str(version)[:20]}, but this page reads 1 to {VERSION}. Use "
            "a page of the same release as the one that saved them."
        )


def _check(data: Any, entries: Mapping[str, Check]) -> None:
    """Raises ValueError unless it is an object of exactly these entries."""
    if not isinstance(data, dict):
        raise _damaged("a change is not an object")
    for name in data:
        if name not in entries:
            raise ValueError(f"These settings have an entry “{name[:40]}” that this page does not know.")
    for name, (words, passes) in entries.items():
        if name not in data:
            raise _damaged(f"the entry “{name}” is missing")
        if not passes(data[name]):
            raise _damaged(f"“{name}” {words}")


def _condition(data: dict[str, Any], modalities: Specs) -> Request:
    """The entries of `CONDITION` as a request."""
    given, wanted, known, scales = (data[name] for name in CONDITION if name != "sample_first")
    first = data.get("sample_first", [])
    for name in (*given, *wanted, *first, *(scales if isinstance(scales, dict) else ())):
        if name not in modalities:
            raise ValueError(f"This model does not know “{name[:40]}”; it knows {', '.join(modalities)}.")
    values = {name: READERS[modalities[name].form](modalities[name], value) for name, value in given.items()}
    known = None if known is None else _known_pixels(modalities[ANCHOR], known)
    return Request(values, tuple(wanted), known, scales, tuple(first))


def _image(spec: Modality, value: Any) -> Image.Image:
    return _sized(_picture(spec.name, value), f"photo for “{spec.name}”", spec).convert("RGB")


def _mask(spec: Modality, value: Any) -> np.ndarray:
    picture = _sized(_picture(spec.name, value), f"mask for “{spec.name}”", spec)
    if picture.mode != "L":
        raise _damaged(f"the picture for “{spec.name}” is not one of class numbers")
    return checked_classes(spec, np.asarray(picture).astype(np.int64))


def _known_pixels(spec: Modality, value: Any) -> np.ndarray:
    picture = _sized(_picture("known_pixels", value), "map of known pixels", spec)
    if picture.mode != "1":
        raise _damaged("the map of known pixels is not black and white")
    return np.asarray(picture).copy()


def checked_classes(spec: Modality, mask: np.ndarray) -> np.ndarray:
    """The same class map. Raises ValueError if the model has fewer classes."""
    if mask.max() >= len(spec.classes):
        raise ValueError(
            f"The mask has the class number {mask.max()}, but this model's classes are 0 to "
            f"{len(spec.classes) - 1}. It was made with another checkpoint; start the page with that one."
        )
    return mask


def _label(spec: Modality, value: Any) -> str:
    """A class name in this model's spelling. Raises ValueError if there is no such class."""
    if not isinstance(value, str):
        raise _damaged(f"“{spec.name}” is not the name of a class")
    index = class_index(value, spec.classes)
    if index is not None:
        return spec.classes[index]
    raise ValueError(
        f"This model has no class “{value[:60]}” of “{spec.name}”. It is one of another checkpoint; start "
        "the page with that one, or choose a class from the list."
    )


def _embedding(spec: Modality, value: Any) -> str | Image.Image:
    """A text, or a photo of any size. Raises ValueError for anything else and for a text that is too long."""
    if not isinstance(value, str):
        return _picture(spec.name, value).convert("RGB")
    if not value.strip() or len(value) > MAX_TEXT:
        raise ValueError(f"The text for “{spec.name}” is empty or longer than {MAX_TEXT} characters.")
    return value


READERS = {"picture": _image, "class_map": _mask, "class": _label, "vector": _embedding}


def _picture(name: str, value: Any) -> Image.Image:
    """A data URI of a PNG -> loaded picture; its size is looked at before its pixels are decoded."""
    uri = value.get("png") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(uri, str) or not uri.startswith(URI):
        raise _damaged(f"“{name[:40]}” is not a PNG picture")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(uri[len(URI) :], validate=True)), formats=["PNG"])
        if max(picture.size) <= MAX_SIDE:
            picture.load()
    except Exception:  # a damaged file may make the decoder raise anything
        raise _damaged(f"the picture for “{name}” cannot be read") from None
    if max(picture.size) > MAX_SIDE:
        raise ValueError(
            f"The picture for “{name}” in these settings is {picture.width} × {picture.height} px; at most "
            f"{MAX_SIDE} px a side are read."
        )
    return picture


def _sized(picture: Image.Image, what: str, spec: Modality) -> Image.Image:
    """The same picture, if it is as large as the model's."""
    size = spec.image_size
    if picture.size != (size, size):
        raise ValueError(
            f"The {what} in these settings is {picture.width} × {picture.height} px, but this model works at "
            f"{size} × {size} px. They were made with another checkpoint; start the page with that one."
        )
    return picture


def _damaged(why: str) -> ValueError:
    return ValueError(f"These settings are damaged: {why}. Use an untouched copy of the file.")
