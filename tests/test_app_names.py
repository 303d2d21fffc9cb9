"""Names that others have chosen, of checkpoints, modalities, classes and captions, are text on the page."""

import copy
import re
from pathlib import Path

import gradio as gr
import pytest
from fakes import FakePipeline, LetterEmbedder

from app.controls.form import Form
from app.errors import explain
from app.export.settings_file import from_json, to_json
from app.run.service import Service
from app.task import TASKS
from app.ui import build_demo
from app.wording import escaped
from mmdiff.clip.vocabulary import Vocabulary, Words
from mmdiff.request import Request

HOSTILE = "x<img src=x onerror=alert(1)>'\"&"
TAG = re.compile(r"<img src=x|alert\(1\)>|alert\(1\)&gt;'\"")


@pytest.fixture(scope="module")
def service():
    """A model whose names are all hostile."""
    pipe = FakePipeline(modalities=("image", "mask", "label", "embedding"))
    classes = [f"{HOSTILE}{k}" for k in range(7)]
    pipe.words = Words(LetterEmbedder(), Vocabulary.from_captions(classes, list(range(7)), classes))
    service = Service(pipe, HOSTILE)
    label = copy.copy(pipe.modalities["label"])
    label.name, label.classes = HOSTILE, tuple(classes)
    pipe.modalities[HOSTILE] = label
    for record in (service.example, service.filled):
        for frame in record.frames:
            frame.x[HOSTILE] = frame.x["label"]
    return service


def html_of(demo):
    """The HTML and Markdown of the page as it is sent, without what scripts read as data."""
    shown = [c for c in demo.get_config_file()["components"] if c["type"] in ("html", "markdown")]
    values = [str(c["props"].get("value") or "") for c in shown]
    return [value for value in values if not value.startswith("{")]


def test_no_name_becomes_a_tag(service):
    other = Service(FakePipeline(), f"{HOSTILE} 2")
    values = html_of(build_demo([service, other]))
    assert any(escaped(HOSTILE) in value for value in values)
    assert not [value for value in values if TAG.search(value)]


def test_what_the_form_says_of_its_rows_is_escaped(service):
    with gr.Blocks():
        form = Form(service, next(task for task in TASKS if task.name == "any_to_any"))
    values = [component.value for component in form.components]
    plan = form._plan(*values[: len(values) - len(form.sampling.components)])
    assert escaped(HOSTILE) in plan and not TAG.search(plan)


def test_errors_that_quote_names_are_escaped_on_the_page(service):
    for error in (ValueError(f"no modality is called {HOSTILE}"), gr.Error(escaped(HOSTILE))):
        assert not TAG.search(explain(error).message) and "&lt;img" in explain(error).message
    with pytest.raises(ValueError) as caught:
        from_json(to_json(Request({HOSTILE: HOSTILE}, ("image",)), "x", "y"), service.modalities)
    assert not TAG.search(explain(caught.value).message)


def test_there_is_one_function_that_escapes():
    sources = {path: path.read_text() for path in (Path(__file__).parents[1] / "app").glob("**/*.py")}
    found = [
        path.name for path, source in sources.items() if re.search(r"from html import|html\.escape", source)
    ]
    assert found == ["wording.py"]
