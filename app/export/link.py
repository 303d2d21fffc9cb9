"""Settings as a short, readable query string, as far as they fit into one.

Numbers, names and texts are written as they are; masks and holes as base64url of their zlib-packed class
numbers; forks with the prefix “fork1.”, “fork2.” and so on. Photos do not fit: the link names them as
“missing”, so that the page that opens it can ask for them.
"""

import base64
import re
import zlib
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import urlencode

import numpy as np

from app.export.settings_file import READERS, SavedRun, Specs, checked, checked_classes, is_name
from app.run.defaults import ANCHOR
from mmdiff.modalities import Modality
from mmdiff.request import Change, Request

MAX_QUERY = 1500  # characters; longer links break in mails and chats
HOLE = "hole"
NUMBERS = {"seed": "seed", "steps": "steps", "samples": "num_samples"}  # parameter -> field of a request
CONDITION = r"want|first|guide|(?:give|guide)\..*"  # parameters that a fork can have, too
FORK = re.compile(rf"fork([1-9]\d?)\.(after|{CONDITION})", re.DOTALL)
RUN = "|".join(("task", "model", "missing", "sampler", r"lead\..*", HOLE, *NUMBERS))
KNOWN = re.compile(f"{RUN}|{CONDITION}|{FORK.pattern}", re.DOTALL)
# parameters of Gradio and of sites that pass links on
FOREIGN = ("__", "utm_", "view", "deep_link", "fbclid", "gclid")
REMEDY = "Save the settings file instead: it carries everything."


# -- writing -------------------------------------------------------------------------------------------


def to_query(request: Request, checkpoint: str, task: str) -> tuple[str, list[str]]:
    """The query string, from its “?” on, and sentences on everything that does not fit into it."""
    params = {"task": task, "model": checkpoint} | _numbers(request) | _small(request)
    bulky = _bulky(request)
    left_out, missing = [], []
    room = {"missing": ",".join(bulky)}
    for name, (key, text, what) in sorted(bulky.items(), key=lambda item: len(item[1][1] or "")):
        if text is not None and len(_query(params | room | {key: text})) <= MAX_QUERY:
            params[key] = text
            continue
        missing.append(name)
        left_out.append(f"{what} {'does not fit into a link' if text is None else 'is too long for a link'}.")
    if missing:
        params["missing"] = ",".join(missing)
    forks = _forks(request)
    if forks is None or len(_query(params | forks)) > MAX_QUERY:
        left_out.append("What was changed on the way does not fit into a link.")
        forks = {}
    return _query(params | forks), [f"{words} {REMEDY}" for words in left_out]


def _query(params: Mapping[str, str]) -> str:
    return "?" + urlencode(params, safe=",")


def _numbers(request: Request) -> dict[str, str]:
    """The seed, and the other settings that are not as they are by default."""
    default, numbers = Request(), {"seed": str(request.seed)}
    for key, name in (NUMBERS | {"sampler": "sampler"}).items():
        if getattr(request, name) != getattr(default, name):
            numbers[key] = str(getattr(request, name))
    leads = {f"lead.{name}": str(lead) for name, lead in (request.leads or {}).items() if lead}
    # leads that are all 0 are not those of the model, either
    return numbers | (leads or ({"lead.image": "0"} if request.leads is not None else {}))


def _small(request: Request) -> dict[str, str]:
    """The wanted modalities, `sample_first` and the guidance."""
    scales = request.guidance_scale
    by_name = scales if isinstance(scales, Mapping) else {"": scales}
    first = {"first": ",".join(request.sample_first)} if request.sample_first else {}
    guide = {f"guide.{name}".rstrip("."): str(scale) for name, scale in by_name.items() if scale != 1}
    return {"want": ",".join(request.wanted)} | first | guide


def _bulky(request: Request) -> dict[str, tuple[str, str | None, str]]:
    """Name of a given modality -> its parameter, its text (None for photos) and its name in words."""
    bulky = {}
    for name, value in request.given.items():
        if isinstance(value, str):
            bulky[name] = (f"give.{name}", value, f"The text for “{name}”")
        elif isinstance(value, np.ndarray):
            bulky[name] = (f"give.{name}", _packed(value), f"The {name}")
        else:
            bulky[name] = (f"give.{name}", None, f"The photo for “{name}”")
    if request.known_pixels is not None:
        bulky[HOLE] = (HOLE, _packed(~request.known_pixels), "The hole")
    return bulky


def _forks(request: Request) -> dict[str, str] | None:
    """The changes as parameters, or None if one gives a photo."""
    params = {}
    for number, change in enumerate(request.changes, 1):
        given = {key: text for key, text, _ in _bulky(change.request).values()}
        if None in given.values():
            return None
        values = {"after": str(change.after)} | _small(change.request) | given
        params |= {f"fork{number}.{key}": value for key, value in values.items()}
    return params


def _packed(classes: np.ndarray) -> str:
    """A class map or bool map (H, W), of any size -> text of letters, digits, - and _."""
    data = zlib.compress(classes.astype(np.uint8).tobytes(), 9)
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# -- reading -------------------------------------------------------------------------------------------


def is_link(params: Mapping[str, str]) -> bool:
    """Whether these parameters ask for settings at all."""
    return any(map(KNOWN.fullmatch, params))


