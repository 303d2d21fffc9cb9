"""Evaluation of pipelines whose scores are known."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from oracles import CLASSES, SIZE, ColourClassifier, Guess, Oracle, draw_objects, make_examples, specs
from PIL import Image as PIL

from mmdiff import evaluate as evaluation
from mmdiff.config import DataConfig, ModalityConfig, ModelConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.evaluate import TASKS, Evaluation, evaluate
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline

WITHOUT_BOUND = tuple(name for name in TASKS if name != "bound")
WITHOUT_EMBEDDING = tuple(n for n in TASKS if n not in ("embedding_from_image", "image_from_text"))


@pytest.fixture
def examples():
    return make_examples()


def settings(**changes):
    return EvaluationSettings(**{"steps": 2, "batch": 16, "samples": 30} | changes)


def test_an_oracle_scores_perfectly(examples):
    ev = Evaluation(
        Oracle(specs(), examples), examples, settings(holes=("blocks", "lines")), ColourClassifier()
    )
    got = evaluate(ev, WITHOUT_BOUND)
    assert got["mask_from_image"]["iou"] == {"background": 1, "object": 1}
    assert got["mask_from_image"]["miou"] == got["mask_from_image"]["pixel_accuracy"] == 1
    assert (got["label_from_image"]["top1"], got["label_from_image"]["n"]) == (1, 60)
    assert got["image_from_label"]["judge_agreement"] == 1
    assert got["image_from_label"]["by_class"] == dict.fromkeys(CLASSES, 1.0)
    assert got["image_from_mask"]["mask_rule_iou"] == 1
    assert (got["joint"]["judge_agreement"], got["joint"]["mask_rule_iou"]) == (1, 1)
    assert got["joint"]["distinct_labels"] == len(CLASSES)
    for kind in ("blocks", "lines"):
        found = got["holes"][kind]
        assert found["psnr_pooled"] == pytest.approx(100) and found["known_exact"]
        assert found["gain_pooled"] == pytest.approx(100 - found["psnr_mean_fill_pooled"])
    assert got["holes"]["blocks"]["hidden"] == 0.5


def test_guesses_score_at_chance():
    examples = make_examples(240)
    ev = Evaluation(Guess(specs()), examples, settings(samples=300), ColourClassifier())
    got = evaluate(ev, WITHOUT_BOUND)
    area = draw_objects(range(240)).double().mean((1, 2))
    by_chance = (area / (1 + area)).mean().item()  # IoU of a coin toss for every pixel
    assert got["mask_from_image"]["iou"]["object"] == pytest.approx(by_chance, abs=0.01)
    assert got["label_from_image"]["top1"] == pytest.approx(1 / 6, abs=0.08)
    assert got["label_from_image"]["top5"] == pytest.approx(5 / 6, abs=0.08)
    assert got["image_from_label"]["judge_agreement"] == pytest.approx(1 / 6, abs=0.08)
    assert got["joint"]["judge_agreement"] == pytest.approx(1 / 6, abs=0.08)
    assert got["holes"]["blocks"]["gain_pooled"] < 0
    assert not got["holes"]["blocks"]["known_exact"]


@pytest.mark.parametrize(("filling_steps", "expected"), [(None, 2), (5, 5)])
def test_holes_have_a_number_of_steps_of_their_own(examples, filling_steps, expected):
    steps = {}

    class Counting(Oracle):
        def run_batch(self, request, seeds):
            steps["holes" if request.known_pixels is not None else request.wanted] = request.steps
            return super().run_batch(request, seeds)

    chosen = settings(filling_steps=filling_steps, holes=("box",), reading_steps=3)
    ev = Evaluation(Counting(specs(), examples), examples, chosen)
    evaluate(ev, ["holes", "joint", "mask_from_image"])
    assert steps == {"holes": expected, ("image", "mask", "label"): 2, ("mask",): 3}


def test_holes_have_a_guidance_scale_of_their_own(examples):
    scales = {}

    class Listening(Oracle):
        def run_batch(self, request, seeds):
            scales["holes" if request.known_pixels is not None else request.wanted] = request.guidance_scale
            return super().run_batch(request, seeds)

    chosen = settings(filling_guidance=1.5, guidance=3.0, holes=("box",))
    ev = Evaluation(Listening(specs(), examples), examples, chosen)
    evaluate(ev, ["holes", "joint", "mask_from_image"])
    assert scales == {"holes": {"image": 1.5}, ("image", "mask", "label"): 1.0, ("mask",): 1.0}


def test_mean_fill_matches_a_direct_computation(examples):
    ev = Evaluation(Oracle(specs(), examples), examples, settings(samples=60))
    found = evaluate(ev, ["holes"])["holes"]["blocks"]
    real = ev.read(ev.rows)["image"].numpy()
    hidden = ~HOLES["blocks"](60, SIZE, 0).numpy()
    errors = []
    for image, hole in zip(real, hidden, strict=True):
        mean = image[:, ~hole].mean(1, keepdims=True)
        errors.append((((image[:, hole] - mean) / 2) ** 2).mean())
    assert found["psnr_mean_fill"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-4)
    assert found["psnr_mean_fill_pooled"] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-4)


def test_impossible_measurements_are_skipped_with_the_reason(examples):
    got = evaluate(Evaluation(Oracle(specs(), examples), examples, settings()), WITHOUT_BOUND)
    assert "--judge" in got["image_from_label"]["skipped"]
    assert "--judge" in got["joint"]["judge_agreement"]["skipped"] and got["joint"]["mask_rule_iou"] == 1

    stranger = SimpleNamespace(classes=("cat", "dog"), facts={})
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), stranger)
    assert "other classes" in evaluate(ev, ["image_from_label"])["image_from_label"]["skipped"]

    assert "guidance is 1" in got["joint_following_label"]["skipped"]

    examples.present["label"][:] = False
    ev = Evaluation(Oracle(specs(), examples), examples, settings())
    assert evaluate(ev, ["label_from_image"])["label_from_image"] == {
        "skipped": "no example has image and label"
    }

    del examples.stored["mask"], examples.present["mask"]
    ev = Evaluation(Guess(specs()), examples, settings())
    assert evaluate(ev, ["image_from_mask"])["image_from_mask"] == {"skipped": "the data has no mask"}


def test_the_white_rule_is_only_used_where_it_agrees_with_the_masks(examples):
    examples.stored["mask"] = 1 - examples.stored["mask"]
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), ColourClassifier())
    got = evaluate(ev, ["joint", "image_from_mask"])
    assert "reaches only" in got["joint"]["mask_rule_iou"]["skipped"]
    assert "reaches only" in got["image_from_mask"]["skipped"]
    more = specs(mask_classes=("void", "object", "sky"))
    ev = Evaluation(Oracle(more, examples), examples, settings())
    assert "two classes" in evaluate(ev, ["image_from_mask"])["image_from_mask"]["skipped"]


def test_examples_without_an_annotation_are_left_out(examples):
    examples.present["mask"][::2] = False
    examples.present["label"][:45] = False
    ev = Evaluation(Oracle(specs(), examples), examples, settings(limit=40))
    got = evaluate(ev, ["mask_from_image", "label_from_image"])
    assert got["mask_from_image"]["n"] == int(examples.present["mask"][ev.rows].sum()) < 40
    assert got["label_from_image"]["n"] == int(examples.present["label"][ev.rows].sum()) < 15


def test_void_is_not_counted(examples):
    modalities = specs(mask_classes=("void", "object", "rest"))
    truth = examples.stored["mask"] * 1 + 2 * (1 - examples.stored["mask"])
    examples.stored["mask"] = truth.clone()
    oracle = Oracle(modalities, examples)
    examples.stored["mask"][:, :3] = 0  # not annotated, whatever the prediction says
    got = evaluate(Evaluation(oracle, examples, settings()), ["mask_from_image"])["mask_from_image"]
    assert got["iou"] == {"object": 1, "rest": 1} and got["miou_pooled"] == got["pixel_accuracy"] == 1


def test_the_batch_size_changes_no_figure(examples):
    figures = []
    for batch in (7, 64):
        ev = Evaluation(Oracle(specs(), examples), examples, settings(batch=batch), ColourClassifier())
        got = evaluate(ev, WITHOUT_BOUND)
        figures.append({task: {k: v for k, v in f.items() if k != "seconds"} for task, f in got.items()})
    assert figures[0] == figures[1]


def test_what_each_task_gives_and_generates(examples):
    pipe = Oracle(specs(), examples)
    evaluate(Evaluation(pipe, examples, settings(batch=100, guidance=2.0), ColourClassifier()), WITHOUT_BOUND)
    assert pipe.calls == [
        (["image"], ("mask",), 1.0),
        (["image"], ("label",), 1.0),
        (["label"], ("image",), 2.0),
        (["mask"], ("image",), 2.0),
        ([], ("image", "mask", "label"), 1.0),
        ([], ("image", "mask", "label"), {"label": 2.0}),
        (["image"], ("image",), {"image": 1.0}),  # holes
        ([], ("image",), 1.0),  # likeness
        ([], ("image", "label"), {"label": 2.0}),
    ]


def tiny_model():
    from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion

    torch.manual_seed(0)
    return MultiModalDiffusion(
        ModelConfig(
            modalities=(
                ModalityConfig("image", "image"),
                ModalityConfig("mask", "mask", options={"classes": ["background", "object"]}),
                ModalityConfig("label", "label", options={"classes": list(CLASSES)}),
            ),
            image_size=SIZE,
            patch_size=16,
            width=32,
            depth=2,
            heads=2,
            refiner_width=8,
            num_steps=50,
        )
    )


def test_the_bound_of_an_untrained_model_knows_nothing_of_the_label(examples):
    examples.present["label"][::3] = False
    pipe = Pipeline(tiny_model(), torch.device("cpu"))
    got = evaluate(Evaluation(pipe, examples, settings(limit=24)), ["bound"])["bound"]
    assert set(got["nats"]) == {"L0", "L1", "L2/image", "L2/mask", "L2/label", "L3"}
    assert got["nats"]["L2/label"] == pytest.approx(np.log(len(CLASSES)), abs=0.05)
    assert got["bits_per_dimension"]["L2/mask"] == pytest.approx(1, abs=0.05)
    assert got["nats"]["L0"] >= 0 and got["nats"]["L1"] > 0


def test_a_real_pipeline_goes_through_every_task(examples):
    pipe = Pipeline(tiny_model(), torch.device("cpu"))
    photos = examples.stored["image"]
    ev = Evaluation(
        pipe, examples, settings(limit=5, samples=6, guidance=2.0), ColourClassifier(), train_photos=photos
    )
    got = evaluate(ev)
    assert [name for name, figures in got.items() if "skipped" not in figures] == list(WITHOUT_EMBEDDING)
    assert got["holes"]["blocks"]["known_exact"]
    json.dumps(got, allow_nan=False)


@pytest.fixture
def parquet(tmp_path, examples):
    path = tmp_path / "val.parquet"
    rows = [
        {
            "image": PIL.fromarray(i.permute(1, 2, 0).numpy()),
            "mask": PIL.fromarray(m.numpy()),
            "label": int(k),
        }
        for i, m, k in zip(*examples.stored.values(), strict=True)
    ]
    features = Features({"image": Image(), "mask": Image(), "label": Value("int64")})
    Dataset.from_list(rows, features).to_parquet(str(path))
    return path


def test_the_command_writes_json_grids_and_a_table(parquet, tmp_path, monkeypatch, capsys):
    modalities = specs()
    pipe = Oracle(modalities, read_parquet(parquet, modalities.values(), DataConfig()))
    monkeypatch.setattr(evaluation.Pipeline, "from_pretrained", lambda name, device: pipe)
    monkeypatch.setattr(evaluation.Classifier, "from_pretrained", lambda folder, device: ColourClassifier())
    out = tmp_path / "results" / "toy.json"
    options = f"--data {parquet} --out {out} --judge somewhere --steps 2 --samples 70 --limit 50"
    grids = ["--grids", str(tmp_path / "grids")]
    evaluation.main(["checkpoints/toy", *options.split(), *grids, "--tasks", *WITHOUT_BOUND])
    text = out.read_text()
    report = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(report, indent=2, sort_keys=True) + "\n"
    assert (report["checkpoint"], report["data"], report["examples"]) == ("toy", "val.parquet", 50)
    assert report["settings"]["steps"] == 2 and report["judge"] == ColourClassifier.facts
    assert report["white_rule_iou_on_photos"] == 1 and report["tasks"]["joint"]["n"] == 70
    assert str(tmp_path) not in text
    shown = capsys.readouterr().out
    assert "joint.judge_agreement" in shown and "holes.blocks.gain_pooled" in shown
    panels = {
        "mask_from_image": 3,
        "label_from_image": 1,
        "image_from_label": 1,
        "image_from_mask": 2,
        "joint": 2,
        "holes": 3,
    }
    for task, count in panels.items():
        rows = 7 if task in ("mask_from_image", "label_from_image", "image_from_mask", "holes") else 8
        assert PIL.open(tmp_path / "grids" / f"{task}.webp").size == (
            8 * (2 * SIZE * count + 4),
            rows * (2 * SIZE + 14),
        )


def test_mistakes_end_with_a_plain_message(tmp_path, parquet, monkeypatch):
    monkeypatch.setattr(evaluation.Pipeline, "from_pretrained", lambda name, device: Guess(specs()))
    base = ["toy", "--out", str(tmp_path / "o.json")]
    for arguments, message in (
        (["--data", "nowhere.parquet"], "no data at nowhere.parquet"),
        (["--data", str(parquet), "--judge", str(tmp_path)], "no classifier in"),
        (["--data", str(parquet), "--steps", "0"], "steps is 0"),
        (["--data", str(parquet), "--limit", "0"], "limit is 0"),
        (["--data", str(parquet), "--filling-steps", "0"], "filling_steps is 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluation.main([*base, *arguments])
    renamed = pq.read_table(parquet)
    renamed = renamed.rename_columns(["img" if n == "image" else n for n in renamed.column_names])
    pq.write_table(renamed, tmp_path / "renamed.parquet")
    for option in ("--data", "--train"):
        data = {"--data": str(parquet)} | {option: str(tmp_path / "renamed.parquet")}
        with pytest.raises(SystemExit, match="no photo in a column 'image'"):
            evaluation.main([*base, *(word for pair in data.items() for word in pair)])
    broken = tmp_path / "broken.parquet"
    broken.write_text("not parquet")
    with pytest.raises(SystemExit, match="error"):
        evaluation.main([*base, "--data", str(broken)])
