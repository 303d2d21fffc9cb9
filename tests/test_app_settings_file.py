"""Settings survive JSON, pictures and zips unchanged; anything else is refused in plain words."""

import base64
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
from fakes import LABELS, FakePipeline, photo
from PIL import Image

from app.controls.inputs import EmbeddingInput
from app.export import settings_file
from mmdiff.images import square
from mmdiff.request import SAMPLERS, Change, Request

SIZE = 64
SPECS = FakePipeline(SIZE, modalities=("image", "mask", "label", "embedding")).modalities
PHOTO = photo((SIZE, SIZE))


def bits(seed: int, high: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (SIZE, SIZE))


def hole(seed: int) -> np.ndarray:
    return bits(seed).astype(bool)


REQUESTS = {
    "nothing given": Request(wanted=("image", "mask", "label", "embedding"), seed=5),
    "label": Request(
        {"label": LABELS[2]}, ("image",), guidance_scale={"label": 3}, sampler="dpmpp_2m", steps=7
    ),
    "followed": Request({}, ("image", "mask"), None, {"label": 2.5}, ("label",)),
    "text": Request({"embedding": "un “kaki”, très mûr 柿\n"}, ("image", "mask"), guidance_scale=2.5),
    "mask": Request({"mask": bits(1)}, ("image",), num_samples=8, seed=2**31 - 1),
    "photo": Request({"image": PHOTO}, ("mask", "label")),
    "hole": Request({"image": PHOTO, "label": LABELS[0]}, ("image", "mask"), hole(2)),
    "guided hole": Request({"image": PHOTO}, ("image",), hole(2), guidance_scale={"image": 1.5}),
    "embedding photo": Request({"embedding": photo((120, 90))}, ("image",)),
    "forks": Request(
        {"label": LABELS[0]},
        ("image", "mask"),
        steps=30,
        guidance_scale={"label": 1.5},
        changes=(
            Change(4, Request({"label": LABELS[3], "mask": bits(3)}, ("image",), None, {"mask": 0.1 + 0.2})),
            Change(
                20, Request({"image": PHOTO, "embedding": photo((30, 40))}, ("image", "label"), hole(4), 2.0)
            ),
        ),
    ),
}


def same(a, b) -> bool:
    """Equal in value and kind, pictures and arrays to the pixel."""
    if isinstance(a, Image.Image):
        return (
            isinstance(b, Image.Image) and a.mode == b.mode and np.array_equal(np.asarray(a), np.asarray(b))
        )
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Request | Change):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and a == b


def complete(request: Request, modalities: Mapping = SPECS) -> Request:
    """The request as it is read back, with nothing left open."""
    return request.checked(modalities, 100)


def random_request(seed: int) -> Request:
    """A valid request of any kind."""
    rng = np.random.default_rng(seed)

    def condition(after: int) -> dict:
        names = [name for name in SPECS if rng.random() < 0.5][:3]
        photos = photo((SIZE, SIZE), int(rng.integers(99)))
        values = {
            "image": photos,
            "mask": bits(int(rng.integers(99))),
            "label": LABELS[rng.integers(len(LABELS))],
            "embedding": photos if rng.random() < 0.5 else f"apple &=+ %20 {rng.integers(9)} ö",
        }
        known = hole(seed) if "image" in names and rng.random() < 0.5 else None
        wanted = [name for name in SPECS if name not in names or (name == "image" and known is not None)]
        guidable = [name for name in names if name != "image"]
        scales = {name: float(rng.uniform(0, 10)) for name in guidable} or float(rng.uniform(0, 10))
        given = {name: values[name] for name in names}
        return {"given": given, "wanted": tuple(wanted), "known_pixels": known, "guidance_scale": scales}

    afters = sorted({int(after) for after in rng.integers(1, 20, rng.integers(3))})
    return Request(
        **condition(0),
        steps=int(rng.integers(20, 101)),
        seed=int(rng.integers(2**31)),
        num_samples=int(rng.integers(1, 9)),
        sampler=list(SAMPLERS)[rng.integers(3)],
        changes=tuple(Change(after, Request(**condition(after))) for after in afters),
    )


@pytest.mark.parametrize("asked", [*REQUESTS.values(), *map(random_request, range(40))])
def test_settings_survive_json(asked):
    text = settings_file.to_json(asked, "orchard", "any-to-any")
    saved = settings_file.from_dict(json.loads(text), SPECS)
    assert same(saved.request, complete(asked))
    assert (saved.checkpoint, saved.task, saved.missing) == ("orchard", "any-to-any", ())
    assert settings_file.to_json(saved.request, saved.checkpoint, saved.task) == text and text.isascii()


