"""Evaluation of pipelines whose scores are known: one that looks the truth up, and one that guesses."""

import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PIL

from mmdiff import evaluate as evaluation
from mmdiff import metrics
from mmdiff.config import DataConfig, ModalityConfig, ModelConfig
from mmdiff.data import Examples, draw_batch, read_parquet
from mmdiff.evaluate import TASKS, Evaluation, Settings, evaluate
from mmdiff.modalities import build_modality
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import Step

SIZE = 32
COLOURS = torch.tensor(
    [[200, 40, 40], [40, 160, 40], [40, 60, 190], [220, 190, 40], [120, 40, 140], [20, 20, 20]]
)
CLASSES = ("red", "green", "blue", "yellow", "violet", "black")
WITHOUT_BOUND = tuple(name for name in TASKS if name != "bound")


def specs(mask_classes=("background", "object"), label_classes=CLASSES):
    configs = [
        ModalityConfig("image", "image"),
        ModalityConfig("mask", "mask", options={"classes": mask_classes}),
        ModalityConfig("label", "label", options={"classes": label_classes}),
    ]
    return {c.name: build_modality(c, SIZE, 8) for c in configs}


def paint(masks, labels):
    """Class-coloured objects on white: (B, H, W) bool, (B,) -> (B, 3, H, W) in [-1, 1]."""
    colours = (COLOURS[labels] / 127.5 - 1)[:, :, None, None]
    return torch.where(masks[:, None], colours, 1.0)


def draw_objects(seeds):
    """A rectangle for each seed."""
    masks = torch.zeros(len(seeds), SIZE, SIZE, dtype=torch.bool)
    for k, seed in enumerate(seeds):
        top, left, bottom, right = np.random.default_rng(seed).integers((2, 2, 18, 18), (14, 14, 30, 30))
        masks[k, top:bottom, left:right] = True
    return masks


def make_examples(count=60):
    masks, labels = draw_objects(range(count)), torch.arange(count) % len(CLASSES)
    stored = {
        "image": ((paint(masks, labels) + 1) * 127.5).round().to(torch.uint8),
        "mask": masks.to(torch.uint8),
        "label": labels.int(),
    }
    return Examples(stored, {n: torch.ones(count, dtype=torch.bool) for n in stored}, [""] * count)


class Fake:
    """The part of `Pipeline` that evaluation uses; subclasses make up x_hat."""

    device = torch.device("cpu")

    def __init__(self, modalities):
        self.modalities = modalities
        self.calls = []

    def run(self, condition, wanted, seeds, steps, sampler, guidance_scale, eta):
        self.calls.append((sorted(condition.given), tuple(wanted), guidance_scale))
        x_hat = self.predict(condition, seeds)
        for index in (1, 2):
            yield Step(index, 2, 2 - index, torch.zeros(1), torch.zeros(1), x_hat if index == 2 else {})


class Oracle(Fake):
    """Knows every photo, and paints what it is asked for."""

    def __init__(self, modalities, examples):
        super().__init__(modalities)
        self.known = draw_batch(examples, modalities, torch.arange(len(examples)), None, flip=False)[0]

    def predict(self, condition, seeds):
        given = condition.given
        if "image" in given:
            visible = condition.known_pixels
            visible = torch.ones(len(seeds), SIZE, SIZE, dtype=torch.bool) if visible is None else visible
            differs = (self.known["image"][None] - given["image"][:, None]).abs() * visible[:, None, None]
            x = {n: v[differs.flatten(2).sum(2).argmin(1)] for n, v in self.known.items()}
        else:
            label = given.get("label", torch.tensor([s % len(CLASSES) for s in seeds]))
            mask = given.get("mask", draw_objects(seeds).long())
            x = {"image": paint(mask == 1, label), "mask": mask, "label": label}
        return {n: self.modalities[n].as_prediction(v) for n, v in x.items()}


class Guess(Fake):
    """Uniform noise for everything."""

    def predict(self, condition, seeds):
        rng = torch.Generator().manual_seed(seeds[0])
        shapes = {"image": (3, SIZE, SIZE), "mask": (2, SIZE, SIZE), "label": (len(CLASSES),)}
        x = {n: torch.rand(len(seeds), *shape, generator=rng) for n, shape in shapes.items()}
        return x | {"image": 2 * x["image"] - 1}


class ColourJudge:
    """Names the nearest class colour of what is not white; its classes are in another order."""

    classes = tuple(reversed(CLASSES))
    facts: ClassVar = {"val_top1": 1.0}

    def probabilities(self, images):
        if not len(images):
            return torch.empty(0, len(self.classes))
        inside = metrics.white_background_mask(images)[:, None]
        colour = (images * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        return (-torch.cdist(colour, COLOURS.flip(0) / 127.5 - 1)).softmax(1)


@pytest.fixture
def examples():
    return make_examples()


def settings(**changes):
    return Settings(**{"steps": 2, "batch": 16, "samples": 30} | changes)


def test_an_oracle_scores_perfectly(examples):
    ev = Evaluation(Oracle(specs(), examples), examples, settings(holes=("blocks", "lines")), ColourJudge())
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
    ev = Evaluation(Guess(specs()), examples, settings(samples=300), ColourJudge())
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


def test_mean_fill_matches_a_direct_computation(examples):
    ev = Evaluation(Oracle(specs(), examples), examples, settings())
    found = evaluate(ev, ["holes"])["holes"]["blocks"]
    real = ev.read(ev.rows)["image"].numpy()
    hidden = ~evaluation.HOLES["blocks"](60, SIZE, 0).numpy()
    errors = []
    for image, hole in zip(real, hidden, strict=True):
        mean = image[:, ~hole].mean(1, keepdims=True)
        errors.append((((image[:, hole] - mean) / 2) ** 2).mean())
    assert found["psnr_mean_fill"] == pytest.approx(np.mean(-10 * np.log10(errors)), abs=1e-4)
    assert found["psnr_mean_fill_pooled"] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-4)


