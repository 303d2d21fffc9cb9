"""Pages quote what was measured: their tables are made from the JSON in docs/results."""

import json

import pytest

from benchmarks import report


def test_pages_are_up_to_date():
    report.main(["--check"])


def test_a_changed_number_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "docs/results").mkdir(parents=True)
    results = {
        "examples": 3,
        "settings": {"steps": 5, "sampler": "ddim", "guidance": 1.0},
        "tasks": {"label_from_image": {"top1": 0.5}, "joint": {"skipped": "no label"}},
    }
    (tmp_path / "docs/results/toy.json").write_text(json.dumps(results))
    (tmp_path / "page.md").write_text("before\n<!-- results toy -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGES", ("page.md",))
    with pytest.raises(SystemExit, match="page.md is out of date"):
        report.main(["--check"])
    report.main([])
    text = (tmp_path / "page.md").read_text()
    assert "| label from photo: top-1 | 50.0% |" in text and text.endswith("<!-- end -->\nafter\n")
    report.main(["--check"])
