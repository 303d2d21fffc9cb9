"""Links are short and readable, restore the run, and name everything that does not fit."""

import base64
import zlib
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import gradio as gr
import numpy as np
import pytest
from fakes import LABELS, FakePipeline, photo
from PIL import Image
from records import make_record
from test_app_settings_file import PHOTO, REQUESTS, SIZE, SPECS, random_request, same

from app.export.download import Downloads, root_address
from app.export.link import MAX_QUERY, from_query, is_link, to_query
from app.run.history import Track
from app.task import TASKS
from mmdiff.request import Change, Request


def opened(query: str) -> dict[str, str]:
    """The parameters as a browser hands them to a server."""
    return dict(
        parse_qsl(
            urlsplit(f"http://127.0.0.1:7860/{query}").query, keep_blank_values=True, strict_parsing=True
        )
    )


def disc(radius: float, classes: int = 2) -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    return ((np.hypot(rows, columns) < radius) * (classes - 1)).astype(np.int64)


def off_is_off(scales):
    """Guidance scales without those that do nothing."""
    if isinstance(scales, Mapping):
        return {name: scale for name, scale in scales.items() if scale != 1} or 1
    return scales


def without_off(request: Request) -> Request:
    changes = [Change(change.after, without_off(change.request)) for change in request.changes]
    return replace(request, guidance_scale=off_is_off(request.guidance_scale), changes=tuple(changes))


def same_meaning(a: Request, b: Request) -> bool:
    """Equal but for the order of names and 1 or 1.0."""

    def ordered(condition):
        scales = condition.guidance_scale
        by_name = scales if isinstance(scales, Mapping) else {"": scales}
        return (
            tuple(sorted(condition.wanted)),
            dict(sorted(condition.given.items())),
            condition.known_pixels,
            {name: float(scale) for name, scale in sorted(by_name.items())},
            tuple(condition.sample_first),
        )

    afters = [tuple(change.after for change in request.changes) for request in (a, b)]
    numbers = [(r.steps, r.seed, r.num_samples, r.sampler) for r in (a, b)]
    conditions = [tuple(map(ordered, without_off(request).conditions)) for request in (a, b)]
    return numbers[0] == numbers[1] and afters[0] == afters[1] and same(*conditions)


def test_a_link_reads_like_the_settings():
    request = Request({"label": "Apple Red"}, ("image", "mask"), None, {"label": 3}, (), 12, 7, 4, "dpmpp_2m")
    query, left_out = to_query(request, "orchard", "image-label")
    assert left_out == []
    assert query == (
        "?task=image-label&model=orchard&seed=7&steps=12&samples=4&sampler=dpmpp_2m&want=image,mask&guide.label=3"
        "&give.label=Apple+Red"
    )


def test_links_leave_out_defaults():
    assert to_query(Request(wanted=("image",)), "orchard", "any") == (
        "?task=any&model=orchard&seed=0&want=image",
        [],
    )


SHORT = {
    "nothing given": REQUESTS["nothing given"],
    "label": REQUESTS["label"],
    "text": Request({"embedding": "50 % “kaki” + très mûr & 柿 = #1?"}, ("image",), guidance_scale=2.5),
    "mask": Request({"mask": disc(20)}, ("image", "label"), guidance_scale={"mask": 0.1 + 0.2}),
    "followed": Request({}, ("image", "label"), None, {"label": 2.0}, ("label",)),
    "off": Request({"label": LABELS[0]}, ("image",), guidance_scale={"label": 1.0}),
    "tiny scale": Request({"label": LABELS[0]}, ("image",), guidance_scale=1e-5),
    "numpy scale": Request({"label": LABELS[0]}, ("image",), guidance_scale=np.float64(2.5)),
    "forks": Request(
        {"label": LABELS[0]},
        ("image", "mask"),
        changes=(
            Change(4, Request({"label": LABELS[3]}, ("image", "mask"), None, {"label": 2})),
            Change(9, Request({"mask": disc(9), "embedding": "a red apple"}, ("image",), None, 1.5)),
        ),
    ),
}


@pytest.mark.parametrize("name", list(SHORT))
def test_links_restore_requests_that_fit(name):
    request = SHORT[name]
    query, left_out = to_query(request, "orchard", "any-to-any")
    linked = from_query(opened(query), SPECS)
    assert left_out == [] and linked.missing == () and len(query) <= MAX_QUERY
    assert same_meaning(linked.request, request)
    assert (linked.checkpoint, linked.task) == ("orchard", "any-to-any")
    assert to_query(linked.request, "orchard", "any-to-any")[0] == query


