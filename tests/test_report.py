"""Tables of results: docs quote them from the JSON in docs/results."""

import json

import pytest

from benchmarks import report
from benchmarks.report import build
from benchmarks.tables.evaluation import Report, Table

SETTINGS = {"steps": 5, "sampler": "ddim", "guidance": 1.0}


def tables(**tasks):
    """Lines of the tables of such tasks, the note last."""
    found = {"data": "val.parquet", "examples": 1234, "judge": {"classes": 8}, "settings": SETTINGS}
    return build(found | {"tasks": tasks}).to_markdown().splitlines()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a page that quotes docs/results/toy.json."""
    (tmp_path / "docs/results").mkdir(parents=True)
    (tmp_path / "page.md").write_text("before\n<!-- results toy -->\n<!-- end -->\nafter\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "PAGES", ("*.md",))
    return tmp_path


def test_pages_are_up_to_date():
    report.main(["--check"])


def test_a_changed_number_is_noticed(project):
    results = {
        "examples": 3,
        "settings": SETTINGS,
        "tasks": {"label_from_image": {"top1": 0.5}, "joint": {"skipped": "no label"}},
    }
    (project / "docs/results/toy.json").write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="page.md is out of date"):
        report.main(["--check"])
    report.main([])
    text = (project / "page.md").read_text()
    assert "| Label from photo: top-1 | 50.0% |" in text and text.endswith("<!-- end -->\nafter\n")
    report.main(["--check"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSONDecodeError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        ('{"tasks": 3}', "instead of a group"),
        ('{"tasks": {"label_from_image": {"top1": "good"}}}', "“tasks.label_from_image.top1”"),
        ('{"tasks": {"label_from_image": {"top1": 0.5}}, "examples": []}', "“examples”"),
        ('{"question": "?", "variants": {}}', "KeyError"),
        ('{"question": "?", "variants": {}, "config": {"model": {}}, "evaluation": {}}', "IndexError"),
        ('{"question": "?", "variants": {"ours": {"figures": {}, "runs": {}}}}', "ZeroDivisionError"),
    ],
)
def test_a_damaged_file_is_named(project, text, words):
    path = project / "docs/results/toy.json"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    with pytest.raises(SystemExit, match=f"docs/results/toy.json cannot be used: .*{words}"):
        report.main([])


def test_a_figure_has_what_to_compare_it_with():
    holes = {"blocks": {"psnr": 20, "psnr_mean_fill": 9}}
    lines = tables(label_from_image={"n": 100, "top1": 0.5}, holes=holes)
    assert "| Label from photo: top-1 | 50.0% | 100 | chance 12.5% |" in lines
    assert "| Holes (blocks): PSNR inside, dB | 20.00 | 1,234 | mean of the known pixels 9.00 |" in lines


def test_what_could_not_be_measured_is_left_out_and_the_rest_is_shown():
    lines = tables(joint={"n": 9, "judge_agreement": 0.5, "mask_rule_iou": {"skipped": "no such masks"}})
    text = "\n".join(lines)
    assert "| Photo and label together: that classifier agrees | 50.0% |" in text and "their IoU" not in text


def test_names_in_the_files_cannot_become_markup():
    text = "\n".join(tables(mask_from_image={"iou": {"<script>": 0.5}}))
    assert "<script>" not in text and "IoU of “&lt;script>”" in text


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"filling_steps": None, "filling_guidance": 1.0}, "guidance 1."),
        ({"filling_steps": 10}, "guidance 1; holes in 10 steps."),
        ({"filling_guidance": 1.5}, "guidance 1; holes guided by the pixels around them (1.5)."),
        (
            {"filling_steps": 10, "filling_guidance": 2},
            "guidance 1; holes in 10 steps guided by the pixels around them (2).",
        ),
    ],
)
def test_the_note_says_how_holes_were_filled_if_not_as_the_rest(monkeypatch, own, words):
    monkeypatch.setitem(globals(), "SETTINGS", SETTINGS | own)
    assert tables(holes={"blocks": {"psnr": 20}})[-1].endswith(words)


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


def test_a_table_in_markdown():
    table = Table("A & b", ("Name", "Value"), (("a|b", "<1>"), ("`code`", "2")))
    assert table.to_markdown().splitlines() == [
        "**A & b**",
        "",
        "| Name | Value |",
        "|---|---|",
        r"| a\|b | &lt;1> |",
        "| `code` | 2 |",
    ]


def test_brief_reports_leave_details_out_and_all_leave_empty_tables_out():
    one = (("1",),)
    shown = Report(
        (Table("main", ("x",), one), Table("more", ("x",), one, detail=True), Table("empty", ("x",), ())),
        "How it was measured.",
    )
    assert "main" in shown.to_markdown(brief=True) and "more" not in shown.to_markdown(brief=True)
    assert "more" in shown.to_markdown() and "empty" not in shown.to_markdown()


def test_variants_stand_beside_each_other_at_half_of_the_time_and_all_of_it():
    def run(name, rate):
        points = [
            {"seconds": s, "images": rate * s, "total": 90 / s, "L1": 45 / s, "L2/mask": 9 / s}
            for s in (100, 201, 299)
        ]
        return {"name": name, "parameters": 10_400_000, "points": points}

    runs = {"runs": [run("wide", 50), run("narrow", 100)], "threads": 2, "torch": "2"}
    lines = build(runs).to_markdown().splitlines()
    assert "| wide | 10.4 M | 50 | 0.900 | 0.301 | 0.450 | 0.151 | 0.090 | 0.030 |" in lines
    assert any(line.startswith("| narrow | 10.4 M | 100 |") for line in lines)
    assert "Loss after 100 s" in lines[2]