def test_what_cannot_be_measured_is_skipped_with_the_reason(examples):
    got = evaluate(Evaluation(Oracle(specs(), examples), examples, settings()), WITHOUT_BOUND)
    assert "--judge" in got["image_from_label"]["skipped"]
    assert "--judge" in got["joint"]["judge_agreement"]["skipped"] and got["joint"]["mask_rule_iou"] == 1

    stranger = SimpleNamespace(classes=("cat", "dog"), facts={})
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), stranger)
    assert "other classes" in evaluate(ev, ["image_from_label"])["image_from_label"]["skipped"]

    examples.present["label"][:] = False
    ev = Evaluation(Oracle(specs(), examples), examples, settings())
    assert evaluate(ev, ["label_from_image"])["label_from_image"] == {
        "skipped": "no example has image and label"
    }

    del examples.stored["mask"], examples.present["mask"]
    ev = Evaluation(Guess(specs()), examples, settings())
    assert evaluate(ev, ["image_from_mask"])["image_from_mask"] == {"skipped": "the data has no mask"}


def test_the_white_rule_is_not_applied_where_it_does_not_describe_the_photos(examples):
    examples.stored["mask"] = 1 - examples.stored["mask"]
    ev = Evaluation(Oracle(specs(), examples), examples, settings(), ColourJudge())
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


def test_void_is_neither_counted_nor_named(examples):
    modalities = specs(mask_classes=("void", "object", "rest"))
    truth = examples.stored["mask"] * 1 + 2 * (1 - examples.stored["mask"])
    examples.stored["mask"] = truth.clone()
    oracle = Oracle(modalities, examples)
    examples.stored["mask"][:, :3] = 0  # not annotated, whatever the prediction says
    got = evaluate(Evaluation(oracle, examples, settings()), ["mask_from_image"])["mask_from_image"]
    assert got["iou"] == {"object": 1, "rest": 1} and got["miou_pooled"] == got["pixel_accuracy"] == 1


def test_the_batch_size_changes_nothing(examples):
    figures = []
    for batch in (7, 64):
        ev = Evaluation(Oracle(specs(), examples), examples, settings(batch=batch), ColourJudge())
        got = evaluate(ev, WITHOUT_BOUND)
        figures.append({task: {k: v for k, v in f.items() if k != "seconds"} for task, f in got.items()})
    assert figures[0] == figures[1]


def test_each_task_gives_and_wants_what_it_says(examples):
    pipe = Oracle(specs(), examples)
    evaluate(Evaluation(pipe, examples, settings(batch=100, guidance=2.0), ColourJudge()), WITHOUT_BOUND)
    assert pipe.calls == [
        (["image"], ("mask",), 1.0),
        (["image"], ("label",), 1.0),
        (["label"], ("image",), 2.0),
        (["mask"], ("image",), 2.0),
        ([], ("image", "mask", "label"), 1.0),
        (["image"], ("image",), 1.0),
    ]


def tiny_model():
    from mmdiff.model import MultiModalDiffusion

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
    ev = Evaluation(pipe, examples, settings(limit=5, samples=6), ColourJudge())
    got = evaluate(ev)
    assert not any("skipped" in figures for figures in got.values())
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
    monkeypatch.setattr(evaluation.Judge, "from_pretrained", lambda folder, device: ColourJudge())
    out = tmp_path / "results" / "toy.json"
    evaluation.main(
        [
            "checkpoints/toy",
            "--data",
            str(parquet),
            "--out",
            str(out),
            "--judge",
            "somewhere",
            "--steps",
            "2",
            "--samples",
            "70",
            "--limit",
            "50",
            "--grids",
            str(tmp_path / "grids"),
            "--tasks",
            *WITHOUT_BOUND,
        ]
    )
    text = out.read_text()
    report = json.loads(text, parse_constant=pytest.fail)
    assert text == json.dumps(report, indent=2, sort_keys=True) + "\n"
    assert (report["checkpoint"], report["data"], report["examples"]) == ("toy", "val.parquet", 50)
    assert report["settings"]["steps"] == 2 and report["judge"] == ColourJudge.facts
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
        assert PIL.open(tmp_path / "grids" / f"{task}.png").size == (
            8 * (2 * SIZE * count + 4),
            rows * (2 * SIZE + 14),
        )


def test_mistakes_end_with_a_plain_message(tmp_path, parquet, monkeypatch):
    monkeypatch.setattr(evaluation.Pipeline, "from_pretrained", lambda name, device: Guess(specs()))
    base = ["toy", "--out", str(tmp_path / "o.json")]
    for arguments, message in (
        (["--data", "nowhere.parquet"], "no data at nowhere.parquet"),
        (["--data", str(parquet), "--judge", str(tmp_path)], "no judge in"),
        (["--data", str(parquet), "--steps", "0"], "steps is 0"),
        (["--data", str(parquet), "--limit", "0"], "limit is 0"),
    ):
        with pytest.raises(SystemExit, match=message):
            evaluation.main([*base, *arguments])
    broken = tmp_path / "broken.parquet"
    broken.write_text("not parquet")
    with pytest.raises(SystemExit, match="error"):
        evaluation.main([*base, "--data", str(broken)])