@pytest.mark.parametrize("seed", range(60))
def test_any_job_gives_a_link_that_opens(seed):
    request = random_request(seed)
    query, left_out = to_query(request, "orchard", "any")
    linked = from_query(opened(query), SPECS)
    assert len(query) <= MAX_QUERY and is_link(opened(query))
    kept = {name: value for name, value in request.given.items() if name not in linked.missing}
    known = None if "hole" in linked.missing else request.known_pixels
    forks = () if any("changed" in words for words in left_out) else request.changes
    assert same_meaning(linked.request, replace(request, given=kept, known_pixels=known, changes=forks))
    photos = [name for name, value in request.given.items() if isinstance(value, Image.Image)]
    assert set(photos) <= set(linked.missing)
    assert len(left_out) == len(linked.missing) + (forks != request.changes)


def test_older_links_sample_a_label_first_that_is_guided_but_not_given():
    new = from_query({"first": "label", "guide.label": "2.5", "want": "image"}, SPECS).request
    assert (new.sample_first, new.guidance_scale) == (("label",), {"label": 2.5})
    assert same(from_query({"guide.label": "2.5", "want": "image"}, SPECS).request, new)
    fork = {"fork1.after": "3", "fork1.guide.label": "2", "fork1.want": "image"}
    (change,) = from_query({"give.label": LABELS[0], "want": "image", **fork}, SPECS).request.changes
    assert change.request.sample_first == ("label",)
    waiting = from_query({"guide.label": "2", "missing": "label", "want": "image"}, SPECS).request
    assert waiting.sample_first == ()  # it will be given


def test_a_link_names_its_missing_photo_and_contains_the_hole():
    known = disc(12) == 0
    scales = {"image": 1.5, "label": 2}
    request = Request({"image": PHOTO, "label": LABELS[1]}, ("image", "mask"), known, guidance_scale=scales)
    query, left_out = to_query(request, "orchard", "fill-in")
    (words,) = left_out
    assert words.startswith("The photo for “image” does not fit into a link. Save the settings file instead")
    linked = from_query(opened(query), SPECS)
    assert linked.missing == ("image",)
    assert same(linked.request.known_pixels, known) and linked.request.given == {"label": LABELS[1]}
    assert linked.request.wanted == ("image", "mask") and linked.request.guidance_scale == scales


def test_a_link_names_masks_that_are_too_long():
    noise = np.random.default_rng(0).integers(0, 2, (128, 128))
    request = Request(
        {"mask": noise, "image": photo((128, 128))},
        ("image", "label"),
        noise == 0,
        guidance_scale={"mask": 3},
    )
    query, left_out = to_query(request, "orchard", "any")
    linked = from_query(opened(query), FakePipeline(128).modalities)
    assert set(linked.missing) == {"mask", "hole", "image"} and linked.request.guidance_scale == {"mask": 3}
    assert {words.split(".")[0] for words in left_out} == {
        "The photo for “image” does not fit into a link",
        "The hole is too long for a link",
        "The mask is too long for a link",
    }


def test_forks_with_photos_are_left_out_in_words():
    request = Request(
        {"label": LABELS[0]}, ("image",), changes=(Change(5, Request({"embedding": photo()}, ("image",))),)
    )
    query, left_out = to_query(request, "orchard", "any")
    assert left_out[0].startswith("What was changed on the way does not fit into a link.")
    assert from_query(opened(query), SPECS).request.changes == ()


def test_a_link_written_by_hand_may_say_little():
    request = from_query({"give.label": "apple red", "__theme": "dark", "utm_source": "mail"}, SPECS).request
    assert same(request, Request({"label": "Apple Red"}, ("image", "mask", "embedding")))
    assert is_link({"seed": "3"}) and not is_link({"__theme": "dark"}) and not is_link({})


def packed(classes) -> str:
    """Class numbers as links carry them."""
    data = zlib.compress(np.asarray(classes, dtype=np.uint8).tobytes())
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


