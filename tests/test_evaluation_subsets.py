"""Every subset given: which are tried, what is measured, and whether decreases are found."""

import json
from types import SimpleNamespace

import pytest
import torch
from oracles import CLASSES, ColourClassifier, ColourEmbedder, Guess, Oracle, make_examples, specs

from mmdiff import evaluate as evaluation
from mmdiff.evaluation import metrics
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.evaluation.skip import Skip
from mmdiff.evaluation.subsets import (
    HOLED,
    METRICS,
    NONE,
    WHOLE,
    all_subsets,
    describe,
    subsets,
    summary,
    table,
)

EMBEDDER = ColourEmbedder()
NAMES = ("image", "mask", "label", "embedding")


@pytest.fixture(scope="module")
def examples():
    return make_examples(60, EMBEDDER)


@pytest.fixture(autouse=True)
def no_lpips(monkeypatch):
    """The same metrics whatever is installed; tests/test_perceptual.py is about LPIPS itself."""

    def skip(device):
        raise Skip("not in these tests")

    monkeypatch.setattr("mmdiff.evaluation.perceptual.load_lpips", skip)


def build(pipe, examples, judge=None, **changes):
    settings = EvaluationSettings(**{"steps": 2, "batch": 16, "seed": 1} | changes)
    return Evaluation(pipe, examples, settings, judge)


def oracle(examples, kind=Oracle):
    return kind(specs(embedding=True), examples, EMBEDDER)


def row(report, *given):
    """The metrics of a subset."""
    return next(r["metrics"] for r in report["subsets"] if r["given"] == (" + ".join(given) or "nothing"))


def test_every_subset_that_leaves_something_to_generate_is_tried_once():
    tried = list(subsets(NAMES))
    assert len(tried) == 3 * 2 * 2 * 2 - 1 == len({describe(given) for given in tried})
    assert {"image": HOLED, "mask": WHOLE, "label": WHOLE, "embedding": WHOLE} in tried
    assert dict.fromkeys(NAMES, WHOLE) not in tried
    assert describe({"image": HOLED, "mask": NONE, "label": WHOLE}) == "image with holes + label"
    assert describe(dict.fromkeys(NAMES, NONE)) == "nothing"


def test_everything_not_given_is_generated(examples):
    pipe = oracle(examples)
    all_subsets(build(pipe, examples, limit=10))
    for given, wanted, guidance in pipe.calls:
        holes = "image" in given and "image" in wanted
        assert set(NAMES) - set(given) <= set(wanted) <= set(NAMES) - (set(given) - {"image"})
        assert guidance == ({"image": 1.0} if holes else 1)
    assert sum("image" in given and "image" in wanted for given, wanted, _ in pipe.calls) == 8  # with holes


def test_an_oracle_is_never_worse_with_more_given(examples):
    report = all_subsets(build(oracle(examples), examples, ColourClassifier()))
    assert report["monotonicity"]["worse"] == [] and report["examples"] == 60
    seen = row(report, "image with holes")
    for name in ("image.judge", "mask.miou", "mask.iou_object", "label.top1", "embedding.recall@5"):
        assert seen[name]["mean"] == 1 and seen[name]["se"] == 0
    assert seen["image.psnr"]["mean"] == pytest.approx(100)
    assert seen["embedding.cosine"]["mean"] == pytest.approx(1)
    assert row(report, "label")["image.judge"]["mean"] == 1
    assert row(report, "embedding")["label.top1"]["mean"] == 1
    assert row(report, "mask")["image.mask_rule_iou"]["mean"] == 1
    assert row(report)["label.top1"]["mean"] < 0.5 and row(report)["mask.miou"]["mean"] < 0.8
    assert "image.psnr" not in row(report, "label")  # there are no holes in a photo made from nothing
    assert set(row(report, "image", "mask", "label")) == {"embedding.cosine", "embedding.recall@5"}
    assert report["photos"]["image.judge"]["mean"] == 1
    json.dumps(report, allow_nan=False)


def test_pairs_are_counted_for_every_metric(examples):
    report = all_subsets(build(oracle(examples), examples))
    # pairs of levels, smaller first: 3 of two levels, 6 of three; less the pairs of a subset with itself
    images, others = 3**3 * 3 - 16, 6 * 3 * 3 - 12  # the photo wanted: two levels of it; another: three
    holed = 3**3 - 8
    assert "image.judge" in report["skipped"] and "image.negative_lpips" in report["skipped"]
    assert report["monotonicity"]["compared"] == 2 * images + holed + others * (2 + 1 + 2)


class Contrary(Oracle):
    """Paints the wrong colour where label and mask are given together."""

    def predict(self, condition, seeds):
        x = super().predict(condition, seeds)
        if {"label", "mask"} <= set(condition.given) and "image" not in condition.given:
            x["image"] = super().predict(self.with_wrong_label(condition), seeds)["image"]
        return x

    def with_wrong_label(self, condition):
        wrong = (condition.given["label"] + 1) % len(CLASSES)
        return SimpleNamespace(given=condition.given | {"label": wrong}, known_pixels=None)


def test_decreases_are_found_and_shown(examples):
    report = all_subsets(build(oracle(examples, Contrary), examples, ColourClassifier()))
    found = {(p["metric"], p["subset"], p["superset"]) for p in report["monotonicity"]["worse"]}
    assert ("image.judge", "label", "mask + label") in found
    assert ("image.caption", "label", "mask + label") in found
    assert all("mask + label" in superset for _, _, superset in found)
    text = table(report)
    assert "image.judge: 1.000 given label, 0.000 given mask + label (-1.000 ± 0.000)" in text
    assert f"in {len(found)} of {report['monotonicity']['compared']} comparisons" in text
    assert len(text.splitlines()) > 24


