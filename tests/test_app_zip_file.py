"""The zip of a run has exactly what the record has, in files that other programs read."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from fakes import LABELS, FakePipeline, FakeRun, photo
from PIL import Image
from test_app_settings_file import same

from app.export import settings_file
from app.export.zip_file import write_zip
from app.run.history import Record
from mmdiff.request import Change, Request

SIZE, STEPS = 32, 4
PIPE = FakePipeline(SIZE, modalities=("image", "mask", "label", "embedding"))
PHOTO = photo((SIZE, SIZE))
KNOWN = np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 5 > 0
MASK = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) // 7 % 2).astype(np.int64)


def record_of(request: Request, stop: int = 10**6, pipe: FakePipeline = PIPE) -> Record:
    """The record of a run, ended after step `stop`."""
    request = request.checked(pipe.modalities, 1000)
    specs = {name: spec for name, spec in pipe.modalities.items() if name in request.shown}
    record = Record(request, "orchard", specs, pipe.describe)
    run = FakeRun(pipe, request)
    while not run.done and run.index < stop:
        record.add(replace(run.advance(run.queries()), seconds=1.23456))
    return record


JOINT = Request(wanted=("image", "mask", "label", "embedding"), steps=STEPS, seed=11, num_samples=3)
FORKED = Request(
    {"image": PHOTO, "label": LABELS[1]},
    ("image", "mask"),
    KNOWN,
    steps=STEPS,
    changes=(Change(2, Request({"mask": MASK, "embedding": "a red apple"}, ("image",))),),
)


class Opened:
    """A zip as other programs see it."""

    def __init__(self, record: Record, folder):
        self.path = folder / "run.zip"
        write_zip(record, self.path, "any-to-any")
        archive = zipfile.ZipFile(self.path)
        assert archive.testzip() is None
        self.names = archive.namelist()
        self.data = {name: archive.read(name) for name in self.names}

    def picture(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.data[name]))

    def json(self, name: str):
        return json.loads(self.data[name])


def test_everything_is_there(tmp_path):
    names = Opened(record_of(JOINT), tmp_path).names
    assert len(set(names)) == len(names)
    files = ("image.png", "mask.png", "mask_overlay.png", "embedding.npy")
    assert set(names) == {
        "settings.json",
        "result.json",
        "timeline.gif",
        *(f"sample_{k}/{file}" for k in (1, 2, 3) for file in files),
        *(
            f"steps/sample_{k}/{name}_{i:03}.png"
            for k in (1, 2, 3)
            for name in ("image", "mask")
            for i in range(1, STEPS + 1)
        ),
    }


def test_pictures_masks_and_embeddings_are_exact(tmp_path):
    record = record_of(JOINT)
    opened = Opened(record, tmp_path)
    for k in range(3):
        folder = f"sample_{k + 1}"
        assert np.array_equal(np.asarray(opened.picture(f"{folder}/image.png")), record.last.x["image"][k])
        mask = opened.picture(f"{folder}/mask.png")
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), record.last.classes["mask"][k])
        palette = np.array(mask.getpalette()).reshape(-1, 3)[:2]
        assert np.array_equal(palette, PIPE.modalities["mask"].palette)
        vector = np.load(io.BytesIO(opened.data[f"{folder}/embedding.npy"]), allow_pickle=False)
        assert vector.dtype == np.float32 and np.array_equal(vector, record.last.x["embedding"][k])
        for frame in record.frames:
            start = f"steps/{folder}/"
            image = opened.picture(f"{start}image_{frame.index:03}.png")
            assert np.array_equal(np.asarray(image), frame.x["image"][k])
            mask = opened.picture(f"{start}mask_{frame.index:03}.png")
            assert np.array_equal(np.asarray(mask), frame.classes["mask"][k])


def test_the_overlay_tints_the_mask_and_leaves_the_background(tmp_path):
    record = record_of(JOINT)
    overlay = np.asarray(Opened(record, tmp_path).picture("sample_1/mask_overlay.png")).astype(float)
    inside = record.last.classes["mask"][0] == 1
    image = record.last.x["image"][0].astype(float)
    assert np.array_equal(overlay[~inside], image[~inside])
    tint = PIPE.modalities["mask"].palette[1].astype(float)
    opacity = 0.62 * record.last.x["mask"][0, 1][inside][:, None] / 255
    assert np.abs(overlay[inside] - (opacity * tint + (1 - opacity) * image[inside])).max() < 3


def test_the_results_in_words_and_numbers(tmp_path):
    record = record_of(JOINT)
    result = Opened(record, tmp_path).json("result.json")
    samples = result.pop("samples")
    assert result == {
        "checkpoint": "orchard",
        "task": "any-to-any",
        "sampler": "ddim",
        "steps": STEPS,
        "last_step": STEPS,
        "stopped": False,
        "seconds": 1.235,
        "roles": dict.fromkeys(("image", "mask", "label", "embedding"), "generated"),
    }
    assert [(s["sample"], s["seed"]) for s in samples] == [(1, 11), (2, 12), (3, 13)]
    for k, sample in enumerate(samples):
        shares = record.last.x["label"][k]
        assert list(sample["label"])[0] == LABELS[shares.argmax()] and len(sample["label"]) == 5
        for name, share in sample["label"].items():
            assert share == pytest.approx(shares[LABELS.index(name)], abs=1e-5)
        fruit = (record.last.classes["mask"][k] == 1).mean()
        assert sample["mask"] == pytest.approx({"background": 1 - fruit, "fruit": fruit}, abs=1e-5)
        (said,) = PIPE.describe(record.last.x["embedding"][k : k + 1])
        assert sample["embedding"]["captions"] == pytest.approx(dict(said.captions), abs=1e-4)


def test_a_stopped_run_is_kept_as_far_as_it_got(tmp_path):
    record = record_of(JOINT, stop=2)
    opened = Opened(record, tmp_path)
    result = opened.json("result.json")
    assert result["stopped"] is True and (result["last_step"], result["steps"]) == (2, STEPS)
    assert "steps/sample_1/image_002.png" in opened.names
    assert "steps/sample_1/image_003.png" not in opened.names
    assert np.array_equal(np.asarray(opened.picture("sample_3/image.png")), record.frames[1].x["image"][2])


def test_inputs_are_there_with_those_of_forks(tmp_path):
    opened = Opened(record_of(FORKED), tmp_path)
    assert {name for name in opened.names if name.startswith("inputs/")} == {
        "inputs/image.png",
        "inputs/label.txt",
        "inputs/hole.png",
        "inputs/fork_1/mask.png",
        "inputs/fork_1/embedding.txt",
    }
    assert np.array_equal(np.asarray(opened.picture("inputs/image.png")), np.asarray(PHOTO))
    assert np.array_equal(np.asarray(opened.picture("inputs/hole.png")), ~KNOWN)
    assert np.array_equal(np.asarray(opened.picture("inputs/fork_1/mask.png")), MASK)
    assert opened.data["inputs/label.txt"].decode() == LABELS[1] + "\n"
    assert opened.json("result.json")["roles"] == {
        "image": "generated",
        "mask": "given",
        "label": "ignored",
        "embedding": "given",
    }


@pytest.mark.parametrize("asked", [JOINT, FORKED])
def test_zip_settings_and_pictures_restore_the_run(asked, tmp_path):
    record = record_of(asked)
    opened = Opened(record, tmp_path)
    (tmp_path / "settings.json").write_bytes(opened.data["settings.json"])
    (tmp_path / "image.png").write_bytes(opened.data["sample_1/image.png"])
    (tmp_path / "mask.png").write_bytes(opened.data["sample_1/mask.png"])
    for path in (opened.path, *(tmp_path / name for name in ("settings.json", "image.png", "mask.png"))):
        saved = settings_file.read(path, PIPE.modalities)
        assert same(saved.request, record.request)
        assert (saved.checkpoint, saved.task) == ("orchard", "any-to-any")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    record = record_of(FORKED)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = (Opened(record, tmp_path / name).path.read_bytes() for name in "ab")
    assert first == second


def test_the_timeline_is_a_film_of_all_steps(tmp_path):
    opened = Opened(record_of(JOINT), tmp_path)
    assert opened.picture("timeline.gif").n_frames == STEPS


def test_embeddings_without_words_are_left_to_their_numbers(tmp_path):
    opened = Opened(replace(record_of(JOINT), describe=lambda vectors: []), tmp_path)
    assert "embedding" not in opened.json("result.json")["samples"][0]
    assert "sample_1/embedding.npy" in opened.names


def test_a_run_without_steps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no step to save"):
        write_zip(Record(JOINT, "orchard", PIPE.modalities), tmp_path / "a.zip", "any")
    assert not list(tmp_path.iterdir())
