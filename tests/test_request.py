"""The request: what it leaves open is filled in, what cannot be run is explained, and what it costs."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from mmdiff.request import MAX_SEED, NO_LIMITS, Change, Limits, Request

SIZE, T = 4, 1000
MODALITIES = {
    name: SimpleNamespace(image_size=SIZE, drawable=name == "label", lead=None)
    for name in ("image", "mask", "label", "embedding")
}
WHOLE = np.ones((SIZE, SIZE), dtype=bool)
HOLES = np.tri(SIZE, dtype=bool)
PHOTO, MASK = "photo.png", "mask.png"  # values are parsed later
ALL = {"image": PHOTO, "mask": MASK, "label": 1, "embedding": "red"}
BUT_IMAGE = ("mask", "label", "embedding")


def checked(limits=NO_LIMITS, **fields) -> Request:
    return Request(**fields).checked(MODALITIES, T, limits)


def test_fields_and_defaults_are_the_documented_ones():
    fields = {field.name: getattr(Request(), field.name) for field in dataclasses.fields(Request)}
    assert fields == {
        "given": {},
        "wanted": (),
        "known_pixels": None,
        "guidance_scale": 1.0,
        "sample_first": (),
        "leads": None,
        "steps": 30,
        "seed": 0,
        "num_samples": 1,
        "sampler": "ddim",
        "eta": 0.0,
        "changes": (),
    }
    assert list(fields)[:2] == ["given", "wanted"]  # positional in a call of the pipeline


# -- what is filled in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, tuple(MODALITIES)),
        ({"given": {"label": 1}}, ("image", "mask", "embedding")),
        ({"given": {"image": PHOTO}}, BUT_IMAGE),
        ({"given": {"image": PHOTO}, "known_pixels": WHOLE}, BUT_IMAGE),
        ({"given": {"image": PHOTO}, "known_pixels": HOLES}, tuple(MODALITIES)),
        ({"given": {"image": PHOTO, "label": 1}, "known_pixels": HOLES}, ("image", "mask", "embedding")),
        ({"given": ALL, "known_pixels": HOLES}, ("image",)),
        ({"sample_first": ("label",)}, tuple(MODALITIES)),
        ({"wanted": "mask"}, ("mask",)),
        ({"wanted": ["label", "image"]}, ("label", "image")),
        ({"given": {"image": PHOTO}, "known_pixels": HOLES, "wanted": ("image",)}, ("image",)),
        ({"given": {"image": PHOTO}, "known_pixels": HOLES, "wanted": ("label",)}, ("label",)),
    ],
    ids=str,
)
def test_wanted_names_everything_that_is_generated(fields, wanted):
    assert checked(**fields).wanted == wanted


def test_checking_fills_in_a_copy_and_leaves_the_request_alone():
    change = Change(2, Request({"image": PHOTO}, known_pixels=HOLES, guidance_scale={"image": 2.0}))
    request = Request({"label": 1}, guidance_scale={"label": 3.0}, steps=5, seed=7, eta=0.5, changes=[change])
    before = copy.deepcopy(request)
    complete = request.checked(MODALITIES, T)
    for field in dataclasses.fields(Request):
        name = field.name
        if name not in ("wanted", "changes"):
            assert getattr(complete, name) == getattr(request, name) == getattr(before, name)
    assert request.wanted == () and request.changes == [change] and change.request.wanted == ()
    assert np.array_equal(change.request.known_pixels, before.changes[0].request.known_pixels)
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.steps = 6


def test_a_checked_request_stays_as_it_is():
    once = checked(given={"label": 1}, steps=5, changes=[Change(2, Request({"mask": MASK}))])
    assert once.checked(MODALITIES, T) == once


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64])
def test_numbers_of_numpy_become_numbers_of_python(kind):
    whole = {"steps": kind(200), "seed": kind(5), "num_samples": kind(200)}
    change = Change(kind(199), Request({"mask": MASK}, guidance_scale=kind(3)))
    complete = checked(given={"label": 1}, guidance_scale=np.float32(2), changes=[change], **whole)
    for request in complete.conditions:
        assert (request.steps, request.seed, request.num_samples) == (200, 5, 200)
        assert all(type(getattr(request, name)) is int for name in whole)
    assert complete.changes[0].after == 199 and complete.rows() == 400


def test_scales_and_eta_may_be_of_numpy():
    request = checked(given={"label": 1}, guidance_scale={"label": np.float64(2)}, eta=np.float32(0.5))
    assert request.branches() == 2 and request.eta == 0.5


# -- changes ---------------------------------------------------------------------------------------------


def test_a_change_has_conditions_of_its_own_and_samples_as_its_run_does():
    own = Request({"image": PHOTO}, (), HOLES, {"image": 2.0}, ("label",))
    sampling = {"steps": 9, "seed": 8, "num_samples": 3, "sampler": "ddim", "eta": 0.25}
    other = {"steps": 0, "seed": -1, "num_samples": 0, "sampler": "euler", "eta": 9.0}
    change = Change(4, dataclasses.replace(own, **other, changes=[Change(1, Request())]))
    run = checked(given={"label": 1}, wanted=("mask",), guidance_scale=3.0, changes=[change], **sampling)
    assert run.changes == (
        Change(4, dataclasses.replace(own, wanted=tuple(MODALITIES), **sampling, changes=())),
    )
    assert run.conditions == (run, run.changes[0].request)
    assert run.wanted == ("mask",) and run.guidance_scale == 3.0


@pytest.mark.parametrize("after", [[1], [5], [1, 2, 3, 4, 5], [2, 4]])
def test_changes_come_in_order_after_steps_of_the_run(after):
    complete = checked(steps=6, changes=[Change(k, Request({"label": k})) for k in after])
    assert [change.after for change in complete.changes] == after
    assert [c.given for c in complete.conditions] == [{}, *({"label": k} for k in after)]


@pytest.mark.parametrize("after", [0, -1, 6, 2.5, True, None])
def test_a_change_outside_the_run_is_refused(after):
    with pytest.raises(ValueError) as error:
        checked(steps=6, changes=[Change(after, Request({"label": 1}))])
    assert str(error.value) == (
        f"a change comes after step {after!r} of 6; give whole numbers from 1 to 5, each larger than the one "
        "before, or take more steps."
    )


@pytest.mark.parametrize("after", [[3, 3], [4, 2], [1, 5, 5]])
def test_changes_out_of_order_are_refused(after):
    with pytest.raises(ValueError, match=f"after step {after[-1]} of 6; .* each larger than the one before"):
        checked(steps=6, changes=[Change(k, Request({"label": 1})) for k in after])


# -- what is refused -------------------------------------------------------------------------------------


def whole(name, value, low, high):
    return {name: value}, f"{name} is {value!r}; give a whole number from {low} to {high}."


def eta(value):
    return {"eta": value}, f"eta is {value!r}; give a number from 0 (deterministic) to 1."


def scale(value):
    text = f"guidance_scale is {value!r}; give a number from 0 to 100, 1 is off."
    return {"given": {"label": 1}, "guidance_scale": value}, text


def scale_of_label(value):
    text = f"guidance_scale of 'label' is {value!r}; give a number from 0 to 100, 1 is off."
    return {"given": {"label": 1}, "guidance_scale": {"label": value}}, text


def wrong_map(known, what):
    text = f"known_pixels is {what}; give bool of shape (4, 4), True where the pixel is to be kept."
    return {"given": {"image": PHOTO}, "known_pixels": known}, text


HAS = "this checkpoint has image, mask, label, embedding."
TWICE = "given and wanted at once; leave it out of one of them."
NOTHING_LEFT = "everything is given, so nothing is left to generate; leave something out."
OTHERS_ONCE_GIVEN = "leave it out, and guide other modalities, once they are given"

REFUSED = [
    *(whole("steps", value, 1, T) for value in (0, -1, T + 1, 2.5, True, None, "30", np.float64(3))),
    *(whole("num_samples", value, 1, 2**31) for value in (0, 2**31 + 1, 1.5, False, None)),
    *(whole("seed", value, 0, MAX_SEED - 1) for value in (-1, 2**63, 0.5, True, "lucky", None)),
    ({"seed": MAX_SEED - 3, "num_samples": 4}, f"give a whole number from 0 to {MAX_SEED - 4}."),
    ({"sampler": "euler"}, "no sampler is called 'euler'; choose among ddim, dpmpp_2m, ancestral."),
    *(eta(value) for value in (1.5, -0.1, None, True, "0.5", float("nan"))),
    *(
        ({"eta": 0.5, "sampler": n}, f"an option of the sampler 'ddim', not of {n!r}; leave it at 0.")
        for n in ("dpmpp_2m", "ancestral")
    ),
    ({"given": {"sound": 1}}, f"no modality is called 'sound'; {HAS}"),
    ({"wanted": ("image", "depth")}, f"no modality is called 'depth'; {HAS}"),
    ({"wanted": "photo"}, f"no modality is called 'photo'; {HAS}"),
    ({"given": {"label": 1}, "wanted": ("label",)}, f"label: {TWICE}"),
    ({"given": {"label": 1, "mask": MASK}, "wanted": ("mask", "image", "label")}, f"mask, label: {TWICE}"),
    ({"given": {"image": PHOTO}, "wanted": ("image", "mask")}, f"image: {TWICE}"),
    ({"given": {"image": PHOTO}, "known_pixels": WHOLE, "wanted": "image"}, f"image: {TWICE}"),
    ({"given": ALL}, NOTHING_LEFT),
    ({"given": ALL, "known_pixels": WHOLE}, NOTHING_LEFT),
    (
        {"known_pixels": HOLES},
        "known_pixels says which part of an image to keep, but no image is given; give it, or leave "
        "known_pixels out.",
    ),
    wrong_map(HOLES[:2], "bool of shape (2, 4)"),
    wrong_map(HOLES[None], "bool of shape (1, 4, 4)"),
    wrong_map(HOLES.astype(int), "int64 of shape (4, 4)"),
    wrong_map(HOLES.tolist(), "list of shape None"),
    *(scale(value) for value in (-1, 101, float("nan"), True, "2", "strong", [2.0], None)),
    *(scale_of_label(value) for value in (-0.5, 100.5, float("nan"), True, "strong", None)),
    (
        {"given": {"label": 1}, "guidance_scale": {"colour": 2.0}},
        "guidance_scale names 'colour', which is no modality of this checkpoint; leave it out, and guide "
        "label.",
    ),
    (
        {"given": {"label": 1, "embedding": "red"}, "guidance_scale": {"mask": 2.0}},
        "guidance_scale names 'mask', which is not given; leave it out, and guide label, embedding.",
    ),
    (
        {"guidance_scale": {"mask": 1.0}},
        f"guidance_scale names 'mask', which is not given; {OTHERS_ONCE_GIVEN}.",
    ),
    (
        {"guidance_scale": {"label": 2.0}},
        f"guidance_scale names 'label', which is not given; {OTHERS_ONCE_GIVEN}, or name it in sample_first.",
    ),
    (
        {"given": {"image": PHOTO, "mask": MASK}, "guidance_scale": {"image": 2.0}},
        "guidance_scale names 'image', which is kept as it is given; leave it out, and guide mask.",
    ),
    (
        {"sample_first": ("label",), "guidance_scale": {"mask": 2.0}},
        "guidance_scale names 'mask', which is not given; leave it out, and guide label.",
    ),
    (
        {"sample_first": ("mask",)},
        "sample_first names 'mask', which cannot be drawn from its prediction; leave it out, and name label.",
    ),
    (
        {"sample_first": ("colour",)},
        "sample_first names 'colour', which is no modality of this checkpoint; leave it out, and name label.",
    ),
    (
        {"given": {"label": 1}, "sample_first": ("label",)},
        "sample_first names 'label', which is given; leave it out.",
    ),
]
CONDITIONS = ("given", "wanted", "known_pixels", "guidance_scale", "sample_first")
REFUSED_CHANGES = [(fields, text) for fields, text in REFUSED if set(fields) <= set(CONDITIONS)]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[message[:60] for _, message in REFUSED])
def test_errors_say_what_was_wrong_what_was_expected_and_the_remedy(fields, message):
    with pytest.raises(ValueError) as error:
        checked(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"), REFUSED_CHANGES, ids=[message[:60] for _, message in REFUSED_CHANGES]
)
def test_conditions_of_a_change_are_checked_like_those_of_the_start(fields, message):
    with pytest.raises(ValueError) as error:
        checked(steps=6, changes=[Change(2, Request(**fields))])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 1},
        {"steps": T},
        {"seed": MAX_SEED - 1},
        {"seed": MAX_SEED - 4, "num_samples": 4},
        {"eta": 1},
        {"given": {"label": 1}, "guidance_scale": 0},
        {"given": {"label": 1}, "guidance_scale": {"label": 100}},
        {"given": {"image": PHOTO}, "known_pixels": HOLES, "guidance_scale": {"image": 2.0}},
        {"sample_first": ("label",), "guidance_scale": {"label": 2.0}, "wanted": ("image",)},
        {"guidance_scale": {}},
    ],
    ids=str,
)
def test_the_ends_of_every_range_are_accepted(fields):
    checked(**fields)


# -- limits ----------------------------------------------------------------------------------------------

LIMITS = Limits(steps=50, num_samples=4, guidance_scale=10.0, seed=1000)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 51}, "steps is 51; give a whole number from 1 to 50."),
        ({"num_samples": 5}, "num_samples is 5; give a whole number from 1 to 4."),
        ({"seed": 999, "num_samples": 2}, "seed is 999; give a whole number from 0 to 998."),
        ({"given": {"label": 1}, "guidance_scale": 10.5}, "is 10.5; give a number from 0 to 10, 1 is off."),
        (
            {"given": {"label": 1}, "guidance_scale": {"label": 11}},
            "guidance_scale of 'label' is 11; give a number from 0 to 10, 1 is off.",
        ),
        (
            {"changes": [Change(2, Request({"label": 1}, guidance_scale=11))]},
            "guidance_scale is 11; give a number from 0 to 10, 1 is off.",
        ),
    ],
)
def test_limits_lower_what_is_accepted(fields, message):
    checked(**fields)  # without them
    with pytest.raises(ValueError) as error:
        checked(LIMITS, **fields)
    assert message in str(error.value)


def test_limits_are_accepted_themselves():
    largest = {"steps": 50, "num_samples": 4, "seed": 996, "guidance_scale": 10.0}
    assert checked(LIMITS, given={"label": 1}, **largest).rows() == 8


def test_a_short_noise_schedule_limits_the_steps_too():
    with pytest.raises(ValueError, match="steps is 30; give a whole number from 1 to 20"):
        Request().checked(MODALITIES, 20, LIMITS)


# -- what it costs and shows -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "branches"),
    [
        ({}, 1),
        ({"guidance_scale": 3.0}, 1),  # nothing to guide by
        ({"given": {"image": PHOTO}, "guidance_scale": 3.0}, 1),
        ({"given": {"label": 1}}, 1),
        ({"given": {"label": 1}, "guidance_scale": 3.0}, 2),
        ({"given": {"label": 1}, "guidance_scale": 0.0}, 2),
        ({"given": {"label": 1, "mask": MASK}, "guidance_scale": 3.0}, 2),
        ({"given": {"label": 1, "mask": MASK}, "guidance_scale": {"label": 3.0, "mask": 1}}, 2),
        ({"given": {"label": 1, "mask": MASK}, "guidance_scale": {"label": 3.0, "mask": 0.5}}, 3),
        (
            {
                "given": {"image": PHOTO, "label": 1},
                "known_pixels": HOLES,
                "guidance_scale": {"image": 2.0, "label": 3.0},
            },
            3,
        ),
        ({"sample_first": ("label",)}, 1),
        ({"sample_first": ("label",), "guidance_scale": 2.0}, 2),
        ({"sample_first": ("label",), "guidance_scale": {"label": 2.0}}, 2),
        ({"changes": [Change(1, Request({"label": 1}, guidance_scale=2.0)), Change(2, Request())]}, 2),
    ],
    ids=str,
)
def test_every_guidance_branch_costs_a_row_for_each_sample(fields, branches):
    request = checked(num_samples=3, **fields)
    assert (request.branches(), request.rows()) == (branches, 3 * branches)


def test_scales_are_named_from_one_number_or_from_each():
    given = {"image": PHOTO, "label": 1, "mask": MASK}
    assert Request(given, guidance_scale=2.0).scales() == {"label": 2.0, "mask": 2.0}
    assert Request(given, guidance_scale={"label": 3.0}).scales() == {"label": 3.0}
    assert Request(guidance_scale=2.0).scales() == {}
    assert Request({"photo": PHOTO, "label": 1}, guidance_scale=2.0).scales("photo") == {"label": 2.0}


def test_an_anchor_of_another_name_is_not_guided_by_one_number():
    request = Request({"photo": PHOTO}, ("photo",), guidance_scale=2.0, num_samples=2)
    assert (request.rows("photo"), request.rows()) == (2, 4)
    assert request.inpaints("photo") and not request.inpaints()


@pytest.mark.parametrize(
    ("fields", "shown", "inpaints"),
    [
        ({}, tuple(MODALITIES), False),
        ({"given": {"image": PHOTO}, "wanted": ("label",)}, ("image", "label"), False),
        ({"given": {"image": PHOTO}, "known_pixels": HOLES, "wanted": ("label",)}, ("image", "label"), False),
        ({"given": {"image": PHOTO}, "known_pixels": HOLES, "wanted": ("image",)}, ("image",), True),
        ({"given": {"image": PHOTO}, "known_pixels": WHOLE}, tuple(MODALITIES), False),
        ({"wanted": ("image",), "sample_first": ("label",)}, ("image",), False),
        (
            {"wanted": ("mask",), "changes": [Change(2, Request({"label": 1}, ("embedding",)))]},
            ("mask", "label", "embedding"),
            False,
        ),
        (
            {
                "wanted": ("image",),
                "changes": [Change(2, Request({"image": PHOTO}, ("image",), HOLES)), Change(3, Request())],
            },
            tuple(MODALITIES),
            True,
        ),
    ],
    ids=str,
)
def test_what_is_given_or_wanted_at_any_time_is_shown(fields, shown, inpaints):
    request = checked(**fields)
    assert request.shown == set(shown) and request.inpaints() == inpaints


@pytest.mark.parametrize(
    "wanted", [["label"], "label", iter(["label"]), (n for n in ["label"]), {"label": 1}]
)
def test_names_come_in_any_collection(wanted):
    assert checked(wanted=wanted).wanted == ("label",)


def test_nothing_named_is_everything_that_is_left():
    assert checked(wanted=None, sample_first=None).wanted == tuple(MODALITIES)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"wanted": 5}, "wanted is 5; give names of modalities"),
        ({"wanted": [5]}, "no modality is called 5"),
        ({"sample_first": True}, "sample_first is True; give names"),
        ({"given": [("label", 1)]}, "give a dictionary"),
        ({"changes": None}, "changes is None; give a list of Change"),
    ],
)
def test_other_types_are_refused_by_a_sentence(fields, message):
    with pytest.raises(ValueError, match=message):
        checked(**fields)


def test_known_pixels_may_be_a_tensor():
    import torch

    complete = checked(given={"image": PHOTO}, known_pixels=torch.from_numpy(HOLES))
    assert isinstance(complete.known_pixels, np.ndarray) and np.array_equal(complete.known_pixels, HOLES)
