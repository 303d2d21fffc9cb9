"""Refitting a head: separable tokens are learned, only the head changes, errors say what is wrong."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from mmdiff.checkpoint import load_checkpoint, save_checkpoint
from mmdiff.network.heads import GlobalHead
from mmdiff.pipeline import Pipeline
from mmdiff.training.refit import TokenTap, fit, main, mixture_tokens, refit
from tests.synthetic import lively_model, read_shapes, tiny_config, tiny_train_config


def test_fit_finds_the_classes_of_gaussian_tokens():
    """Four isotropic clusters off the origin and off scale, against the nearest true centre."""
    generator = torch.Generator().manual_seed(0)
    centres = 5 + 40 * torch.randn(4, 16, generator=generator)
    labels = torch.arange(4).repeat(100)
    tokens = centres[labels] + 8 * torch.randn(400, 16, generator=generator)
    head = GlobalHead(16, 4).mlp
    fit(head, tokens, labels, seed=0)
    new = centres[labels] + 8 * torch.randn(400, 16, generator=generator)
    best = torch.cdist(new, centres).argmin(1)
    with torch.no_grad():
        assert (head(new).argmax(1) == best).float().mean() > 0.98
        assert F.cross_entropy(head(new), labels) < 0.25  # chance is 1.39


@pytest.mark.parametrize("core", ["flags", "levels"])
def test_only_the_head_changes(shapes, embedder, core):
    config = tiny_train_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, core=core))
    pipe = Pipeline(lively_model(config.model), torch.device("cpu"), embedder)
    before = {n: t.clone() for n, t in pipe.model.state_dict().items()}
    refit(pipe, read_shapes(shapes, config, embedder), "label", photos=16, mixture=8, seed=0)
    after = pipe.model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(n.startswith("heads.label.") for n in changed)
    assert all(t.isfinite().all() for t in after.values())


def test_photos_of_the_mixture_are_encoded_by_the_checkpoint(shapes, embedder, monkeypatch):
    pipe = Pipeline(lively_model(tiny_config(core="levels")), torch.device("cpu"), embedder)
    examples = read_shapes(shapes, tiny_train_config(), embedder)
    image, encoded = pipe.model.modalities["image"], []
    encode = image.encode
    monkeypatch.setattr(image, "encode", lambda x: encoded.append(len(x)) or encode(x))
    tap = TokenTap(pipe.model.heads["label"].mlp)
    tokens = mixture_tokens(pipe, examples, torch.arange(16), 0, tap)
    assert tokens.shape == (16, pipe.model.config.width) and sum(encoded) == 16


def test_the_command_writes_a_checkpoint(tmp_path, shapes, embedder, monkeypatch):
    """Also where the pipeline would compute in bfloat16, on a copy of the model."""
    monkeypatch.setattr("mmdiff.device.fast_bfloat16", lambda device: True)
    save_checkpoint(lively_model(tiny_config(("image", "label"), core="levels")), tmp_path / "toy")
    main([str(tmp_path / "toy"), "--train", str(shapes), "--out", str(tmp_path / "new"), "--photos", "16"])
    before, after = (load_checkpoint(tmp_path / name).state_dict() for name in ("toy", "new"))
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(n.startswith("heads.label.") for n in changed)


def test_errors_say_what_cannot_be_fitted(tmp_path, shapes, embedder):
    config = tiny_train_config()
    examples = read_shapes(shapes, config, embedder)
    examples.present["label"][:] = False
    pipe = Pipeline(lively_model(config.model), torch.device("cpu"), embedder)
    with pytest.raises(ValueError, match="no example has a label"):
        refit(pipe, examples, "label", photos=16, mixture=8, seed=0)
    save_checkpoint(lively_model(tiny_config(("image", "label"))), tmp_path / "toy")
    options = ["--train", str(shapes), "--out", str(tmp_path / "new"), "--mixture", "0"]
    with pytest.raises(SystemExit, match="--mixture must be 1 or more"):
        main([str(tmp_path / "toy"), *options])


def test_a_head_that_is_no_label_is_named(tmp_path, shapes):
    save_checkpoint(lively_model(tiny_config(("image", "label"))), tmp_path / "toy")
    with pytest.raises(SystemExit, match="--head is 'mask'"):
        main(
            [str(tmp_path / "toy"), "--train", str(shapes), "--out", str(tmp_path / "new"), "--head", "mask"]
        )
