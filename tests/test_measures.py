"""Measures of compared systems against those of `mmdiff.evaluate`, and against counting."""

import dataclasses

import numpy as np
import pytest
import torch
from synthetic import (
    CLASSES,
    lively_model,
    make_rows,
    read_shapes,
    tiny_config,
    tiny_train_config,
    write_parquet,
)

from benchmarks import measures
from benchmarks.evidence import grouped
from benchmarks.measures import KINDS, Measured, kernel_values, scattered
from benchmarks.trials import ClassicalTrial, GuidedTrial, Reference, RePaintTrial, Trial, judge_features
from mmdiff.evaluate import evaluate
from mmdiff.evaluation.classical_inpainting import CLASSICAL_METHODS
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.likeness import distances, manifold_bits, precision_recall
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline

SIZE = 32  # large enough for AlexNet
ALL = ("image", "mask", "label", "embedding")


@pytest.fixture(scope="module")
def examples(tmp_path_factory, embedder):
    path = write_parquet(tmp_path_factory.mktemp("measures") / "shapes.parquet", make_rows(24, SIZE))
    config = dataclasses.replace(tiny_train_config(), model=tiny_config(image_size=SIZE))
    return read_shapes(path, config, embedder)


@pytest.fixture(scope="module")
def make(examples, embedder):
    """Makes a trial of a lively model."""

    def made(kind=Trial, used=ALL, **settings):
        model = lively_model(tiny_config(core="levels", image_size=SIZE))
        settings = {"steps": 3, "filling_steps": 2, "samples": 8, "batch": 5, "guidance": 1.5} | settings
        settings = EvaluationSettings(**settings)
        judge = Classifier(CLASSES, 16).eval()
        pipe = Pipeline(model, torch.device("cpu"), embedder)
        reference = Reference(examples, pipe.modalities, judge, settings.samples)
        reader = {"reader": lively_model(model.config, 1)} if kind is GuidedTrial else {}
        return kind(pipe, examples, settings, judge, used=used, reference=reference, **reader)

    return made


def test_reading_is_that_of_evaluate(make):
    trial = make()
    found = measures.reading(trial).figures
    tasks = evaluate(trial, ("mask_from_image", "label_from_image", "embedding_from_image"))
    assert found["label_top1"] == pytest.approx(tasks["label_from_image"]["top1"])
    assert found["label_nll"] == pytest.approx(tasks["label_from_image"]["nll"])
    assert found["embedding_cosine"] == pytest.approx(tasks["embedding_from_image"]["cosine"])
    assert found["embedding_recall"] == pytest.approx(tasks["embedding_from_image"]["recall@5"])
    assert set(measures.reading(make(used=("image", "label"))).figures) == {"label_top1", "label_nll"}


def test_a_mask_that_is_read_rightly_has_an_iou_of_one(make, monkeypatch):
    trial = make(used=("image", "mask"))
    real = trial.read(trial.rows_with("image", "mask"))["mask"]
    for masks, value in ((real, 1.0), (1 - real, 0.0)):
        monkeypatch.setattr(trial, "predict", lambda name, photos, masks=masks: masks)
        assert measures.reading(trial).figures["mask_iou"] == value


def test_holes_are_those_of_evaluate(make, monkeypatch):
    trial = make(used=("image",), holes=("blocks75", "box"), samples=24)
    found = measures.holes(trial)
    tasks = evaluate(trial, ("holes",))["holes"]
    for kind in ("blocks75", "box"):
        assert found.figures[f"{kind}_lpips"] == pytest.approx(tasks[kind]["lpips"], rel=1e-5)
    kinds = [found.figures[f"{kind}_lpips"] for kind in KINDS]
    assert found.figures["holes_lpips"] == pytest.approx(np.mean(kinds), rel=1e-5)
    monkeypatch.setattr(measures, "KINDS", {"box": KINDS["box"]})
    assert measures.holes(trial).figures["holes_psnr"] == pytest.approx(tasks["box"]["psnr"])
    assert len(found.each["holes_lpips"]) == 24


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_pasted_makes_the_whole_difference(make, eta):
    """Our own loop over the sampler ends where the pipeline does."""
    trial = make(used=("image", "label"), eta=eta)
    photos = trial.read(trial.rows_with("image"))["image"][:7]
    known = HOLES["half"](7, SIZE, 0)
    raw = trial.unpasted(photos, known)
    anchor = trial.pipe.model.modalities["image"]
    pasted = anchor.completed(photos, raw, known[:, None])
    torch.testing.assert_close(pasted, trial.filled(photos, known), rtol=0, atol=1e-4)
    assert not torch.allclose(raw, pasted, atol=0.01)


