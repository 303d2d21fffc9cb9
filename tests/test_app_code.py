"""The programs to copy run as they stand and give the same as the page."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import LABELS, FakePipeline, photo, served
from PIL import Image
from test_app_settings_file import REQUESTS, SPECS, random_request, same
from test_app_zip_file import record_of

import mmdiff
from app.export import settings_file
from app.export.code import client_program, library_program
from app.export.download import root_address
from app.run.service import Service
from mmdiff.checkpoint import save_checkpoint
from mmdiff.request import Change, Request

ROOT = Path(__file__).parents[1]
SIZE, STEPS = 64, 5
EVERYTHING = ("image", "mask", "label", "embedding")
PHOTO = photo((SIZE, SIZE), 5)
HOLE = np.zeros((SIZE, SIZE), dtype=bool)
HOLE[10:30, 20:50] = True
MASK = HOLE.astype(np.int64)
HOSTILE = 'a "red" apple\'s  # \\ {x} """ + __import__("os").abort() + r"""\n${HOME} 柿'

RUNS = {
    "nothing given": Request(wanted=EVERYTHING, steps=STEPS, seed=4, num_samples=2),
    "label and guidance": Request({"label": LABELS[3]}, ("image", "mask"), None, {"label": 3}, (), STEPS, 1),
    "guidance of all": Request({"label": LABELS[2]}, ("image",), None, 2.5, (), STEPS, 1, 1, "dpmpp_2m"),
    "photo and hole": Request({"image": PHOTO}, ("image", "label"), ~HOLE, 1.0, (), STEPS, 9),
    "guided hole": Request({"image": PHOTO}, ("image",), ~HOLE, {"image": 1.5}, (), STEPS, 9),
    "followed": Request({}, ("image",), None, {"label": 2.5}, ("label",), STEPS, 3),
    "photo": Request({"image": PHOTO}, ("mask", "label"), steps=STEPS),
    "mask": Request({"mask": MASK}, ("image",), steps=STEPS),
    "text": Request({"embedding": HOSTILE}, ("image",), steps=STEPS),
    "embedding photo": Request({"embedding": PHOTO}, ("image",), steps=STEPS),
}


@pytest.fixture(scope="module")
def service() -> Service:
    return Service(FakePipeline(SIZE, modalities=EVERYTHING), "fake")


@pytest.fixture(scope="module")
def address(service):
    with served(service) as address:
        yield address


def executed(program: str, folder: Path) -> str:
    """What the program prints, run in a folder where mmdiff cannot be found by accident."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", list(RUNS))
def test_the_client_program_gives_the_same_as_a_direct_run(name, service, address, tmp_path):
    request = RUNS[name]
    printed = executed(client_program(request, address, "fake", "any"), tmp_path).splitlines()
    lines = printed[1:]  # the first one says what the client is connected to
    asked = service.pipe.calls[-1]
    last = record_of(request, pipe=service.pipe).last
    assert asked.guidance_scale == request.guidance_scale and asked.sample_first == request.sample_first
    assert same(dict(sorted(asked.given.items())), dict(request.given))
    pictures = [Image.open(line) for line in lines[1:] if Path(line).name.startswith("image")]
    masks = [Image.open(line) for line in lines[1:] if Path(line).name.startswith("mask")]
    assert len(pictures) + len(masks) == len([line for line in lines[1:] if line])
    assert len(pictures) == ("image" in request.wanted) * request.num_samples
    assert len(masks) == ("mask" in request.wanted) * request.num_samples
    for shown, expected in zip(pictures, last.x.get("image", []), strict=False):
        assert np.array_equal(np.asarray(shown), expected)
    for shown, expected in zip(masks, last.classes.get("mask", []), strict=False):
        assert np.array_equal(np.asarray(shown), expected)
    assert "'embedding'" not in lines[0]  # hundreds of numbers
    assert f"'seed': {request.seed}" in lines[0] and f"'sampler': '{request.sampler}'" in lines[0]


def test_the_program_of_a_further_checkpoints_page_runs(tmp_path):
    """Endpoints are on the first page alone."""
    services = [Service(FakePipeline(SIZE, modalities=EVERYTHING), name) for name in ("fake", "other")]
    with served(*services) as address:
        request = SimpleNamespace(headers={"referer": f"{address}/other?seed=3"})
        root = root_address(request, "other")
        before = len(services[0].pipe.calls)
        executed(client_program(RUNS["label and guidance"], root, "other", "any_to_any"), tmp_path)
    assert len(services[0].pipe.calls) == before
    assert services[1].pipe.calls[-1].given == {"label": LABELS[3]}


