"""The named endpoints as a client sees them: plain values in, exact files out, errors in plain words."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import LABELS, FakePipeline, LetterEmbedder, photo, served
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from synthetic import lively_model, tiny_config

from app.export.settings_file import to_json
from app.run.service import Service
from benchmarks.serving import free_port
from mmdiff.checkpoint import save_checkpoint
from mmdiff.request import Change, Request

ROOT = Path(__file__).parents[1]

STEPS = 6


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(modalities=("image", "mask", "label", "embedding")), "fake")


@pytest.fixture(scope="module")
def address(service):
    other = Service(FakePipeline(modalities=("image", "label")), "small")
    with served(service, other) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False, analytics_enabled=False)


def generate(client, **arguments):
    return client.predict(api_name="/generate", **({"steps": STEPS} | arguments))


def test_the_endpoint_describes_itself(client):
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/generate", "/run_settings", "/describe"]
    parameters = endpoints["/generate"]["parameters"]
    assert all(parameter["parameter_has_default"] for parameter in parameters)
    assert {"image", "hole", "mask", "label", "text", "wanted", "seed"} <= {
        parameter["parameter_name"] for parameter in parameters
    }


def test_everything_from_nothing(client):
    pictures, masks, result = generate(client, num_samples=2, seed=7)
    assert [Image.open(path).size for path in pictures] == [(64, 64)] * 2
    assert [set(np.unique(Image.open(path))) for path in masks] == [{0, 1}] * 2
    assert result["seed"] == 7 and result["steps"] == STEPS and result["checkpoint"] == "fake"
    assert [max(top, key=top.get) in LABELS for top in result["label"]] == [True, True]
    assert np.allclose(np.linalg.norm(result["embedding"], axis=1), 1, atol=1e-5)
    for vector, nearest in zip(result["embedding"], result["nearest"], strict=True):
        assert list(nearest) == ["captions", "labels", "probes"]
        best, cosine = next(iter(nearest["captions"].items()))
        (own,) = LetterEmbedder().embed_texts([best]).numpy()
        assert cosine == pytest.approx(own @ vector, abs=1e-4) == max(nearest["captions"].values())
        assert set(nearest["labels"]) <= set(LABELS) and nearest["probes"]


def test_the_same_seed_gives_the_same_pixels_and_no_seed_a_new_one(client):
    first, again = (np.asarray(Image.open(generate(client, seed=3)[0][0])) for _ in range(2))
    assert np.array_equal(first, again)
    assert generate(client)[2]["seed"] != generate(client)[2]["seed"]


def test_pixels_outside_the_hole_come_back_exactly(client, tmp_path):
    original, hole = photo((64, 64)), np.zeros((64, 64), dtype=np.uint8)
    hole[20:40, 8:50] = 255
    original.save(tmp_path / "photo.png")
    Image.fromarray(hole).save(tmp_path / "hole.png")
    pictures, _, _ = generate(
        client, image=handle_file(tmp_path / "photo.png"), hole=handle_file(tmp_path / "hole.png")
    )
    changed = (np.asarray(Image.open(pictures[0])) != np.asarray(original)).any(2)
    assert changed[hole > 0].mean() > 0.9
    assert not changed[hole == 0].any()


def test_mask_and_label_from_a_photo(client, tmp_path):
    photo().save(tmp_path / "photo.jpg")
    pictures, masks, result = generate(
        client, image=handle_file(tmp_path / "photo.jpg"), wanted=["mask", "label"]
    )
    assert pictures is None and len(masks) == 1
    assert "embedding" not in result and len(result["label"]) == 1


def test_a_given_mask_and_label_reach_the_model(client, service, tmp_path):
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[10:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    generate(client, mask=handle_file(tmp_path / "mask.png"), label="Cherry Wax", wanted=["image"])
    given = service.pipe.calls[-1].given
    assert np.array_equal(given["mask"], mask)
    assert given["label"] == "Cherry Wax"


def test_a_text_or_a_photo_gives_the_embedding(client, service, tmp_path):
    generate(client, text="a dark red apple", wanted=["image"])
    assert service.pipe.calls[-1].given == {"embedding": "a dark red apple"}
    photo().save(tmp_path / "photo.png")
    generate(client, embedding_image=handle_file(tmp_path / "photo.png"), wanted=["image"])
    assert isinstance(service.pipe.calls[-1].given["embedding"], Image.Image)


def no_picture(folder):
    (folder / "notes.png").write_bytes(b"dear diary")
    return handle_file(folder / "notes.png")


def picture(folder):
    photo().save(folder / "photo.png")
    return handle_file(folder / "photo.png")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"wanted": ["mask"], "steps": 0}, "steps is 0"),
        ({"steps": 10_000}, "steps is 10000"),
        ({"sampler": "euler"}, "no sampler is called"),
        ({"label": "Apple Red", "wanted": ["label"]}, "given and wanted at once"),
        ({"image": no_picture}, "“notes.png” cannot be read"),
        ({"mask": no_picture}, "“notes.png” cannot be read"),
        ({"hole": picture}, "no photo to fill in"),
        ({"image": picture, "hole": picture, "mask": picture}, "stand for no class"),
        ({"text": "a", "embedding_image": picture}, "Give one of them"),
        ({"num_samples": 99}, "num_samples is 99"),
    ],
)
def test_bad_input_is_explained_and_the_server_stays_up(client, tmp_path, arguments, words):
    arguments = {name: value(tmp_path) if callable(value) else value for name, value in arguments.items()}
    with pytest.raises(AppError, match=words):
        generate(client, **arguments)
    assert generate(client, wanted=["label"])[2]["label"]


def test_an_unexpected_error_is_logged_but_not_shown(client, service, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(service.pipe, "broken", RuntimeError("secret path /root"))
        with pytest.raises(AppError, match="unexpected") as caught:
            generate(client)
    assert "secret" not in str(caught.value)
    assert "secret path" in caplog.text
    assert generate(client, wanted=["label"])[2]["label"]


def test_twelve_clients_at_once_each_get_their_own(address, client):
    requests = [
        {"seed": 1},
        {"seed": 2, "steps": 9},
        {"seed": 3, "label": "Cherry Wax"},
        {"seed": 4, "label": "Tomato Heart", "wanted": ["image", "mask"]},
        {"seed": 5, "text": "a red apple"},
        {"seed": 6, "num_samples": 3},
        {"seed": 7, "wanted": ["image"]},
        {"seed": 8, "sampler": "dpmpp_2m"},
        {"seed": 9, "checkpoint": "small"},
        {"seed": 10, "checkpoint": "small", "label": "Apple Red"},
        {"seed": 11, "guidance_scale": {"label": 3}, "label": "Apple Golden"},
        {"seed": 12, "wanted": ["label"]},
    ]
    clients = [Client(address, verbose=False, analytics_enabled=False) for _ in requests]
    with ThreadPoolExecutor(len(requests)) as people:
        together = list(people.map(lambda one, request: generate(one, **request), clients, requests))
    for request, result in zip(requests, together, strict=True):
        assert content(result) == content(generate(client, **request))


def content(result):
    """All of a result but how long it took."""
    pictures, masks, details = result
    pixels = [np.asarray(Image.open(path)).tobytes() for path in (*(pictures or []), *(masks or []))]
    return pixels, {key: value for key, value in details.items() if key != "seconds"}


def test_settings_run_again_exactly_forks_included(client, service):
    request = Request(
        {"label": "Apple Golden"},
        ("image", "mask"),
        steps=STEPS,
        seed=5,
        changes=(Change(3, Request({"label": "Cherry Wax"}, ("image", "mask"))),),
    )
    _, masks, result = client.predict(to_json(request, "fake", "image_label"), api_name="/run_settings")
    assert result["seed"] == 5 and len(masks) == 1
    expected = service.run(request).last
    (picture,), _, _ = client.predict(to_json(request, "fake", "image_label"), api_name="/run_settings")
    assert np.array_equal(np.asarray(Image.open(picture)), expected.x["image"][0])


@pytest.mark.parametrize(
    "settings, words",
    [
        ("dear diary", "settings"),
        ("{}", "settings"),
        (
            to_json(Request(wanted=("image",)), "gone", "any_to_any"),
            "no checkpoint “gone”; there is fake, small",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_explained(client, settings, words):
    with pytest.raises(AppError, match=words):
        client.predict(settings, api_name="/run_settings")


def test_checkpoints_are_described_and_chosen_by_name(client, service):
    facts = client.predict(api_name="/describe")
    assert list(facts) == ["fake", "small"] and list(facts["small"]) == ["image", "label"]
    assert facts["fake"]["label"]["classes"] == list(LABELS)
    assert facts["fake"]["mask"] == {
        "kind": "mask",
        "shape": [64, 64],
        "classes": ["background", "fruit"],
        "palette": [f"#{bytes(rgb).hex()}" for rgb in service.modalities["mask"].palette],
    }
    assert generate(client, checkpoint="small")[2]["checkpoint"] == "small"
    with pytest.raises(AppError, match="no checkpoint “gone”"):
        generate(client, checkpoint="gone")
    with pytest.raises(AppError, match="no modality is called 'mask'"):
        generate(client, checkpoint="small", wanted=["mask"])


def test_guidance_is_a_number_or_one_for_each_modality(client, service):
    generate(client, label="Cherry Wax", wanted=["image"], guidance_scale={"label": 2.5})
    assert service.pipe.calls[-1].guidance_scale == {"label": 2.5}
    generate(client, label="Cherry Wax", wanted=["image"], guidance_scale=3)
    assert service.pipe.calls[-1].guidance_scale == 3
    generate(client, wanted=["image"], guidance_scale={"label": 2}, sample_first=["label"])
    assert service.pipe.calls[-1].sample_first == ("label",)
    with pytest.raises(AppError, match="guidance_scale names 'image', which is not given"):
        generate(client, label="Cherry Wax", wanted=["image"], guidance_scale={"image": 1.5})
    with pytest.raises(AppError, match="guidance_scale names 'mask', which is not given"):
        generate(client, label="Cherry Wax", wanted=["image"], guidance_scale={"mask": 2.5})


def run_app(*arguments):
    return subprocess.run([sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("argument, words", [("--help", "--port"), ("--checkpoint=nowhere", "in 'nowhere'")])
def test_help_and_a_missing_checkpoint_need_no_heavy_imports(argument, words):
    code = f"""
import runpy, sys
sys.argv = ["app.py", {argument!r}]
try:
    runpy.run_path("app.py", run_name="__main__")
except SystemExit:
    sys.exit(not sys.modules.keys().isdisjoint({{"torch", "gradio"}}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and words in done.stdout + done.stderr


def test_a_damaged_checkpoint_is_explained(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    damaged = run_app("--checkpoint", str(tmp_path))
    assert damaged.returncode == 1 and damaged.stderr.startswith("app.py: error:")
    assert "Traceback" not in damaged.stderr


def test_the_command_serves_a_real_checkpoint(tmp_path):
    save_checkpoint(lively_model(tiny_config(embedder="")), tmp_path)
    port = str(free_port())
    command = [sys.executable, "app.py", "--checkpoint", str(tmp_path), "--port", port, "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            pictures, _, result = generate(
                Client(re.search(r"http://\S+", line)[0], verbose=False, analytics_enabled=False), seed=1
            )
        finally:
            process.terminate()
    assert len(pictures) == 1 and result["seed"] == 1
