"""Bounds by modality: of the photo alone as `mmdiff.bound` has it, with standard errors as counted."""

import dataclasses
import json
import math

import pytest
import torch
from synthetic import lively_model, read_shapes, tiny_config, tiny_train_config

from benchmarks import likelihood
from benchmarks.questions import Setting
from benchmarks.study import CPU
from mmdiff.bound import bound
from mmdiff.data.augment import draw_batch
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.training.trainer import Trainer

SETTINGS = EvaluationSettings(bound_draws=2)


@pytest.fixture(scope="module")
def base():
    return dataclasses.replace(tiny_train_config(images=16), model=tiny_config(core="levels", num_steps=40))


@pytest.fixture(scope="module")
def examples(base, shapes, embedder):
    return read_shapes(shapes, base, embedder)


def test_the_photo_alone_is_what_ddpm_bounds(examples):
    model = lively_model(tiny_config(("image",), core="levels", num_steps=40))
    found = likelihood.photo_alone(model, examples, torch.arange(6), SETTINGS)
    x, _ = draw_batch(examples, model.modalities, torch.arange(6), None, flip=False)
    present = {"image": torch.ones(6, dtype=torch.bool)}
    terms = bound(model, model.make_schedule(), x, present, torch.Generator().manual_seed(0), draws=2)
    assert set(terms) == {"L0", "L1/image", "L3"}
    nats = sum(value.double().mean().item() for value in terms.values())
    assert found.figures["photo_alone_bits"] == pytest.approx(nats / (3 * 16 * 16) / math.log(2))


def test_what_is_ignored_has_no_part_in_the_photo_alone(examples):
    model = lively_model(tiny_config(core="levels", num_steps=40))
    relabelled = examples.take(torch.arange(len(examples)))
    relabelled.stored["label"] = (relabelled.stored["label"] + 1) % 4
    one, other = (likelihood.photo_alone(model, e, torch.arange(6), SETTINGS) for e in (examples, relabelled))
    assert one.figures == other.figures
    one, other = (likelihood.together(model, e, torch.arange(6), SETTINGS) for e in (examples, relabelled))
    assert one.figures["label_nats"] != other.figures["label_nats"]


def test_parts_of_the_joint_bound_add_up(examples):
    model = lively_model(tiny_config(core="levels", num_steps=40))
    rows = (examples.present["mask"] & examples.present["label"]).nonzero()[:, 0]
    found = likelihood.together(model, examples, rows, SETTINGS).figures
    parts = sum(found[f"{name}_nats"] for name in ("mask", "label", "embedding", "prior"))
    photo = found["photo_bits"] * 3 * 16 * 16 * math.log(2)
    assert found["total_nats"] == pytest.approx(parts + photo)


def test_a_modality_is_measured_where_examples_have_it(examples):
    model = lively_model(tiny_config(core="levels", num_steps=40))
    each = likelihood.together(model, examples, torch.arange(12), SETTINGS).each
    assert len(each["photo_bits"]) == 12 and len(each["mask_nats"]) == 8 and len(each["label_nats"]) == 9


def test_standard_errors_shrink_with_the_root_of_the_photos():
    random = torch.Generator().manual_seed(0)
    values = (1e4 * torch.randn(32, generator=random)).round().long().tolist()
    run = {"each": {"photo_bits": values}}
    found = likelihood.standard_errors({"a": {"figures": {"photo_bits": 0}, "runs": {"0": run}}})
    expected = torch.tensor(values).double().std() / 1e4 / math.sqrt(32)
    assert found["a"]["photo_bits"] == pytest.approx(expected.item(), rel=0.1)


def test_all_three_are_trained_as_they_are_called(base, examples):
    names = {}
    for name, system in likelihood.SYSTEMS.items():
        config = system.configured(16, Setting()).change(base)
        names[name] = [m.name for m in config.model.modalities]
        assert config.optim.images == 16 and issubclass(system.trainer, Trainer)
        if "N = 1" in name:
            trainer = system.trainer(config, examples, CPU)
            draw = trainer.draw(examples, torch.arange(24), trainer.generator(0), augment=True)
            assert draw.flags.shape[1] == 1 and draw.supervised.all() and (draw.known == 0).all()
        if "leads" in name:
            assert not any(m.lead for m in config.model.modalities)
    assert list(names.values()) == [["image", "mask", "label", "embedding"]] * 2 + [["image"]]


def test_the_command(shapes, tmp_path, capsys):
    config = tmp_path / "tiny.toml"
    config.write_text(
        '[model]\ncore = "levels"\nimage_size = 16\npatch_size = 4\nwidth = 32\ndepth = 2\nnum_steps = 40\n'
        'refiner_width = 8\n[[model.modalities]]\nname = "image"\nkind = "image"\n[[model.modalities]]\n'
        'name = "mask"\nkind = "mask"\noptions = { classes = ["background", "shape"] }\n'
        "[optim]\nbatch_size = 8\n"
    )
    out = tmp_path / "out.json"
    arguments = ["--images", "16", "--seeds", "2", "--photos", "9", "--draws", "2", "--out", str(out)]
    likelihood.main([str(config), "--train", str(shapes), "--val", str(shapes), *arguments])
    found, text = json.loads(out.read_text()), capsys.readouterr().out
    assert len(found["variants"]) == 3 and "± is the standard error" in text
    own = found["standard_errors"]["the photo alone, N = 1, 16 images"]
    assert set(own) == {"photo_bits", "photo_alone_bits", "prior_nats"}
    difference = found["against"]["the photo alone, N = 1, 16 images"]["photo_alone_bits"]
    assert difference["low"] <= difference["mean"] <= difference["high"]
    with pytest.raises(SystemExit, match="nowhere"):
        likelihood.main([str(config), "--train", str(tmp_path / "nowhere"), "--val", str(shapes), *arguments])
