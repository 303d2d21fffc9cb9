"""Every modality is called by its name and the same plain words wherever it is a heading."""

import importlib
import json
import sys
from pathlib import Path

import gradio as gr
import pytest
from fakes import FakePipeline

from app import opening
from app.controls.form import Form
from app.run.history import Track
from app.run.player_data import Player
from app.run.service import Service
from app.task import TASKS
from app.wording import gloss, glossed
from mmdiff.config import ModalityConfig
from mmdiff.modalities import KINDS, build_modality

PLAIN = {"image": "the photo", "mask": "what is where", "label": "its name", "embedding": "words that fit"}


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(modalities=tuple(PLAIN)), "fruit")


def test_rows_tiles_and_the_opening_have_the_same_words(service):
    assert {name: gloss(spec) for name, spec in service.modalities.items()} == PLAIN
    with gr.Blocks():
        form = Form(service, TASKS[-1])
        (track,) = json.loads(Player("any_to_any-player").value([Track("a", "", service.example)]))["tracks"]
    assert {row.spec.name: row.choice.info for row in form._rows} == PLAIN
    assert {head["name"]: head["gloss"] for head in track["heads"]} == PLAIN
    first = opening._stage(service, 1)
    for name, words in PLAIN.items():
        assert f'<b>{name.capitalize()}</b><span class="gloss">{words}</span>' in first


def test_the_opening_introduces_the_names_by_plain_words(service):
    assert "what is where (mask), its name (label) and words that fit (embedding)" in opening.about(service)


def test_a_kind_that_the_page_does_not_know_goes_by_its_name(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "docs/examples")
    importlib.import_module("depth")
    spec = build_modality(ModalityConfig("depth", "depth"), 64, 8)
    del KINDS["depth"], sys.modules["depth"]  # so that it registers when it is imported again
    assert (gloss(spec), glossed(spec)) == ("", "depth")
