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


def test_subsets_are_a_row_each_with_distances_in_their_own_sign():
    def one(value):
        return {"mean": value, "se": 0.1, "n": 4}

    rows = [
        {
            "given": "image with holes",
            "metrics": {"image.psnr": one(20.126), "image.negative_lpips": one(-0.25)},
        },
        {"given": "label", "metrics": {"image.negative_lpips": one(-0.7), "mask.iou_fruit": one(0.8)}},
    ]
    worse = {"metric": "label.top1", "subset": "mask", "superset": "image + mask"}
    found = {
        "examples": 4,
        "gallery": 400,
        "photos": {"image.judge": one(0.99)},
        "subsets": rows,
        "monotonicity": {
            "standard_errors": 2,
            "compared": 10,
            "worse_if_all_were_equal": 0.2,
            "worse": [worse | {"subset_mean": 0.9, "superset_mean": 0.8}],
        },
    }
    lines = report.table({"subsets": found, "settings": {"steps": 5, "sampler": "ddim"}}).splitlines()
    assert lines[2] == "| image with holes |  | 20.13 | 0.250 |  |"
    assert lines[3] == "| label |  |  |  | 0.800 |"  # no hole to compare pictures in
    assert lines[4].startswith("| (real photos) | 0.99 |")
    assert "in 1 of 10 comparisons" in lines[8]
    assert lines[-1] == "- label.top1: 0.9000 given mask, 0.8000 given image + mask"


def test_every_figure_says_how_many_examples_it_is_of():
    results = {
        "examples": 50,
        "settings": {"steps": 3, "sampler": "ddim", "guidance": 1},
        "tasks": {"label_from_image": {"n": 40, "top1": 0.5}, "joint": {"judge_agreement": 0.25}},
    }
    lines = report.table(results).splitlines()
    assert "| label from photo: top-1 | 50.0% | 40 |" in lines
    assert "| photo and label together: that classifier agrees | 25.0% | 50 |" in lines
