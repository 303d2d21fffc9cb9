"""The page shows and saves a kind that it does not know: the depth of docs/new-modality.md."""

import base64
import importlib
import io
import json
import sys
import zipfile
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from fakes import FakePipeline
from PIL import Image

from app.controls.form import Form
from app.export import film, settings_file
from app.export.code import client_program, library_program
from app.export.link import from_query, to_query
from app.export.zip_file import write_zip
from app.run.history import Track, picture_of, uncertainty
from app.run.player_data import Player
from app.run.service import Service
from app.task import GENERATE, IGNORE, TASKS
from app.ui import build_demo
from mmdiff.config import ModalityConfig
from mmdiff.modalities import KINDS, build_modality
from mmdiff.request import Request

SIZE, STEPS = 64, 4
DEPTH = Request(wanted=("image", "depth"), steps=STEPS, seed=3, num_samples=2)


@pytest.fixture(scope="module")
def service():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "docs/examples")
        importlib.import_module("depth")
        pipe = FakePipeline(SIZE)
        pipe.modalities["depth"] = build_modality(ModalityConfig("depth", "depth"), SIZE, 8)
        yield Service(pipe, "with depth")
        del KINDS["depth"], sys.modules["depth"]  # so that it registers when it is imported again


def levels(service, record, sample):
    """Depths of the last step as 16-bit numbers."""
    (picture,) = service.modalities["depth"].present(record.last.x["depth"][sample : sample + 1])
    return np.asarray(picture)


def test_the_player_shows_its_previews(service):
    record = service.run(DEPTH)
    with gr.Blocks():
        (track,) = json.loads(Player("any_to_any-player").value([Track("a", "", record)]))["tracks"]
    assert [(head["name"], head["form"]) for head in track["heads"]] == [
        ("image", "picture"),
        ("depth", "picture"),
    ]
    uri = track["frames"][-1]["x"]["depth"][1]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert np.array_equal(shown, np.asarray(picture_of(record.last, service.modalities["depth"], 1)))
    assert np.abs(shown[..., 0] * 257.0 - levels(service, record, 1)).max() < 300
    spread = np.stack([levels(service, record, k) for k in range(2)]).std(0) / 65535 / 0.5
    assert np.abs(uncertainty(record.last, service.modalities["depth"]) - spread).max() < 0.01


def test_the_zip_has_its_exact_values_and_its_steps(service, tmp_path):
    record = service.run(DEPTH)
    write_zip(record, tmp_path / "run.zip", "any_to_any")
    archive = zipfile.ZipFile(tmp_path / "run.zip")
    saved = np.asarray(Image.open(io.BytesIO(archive.read("sample_2/depth.png"))))
    assert np.array_equal(saved, levels(service, record, 1))
    assert {f"steps/sample_1/depth_{k:03}.png" for k in range(1, STEPS + 1)} <= set(archive.namelist())
    assert settings_file.read(tmp_path / "run.zip", service.modalities).request == record.request
    assert json.loads(archive.read("result.json"))["roles"]["depth"] == "generated"


def test_films_links_and_programs_have_it(service):
    record = service.run(DEPTH)
    more, fewer = (
        service.run(Request(wanted=n, steps=1)) for n in (("image", "mask", "depth"), ("image", "mask"))
    )
    assert film.frames([("", more)])[0].width > film.frames([("", fewer)])[0].width + 200
    query, left_out = to_query(record.request, "with depth", "any_to_any")
    assert "want=image,depth" in query and not left_out
    params = dict(pair.split("=") for pair in query.removeprefix("?").split("&"))
    assert from_query(params, service.modalities).request == record.request
    for program in (client_program(record.request, "http://a/"), library_program(record.request, "a")):
        assert 'wanted=["image", "depth"]' in program


def test_its_row_has_no_controls_to_give_it(service):
    with gr.Blocks():
        form = Form(service, TASKS[-1])
    (row,) = [row for row in form._rows if row.spec.name == "depth"]
    assert [value for _, value in row.choice.choices] == [GENERATE, IGNORE]
    assert form.read(*(component.value for component in form.components)).wanted == tuple(service.modalities)


def test_tasks_of_other_modalities_leave_it_out(service):
    names = {task.name: set(task.modalities(service.modalities)) for task in TASKS}
    assert names["image_mask"] == {"image", "mask"} and "depth" in names["any_to_any"] & names["fill_in"]
    assert "any_to_any-depth-role" in str(build_demo([service]).config)
