"""Colour names against PIL and common words, and whether pictures match their prompts, on fake models."""

import json

import numpy as np
import pytest
import torch
from oracles import (
    COLOURS,
    WORDS,
    ColourClassifier,
    ColourEmbedder,
    Guess,
    Oracle,
    caption,
    make_examples,
    specs,
)
from PIL import Image

from benchmarks import prompts
from benchmarks.prompts import combinations, write_prompts
from mmdiff.evaluate import Evaluation, evaluate
from mmdiff.evaluation.colours import Said, colour_names, hsv, hue_word, is_colour, median_colour, parse
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.evaluation.tasks import TASKS

EMBEDDER = ColourEmbedder()
COMMON = [caption(label) for label in range(6)] * 200  # each colour with its own kind
RARE = ["a photo of a red tall pear"]


@pytest.fixture(scope="module")
def examples():
    return make_examples(60, EMBEDDER)


def run(pipe, examples, *tasks, judge=None, train=(*COMMON, *RARE)):
    settings = EvaluationSettings(steps=2, batch=16, seed=1)
    return evaluate(Evaluation(pipe, examples, settings, judge, train), tasks)


@pytest.fixture(autouse=True)
def with_prompts(monkeypatch):
    """The task is there, with few texts."""
    monkeypatch.setattr(prompts, "PROMPTS", 60)
    monkeypatch.setitem(TASKS, "prompts", prompts.prompts)


# -- colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 30, 30), "red"),
        ((230, 30, 60), "red"),
        ((80, 15, 15), "dark red"),
        ((220, 120, 20), "orange"),
        ((120, 70, 30), "brown"),
        ((80, 45, 20), "dark brown"),
        ((225, 205, 60), "yellow"),
        ((100, 90, 30), "dark yellow"),
        ((200, 185, 145), "pale yellow"),
        ((80, 90, 50), "dark yellow-green"),
        ((60, 160, 60), "green"),
        ((40, 80, 200), "blue"),
        ((230, 70, 180), "pink"),
        ((130, 50, 160), "purple"),
        ((25, 12, 12), "black"),
        ((80, 78, 80), "grey"),
        ((250, 250, 250), "white"),
    ],
)
def test_colours_have_the_names_people_give_them(rgb, name):
    assert colour_names(torch.tensor([rgb]) / 255) == [name]


def test_hue_saturation_and_value_equal_those_of_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (1, 500, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("HSV"))[0].astype(float)
    hue, saturation, value = hsv(torch.from_numpy(pixels[0]).double() / 255)
    turned = (hue.numpy() / 360 * 255 - expected[:, 0] + 127.5) % 255 - 127.5
    assert abs(turned).max() < 2
    assert abs(saturation.numpy() * 255 - expected[:, 1]).max() < 1.5
    assert abs(value.numpy() * 255 - expected[:, 2]).max() < 1e-6


def test_the_median_is_that_of_the_object():
    images = torch.ones(2, 3, 8, 8)
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[0, 2:5, 2:5] = True
    images[0, :, 2:5, 2:5] = torch.tensor([0.2, -0.4, -1.0])[:, None, None]
    images[0, :, 2, 2] = -1  # one pixel of nine does not move it
    colours = median_colour(images, inside)
    torch.testing.assert_close(colours[0], torch.tensor([0.6, 0.3, 0.0]))
    assert colours[1].isnan().all() and colour_names(colours)[1] == ""  # nothing there has no colour


def test_a_shade_is_no_hue():
    assert hue_word("dark yellow-green") == "yellow-green" and hue_word("red") == "red"
    assert is_colour("pale orange") and not is_colour("round") and not is_colour("dark")


# -- prompts -----------------------------------------------------------------------------------------


def test_captions_are_read():
    assert parse("a photo of a dark red round apple") == Said("dark red", "apple")
    assert parse("a photo of an orange wide cherry") == Said("orange", "cherry")
    for text in ("", "apple", "a photo of the sea with blue above", "a photo of a round apple"):
        assert parse(text) is None


def test_rare_combinations_are_all_others():
    counts, common, rare = combinations([*COMMON, *RARE])
    assert set(common) == {parse(text) for text in COMMON}
    assert set(rare) | set(common) == {Said(word, kind) for word in WORDS for kind in ("apple", "pear")}
    assert Said("red", "pear") in rare and counts[Said("red", "pear")] == 1


def test_prompts_cycle_through_the_combinations_in_other_words():
    pairs = [Said("orange", "cherry"), Said("dark red", "apple")]
    texts, said = write_prompts(pairs, 5)
    assert said == [*pairs, *pairs, pairs[0]] and len(set(texts)) == 5
    assert texts[:2] == ["a photo of an orange cherry", "a photo of a dark red apple"]
    assert all(s.colour in text and s.kind in text for text, s in zip(texts, said, strict=True))


