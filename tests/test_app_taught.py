"""What taught a head, where that was a part of the data."""

import json

import pytest
from fakes import FakePipeline
from records import make_record

from app.run.history import Track
from app.run.player_data import Player
from app.run.service import Service
from app.run.taught import FILE, read_taught
from mmdiff.request import Request

STREETS = {"mask": {"by": "street photos", "labels": ["street"]}}


def test_a_checkpoint_without_the_file_was_taught_by_everything(tmp_path):
    assert read_taught(tmp_path) == read_taught(None) == {}


@pytest.mark.parametrize("content", ["[1]", '{"mask": {}}', '{"mask": {"by": "x"}}', "{", '{"mask": 3}'])
def test_a_malformed_file_is_explained(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"taught.json cannot be used .*or remove it"):
        read_taught(tmp_path)


def test_it_comes_from_the_folder_to_the_player(tmp_path):
    (tmp_path / FILE).write_text(json.dumps(STREETS))
    service = Service(FakePipeline(), "fake", folder=tmp_path)
    assert service.record(Request(wanted=("mask",))).taught == STREETS


def test_the_player_says_it_of_what_is_created_only():
    record = make_record()
    record.taught = STREETS
    (track,) = json.loads(Player("any_to_any-player").value([Track("a", "", record)]))["tracks"]
    assert [head.get("taught") for head in track["heads"]] == [None, STREETS["mask"], None, None]
