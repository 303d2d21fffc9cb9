"""The ablation study on the synthetic set: every variant runs, a cut-off study goes on, a table comes out."""

import json

import pytest
import torch
from synthetic import CLASSES, read_shapes, tiny_train_config

from benchmarks import ablations, study
from benchmarks.report import build
from mmdiff.config import load_train_config
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.training.dry_run import measure
from mmdiff.training.trainer import Trainer

CHOICES = ablations.STUDIES["choices"]


@pytest.fixture(scope="module")
def base():
    return tiny_train_config(images=16)


@pytest.fixture(scope="module")
def bench(base, shapes, embedder):
    examples, judge = read_shapes(shapes, base, embedder), Classifier(CLASSES, 16).eval()
    settings = EvaluationSettings(steps=2, samples=4, limit=12, batch=8)
    return study.Bench(examples, examples, judge, embedder, settings)


@pytest.fixture
def counted():
    """The runs that are made, without making them; every figure is the seed."""
    made = []

    def run(variant, config, bench):
        made.append(config)
        numbers = {"figures": {"mask_iou": float(config.optim.seed)}, "validation": {"L1": 0.5}}
        return numbers | {"parameters": 1, "train_cpu_seconds": 0.1, "cpu_seconds": 0.2}

    return made, run


def test_every_variant_is_trained_and_measured(base, bench, tmp_path):
    out = tmp_path / "results" / "ablations.json"
    report = study.study(CHOICES, base, bench, 1, out, {"photos_judged": 0.5}, ablations.run)
    assert json.loads(out.read_text()) == report
    variants = report["variants"]
    assert list(variants) == list(CHOICES)
    too_small = {"hole_lpips", "precision", "recall"}  # for AlexNet
    assert set(variants["baseline"]["figures"]) == set(ablations.FIGURES) - too_small
    assert set(variants["image + mask"]["figures"]) == {"mask_iou", "hole_gain", "hole_ssim"}
    assert {"L1", "L2/image", "L2/mask", "total"} == set(variants["image + mask"]["validation"])
    sizes = {name: variant["runs"]["0"]["parameters"] for name, variant in variants.items()}
    assert sizes["weights ramp"] == sizes["weights none"] == sizes["baseline"]
    assert build(report).to_markdown().count("| baseline |") == 1 and "–" in build(report).to_markdown()


def test_variants_differ_from_the_baseline_in_one_choice(base):
    changed = {name: variant.change(base).model for name, variant in CHOICES.items()}
    assert changed["baseline"] == base.model
    shared = changed["shared channels"]
    options = vars(base.model).keys()
    assert [o for o in options if getattr(shared, o) != getattr(base.model, o)] == ["channels"]
    assert {m.weights for m in changed["weights ramp"].modalities} == {"ramp"}
    assert [m.name for m in changed["image + label"].modalities] == ["image", "label"]


def test_a_variant_can_be_trained_on_annotated_examples_alone(base, bench, monkeypatch):
    seen = []
    step = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", lambda self: seen.append(self.batches) or step(self))
    study.Variant(annotated="mask").train(base, bench.train)
    examples = seen[0].examples
    assert examples.present["mask"].all() and len(examples) == int(bench.train.present["mask"].sum())
    assert 0 < len(examples) < len(bench.train)


def test_pixels_get_as_many_operations_as_latents():
    base = load_train_config("configs/scenes-cpu.toml")
    changed = ablations.pixels(base)
    anchor, mask, *_ = changed.model.modalities
    assert anchor.kind == "image" and "stride" not in mask.options
    works = [measure(MultiModalDiffusion(config.model)) for config in (base, changed)]
    steps = [w.step * c.optim.images for w, c in zip(works, (base, changed), strict=True)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-4)
    assert works[1].encoding == 0 < works[0].encoding


def test_a_study_goes_on_where_it_was_cut_off(base, bench, counted, tmp_path):
    made, run = counted
    out, total = tmp_path / "out.json", len(CHOICES)

    def cut_off(variant, config, bench):
        if len(made) == total + 3:
            raise KeyboardInterrupt
        return run(variant, config, bench)

    with pytest.raises(KeyboardInterrupt):
        study.study(CHOICES, base, bench, 3, out, {}, cut_off)
    report = study.study(CHOICES, base, bench, 3, out, {}, run)
    assert len(made) == 3 * total
    assert len({(str(config.model), config.optim.seed) for config in made}) == 3 * total
    # the seeds 0, 1 and 2: mean 1, sample standard deviation 1
    assert report["variants"]["baseline"]["figures"]["mask_iou"] == {"mean": 1.0, "std": 1.0}


def test_variants_keep_their_order_whenever_they_were_run(base, bench, counted, tmp_path):
    out, run, names = tmp_path / "out.json", counted[1], list(CHOICES)
    study.study({names[2]: CHOICES[names[2]]}, base, bench, 1, out, {}, run)
    assert list(study.study(CHOICES, base, bench, 1, out, {}, run)["variants"]) == names


def test_runs_that_were_made_otherwise_are_not_mixed_in(base, bench, counted, tmp_path):
    out, run = tmp_path / "out.json", counted[1]
    study.study(CHOICES, base, bench, 1, out, {}, run)
    with pytest.raises(ValueError, match="another config"):
        study.study(CHOICES, study.model_with(depth=2)(base), bench, 1, out, {}, run)


def test_one_seed_has_no_spread(base, bench, counted, tmp_path):
    some = {name: CHOICES[name] for name in ("baseline", "weights none")}
    for seeds, shown in ((1, "| 0.000 |"), (2, "| 0.500 ± 0.707 |")):
        report = study.study(
            some, base, bench, seeds, tmp_path / "out.json", {"photos_judged": 1.0}, counted[1]
        )
        assert build(report).to_markdown().count(shown) == 2
    assert "over 2 seeds" in build(report).to_markdown()


def test_numbers_of_a_list_share_a_line(tmp_path):
    tree = {"a": [1, -2.5, 3], "b": [[1, 2], [3]], "c": ["x", "y"], "d": []}
    study.write(tree, tmp_path / "out.json")
    text = (tmp_path / "out.json").read_text()
    assert json.loads(text) == tree
    assert "[1, -2.5, 3]" in text and "[1, 2]" in text


def test_the_command(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ablations.STUDIES, "choices", {"weights none": CHOICES["weights none"]})
    Classifier(CLASSES, 16).save(tmp_path / "judge")
    config = tmp_path / "tiny.toml"
    entry = '[[model.modalities]]\nname = "{0}"\nkind = "{0}"\n'
    classes = f"options = {{ classes = {list(CLASSES)} }}\n"
    flags = '[model]\ncore = "flags"\n'
    config.write_text(flags + entry.format("image") + entry.format("label") + classes)
    threads = torch.get_num_threads()
    arguments = [
        *("--train", str(shapes), "--val", str(shapes), "--out", str(tmp_path / "out.json")),
        *("--config", str(config), "--judge", str(tmp_path / "judge")),
        *("--images", "32", "--examples", "4", "--steps", "2", "--seeds", "2", "--threads", str(threads)),
    ]
    ablations.main(arguments)
    assert "| weights none |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "out.json").read_text())["variants"]["weights none"]["runs"]) == 2
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        ablations.main([*arguments, "--val", str(tmp_path / "nowhere.parquet")])