def test_a_run_with_forks_is_sent_as_its_settings(service, address, tmp_path):
    first = {"label": LABELS[0], "embedding": HOSTILE}
    request = dataclasses.replace(REQUESTS["forks"], given=first, steps=21)
    printed = executed(client_program(request, address, "fake", "any"), tmp_path).splitlines()
    assert same(service.pipe.calls[-1].given, first)
    (path,) = [line for line in printed if Path(line).name.startswith("image")]
    expected = record_of(request, pipe=service.pipe).last.x["image"][0]
    assert np.array_equal(np.asarray(Image.open(path)), expected)


class Asked:
    """Stands in for what a program talks to and notes what it is asked."""

    def __init__(self):
        self.arguments = {}

    def predict(self, **arguments):
        self.arguments = arguments
        return ["image.png"], None, {}

    def __call__(self, **arguments):
        self.arguments = arguments
        return SimpleNamespace(image=[], values={})


@pytest.mark.parametrize("seed", range(20))
def test_forks_reach_the_endpoint_unchanged(seed, monkeypatch):
    import gradio_client

    request, asked = random_request(seed), Asked()
    monkeypatch.setattr(gradio_client, "Client", lambda address: asked)
    exec(compile(client_program(request, "http://localhost/", "fake", "any"), "program", "exec"), {})
    if not request.changes:
        assert asked.arguments["api_name"] == "/generate" and asked.arguments["checkpoint"] == "fake"
        return
    assert set(asked.arguments) == {"settings", "api_name"} and asked.arguments["api_name"] == "/run_settings"
    assert json.loads(asked.arguments["settings"]) == settings_file.to_dict(request, "fake", "any")


@pytest.mark.parametrize("seed", range(20))
def test_the_library_program_asks_for_the_same(seed, monkeypatch):
    request, asked = random_request(seed), Asked()
    loaded = []
    monkeypatch.setattr(mmdiff.Pipeline, "from_pretrained", lambda name: loaded.append(name) or asked)
    exec(compile(library_program(request, "checkpoints/orchard"), "program", "exec"), {})
    assert loaded == ["checkpoints/orchard"]
    arguments = asked.arguments
    arguments["changes"] = tuple(
        Change(change.after, dataclasses.replace(change.request, wanted=tuple(change.request.wanted)))
        for change in arguments.get("changes", ())
    )
    arguments["wanted"] = tuple(arguments["wanted"])
    again = settings_file.to_dict(Request(**arguments), "", "")
    assert again == settings_file.to_dict(request, "", "")


def test_the_library_program_runs_with_a_real_model(model, tmp_path):
    save_checkpoint(model, tmp_path / "tiny")
    size = model.config.image_size
    known = np.zeros((size, size), dtype=bool)
    known[:, : size // 2] = True
    request = Request(
        {"image": photo((size, size)), "label": "red disc"},
        ("image", "mask"),
        known,
        {"label": 2},
        (),
        3,
        2,
        2,
    )
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + library_program(request, "tiny")
    printed = executed(program, tmp_path)
    assert f"mask (2, {size}, {size})" in printed
    for k in range(2):
        picture = np.asarray(Image.open(tmp_path / f"image_{k + 1}.png"))
        assert np.array_equal(picture[known], np.asarray(request.given["image"])[known])
    *_, last = mmdiff.Pipeline.from_pretrained(tmp_path / "tiny", "cpu").start(request)
    assert np.abs(np.asarray(last.output.image[1], int) - picture).max() <= 1


@pytest.mark.parametrize(
    "text", [HOSTILE, '"""', "'''", "\\", 'r"""', "\u2028\x00\x7f", "{arguments}", "a\n#b"]
)
def test_texts_stay_texts(text, monkeypatch):
    import gradio_client

    for changes in ((), REQUESTS["forks"].changes):
        request = Request({"embedding": text}, ("image",), changes=changes)
        asked = Asked()
        monkeypatch.setattr(gradio_client, "Client", lambda address, asked=asked: asked)
        exec(compile(client_program(request, text, text, text), "program", "exec"), {})
        settings = asked.arguments.get("settings")
        assert text == (json.loads(settings)["given"]["embedding"] if settings else asked.arguments["text"])
        monkeypatch.setattr(mmdiff.Pipeline, "from_pretrained", lambda name, asked=asked: asked)
        exec(compile(library_program(request, text), "program", "exec"), {})
        assert asked.arguments["given"] == {"embedding": text}


def test_programs_leave_out_defaults():
    program = client_program(
        Request({"label": LABELS[0]}, ("image",), guidance_scale={"label": 1}), "http://a/"
    )
    assert "guidance" not in program and "sampler" not in program and "base64" not in program
    assert max(map(len, client_program(RUNS["photo and hole"], "http://a/").splitlines())) <= 100


def test_all_modalities_have_arguments():
    assert set(SPECS) == set(EVERYTHING)