def from_query(params: Mapping[str, str], modalities: Specs) -> SavedRun:
    """The parameters of a link -> the run that it restores, without missing values.

    Settings that are not there are those of `Request()`, and everything is wanted that is not given. Raises
    ValueError, in words for the page.
    """
    own = {key: value for key, value in params.items() if not key.startswith(FOREIGN)}
    for key, value in own.items():
        if not KNOWN.fullmatch(key):
            raise _wrong(key, "is unknown here")
        if key in ("task", "model", "sampler") and not is_name(value):
            raise _wrong(key, "is not a name")
    missing = tuple(filter(None, own.get("missing", "").split(",")))
    for name in missing:
        if name not in (*modalities, HOLE):
            raise _wrong("missing", f"names “{name[:40]}”, which this model does not know")
    request = replace(
        _condition(own, modalities, missing),
        **{name: _whole(key, own[key]) for key, name in NUMBERS.items() if key in own},
        sampler=own.get("sampler", Request().sampler),
        leads=_leads(own),
        changes=_changes(own, modalities),
    )
    # With stand-ins for missing values the rest can be checked.
    stand_ins = {name: None for name in missing if name != HOLE}
    known = request.known_pixels
    if HOLE in missing:
        known = np.zeros(modalities[ANCHOR].shape[1:], dtype=bool)
    whole = checked(replace(request, given=stand_ins | request.given, known_pixels=known), modalities)
    request = replace(whole, given=request.given, known_pixels=request.known_pixels)
    return SavedRun(request, own.get("model", ""), own.get("task", ""), missing)


def _leads(params: Mapping[str, str]) -> dict[str, float] | None:
    """Leads by name; None if the link has none, so that those of the model hold."""
    of = {key.removeprefix("lead."): key for key in params if key.startswith("lead.")}
    return {name: _number(key, params[key]) for name, key in of.items()} or None


def _changes(params: Mapping[str, str], modalities: Specs) -> tuple[Change, ...]:
    """The forks in the parameters of a link, in order."""
    forks: dict[int, dict[str, str]] = {}
    for key, value in params.items():
        if match := FORK.fullmatch(key):
            forks.setdefault(int(match[1]), {})[match[2]] = value
    if sorted(forks) != list(range(1, len(forks) + 1)):
        raise ValueError("The forks in this link are not numbered 1, 2, 3 …; a part of the link is missing.")
    ordered = [forks[number] for number in sorted(forks)]
    return tuple(Change(_whole("after", of.get("after", "")), _condition(of, modalities)) for of in ordered)


def _condition(params: Mapping[str, str], modalities: Specs, missing: tuple[str, ...] = ()) -> Request:
    """The request in the parameters of a link, or of a fork in it."""
    given, known = {}, None
    for key, value in params.items():
        if not key.startswith("give."):
            continue
        spec = modalities.get(key.removeprefix("give."))
        if spec is None or spec.form == "picture":
            raise _wrong(key, f"is not possible; this model knows {', '.join(modalities)}, without photos")
        if spec.name in missing:
            raise _wrong(key, "is there although it is said to be missing")
        if spec.form == "class_map":
            given[spec.name] = checked_classes(spec, _unpacked(key, value, spec))
        else:
            given[spec.name] = READERS[spec.form](spec, value)
    if HOLE in params:
        known = _unpacked(HOLE, params[HOLE], modalities[ANCHOR]) == 0
    wanted, first = _names("want", params, modalities), _names("first", params, modalities)
    return Request(given, wanted, known, _guidance(params), first)


def _names(key: str, params: Mapping[str, str], modalities: Specs) -> tuple[str, ...]:
    """The modalities that a parameter names; none if it is not there."""
    names = params[key].split(",") if key in params else []
    for name in names:
        if name not in modalities or names.count(name) > 1:
            raise _wrong(key, f"names “{name[:40]}”; use some of {','.join(modalities)}, each once")
    return tuple(names)


def _guidance(params: Mapping[str, str]) -> float | dict[str, float]:
    scales = {
        key.removeprefix("guide").removeprefix("."): _number(key, value)
        for key, value in params.items()
        if key == "guide" or key.startswith("guide.")
    }
    if "" not in scales:
        return scales or 1.0
    if len(scales) > 1:
        raise _wrong("guide", "is there once for all and once for one modality")
    return scales[""]


def _unpacked(key: str, text: str, spec: Modality) -> np.ndarray:
    """`_packed` text -> (H, W) int64. Raises ValueError if it is not that, or of another size."""
    side = spec.image_size
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        unpacker = zlib.decompressobj()
        values = unpacker.decompress(data, side**2 + 1)  # no more, however large the unpacked data would be
        whole = unpacker.eof or len(values) > side**2
    except (ValueError, zlib.error):
        whole = False
    if not whole:
        raise _wrong(key, "is damaged; copy the whole link")
    if len(values) != side**2:
        raise _wrong(key, f"has another size than the {side} × {side} px of this model; use its checkpoint")
    return np.frombuffer(values, dtype=np.uint8).reshape(side, side).astype(np.int64)


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise _wrong(key, f"is “{text[:20]}” and not a whole number")
    return int(text)


def _number(key: str, text: str) -> float:
    if not re.fullmatch(r"\d{1,6}(\.\d{1,18})?(e-\d\d)?", text, re.ASCII):
        raise _wrong(key, f"is “{text[:20]}” and not a number")
    return float(text) if "." in text or "e" in text else int(text)


def _wrong(key: str, why: str) -> ValueError:
    return ValueError(f"In it “{key[:40]}” {why}.")