def test_a_classical_filling_is_that_method(make):
    trial = make(ClassicalTrial, ("image",))
    photos = trial.read(trial.rows_with("image"))["image"][:3]
    known = HOLES["box"](3, SIZE, 0)
    assert torch.equal(trial.filled(photos, known), CLASSICAL_METHODS["telea"](photos, known))
    assert trial.calls == 0


def test_scattered_holes_hide_half_of_the_pixels():
    known = scattered(5, 16, seed=1)
    assert known.flatten(1).sum(1).tolist() == [128] * 5 and not torch.equal(known[0], known[1])
    assert torch.equal(known[:2], scattered(2, 16, seed=1)), "a map does not depend on how many there are"


def test_bits_are_those_of_precision_and_recall():
    random = torch.Generator().manual_seed(0)
    real = torch.randn(60, 5, generator=random)
    made = 0.7 * torch.randn(90, 5, generator=random) + 0.3
    bits = manifold_bits(real, made)
    assert [len(bits["precision"]), len(bits["recall"])] == [90, 60]
    assert {name: values.mean().item() for name, values in bits.items()} == precision_recall(real, made)


def test_values_of_the_kernel_distance_have_its_mean_and_its_spread():
    random = torch.Generator().manual_seed(0)
    real = torch.randn(80, 5, generator=random)
    sets = [0.8 * torch.randn(80, 5, generator=random) + 0.3 for _ in range(200)]
    values = [kernel_values(real, made) for made in sets]
    assert values[0].mean().item() == pytest.approx(distances(real, sets[0])["kernel"], rel=1e-6)
    spread = torch.stack([own.mean() for own in values]).std()
    predicted = torch.stack([own.std() / 80**0.5 for own in values]).mean()
    assert predicted.item() == pytest.approx(spread.item(), rel=0.2)


def test_real_photos_are_like_others_and_flat_ones_are_not(make):
    reference = make(samples=12).reference
    floor = measures.real_photos(reference)
    flat = measures.likeness_to(reference, torch.zeros(12, 3, SIZE, SIZE)).figures
    assert set(flat) == {
        f"{p}{n}" for p in ("", "judge_") for n in ("precision", "recall", "frechet", "kernel")
    }
    assert set(floor) == set(flat) and flat["recall"] == 0 < floor["recall"]
    assert flat["frechet"] > 2 * floor["frechet"] and flat["judge_frechet"] > 2 * floor["judge_frechet"]


def test_the_two_sets_of_real_photos_have_none_in_common(make):
    one, other = make(samples=2000).reference.real
    assert len(one) == len(other) == 12
    assert not (one[:, None] == other).flatten(2).all(2).any()


