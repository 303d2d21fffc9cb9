"""Tables of results: docs quote them from the JSON in docs/results, in Markdown and HTML alike."""

import json

import pytest

from benchmarks import report
from mmdiff.evaluation.report.files import build
from mmdiff.evaluation.report.table import Report, Table


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
    monkeypatch.setattr(report, "PAGES", ("*.md",))
    with pytest.raises(SystemExit, match="page.md is out of date"):
        report.main(["--check"])
    report.main([])
    text = (tmp_path / "page.md").read_text()
    assert "| Label from photo: top-1 | 50.0% |" in text and text.endswith("<!-- end -->\nafter\n")
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
    lines = build({"subsets": found, "settings": {"steps": 5, "sampler": "ddim"}}).to_markdown().splitlines()
    assert lines[4] == "| image with holes |  | 20.13 | 0.250 |  |"
    assert lines[5] == "| label |  |  |  | 0.800 |"  # no hole to compare pictures in
    assert lines[6].startswith("| (real photos) | 0.99 |")
    assert "| label.top1 | mask | 0.9000 | image + mask | 0.8000 |" in lines
    assert lines[-1].startswith("4 examples") and "in 1 of 10 comparisons" in lines[-1]


def test_every_figure_says_how_many_examples_it_is_of():
    results = {
        "examples": 50,
        "settings": {"steps": 3, "sampler": "ddim", "guidance": 1},
        "tasks": {"label_from_image": {"n": 40, "top1": 0.5}, "joint": {"judge_agreement": 0.25}},
    }
    lines = build(results).to_markdown().splitlines()
    assert "| Label from photo: top-1 | 50.0% | 40 |  |" in lines
    assert "| Photo and label together: that classifier agrees | 25.0% | 50 |  |" in lines


def test_a_table_reads_the_same_in_both_forms():
    table = Table("A & b", ("Name", "Value"), (("a|b", "<1>"), ("`code`", "2")))
    assert table.to_markdown().splitlines() == [
        "**A & b**",
        "",
        "| Name | Value |",
        "|---|---|",
        r"| a\|b | <1> |",
        "| `code` | 2 |",
    ]
    page = table.to_html()
    assert "<h3>A &amp; b</h3>" in page and '<td data-head="Value">&lt;1&gt;</td>' in page
    assert '<th scope="row"><code>code</code></th>' in page
    assert "<summary>A &amp; b</summary>" in table.to_html(folded=True)


def test_docs_leave_details_out_and_the_page_folds_all_but_a_narrow_first_table():
    narrow, wide = (Table(name, ("x",) * k, (("1",) * k,)) for name, k in (("narrow", 2), ("wide", 9)))
    shown = Report((narrow, Table("more", ("x",), (("1",),), detail=True)), "How it was measured.")
    assert "narrow" in shown.to_markdown() and "more" not in shown.to_markdown()
    page = shown.to_html()
    assert "<h3>narrow</h3>" in page and "<summary>more</summary>" in page
    assert "<summary>wide</summary>" in Report((wide,), "").to_html()