BAD = {
    "unknown": ({"colour": "red"}, "“colour” is unknown"),
    "seed": ({"seed": "seven"}, "“seed” is “seven” and not a whole number"),
    "negative": ({"seed": "-1"}, "not a whole number"),
    "seed range": ({"seed": "99999999999"}, "seed is 99999999999"),
    "arabic digits": ({"seed": "٣"}, "not a whole number"),
    "steps": ({"steps": "0"}, "steps is 0"),
    "samples": ({"samples": "50"}, "num_samples is 50"),
    "sampler": ({"sampler": "euler"}, "no sampler is called 'euler'"),
    "want": ({"want": "sound"}, "“want” names “sound”"),
    "want twice": ({"want": "image,image"}, "each once"),
    "want nothing": ({"want": ""}, "“want” names “”"),
    "label": ({"give.label": "Pear"}, "no class “Pear”"),
    "photo": ({"give.image": "cat.png"}, "“give.image” is not possible"),
    "unknown given": ({"give.sound": "la"}, "“give.sound” is not possible"),
    "mask": ({"give.mask": "eJxj"}, "“give.mask” is damaged"),
    "mask letters": ({"give.mask": "*"}, "“give.mask” is damaged"),
    "mask cut off": ({"give.mask": packed(disc(20))[:-9]}, "“give.mask” is damaged"),
    "mask size": ({"give.mask": packed(disc(20)[:32])}, "another size than the 64 × 64 px"),
    "mask bomb": ({"give.mask": packed(np.zeros((3000, 3000)))}, "another size than the 64 × 64 px"),
    "mask classes": ({"give.mask": packed(disc(20, 9))}, "class number 8"),
    "hole without photo": ({"hole": packed(disc(9))}, "no image is given"),
    "guide": ({"guide": "loud"}, "“guide” is “loud” and not a number"),
    "guide range": ({"guide": "11"}, "guidance_scale is 11"),
    "guide nan": ({"guide": "nan"}, "not a number"),
    "guide of nothing": ({"guide.mask": "3"}, "'mask', which is not given"),
    "guide twice": ({"guide.label": "3", "guide": "2"}, "once for all"),
    "missing": ({"missing": "sound"}, "“missing” names “sound”"),
    "missing and there": ({"missing": "label", "give.label": LABELS[0]}, "said to be missing"),
    "fork": ({"fork1.give.label": LABELS[0]}, "“after”"),
    "fork 2": ({"fork2.after": "3"}, "not numbered"),
    "fork late": ({"fork1.after": "30"}, "after step 30"),
    "first": ({"first": "sound"}, "“first” names “sound”"),
    "first mask": ({"first": "mask"}, "sample_first names 'mask'"),
    "fork unknown": ({"fork1.seed": "30"}, "“fork1.seed” is unknown"),
    "task": ({"task": "a" * 999}, "“task” is not a name"),
    "model": ({"model": "a\n"}, "“model” is not a name"),
}


@pytest.mark.parametrize("params, words", BAD.values(), ids=BAD)
def test_damaged_links_are_refused_in_words(params, words):
    with pytest.raises(ValueError, match=words) as caught:
        from_query(params, SPECS)
    assert len(str(caught.value)) < 300


# -- where links lead ----------------------------------------------------------------------------------


def asked_from(**headers: str) -> SimpleNamespace:
    """What an event of a page at this address brings."""
    return SimpleNamespace(headers=headers)


def run_of(checkpoint: str) -> Track:
    record = make_record(steps=1)
    record.checkpoint = checkpoint
    return Track(checkpoint, "", record)


@pytest.fixture(scope="module")
def homes() -> dict[str, Downloads]:
    """By their route, on the pages of three checkpoints, of which “orchard” is the first."""

    def home(checkpoint: str) -> Downloads:
        return Downloads(TASKS[-1], gr.State(None), [run_of(checkpoint)])

    with gr.Blocks() as demo:
        made = {"": home("orchard")}
    for name in ("scenes", "a.new-one"):
        with demo.route(name, name):
            made[name] = home(name)
    return made


@pytest.mark.parametrize("root", ["http://host:7860/", "https://host/a/path/", "https://host/orchard/"])
@pytest.mark.parametrize("route", ["", "scenes", "a.new-one"])
def test_links_lead_to_the_page_of_their_checkpoint_and_programs_to_the_first(homes, route, root):
    home = homes[route]
    request = asked_from(referer=f"{root}{route}?task=any_to_any#x", origin="http://elsewhere")
    for name, wanted in {"orchard": "", "scenes": "scenes", "a.new-one": "a.new-one"}.items():
        update = home.update([run_of("orchard"), run_of(name)], request)
        address, _, query = update[home.link].partition("?")
        assert address == root + wanted
        assert f"model={name}&" in query
        assert f'Client("{root}")' in update[home.client]


@pytest.mark.parametrize(
    "headers, route, root",
    [
        ({"referer": "http://host/scenes/"}, "scenes", "http://host/"),
        ({"referer": "http://host/%5Bold%5D"}, "[old]", "http://host/"),
        ({"referer": "http://host/orchard"}, "", "http://host/orchard/"),
        ({"referer": "http://host/myscenes"}, "scenes", "http://host/myscenes/"),
        ({"referer": "http://host/scenes/scenes"}, "scenes", "http://host/scenes/"),
        ({"referer": "http://host"}, "scenes", "http://host/"),
        ({"origin": "http://host"}, "scenes", "http://host/"),
        ({}, "scenes", ""),
    ],
)
def test_only_the_route_of_the_page_is_cut_off(headers, route, root):
    assert root_address(asked_from(**headers), route) == root
