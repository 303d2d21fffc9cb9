"""Refitting a head: separable tokens are learned, only the head changes, errors say what is wrong."""

import pytest
import torch
from torch.nn import functional as F

from mmdiff.network.heads import GlobalHead
from mmdiff.pipeline import Pipeline
from mmdiff.training.refit import fit, main, refit
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


def test_only_the_head_changes(shapes, embedder):
    config = tiny_train_config()
    pipe = Pipeline(lively_model(config.model), torch.device("cpu"), embedder)
    before = {n: t.clone() for n, t in pipe.model.state_dict().items()}
    refit(pipe, read_shapes(shapes, config, embedder), "label", photos=16, mixture=8, seed=0)
    after = pipe.model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed and all(n.startswith("heads.label.") for n in changed)
    assert all(t.isfinite().all() for t in after.values())


def test_errors_say_what_cannot_be_fitted(tmp_path, shapes, embedder):
    from mmdiff.checkpoint import save_checkpoint

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
    from mmdiff.checkpoint import save_checkpoint

    save_checkpoint(lively_model(tiny_config(("image", "label"))), tmp_path / "toy")
    with pytest.raises(SystemExit, match="--head is 'mask'"):
        main(
            [str(tmp_path / "toy"), "--train", str(shapes), "--out", str(tmp_path / "new"), "--head", "mask"]
        )