def version_1(data: dict) -> dict:
    """The same settings as they were written before there were `sample_first` and `leads`."""
    conditions, later = [data, *data["changes"]], ("sample_first", "leads")
    old = [{k: v for k, v in condition.items() if k not in later} for condition in conditions]
    return {**old[0], "version": 1, "changes": old[1:]}


@pytest.mark.parametrize("name", list(REQUESTS))
def test_older_settings_give_the_same_run(name):
    data = settings_file.to_dict(REQUESTS[name], "orchard", "any")
    assert same(settings_file.from_dict(version_1(data), SPECS).request, complete(REQUESTS[name]))


def test_in_older_settings_guidance_of_a_label_that_is_not_given_samples_it_first():
    later = Request({"mask": bits(3)}, ("image", "label"), guidance_scale={"mask": 2, "label": 3})
    old = Request({}, ("image", "mask"), guidance_scale={"label": 2.5}, changes=(Change(4, later),))
    read = settings_file.from_dict(version_1(settings_file.to_dict(old, "orchard", "any")), SPECS).request
    assert [c.sample_first for c in read.conditions] == [("label",), ("label",)]
    assert [c.guidance_scale for c in read.conditions] == [{"label": 2.5}, {"mask": 2, "label": 3}]
    off = replace(old, guidance_scale={"label": 1}, changes=())
    read = settings_file.from_dict(version_1(settings_file.to_dict(off, "orchard", "any")), SPECS).request
    assert (read.sample_first, read.guidance_scale) == ((), {})


def test_the_pictures_inside_are_plain_png():
    data = settings_file.to_dict(REQUESTS["hole"], "orchard", "fill-in")
    known = Image.open(io.BytesIO(base64.b64decode(data["known_pixels"]["png"].split(",")[1])))
    assert known.mode == "1" and np.array_equal(np.asarray(known), hole(2))
    image = Image.open(io.BytesIO(base64.b64decode(data["given"]["image"]["png"].split(",")[1])))
    assert np.array_equal(np.asarray(image), np.asarray(PHOTO))
    mask = settings_file.to_dict(REQUESTS["mask"], "orchard", "")["given"]["mask"]["png"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(mask.split(",")[1])))), bits(1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "upside down"])
def test_a_photo_for_the_embedding_is_kept_as_the_model_sees_it(mode):
    picture = photo((90, 60)).convert("RGB" if mode == "upside down" else mode)
    if mode == "RGBA":
        picture.putalpha(photo((90, 60), 8).convert("L"))
    if mode == "upside down":
        exif = Image.Exif()
        exif[0x0112] = 3
        data = io.BytesIO()
        picture.save(data, "PNG", exif=exif)
        picture = Image.open(data)
    request = Request({"embedding": picture}, ("image",))
    again = settings_file.from_dict(settings_file.to_dict(request, "orchard", ""), SPECS).request.given[
        "embedding"
    ]
    assert np.array_equal(np.asarray(square(again, 32)), np.asarray(square(picture, 32)))


def test_a_large_photo_for_the_embedding_can_be_kept(tmp_path):
    """As a phone makes them; shrunk, it looks to an embedder as it did."""
    large = Image.fromarray(np.asarray(photo((63, 47)).resize((2520, 1880), Image.Resampling.BICUBIC)))
    large.save(tmp_path / "large.jpg", quality=95)
    with gr.Blocks():
        given = EmbeddingInput(SPECS["embedding"], "any").read("", str(tmp_path / "large.jpg"))
    again = settings_file.from_dict(
        settings_file.to_dict(Request({"embedding": given}, ("image",)), "orchard", ""), SPECS
    )
    seen, expected = (
        np.asarray(square(picture, 64), dtype=float)
        for picture in (again.request.given["embedding"], Image.open(tmp_path / "large.jpg"))
    )
    assert np.abs(seen - expected).mean() < 1 and np.ptp(expected) > 50


