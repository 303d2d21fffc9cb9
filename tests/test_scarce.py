"""Annotations are taken away as said; both systems are trained, measured on the same photos and compared."""

import numpy as np
import pytest
import torch
from synthetic import CLASSES, mask_of, read_shapes, tiny_train_config

from benchmarks import scarce, study
from benchmarks.report import build
from mmdiff.data.examples import balanced
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline


@pytest.fixture(scope="module")
def base():
    return tiny_train_config(images=16)


@pytest.fixture(scope="module")
def examples(base, shapes, embedder):
    return read_shapes(shapes, base, embedder)


def test_a_smaller_share_is_a_part_of_a_larger_one(examples):
    shares = (0.02, 0.2, 0.5, 1.0)
    kept = [scarce.thinned(examples, share).present for share in shares]
    for name in scarce.READ:
        counts = [int(one[name].sum()) for one in kept]
        total = int(examples.present[name].sum())
        assert counts == [max(1, round(share * total)) for share in shares]
        for less, more in zip(kept, kept[1:], strict=False):
            assert not (less[name] & ~more[name]).any()
    assert all(torch.equal(one["image"], examples.present["image"]) for one in kept)


def test_photos_with_as_many_annotations_are_seen_as_often(examples):
    thin = scarce.thinned(examples, 0.1)
    weights = balanced(thin.sources, scarce.BALANCE)
    names = np.array(thin.sources)
    shares = {name: weights[names == name].sum() for name in set(thin.sources)}
    assert len(shares) > 1 and len({(names == name).sum() for name in shares}) > 1
    assert all(share == pytest.approx(1 / len(shares)) for share in shares.values())


def test_readers_see_the_central_squares_of_what_was_kept(examples, base):
    size = base.model.image_size
    photos = scarce.annotated(examples, "mask", size)
    assert photos.images.shape[1:] == (3, size, size) and photos.targets.shape[1:] == (size, size)
    assert len(photos) == int(examples.present["mask"].sum())
    for image, mask in zip(photos.images, photos.targets, strict=True):
        assert torch.equal(mask.bool(), mask_of(image, 0))


def test_scores_of_the_truth_are_one(examples, base, embedder):
    ev = Evaluation(Pipeline(study.build_model(base.model), study.CPU), examples, EvaluationSettings())
    labels = torch.nn.functional.one_hot(scarce._real(ev, "label")["label"], len(CLASSES)).float()
    masks = scarce._real(ev, "mask")["mask"]
    found = scarce.scores(ev, {"label": labels, "mask": masks})
    assert found["label_top1"].mean() == 1 and found["mask_iou"].mean() == 1
    assert scarce.scores(ev, {"label": labels.roll(1, 1), "mask": 1 - masks})["label_top1"].mean() == 0


@pytest.mark.slow
def test_the_study_from_training_to_the_table(examples, base, embedder, tmp_path):
    bench = study.Bench(examples, examples, None, embedder, EvaluationSettings(batch=32))
    shares = (0.1, 1.0)
    wanted = scarce.variants(shares, steps=40)
    report = study.study(wanted, base, bench, 2, tmp_path / "scarce.json", {"reader_steps": 40}, scarce.run)
    report["scarce"] = scarce.differences(report, shares)
    for figure in ("label_top1", "mask_iou"):
        means = [
            report["variants"][scarce.named(system, 1.0)]["figures"][figure]["mean"]
            for system in (scarce.OURS, scarce.READERS)
        ]
        found = report["scarce"]["100%"][figure]
        assert found["mean"] == pytest.approx(means[0] - means[1], abs=2e-3)
        assert found["low"] <= found["mean"] <= found["high"]
    reader = report["variants"][scarce.named(scarce.READERS, 1.0)]["figures"]
    assert reader["mask_iou"]["mean"] > 0.6, "a U-Net learns a shape on white in 40 steps"
    table = build(report).to_markdown()
    assert table.count("| 10% |") == 2 and "A reader alone" in table
