"""The fuzzer and the soak: their inputs come from the seed, raw errors are told from sentences, both run."""

import random

import pytest
from fakes import FakePipeline, served
from synthetic import lively_model, tiny_config

from app.run.service import Service
from benchmarks import heaviest, soak
from benchmarks.fuzz import SETTINGS, WAYS, fuzz, mutated, odd_file, odd_value, verdict
from benchmarks.serving import Answer
from benchmarks.serving import served as process
from mmdiff.checkpoint import save_checkpoint


def test_the_seed_decides_what_comes():
    for make in (odd_value, odd_file, lambda draw: mutated(SETTINGS, draw)):
        first, again, other = ([make(random.Random(f"{seed}/{k}")) for k in range(20)] for seed in (1, 1, 2))
        assert repr(first) == repr(again) != repr(other)
    assert mutated(SETTINGS, random.Random(0)) != SETTINGS


@pytest.mark.parametrize(
    "answer, expected",
    [
        (Answer(200, {}, True), "result"),
        (Answer(200, {}, False, "steps is 'abc'; give a whole number from 1 to 100."), "explained"),
        (Answer(404, b"", False, "Not Found"), "explained"),
        (Answer(200, {}, False, None), "unexplained"),
        (Answer(200, {}, False, ""), "unexplained"),
        (Answer(200, {}, False, "Something unexpected went wrong."), "unexplained"),
        (Answer(200, {}, False, "'dict' object has no attribute 'encode'"), "unexplained"),
        (Answer(422, {}, False, "TypeError: unhashable"), "unexplained"),
        (Answer(500, b"", False, "Internal Server Error"), "unexplained"),
        (Answer(0, b"", False, "no answer: TimeoutError"), "unexplained"),
    ],
)
def test_only_sentences_explain(answer, expected):
    assert verdict(answer) == expected


@pytest.mark.slow
def test_every_odd_input_is_answered_with_a_result_or_a_sentence():
    service = Service(FakePipeline(modalities=("image", "mask", "label", "embedding")), "fake")
    with served(service) as address:
        result = fuzz(address, 300, seed=1)
    assert result["unexplained"] == [] and result["answers_afterwards"]
    assert sum(result["verdicts"].values()) == 300
    ways = [result["by_way"][way] for way in WAYS]
    assert all(way.get("explained", 0) + way.get("result", 0) for way in ways)


@pytest.mark.slow
def test_visitors_come_and_go_and_nothing_of_them_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "PAUSES", 2)
    monkeypatch.setattr(soak, "SETTLE_SECONDS", 2)
    save_checkpoint(lively_model(tiny_config(embedder="")), tmp_path / "tiny")
    with process(str(tmp_path / "tiny")) as server:
        result = soak.soak(server, clients=4, minutes=0.15)
        assert server.end() < 5 and not [path for path in server.folder.rglob("*") if path.is_file()]
    assert result["runs"]["finished"] > 0 and not [name for name in result["runs"] if "error" in name]
    first, last = result["pauses"][0], result["pauses"][-1]
    assert last["descriptors"] <= first["descriptors"] + 5 and not last["run_waits"]


@pytest.mark.slow
def test_the_heaviest_run_has_32_rows_and_pages_come_in_the_meantime():
    with process("checkpoints/orchard") as server:
        found = heaviest.heaviest(server, steps=2)
    assert (found["steps"], found["samples"], found["rows_a_call"]) == (2, 8, 32)
    assert found["memory_added_mb"] > 0 and 0 < found["slowest_page_seconds"] < 60
