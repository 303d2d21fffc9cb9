"""The average against its recursion written out, with buffers, and without an effect on the model."""

import pytest
import torch
from torch import nn

from mmdiff.training.ema import EMA


def make(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_the_average_follows_its_recursion():
    model = make()
    ema = EMA(model, 0.9)
    expected = [p.detach().double().clone() for p in model.parameters()]
    for k in range(60):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(model, k)
        decay = min(0.9, (1 + k) / (10 + k))
        pairs = zip(expected, model.parameters(), strict=True)
        expected = [decay * e + (1 - decay) * p.double() for e, p in pairs]
    for average, value in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, atol=1e-5, rtol=1e-5)


def test_a_constant_model_is_its_own_average():
    model = make()
    ema = EMA(model, 0.999)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)
    for k in range(2000):
        ema.update(model, k)
    for average, p in zip(ema.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(average, p, atol=1e-3, rtol=1e-3)


def test_buffers_are_copied():
    model = make()
    ema = EMA(model, 0.9)
    model(torch.randn(8, 3) + 5)
    ema.update(model, 0)
    buffers = dict(ema.model.named_buffers())
    assert set(buffers) == set(dict(model.named_buffers())) and buffers["1.num_batches_tracked"] == 1
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


def test_the_average_is_a_frozen_copy():
    model = make().train()
    ema = EMA(model, 0.9)
    before = [p.clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    ema.update(model, 0)
    assert model.training and not ema.model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(torch.equal(p, b + 1) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), but is"):
        EMA(make(), decay)