@pytest.mark.parametrize("name", list(REQUESTS))
def test_settings_are_read_from_every_kind_of_file(name, tmp_path):
    request = REQUESTS[name]
    text = settings_file.to_json(request, "orchard", "any-to-any")
    (tmp_path / "a.json").write_text(text)
    (tmp_path / "b.json").write_text(text, encoding="utf-8-sig")
    photo().save(tmp_path / "c.png", pnginfo=settings_file.stamp(request, "orchard", "any-to-any"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("settings.json", text)
    for path in sorted(tmp_path.iterdir()):
        saved = settings_file.read(str(path), SPECS)
        assert same(saved.request, complete(request))
        assert (saved.checkpoint, saved.task) == ("orchard", "any-to-any")


def test_a_stamped_picture_is_an_ordinary_one(tmp_path):
    photo().save(tmp_path / "a.png", pnginfo=settings_file.stamp(REQUESTS["forks"], "orchard", "any"))
    with Image.open(tmp_path / "a.png") as picture:
        assert json.loads(picture.text["mmdiff"])["changes"][0]["after"] == 4
        assert np.array_equal(np.asarray(picture), np.asarray(photo()))


def good() -> dict:
    return json.loads(settings_file.to_json(REQUESTS["forks"], "orchard", "any"))


def png(array) -> dict:
    return settings_file._png(array)


def sixteen_bit() -> dict:
    data = io.BytesIO()
    Image.fromarray(np.zeros((SIZE, SIZE), dtype=np.uint16)).save(data, "PNG")
    return {"png": settings_file.URI + base64.b64encode(data.getvalue()).decode()}


def cut_off() -> dict:
    data = settings_file.png_bytes(PHOTO)
    return {"png": settings_file.URI + base64.b64encode(data[: len(data) // 2]).decode()}


DAMAGE = {
    "no format": ({"format": "other"}, "no settings file"),
    "newer": ({"version": 4}, "version 4.*reads 1 to 3"),
    "version 0": ({"version": 0}, "version 0"),
    "no version": ({"version": True}, "which version"),
    "unknown": ({"eta": 1}, "“eta” that this page does not know"),
    "checkpoint": ({"checkpoint": 3}, "“checkpoint” is not a name"),
    "task": ({"task": "x" * 999}, "“task” is not a name"),
    "sampler": ({"sampler": "euler"}, "no sampler is called 'euler'"),
    "sampler list": ({"sampler": []}, "“sampler” is not a name"),
    "seed": ({"seed": "7"}, "“seed” is not a whole number"),
    "seed bool": ({"seed": True}, "“seed” is not a whole number"),
    "seed range": ({"seed": -1}, "seed is -1"),
    "steps": ({"steps": 10**9}, "steps is 1000000000"),
    "steps fraction": ({"steps": 3.0}, "“steps” is not a whole number"),
    "samples": ({"num_samples": 99}, "num_samples is 99"),
    "wanted": ({"wanted": "image"}, "“wanted” is not a list"),
    "wanted twice": ({"wanted": ["image", "image"]}, "twice"),
    "wanted unknown": ({"wanted": ["sound"]}, "does not know “sound”"),
    "given list": ({"given": []}, "“given” is not an object"),
    "given unknown": ({"given": {"sound": "la"}}, "does not know “sound”"),
    "label": ({"given": {"label": "Pear"}}, "no class “Pear”"),
    "label number": ({"given": {"label": 3}}, "not the name of a class"),
    "label picture": ({"given": {"label": png(PHOTO)}}, "not the name of a class"),
    "text": ({"given": {"embedding": " "}}, "is empty"),
    "long text": ({"given": {"embedding": "a" * 2001}}, "longer than 2000"),
    "embedding": ({"given": {"embedding": [1, 2]}}, "is not a PNG picture"),
    "image as text": ({"given": {"image": "/etc/passwd"}}, "is not a PNG picture"),
    "image elsewhere": ({"given": {"image": {"png": "http://localhost/a.png"}}}, "is not a PNG picture"),
    "image size": ({"given": {"image": png(photo((96, 96)))}}, "96 × 96 px, but this model works at 64 × 64"),
    "image text": ({"given": {"image": {"png": settings_file.URI + "%%%"}}}, "cannot be read"),
    "image bytes": ({"given": {"image": {"png": settings_file.URI + "AAAA"}}}, "cannot be read"),
    "image cut off": ({"given": {"image": cut_off()}}, "cannot be read"),
    "huge picture": (
        {"given": {"embedding": png(Image.new("RGB", (1025, 1)))}},
        "1025 × 1 px; at most 1024",
    ),
    "mask colours": ({"given": {"mask": png(PHOTO)}}, "not one of class numbers"),
    "mask depth": ({"given": {"mask": sixteen_bit()}}, "not one of class numbers"),
    "mask classes": ({"given": {"mask": png(bits(1, 5))}}, "class number 4.* 0 to 1"),
    "mask size": ({"given": {"mask": png(bits(1)[:32])}}, "64 × 32 px"),
    "known without photo": ({"known_pixels": png(hole(1))}, "no image is given"),
    "known grey": ({"known_pixels": png(bits(1))}, "not black and white"),
    "known size": ({"known_pixels": png(hole(1)[:32])}, "64 × 32 px"),
    "guidance": ({"guidance_scale": "3"}, "neither a number nor"),
    "guidance nan": ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    "guidance high": ({"guidance_scale": {"label": 99}}, "'label' is 99"),
    "guidance text": ({"guidance_scale": {"label": "3"}}, "neither a number nor"),
    "first": ({"sample_first": "label"}, "“sample_first” is not a list"),
    "first unknown": ({"sample_first": ["sound"]}, "does not know “sound”"),
    "first mask": ({"sample_first": ["mask"]}, "sample_first names 'mask'"),
    "guidance unknown": ({"guidance_scale": {"sound": 3}}, "does not know “sound”"),
    "changes": ({"changes": {}}, "not a list of at most"),
    "many changes": ({"changes": [{}] * 101}, "not a list of at most"),
    "change": ({"changes": [3]}, "not an object"),
    "change of changes": ({"changes": [good()["changes"][0] | {"changes": []}]}, "“changes” that this page"),
    "change after": ({"changes": [good()["changes"][0] | {"after": "4"}]}, "“after” is not a whole"),
    "change late": ({"changes": [good()["changes"][0] | {"after": 30}]}, "after step 30"),
}


@pytest.mark.parametrize("change, words", DAMAGE.values(), ids=DAMAGE)
def test_damaged_settings_are_refused_in_words(change, words):
    settings_file.from_dict(good(), SPECS)
    with pytest.raises(ValueError, match=words) as caught:
        settings_file.from_dict(json.loads(json.dumps(good() | change)), SPECS)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("key", list(good()))
def test_every_entry_is_needed(key):
    with pytest.raises(ValueError, match="settings"):
        settings_file.from_dict({name: value for name, value in good().items() if name != key}, SPECS)


def test_a_bomb_is_not_unpacked():
    header = settings_file.png_bytes(Image.new("L", (1, 1)))
    width = (60_000).to_bytes(4, "big")
    import zlib

    chunk = b"IHDR" + width + width + header[24:29]
    bomb = header[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + header[33:]
    uri = settings_file.URI + base64.b64encode(bomb).decode()
    with pytest.raises(ValueError, match="cannot be read|at most 1024"):
        settings_file.from_dict(good() | {"given": {"image": {"png": uri}}}, SPECS)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"3", b"{", b"\xff{", b"[" * 100_000, b"{" + b'"a":{' * 100_000]
)
def test_other_files_than_settings_are_refused(text, tmp_path):
    (tmp_path / "notes.json").write_bytes(text)
    with pytest.raises(ValueError, match="settings"):
        settings_file.read(tmp_path / "notes.json", SPECS)


def test_files_without_settings_say_so_by_name(tmp_path):
    photo().save(tmp_path / "holiday.png")
    photo().save(tmp_path / "holiday.jpg")
    with zipfile.ZipFile(tmp_path / "holiday.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    for name in ("holiday.png", "holiday.jpg", "holiday.zip"):
        with pytest.raises(ValueError, match=f"“{name}” has no settings in it"):
            settings_file.read(tmp_path / name, SPECS)


@pytest.mark.parametrize("name", ["a.png", "a.zip"])
def test_damaged_files_say_so_by_name(name, tmp_path):
    start = {"a.png": b"\x89PNG\r\n\x1a\n", "a.zip": b"PK\x03\x04"}[name]
    (tmp_path / name).write_bytes(start + b"nothing else")
    with pytest.raises(ValueError, match=f"“{name}” cannot be read.*damaged"):
        settings_file.read(tmp_path / name, SPECS)


def test_every_damaged_byte_of_a_zip_is_refused_or_harmless(tmp_path):
    path = tmp_path / "a.zip"
    request = Request(wanted=("image",))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("settings.json", settings_file.to_json(request, "orchard", "any"))
    whole = path.read_bytes()
    refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert same(settings_file.read(path, SPECS).request, complete(request))
        except ValueError:
            refused += 1
    assert refused > len(whole) / 3


def test_zip_bombs_and_huge_files_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("settings.json", b"{" + b" " * (settings_file.MAX_SETTINGS + 10))
    assert (tmp_path / "bomb.zip").stat().st_size < 100_000
    with pytest.raises(ValueError, match="larger than 16 MB"):
        settings_file.read(tmp_path / "bomb.zip", SPECS)
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("settings.json", "{}")
    with pytest.raises(ValueError, match="cannot be read"):
        settings_file.read(tmp_path / "odd.zip", SPECS)
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(settings_file.MAX_FILE + 1)
    with pytest.raises(ValueError, match="larger than 64 MB"):
        settings_file.read(tmp_path / "huge.png", SPECS)


def test_values_that_settings_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="2000 × 10 px, too large"):
        settings_file.to_dict(
            Request({"embedding": Image.new("RGB", (2000, 10))}, ("image",)), "orchard", "any"
        )
    with pytest.raises(ValueError, match="“embedding” cannot be kept"):
        settings_file.to_dict(Request({"embedding": np.zeros(16)}, ("image",)), "orchard", "any")
