"""The page with a checkpoint whose modalities have levels: its forms, and a run with leads."""

import gradio as gr
import pytest
import torch
from fakes import FakePipeline
from synthetic import lively_model, tiny_config

from app.controls.form import Form
from app.controls.leads import LeadControls
from app.run.defaults import FOLLOWED, LED, from_nothing
from app.run.service import Service
from app.task import TASKS
from app.ui import build_demo
from mmdiff.checkpoint import save_checkpoint
from mmdiff.request import Request

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Service:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(lively_model(tiny_config(("image", "mask", "label"), core="levels")), folder)
    return Service.from_checkpoint(folder, precision="float32")


def test_a_photo_from_nothing_follows_its_label(service):
    assert from_nothing(service.modalities) == {"guidance_scale": {"label": LED}}
    assert from_nothing(service.modalities, 1) == {"guidance_scale": {}}
    older = FakePipeline(modalities=("image", "label")).modalities
    assert from_nothing(older) == {"guidance_scale": {"label": FOLLOWED}, "sample_first": ("label",)}
    assert service.example.finished and service.filled.finished
    assert service.example.request.guidance_scale == {"label": LED}


def test_a_run_has_the_leads_of_its_request(service):
    record = service.run(Request(steps=5, leads={"label": 0.5}, guidance_scale={"label": 2.0}, seed=1))
    own = service.run(Request(steps=5, seed=1))
    assert record.finished and record.request.leads == {"image": 0, "mask": 0, "label": 0.5}
    assert not (record.last.x["image"] == own.last.x["image"]).all()


def test_the_page_is_built(service):
    assert build_demo([service]).fns


# -- the controls of what is decided first ---------------------------------------------------------------

LEADS = {"label": 0.5, "embedding": 0.5, "mask": 0.2}
LEVEL = {"image": 0, "mask": 0, "label": 0, "embedding": 0}


def form_of(leads, modalities=("image", "mask", "label", "embedding")) -> Form:
    with gr.Blocks():
        return Form(Service(FakePipeline(modalities=modalities, leads=leads), "fake"), TASKS[-1])


def controls_of(leads) -> LeadControls:
    with gr.Blocks():
        return LeadControls(FakePipeline(modalities=tuple(LEVEL), leads=leads).modalities, "task")


def filled(form, request):
    """What the page sends once the settings of a request are filled in."""
    before = [component.value for component in form.components]
    shown = form.sampling.show(request)
    pairs = zip(before[-len(shown) :], shown, strict=True)
    return before[: -len(shown)] + [old if new == gr.skip() else new for old, new in pairs]


@pytest.mark.parametrize(
    "leads",
    [None, {}, {"image": 0.5}, {"image": 1.0}, {"label": 1 / 3, "mask": 3.95}, LEADS],
    ids=str,
)
def test_leads_come_back_from_the_controls_as_they_were(leads):
    form = form_of(LEADS)
    asked = Request(wanted=tuple(LEVEL), leads=None if leads is None else LEVEL | leads, seed=3)
    assert form.read(*filled(form, asked)).leads == asked.leads


def test_what_is_given_or_followed_guides_models_with_levels_at_first():
    sampling = form_of(LEADS).sampling
    assert [slider.value for slider in sampling.guidance] == [1, LED, LED, LED]
    assert sampling.followed.value == LED
    older = form_of(None).sampling
    assert [slider.value for slider in older.guidance] == [1, 1, 1, 1]
    assert older.followed.value == FOLLOWED


def test_the_guidance_of_a_photo_from_nothing_comes_back_from_the_controls():
    form = form_of(LEADS)
    asked = Request(wanted=tuple(LEVEL), guidance_scale={"label": 2.5}, seed=3)
    assert form.read(*filled(form, asked)).guidance_scale == {"label": 2.5}
    asked = Request(wanted=tuple(LEVEL), guidance_scale={}, seed=3)
    assert form.read(*filled(form, asked)).guidance_scale == {}


def test_the_model_decides_at_first_and_a_moved_slider_counts():
    form = form_of(LEADS)
    assert form.read(*(component.value for component in form.components)).leads is None
    controls = controls_of(LEADS)
    assert list(controls.presets) == ["Meaning first", "All together", "Image first"]
    (title, *own) = controls.show(None)
    assert (title, own) == ("Meaning first", [0, 0.2, 0.5, 0.5])
    assert controls.read(title, 1, *own[1:]) == LEVEL | LEADS | {"image": 1}
    assert controls.read(None, None, *own[1:]) == LEVEL | LEADS  # of a box that was emptied


@pytest.mark.parametrize(
    ("leads", "modalities"), [(None, tuple(LEVEL)), ({}, ("image",))], ids=["first edition", "image alone"]
)
def test_there_are_no_controls_where_there_is_nothing_to_order(leads, modalities):
    form = form_of(leads, modalities)
    assert not [c for c in form.components if c.label == "What is decided first"]
    assert form.read(*(component.value for component in form.components)).leads is None


def test_a_model_without_leads_of_its_own_decides_all_together():
    controls = controls_of({})
    assert controls.presets == {"All together": None, "Image first": LEVEL | {"image": 0.5}}
    assert [component.value for component in controls.components] == controls.show(None)


@pytest.mark.parametrize(
    ("leads", "warned"),
    [
        (None, False),
        ({}, False),
        ({"image": 0.5}, True),
        ({"image": 0.5, "label": 0.5}, True),
        ({"image": 0.1, "mask": 1}, False),
    ],
    ids=str,
)
def test_the_page_says_which_sampler_does_not_go_with_the_picture_first(leads, warned):
    controls = controls_of(LEADS)
    chosen = controls.show(None if leads is None else LEVEL | leads)
    assert bool(controls._warning("ancestral", *chosen)) is warned
    assert not controls._warning("dpmpp_2m", *chosen)
