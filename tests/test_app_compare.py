"""Side by side: untouched settings are the same in both runs."""

import gradio as gr
import pytest

from app.controls.compare import SAME, Compare
from app.task import TASKS
from mmdiff.request import Request

UNTOUCHED = (0, SAME, SAME)
SCALES = [1.0, 3.0, {"label": 4.0, "mask": 0.5}, {}]


@pytest.fixture(scope="module")
def compare() -> Compare:
    with gr.Blocks():
        return Compare(TASKS[-1], ["orchard", "scenes"])


def given(scales) -> Request:
    return Request({"label": "Apple Red", "mask": None}, ("image",), guidance_scale=scales)


@pytest.mark.parametrize("scales", SCALES)
def test_as_it_stands_at_first_only_the_steps_are_others(compare, scales):
    _, *others = (component.value for component in compare.components)
    assert (0, *others) == (*UNTOUCHED, "orchard")
    assert compare.read(given(scales), 0, *others) == (given(scales), "orchard")


@pytest.mark.parametrize("scales", SCALES)
def test_another_checkpoint_has_the_same_guidance(compare, scales):
    assert compare.read(given(scales), *UNTOUCHED, "scenes") == (given(scales), "scenes")


@pytest.mark.parametrize("scales", SCALES)
def test_guidance_can_be_changed_for_all_that_is_given(compare, scales):
    other, _ = compare.read(given(scales), 0, 2.5, SAME, "orchard")
    assert other.guidance_scale == {"label": 2.5, "mask": 2.5}


@pytest.mark.parametrize("guidance", [SAME, 1.0, 5.0])
def test_a_modality_sampled_first_keeps_its_guidance_in_both(compare, guidance):
    request = Request(wanted=("image", "label"), guidance_scale={"label": 3.5}, sample_first=("label",))
    assert compare.read(request, 0, guidance, SAME, "orchard") == (request, "orchard")


@pytest.mark.parametrize(("wanted", "counted"), [(("mask",), {}), (("image", "mask"), {"image": 2.0})])
def test_photos_that_are_given_have_guidance_in_their_holes(compare, wanted, counted):
    request = Request({"image": None, "label": "Apple Red"}, wanted)
    assert compare.read(request, 0, 2.0, SAME, "orchard")[0].guidance_scale == {"label": 2.0} | counted


@pytest.mark.parametrize("steps", [0, None])
def test_no_steps_are_the_same_steps(compare, steps):
    request = given(1.0)
    assert compare.read(request, steps, SAME, "ancestral", "orchard")[0].steps == request.steps


def test_two_equal_runs_are_refused(compare):
    request = given({"label": 3.0})
    other, checkpoint = compare.read(request, *UNTOUCHED, "orchard")
    with pytest.raises(ValueError, match="would be the same"):
        compare.titles(request, "orchard", other, checkpoint)


def test_titles_name_the_differences_alone(compare):
    request = given({"label": 3.0})
    other, checkpoint = compare.read(request, *UNTOUCHED, "scenes")
    assert compare.titles(request, "orchard", other, checkpoint) == ("orchard", "scenes")
    other, checkpoint = compare.read(request, 1, SAME, SAME, "orchard")
    assert compare.titles(request, "orchard", other, checkpoint) == (f"{request.steps} steps", "1 step")