def test_an_oracle_scores_perfectly(examples):
    pipe = Oracle(specs(embedding=True), examples, EMBEDDER)
    got = run(pipe, examples, "prompts", judge=ColourClassifier())["prompts"]
    assert got["combinations"] == {"common": 6, "rare": 6}
    for part, n in (("overall", 60), ("common", 30), ("rare", 30)):
        assert (got[part]["n"], got[part]["colour"], got[part]["colour_and_shade"]) == (n, 1, 1)
    # the judge knows the kind by its colour, so a red pear looks like an apple to it
    assert (got["common"]["kind"], got["rare"]["kind"], got["overall"]["kind"]) == (1, 0, 0.5)
    assert got["photos"] == {"n": 60, "colour": 1, "colour_and_shade": 1}
    # flat colours arrive exactly, and a judge that goes by colour is wrong about every kind, real as they are
    ceiling = got["recoloured_photos"]
    assert (ceiling["colour"], ceiling["kind"]) == (1, 0) and ceiling["n"] >= 25
    assert got["by_combination"]["red pear"] == {"train": 1, "seen": {"red": 5}}
    assert pipe.calls[0][:2] == (["embedding"], ("image",))
    json.dumps(got, allow_nan=False)


def test_shade_and_hue_are_measured_separately(examples):
    dark = [text.replace(" red ", " dark red ") for text in COMMON]
    pipe = Oracle(specs(embedding=True), examples, EMBEDDER)
    got = run(pipe, examples, "prompts", train=(*dark, *RARE))["prompts"]
    assert got["overall"]["colour"] == 1 > got["overall"]["colour_and_shade"]
    assert "--judge" in got["overall"]["kind"]["skipped"]


def test_a_guess_scores_at_chance(examples):
    got = run(Guess(specs(embedding=True), EMBEDDER), examples, "prompts")["prompts"]
    assert got["overall"]["colour"] < 0.2 and got["photos"]["colour"] == 1


def test_pictures_from_captions_are_compared_with_their_photos(examples):
    pipe = Oracle(specs(embedding=True), examples, EMBEDDER)
    got = run(pipe, examples, "image_from_text")["image_from_text"]
    assert (got["n"], got["distinct_captions"]) == (60, 6)
    for part in ("generated", "photos"):
        assert got[part]["recall@1"] == got[part]["colour"]["colour"] == 1
        assert got[part]["chance@5"] == pytest.approx(5 / 6)
        assert 0.5 < got[part]["cosine"] < 1
    guess = run(Guess(specs(embedding=True), EMBEDDER), examples, "image_from_text")["image_from_text"]
    assert guess["generated"]["recall@1"] < 0.5 and guess["photos"] == got["photos"]


def test_embeddings_of_photos_are_retrieved(examples):
    pipe = Oracle(specs(embedding=True), examples, EMBEDDER)
    got = run(pipe, examples, "embedding_from_image")["embedding_from_image"]
    assert got["cosine"] == pytest.approx(1) and got["recall@1"] == 1 and got["gallery"] == 60
    assert got["cosine_to_another"] < 0.9
    guess = run(Guess(specs(embedding=True), EMBEDDER), examples, "embedding_from_image")
    assert guess["embedding_from_image"]["recall@10"] == pytest.approx(10 / 60, abs=0.15)
    assert guess["embedding_from_image"]["chance@10"] == pytest.approx(10 / 60)


def test_impossible_measurements_are_skipped_with_the_reason(examples):
    pipe = Oracle(specs(embedding=True), examples, EMBEDDER)
    assert "--train" in run(pipe, examples, "prompts", train=())["prompts"]["skipped"]
    assert "some rarely" in run(pipe, examples, "prompts", train=["the sea"])["prompts"]["skipped"]
    blind = Oracle(specs(), make_examples(6))
    for task in ("prompts", "image_from_text", "embedding_from_image"):
        assert "no modality 'embedding'" in run(blind, make_examples(6), task)[task]["skipped"]
    mute = make_examples(6, EMBEDDER)
    mute.captions[:] = [""] * 6
    assert run(pipe, mute, "image_from_text")["image_from_text"] == {"skipped": "no example has a caption"}
    other = make_examples(6, EMBEDDER)
    other.captions[:] = [f"something {word}" for word in WORDS]
    found = run(pipe, other, "image_from_text")["image_from_text"]["photos"]["colour"]
    assert found == {"skipped": "no caption names a colour"}


def test_the_test_colours_have_their_names():
    assert [hue_word(name) for name in colour_names(COLOURS / 255)] == list(WORDS)
