"""Messages to the player are complete, exact where that is promised, small and quick."""

import base64
import gc
import io
import json
from dataclasses import replace

import gradio as gr
import numpy as np
import pytest
import torch
from fakes import photo
from PIL import Image
from records import MASK_CLASSES, PALETTE, add, extend, make_record, specs

from app.export import settings_file
from app.run import player_data
from app.run.player_data import MAX_STAMPS, Player, Track, _strip
from app.run.story import settled_at
from mmdiff.samplers import timesteps
from mmdiff.serving.denoising import Step


@pytest.fixture
def player():
    with gr.Blocks():
        return Player("player")


def decode(uri, form="png"):
    kind, data = uri.split(";base64,")
    assert kind == f"data:image/{form}"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def sent(player, *tracks):
    return json.loads(player.value(tracks))["tracks"]


def one(player, record, **options):
    return sent(player, Track("a", "", record, **options))[0]


def test_the_step_at_which_a_head_is_settled_is_sent_once_it_is_known(player):
    assert one(player, make_record(done=6, steps=10), running=True)["settled"] == {}
    record = make_record(
        steps=10, given={"label": 3}, wanted=("image", "mask"), names=("image", "mask", "label")
    )
    sent_of = one(player, record)
    assert sent_of["settled"].keys() == {"image", "mask"} and len(sent_of["story"]) == 1
    assert sent_of["settled"]["image"] == [settled_at(record, record.modalities["image"], 0)]
    assert f"at step {sent_of['settled']['image'][0]}" in sent_of["story"][0].lower()


def test_facts_and_the_frames_since_a_step(player):
    record = make_record(done=6, steps=10, seed=7)
    first, second = sent(
        player,
        Track("a", "Guidance 1", record, running=True, since=4),
        Track("b", "Fork", make_record(steps=3), fork_step=2),
    )
    facts = {"id": "a", "title": "Guidance 1", "running": True, "stopped": False, "total": 10, "fork": None}
    assert facts.items() <= first.items()
    assert first["file"] == "mmdiff_orchard_7" and first["samples"] == 1
    assert [frame["i"] for frame in first["frames"]] == [5, 6]
    assert [frame["t"] for frame in second["frames"]] == timesteps(1000, 3)[:3]
    assert (second["fork"], second["running"], second["stopped"]) == (2, False, False)
    assert [head["name"] for head in first["heads"]] == ["image", "mask", "label", "embedding"]
    assert {head["role"] for head in first["heads"]} == {"generated"}


def test_how_decided_each_modality_is(player):
    record = make_record(done=0, steps=2, names=("image", "label"))
    levels = {"image": -10.0, "label": 0.0, "mask": 6.0}
    x_hat = {"image": np.zeros((1, 32, 32, 3), np.uint8), "label": np.full((1, 7), 1 / 7, np.float32)}
    record.add(Step(1, 2, 1000, x_hat, torch.zeros(0), 0.1, levels=levels))
    record.add(Step(2, 2, 500, x_hat, torch.zeros(0), 0.2, levels={"image": 30.0, "label": 6.0}))
    first, last = one(player, record)["frames"]
    assert first["l"] == {"image": 0, "label": 50}  # the mask takes no part
    assert last["l"] == {"image": 100, "label": 100}
    assert one(player, make_record())["frames"][0]["l"] == {}


def test_noisy_states_travel_with_runs_that_have_them(player):
    record = make_record(
        done=0, steps=2, names=("image", "mask", "label"), given={"image": photo((32, 32))}, wanted=("mask",)
    )
    record.noisy = True
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (1, 32, 32, 3), np.uint8), rng.integers(0, 3, (1, 32, 32))
    x_hat = {
        "image": image,
        "mask": np.full((1, 3, 32, 32), 1 / 3, np.float32),
        "label": np.full((1, 7), 1 / 7),
    }
    noisy = {"image": image, "mask": mask}
    record.add(Step(1, 2, 1000, x_hat, torch.zeros(0), 0.1, noisy=noisy))
    track = one(player, record)
    assert track["noisy"] and list(track["frames"][0]["n"]) == ["mask"]  # the photo is given
    assert np.array_equal(np.asarray(decode(track["frames"][0]["n"]["mask"][0])), mask[0])
    free = make_record(done=0, steps=2, names=("image",))
    free.add(Step(1, 2, 1000, {"image": image}, torch.zeros(0), 0.1, noisy=noisy))
    assert "n" not in one(player, free)["frames"][0] and not one(player, free)["noisy"]
    free.noisy = True
    free.add(Step(2, 2, 500, {"image": image}, torch.zeros(0), 0.2, noisy={"image": image, "mask": None}))
    seen = decode(one(player, free)["frames"][1]["n"]["image"][0], "webp")
    assert seen.size == (32, 32)


def test_nothing_yet(player):
    record = make_record(steps=4)
    record.frames.clear()
    assert one(player, record, running=True)["frames"] == []
    assert sent(player) == []


