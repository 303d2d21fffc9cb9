"""Gradients of loss terms: they add up to the training step's own, and a table shows them."""

import dataclasses
import json

import pytest
import torch
from synthetic import CLASSES, read_shapes, tiny_train_config

from benchmarks import gradients
from benchmarks.report import build
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(params=["flags", "levels"])
def trainer(shapes, embedder, request):
    config = tiny_train_config(images=160)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, core=request.param))
    return Trainer(config, read_shapes(shapes, config, embedder), CPU, bfloat16=False)


def test_the_terms_add_up_to_the_gradient_of_a_step(trainer, monkeypatch):
    for _ in range(3):  # at the start the heads' small weights let hardly anything through
        trainer.train_step()
    batches = trainer.batches.state_dict()
    found = gradients.term_gradients(trainer)
    assert set(found) == set(trainer.model.names)
    trainer.batches.load_state_dict(batches)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(1.0))
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    trainer.train_step()
    step = torch.cat([p.grad.flatten() for p in trainer.model.backbone.parameters()])
    torch.testing.assert_close(sum(found.values()), step, rtol=1e-4, atol=1e-6)


def test_pulls_scale_with_the_weights(shapes, embedder, trainer):
    config = trainer.config
    modalities = [
        dataclasses.replace(m, loss_weight=m.loss_weight * (1 if m.name == "image" else 3))
        for m in config.model.modalities
    ]
    model = dataclasses.replace(config.model, modalities=tuple(modalities))
    heavier = Trainer(
        dataclasses.replace(config, model=model), read_shapes(shapes, config, embedder), CPU, bfloat16=False
    )
    before, after = gradients.pulls(trainer, 2), gradients.pulls(heavier, 2)
    assert after["image"] == pytest.approx(before["image"], rel=1e-3)
    assert after["label"]["norm"] == pytest.approx(3 * before["label"]["norm"], rel=1e-2, abs=2e-4)
    assert before["image"]["cosine"] == pytest.approx(1.0)


def test_the_command(shapes, tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    entry = '[[model.modalities]]\nname = "{0}"\nkind = "{0}"\n'
    sizes = "[model]\nimage_size = 32\npatch_size = 8\nwidth = 32\ndepth = 2\n"
    classes = f"options = {{ classes = {list(CLASSES)} }}\n"
    config.write_text(sizes + entry.format("image") + entry.format("label") + classes)
    out = tmp_path / "out.json"
    arguments = [str(config), "--train", str(shapes), "--images", "320", "--batches", "1", "--out", str(out)]
    gradients.main(arguments)
    found = json.loads(out.read_text())
    assert [point["images"] for point in found["gradients"]] == [32, 96, 192, 320]
    text = build(found).to_markdown()
    assert "| image | 1 |" in text and "| label | 1 |" in text and "320 images" in text
    capsys.readouterr()
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        gradients.main([*arguments, "--train", str(tmp_path / "nowhere.parquet")])