def test_the_judges_last_layer_reads_its_features():
    judge = Classifier(CLASSES, 16).eval()
    photos = torch.rand(3, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(judge.head(judge_features(judge, photos)), judge(photos))


def test_what_is_made_together_agrees_with_itself(make, monkeypatch):
    trial = make()
    real = trial.read(trial.rows_with("image", "label"))
    labels = torch.nn.functional.one_hot(real["label"], 4).float()
    made = {"image": real["image"], "label": labels, "embedding": real["embedding"]}
    monkeypatch.setattr(trial, "made", lambda count: made)
    monkeypatch.setattr(trial, "classify", lambda photos: real["label"])
    found = measures.making(trial).figures
    assert found["judge_together"] == 1 and found["embedding_together"] == pytest.approx(1, abs=1e-3)
    assert found["labels_made"] == 3, "the fourth class has none in the synthetic set"
    monkeypatch.setattr(trial, "classify", lambda photos: (real["label"] + 1) % 4)
    assert measures.making(trial).figures["judge_together"] == 0


def test_photos_of_the_training_set_have_the_precision_of_their_class(make, monkeypatch):
    """The real photos of a class in place of made ones, or those of another class."""
    trial = make(samples=16)
    train = trial.reference.train
    rows = [(train.present["label"] & (train.stored["label"] == k)).nonzero()[:4, 0] for k in range(3)]

    def of_class(shift):
        def images(title, count, label):
            turns = torch.arange(count) // 4
            chosen = [
                rows[(k + shift) % 3][turn] for k, turn in zip(label.tolist(), turns.tolist(), strict=True)
            ]
            return trial.reference.photos(torch.stack(chosen))

        return images

    monkeypatch.setattr(trial, "images_from", of_class(0))
    own = measures.from_label(trial)
    assert own.figures["class_precision"] == 1 and own.figures["guided_class_precision"] == 1
    assert len(own.each["class_precision"]) == 3
    monkeypatch.setattr(trial, "images_from", of_class(1))
    assert measures.from_label(trial).figures["class_precision"] < 0.7
    assert len(own.each["judge_from_label"]) == 16 and trial.settings.guidance == 1.5


def test_texts_become_labels_where_there_is_no_embedding(make, monkeypatch):
    asked = []
    for used in (ALL, ("image", "label")):
        trial = make(used=used)
        count = len(trial.with_captions(trial.rows_with("image", "label"))[0])
        monkeypatch.setattr(
            trial,
            "images_from",
            lambda title, n, **given: asked.append(given) or torch.zeros(n, 3, SIZE, SIZE),
        )
        assert set(measures.from_text(trial).figures) == {"judge_from_text", "text_cosine"}
        assert len(next(iter(asked[-1].values()))) == count
    with_words, without = asked
    assert set(with_words) == {"embedding"} and set(without) == {"label"}
    # every class has one caption here, so the nearest class is the caption's own
    real = trial.read(trial.with_captions(trial.rows_with("image", "label"))[0])["label"]
    assert torch.equal(without["label"], real)


def test_all_kinds_of_trials_make_photos(make):
    for kind, used in ((Trial, ALL), (RePaintTrial, ("image",)), (GuidedTrial, ("image", "label"))):
        trial = make(kind, used)
        assert set(trial.made(3)) == set(used)
    labels = torch.tensor([0, 1, 2])
    for kind in (Trial, GuidedTrial):
        trial = make(kind, ("image", "label"))
        once, again = (trial.images_from("x", 3, label=labels) for _ in range(2))
        assert torch.equal(once, again) and once.abs().max() <= 1
        assert not torch.allclose(trial.images_from("x", 3, label=labels.flip(0)), once, atol=1e-3)
    read = trial.predict("label", torch.zeros(4, 3, SIZE, SIZE))
    assert read.shape == (4, 4) and torch.allclose(read.sum(1), torch.ones(4))


def test_guided_photos_are_surer_to_the_classifier(make):
    labels = torch.arange(4).repeat(6)
    sure = []
    for scale in (1.0, 20.0):
        trial = make(GuidedTrial, ("image", "label"), steps=12, guidance=scale)
        photos = trial.images_from("x", 24, label=labels)
        sure.append(trial.predict("label", photos).gather(1, labels[:, None]).log().mean().item())
    assert sure[1] > sure[0] + 0.05


def test_groups_of_photos_have_their_means():
    values = torch.arange(70, dtype=torch.float64) / 70
    groups = grouped(values, 32)
    assert len(groups) == 32 and groups[0] == round(1e4 * (0 + 32 + 64) / 3 / 70)
    assert groups[31] == round(1e4 * (31 + 63) / 2 / 70)
    assert grouped(values[:3], 32) == [round(1e4 * k / 70) for k in range(3)]


def test_measures_are_put_together():
    both = Measured({"a": 1.0}) | Measured.means({"b": torch.tensor([0.0, 1.0])})
    assert both.figures == {"a": 1.0, "b": 0.5} and list(both.each) == ["b"]