@pytest.mark.parametrize("done", [None, 5])
def test_the_last_picture_is_exact_and_the_others_nearly(player, done):
    record = make_record(done=done, size=96)
    frames = one(player, record)["frames"]
    assert np.array_equal(np.asarray(decode(frames[-1]["x"]["image"][0])), record.last.x["image"][0])
    for frame, kept in zip(frames[:-1], record.frames, strict=False):
        assert not frame["exact"]
        picture = np.asarray(decode(frame["x"]["image"][0], "webp").convert("RGB"), dtype=float)
        assert np.abs(picture - kept.x["image"][0]).mean() < 3


def test_a_frame_that_was_sent_live_is_sent_again_exactly_when_the_run_was_stopped(player):
    record = make_record(done=5)
    assert one(player, record, running=True)["frames"][-1]["exact"] is False
    last = one(player, record)["frames"][-1]
    assert last["exact"] and np.array_equal(decode(last["x"]["image"][0]), record.last.x["image"][0])
    extend(record, 1)
    assert [frame["exact"] for frame in one(player, record, running=True)["frames"]] == [False] * 6


def saved(uri, folder):
    """The file that the Save link of a picture gives."""
    path = folder / "saved.png"
    path.write_bytes(base64.b64decode(uri.split(",")[1]))
    return path


@pytest.mark.parametrize("done", [None, 5])
def test_the_last_pictures_restore_the_run(done, tmp_path):
    with gr.Blocks():
        player = Player("image_mask-player")
    given = {"image": photo((96, 96)), "label": "apple"}
    known = np.arange(96 * 96).reshape(96, 96) % 7 > 0
    record = make_record(
        done, 96, wanted=("image", "mask"), given=given, known_pixels=known, num_samples=2, seed=9
    )
    record.modalities = {n: s for n, s in record.modalities.items() if n in record.request.shown}
    settings = settings_file.to_json(record.request, "orchard", "image_mask")
    before, last = one(player, record)["frames"][-2:]
    for k in range(2):
        for uri in (last["x"]["image"][k], last["x"]["mask"][k]["m"]):
            with Image.open(saved(uri, tmp_path)) as picture:
                assert picture.text == {"mmdiff": settings}
        with Image.open(saved(before["x"]["mask"][k]["m"], tmp_path)) as picture:
            assert not picture.text
    path = saved(last["x"]["mask"][1]["m"], tmp_path)
    run = settings_file.read(path, specs(96, labels=("apple", "pear")))
    assert settings_file.to_json(run.request, run.checkpoint, run.task) == settings


