"""Files and links fill in the forms; read from the updates that the page gets, without a browser."""

import json
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from fakes import LABELS, FakePipeline
from PIL import Image

from app.controls.painter import to_text
from app.export import settings_file
from app.export.link import to_query
from app.run.service import Service
from app.tabs.tab import build_tab
from app.task import GIVEN, TASKS
from app.theme import html
from app.ui import Restorer
from mmdiff.request import Request


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(), "fake")


@pytest.fixture(scope="module")
def restorer(service):
    with gr.Blocks():
        message = html("")
        with gr.Tabs() as tabs:
            built = [build_tab(t, [service]) for t in TASKS if t.fits(service.modalities)]
        return Restorer(service, built, tabs, message)


def opened(restorer, link):
    """Selected tab, message, request to run, its task, and component -> update of a link."""
    updates = restorer._from_link(SimpleNamespace(query_params=link))
    return *updates[:4], dict(zip(restorer._outputs[4:], updates[4:], strict=True))


def rows(restorer, name):
    return {row.spec.name: row for row in restorer._by_name[name].form._rows}


def test_every_tab_opens_with_an_example_and_an_estimate(restorer):
    updates = restorer._open(SimpleNamespace(query_params={}))
    late = updates[len(restorer._outputs) :]
    shown = dict(zip(restorer._opened_outputs, late, strict=True))
    for tab in restorer._by_name.values():
        (track,) = json.loads(shown[tab.player.component])["tracks"]
        assert track["frames"] and not track["running"] and "An example" in shown[tab.status]
        assert "about" in shown[tab.form.sampling.estimate]


def test_the_page_asks_for_the_missing_photo_of_a_link_and_shows_its_hole(restorer, service):
    known = np.ones((64, 64), bool)
    known[10:30, 20:40] = False
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    query, _ = to_query(Request({"image": photo}, ("image", "mask"), known), "fake", "fill_in")
    link = dict(parse_qsl(query.removeprefix("?")))
    assert link["missing"] == "image" and "hole" in link
    tab, message, request, _, updates = opened(restorer, link)
    row = rows(restorer, "fill_in")["image"]
    assert tab["selected"] == "fill_in" and "did not fit into it" in message and request is None
    assert updates[row.choice] == GIVEN
    assert updates[row.input.hole.component].value == to_text(~known)
    assert updates[row.input.photo] is None


@pytest.mark.parametrize("name", ["image", "mask"])
def test_a_modality_that_is_missing_is_still_to_be_given(restorer, name):
    link = {"task": "any_to_any", "want": "label", "missing": name}
    *_, updates = opened(restorer, link)
    assert updates[rows(restorer, "any_to_any")[name].choice] == GIVEN


@pytest.mark.parametrize("link", [{"give.label": LABELS[2]}, {"give.label": LABELS[2], "missing": "mask"}])
def test_a_task_without_a_row_for_a_given_modality_gives_way(restorer, link):
    tab, _, request, name, updates = opened(restorer, {"task": "image_mask", "want": "image", **link})
    assert tab["selected"] == "any_to_any" and (request is None or name == "any_to_any")
    label = rows(restorer, "any_to_any")["label"]
    assert updates[label.choice] == GIVEN and updates[label.input.choice]["value"] == LABELS[2]


def test_a_file_that_cannot_be_restored_changes_nothing_but_the_message(restorer, service, tmp_path):
    request = Request(wanted=("image",), steps=3)
    (tmp_path / "other.json").write_text(json.dumps(settings_file.to_dict(request, "another", "image_label")))
    (tmp_path / "damaged.json").write_text("{")
    for name, words in (("other", "made with the checkpoint “another”"), ("damaged", "")):
        _, message, request, task_name, *updates = restorer._from_file(str(tmp_path / f"{name}.json"))
        assert "This file cannot be restored." in message and words in message
        assert request is None and task_name == ""
        assert all(update == gr.skip() for update in updates)
    (tmp_path / "good.json").write_text(
        json.dumps(settings_file.to_dict(Request(wanted=("image",)), "fake", "any_to_any"))
    )
    _, message, request, task_name, *_ = restorer._from_file(str(tmp_path / "good.json"))
    assert "starts again" in message and request.wanted == ("image",) and task_name == "any_to_any"
