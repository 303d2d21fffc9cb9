"""Curves over a training run: its kept checkpoints are measured in order, with the losses beside them."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from synthetic import lively_model, read_shapes, tiny_config, tiny_train_config

from benchmarks import curves
from mmdiff.checkpoint import load_checkpoint, save_checkpoint
from mmdiff.evaluate import read_examples
from mmdiff.evaluation.metrics import top_k_hits
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from mmdiff.training.loop import run as train
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")
NAMES = ("image", "mask", "label")


@pytest.fixture(scope="module")
def run(tmp_path_factory, shapes, embedder):
    """A run that kept its checkpoints, after 32 and after 64 images."""
    config = tiny_train_config()
    config = replace(config, optim=replace(config.optim, keep_checkpoints=True))
    examples = read_shapes(shapes, config, embedder)
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(Trainer(config, examples, CPU), examples, folder, 10.0, 2)
    return folder


def test_a_run_keeps_every_checkpoint_it_saved(run):
    kept = sorted(path.name for path in (run / "history").iterdir())
    assert kept == ["0000000032", "0000000064"]
    last, first = (load_checkpoint(run / "history" / name).state_dict() for name in reversed(kept))
    assert all(torch.equal(value, last[name]) for name, value in load_checkpoint(run).state_dict().items())
    assert any(not torch.equal(value, last[name]) for name, value in first.items())


def test_points_are_what_the_checkpoints_can_do(tmp_path, shapes):
    for images, seed in ((50, 1), (200, 2)):
        folder = tmp_path / "mine" / "history" / f"{images:010d}"
        save_checkpoint(lively_model(tiny_config(NAMES), seed), folder)
    report = curves.curve(tmp_path / "mine", str(shapes), "cpu")
    assert [p["images"] for p in report["points"]] == [50, 200] and report["losses"] == []
    for point, folder in zip(
        report["points"], sorted((tmp_path / "mine" / "history").iterdir()), strict=True
    ):
        assert set(point) == {"images", "mask_miou", "label_top1"}
        pipe = Pipeline.from_pretrained(folder, "cpu")
        examples = read_examples(str(shapes), pipe)
        rows = examples.present["label"].nonzero()[:, 0]
        photos = examples.stored["image"][rows].float() / 127.5 - 1
        seeds = list(range(len(rows)))
        *_, step = pipe.run_batch(Request({"image": photos}, ("label",), steps=1), seeds)
        hits = top_k_hits(step.x_hat["label"], examples.stored["label"][rows].long(), 1)
        assert point["label_top1"] == pytest.approx(hits.double().mean().item(), abs=1e-4)


def test_the_command_writes_figures_losses_and_a_plot(run, tmp_path, shapes, monkeypatch):
    monkeypatch.setattr(curves, "TASKS", ("mask_from_image", "label_from_image"))  # it has no embedder
    out, plot = tmp_path / "results" / "curve.json", tmp_path / "docs" / "curve.png"
    curves.main([str(run), "--data", str(shapes), "--out", str(out), "--plot", str(plot), "--device", "cpu"])
    report = json.loads(out.read_text())
    assert [p["images"] for p in report["points"]] == [32, 64] == [p["images"] for p in report["losses"]]
    assert {"L1", "L2/mask", "L2/label", "total"} <= set(report["losses"][0])
    drawn = Image.open(plot).convert("L")
    assert drawn.width > 1000 and len(drawn.getcolors()) > 20


def test_a_run_without_a_history_says_how_to_get_one(tmp_path, shapes):
    with pytest.raises(SystemExit, match="optim.keep_checkpoints"):
        curves.main([str(tmp_path), "--data", str(shapes), "--out", str(tmp_path / "o.json")])