def test_scores_are_capped_at_those_of_the_photo(examples):
    """Holes that bring in the photo's own flaws are no loss."""
    flawed = make_examples(60, EMBEDDER)
    flawed.stored["mask"][:, 10, 10] ^= 1  # no longer what the rule reads off the photo
    report = all_subsets(build(oracle(flawed), flawed))
    exact, photo = row(report, "mask"), row(report, "image with holes", "mask")
    assert exact["image.mask_rule_iou"]["mean"] > photo["image.mask_rule_iou"]["mean"]
    assert not [p for p in report["monotonicity"]["worse"] if p["metric"] == "image.mask_rule_iou"]


def test_guesses_do_not_depend_on_the_given_subset(examples):
    report = all_subsets(build(Guess(specs(embedding=True), EMBEDDER), examples, batch=60))
    assert report["monotonicity"]["worse"] == []
    assert row(report)["embedding.recall@5"]["mean"] == pytest.approx(5 / 60, abs=0.1)


def test_other_modalities_are_measured_by_their_error(examples, monkeypatch):
    for name in ("mask", "label", "embedding"):
        monkeypatch.delitem(METRICS, name)
    report = all_subsets(build(oracle(examples), examples))
    for name in ("mask", "label", "embedding"):
        assert row(report, "image")[f"{name}.negative_error"]["mean"] == pytest.approx(0, abs=1e-6)
        assert row(report)[f"{name}.negative_error"]["mean"] < -0.05


def test_standard_errors_are_those_of_the_mean():
    values = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = summary(torch.cat([values, torch.tensor([torch.nan])]))
    assert found["n"] == 50 and found["mean"] == pytest.approx(values.mean().item())
    assert found["se"] == pytest.approx(values.std().item() / 50**0.5)


def test_too_few_examples_are_refused(examples):
    with pytest.raises(Skip, match="two examples"):
        all_subsets(build(oracle(examples), examples, limit=1))
    without = make_examples(6)
    with pytest.raises(Skip, match="the data has no embedding"):
        all_subsets(build(oracle(examples), without))


def test_lpips_is_used_where_it_is_installed(examples, monkeypatch):
    report = all_subsets(build(oracle(examples), examples))
    assert report["skipped"]["image.negative_lpips"] == "not in these tests"
    l1 = lambda a, b: (a - b).abs().mean((1, 2, 3))  # noqa: E731
    monkeypatch.setattr("mmdiff.evaluation.perceptual.load_lpips", lambda device: l1)
    report = all_subsets(build(oracle(examples), examples))
    assert row(report, "image with holes")["image.negative_lpips"]["mean"] == 0
    assert row(report)["image.negative_lpips"]["mean"] < 0


class WhiteSegmenter:
    """Reads masks off the white background, with its classes in another order than the model's."""

    classes = ("object", "background")

    def read(self, images):
        return metrics.white_background_mask(images).logical_not().long()


def test_the_segmenter_is_used_where_there_is_one(examples):
    ev = build(oracle(examples), examples)
    ev.segmenter = WhiteSegmenter()
    report = all_subsets(ev)
    assert report["photos"]["image.segmenter_miou"]["mean"] == 1
    assert row(report, "mask")["image.segmenter_miou"]["mean"] == 1
    assert row(report)["image.segmenter_miou"]["mean"] < 0.8
    assert "image.segmenter_miou" in all_subsets(build(oracle(examples), examples))["skipped"]


def test_the_command_prints_the_table_and_writes_json(examples, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(evaluation.Pipeline, "from_pretrained", lambda name, device: oracle(examples))
    monkeypatch.setattr(evaluation, "read_parquet", lambda path, modalities, config: make_examples(120))
    out = tmp_path / "subsets.json"
    evaluation.main(["toy", "--data", "toy.parquet", "--all-subsets", "--steps", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    assert report["subsets"]["examples"] == report["settings"]["limit"] == 96 and "tasks" not in report
    assert "image with holes + mask" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="subsets cannot be compared"):
        evaluation.main(["t", "--data", "t", "--all-subsets", "--limit", "1", "--out", str(out)])


def test_ranks_in_a_gallery_equal_a_sort():
    generator = torch.Generator().manual_seed(0)
    queries, gallery = torch.randn(20, 8, generator=generator), torch.randn(50, 8, generator=generator)
    own = torch.randint(50, (20,), generator=generator)
    order = torch.cosine_similarity(
        queries[:, None].mT.expand(-1, -1, 50), gallery.T[None].expand(20, -1, -1)
    )
    expected = [order[k].argsort(descending=True).tolist().index(own[k]) + 1 for k in range(20)]
    assert metrics.gallery_ranks(queries, gallery, own).tolist() == expected
    equal = torch.ones(5, 3)
    assert metrics.gallery_ranks(equal, equal, torch.arange(5)).tolist() == [3] * 5  # neither first nor last


def test_galleries_are_full_and_hold_the_own_example(examples, monkeypatch):
    ev = build(oracle(examples), examples, limit=30)
    monkeypatch.setattr("mmdiff.evaluation.evaluation.GALLERY", 25)
    ranks, size = ev.embedding_ranks(ev.read(ev.rows)["embedding"], ev.rows)
    assert size == 25 and ranks.shape == (30,) and (ranks <= 1.5).all()