@pytest.mark.parametrize("side", [1024, 2000])
def test_a_large_photo_does_not_travel_in_every_picture(player, side, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    record = make_record(steps=2, wanted=("image", "mask"), given={"embedding": Image.fromarray(noise)})
    text = player.value([Track("a", "", record)])
    assert len(text) < MAX_STAMPS
    picture = json.loads(text)["tracks"][0]["frames"][-1]["x"]["image"][0]
    assert np.array_equal(decode(picture), record.last.x["image"][0])
    with pytest.raises(ValueError, match="Where a large photo was given, use the zip"):
        settings_file.read(saved(picture, tmp_path), record.modalities)


def test_known_pixels_are_exact_and_the_hole_is_tinted_before(player):
    picture, known = np.asarray(photo((96, 96))), np.ones((96, 96), dtype=bool)
    known[20:60, 30:70] = False
    record = make_record(
        size=96, names=("image", "mask"), given={"image": photo((96, 96))}, known_pixels=known
    )
    track = one(player, record)
    assert track["heads"][0]["role"] == "filled in"
    before = np.asarray(decode(track["heads"][0]["before"]), dtype=int)
    assert np.array_equal(before[known], picture[known])
    tint = (before[~known] - 0.4 * picture[~known]) / 0.6  # what was laid over it
    assert np.ptp(tint, axis=0).max() < 2 and tint.std(1).mean() > 30
    result = np.asarray(decode(track["frames"][-1]["x"]["image"][0]))
    assert np.array_equal(result[known], picture[known])


def test_a_picture_without_a_hole_has_no_before(player):
    record = make_record(names=("image", "label"), given={"image": photo((32, 32))}, wanted=("label",))
    assert "before" not in one(player, record)["heads"][0]


@pytest.mark.parametrize("over", [True, False])
def test_masks(player, over):
    record = make_record(names=("image", "mask") if over else ("mask",), num_samples=2)
    track = one(player, record)
    head = track["heads"][-1]
    assert head["classes"] == list(MASK_CLASSES)
    assert head["colours"] == [f"#{bytes(rgb).hex()}" for rgb in PALETTE]
    for frame, kept in zip(track["frames"], record.frames, strict=True):
        for k, mask in enumerate(frame["x"]["mask"]):
            classes, sure = kept.classes["mask"][k], kept.x["mask"][k].max(0)
            exact = decode(mask["m"])
            assert exact.mode == "P" and np.array_equal(exact, classes)
            assert np.array_equal(exact.convert("RGB"), PALETTE[classes])
            overlay = np.asarray(decode(mask["o"]).convert("RGBA")).astype(int)
            assert np.array_equal(overlay[..., :3], PALETTE[classes])
            seen = (classes > 0) if over else np.ones_like(classes, dtype=bool)
            assert np.abs(overlay[..., 3] - sure)[seen].max() <= 255 / 15 / 2 + 1
            assert np.abs(2 * overlay[..., 3] - sure)[~seen].max(initial=0) <= 255 / 15 / 2 + 2
            shares = np.bincount(classes.ravel(), minlength=3) / classes.size
            assert np.allclose(np.array(mask["a"]) / 10_000, shares, atol=1e-4)


def test_a_mask_of_many_classes(player):
    record = make_record(names=("mask",))
    classes = np.arange(32 * 32).reshape(32, 32) % 200
    record.modalities["mask"] = spec = specs(32, classes=tuple(map(str, range(200))))["mask"]
    record.frames.clear()
    hot = np.eye(200, dtype=np.float32)[classes].transpose(2, 0, 1)[None]
    add(record, 1000, mask=hot)
    overlay = np.asarray(decode(one(player, record)["frames"][0]["x"]["mask"][0]["o"]).convert("RGBA"))
    assert np.array_equal(overlay[..., :3], spec.palette[classes]) and (overlay[..., 3] == 255).all()


def test_labels_and_words(player):
    record = make_record(names=("label", "embedding"), num_samples=3)
    for frame, kept in zip(one(player, record)["frames"], record.frames, strict=True):
        assert np.allclose(np.array(frame["x"]["label"]) / 10_000, kept.x["label"], atol=1e-4)
        said = frame["x"]["embedding"][2]
        assert said["captions"][0][0] == "a photo of a red apple"
        assert said["captions"][0][1] == pytest.approx(kept.x["embedding"][2][0], abs=1e-3)
        assert [text for text, _ in said["probes"]] == ["red", "<b>round</b>"]


def test_an_embedding_without_words_is_a_strip(player):
    record = make_record(names=("embedding",))
    said = sent(player, Track("a", "", replace(record, describe=lambda vectors: [])))[0]["frames"][-1]["x"][
        "embedding"
    ][0]
    assert said["size"] == 16 and decode(said["strip"]).size == (16, 1)
    cold, zero, warm = np.asarray(decode(_strip(np.array([-2.0, 0.0, 2.0]))["strip"]))[0].astype(int)
    assert cold[2] > cold[0] and warm[0] > warm[2] and np.ptp(zero) < 10 and zero.min() > 200


def test_how_much_samples_differ(player):
    record = make_record(names=("image", "mask"), num_samples=2, steps=1)
    image = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    image[1, :16] = 255
    mask = np.zeros((2, 3, 32, 32), dtype=np.float32)
    mask[:, 0] = 1
    mask[1, :, :8] = np.array([0, 1, 0])[:, None, None]
    record.frames.clear()
    add(record, 1000, image=image, mask=mask)
    found = one(player, record)["frames"][0]["u"]
    assert (found["image"]["max"], found["image"]["mean"]) == (1, 0.5)
    entropy = np.log(2) / np.log(3)  # in a quarter of the picture one sample says one class, one another
    assert found["mask"]["max"] == pytest.approx(entropy, abs=1e-3)
    assert found["mask"]["mean"] == pytest.approx(entropy / 4, abs=1e-3)
    grey = np.asarray(decode(found["mask"]["map"], "webp").convert("L"), dtype=float)
    assert np.abs(grey[:7] - 255 * entropy).max() < 4 and grey[10:].max() < 4
    assert "u" not in one(player, make_record())["frames"][0]


def test_names_may_hold_anything(player):
    nasty = "</script><img src=x onerror=alert(1)>“”\u2028\\"
    record = make_record(labels=(nasty, "b", "c"), steps=2)
    track = sent(player, Track("a", nasty, record))[0]
    assert track["title"] == nasty and track["heads"][2]["classes"][0] == nasty


def test_cached_frames_go_with_the_record(player):
    record = make_record(num_samples=2)
    one(player, record)
    assert len(player._kept) == 1 + len(record.frames)
    del record
    gc.collect()
    assert not player._kept


def test_a_frame_is_drawn_once_and_a_run_is_small(player, monkeypatch):
    drawn = []
    draw = player_data._frame
    monkeypatch.setattr(player_data, "_frame", lambda *a: drawn.append(a[1].index) or draw(*a))
    record = make_record(size=96, steps=30)
    frames, record.frames = record.frames, []
    for frame in frames:
        record.frames.append(frame)
        player.value([Track("a", "", record, running=True, since=frame.index - 4)])
    assert drawn == [frame.index for frame in frames]
    assert len(player.value([Track("a", "", record)])) < 500_000


def test_a_text_that_is_given_stands_over_what_it_is_taken_for(player):
    def heads(value):
        record = make_record(steps=2, wanted=("image",), given={"embedding": value})
        return {head["name"]: head for head in sent(player, Track("a", "", record))[0]["heads"]}

    assert heads("an elephant")["embedding"]["text"] == "an elephant"
    of_photo = heads(Image.new("RGB", (8, 8)))
    assert "text" not in of_photo["embedding"] and "text" not in of_photo["image"]
