"""All 64 bits of a seed count."""

import pytest
import torch

from mmdiff.samplers import SampleNoise
from mmdiff.seeds import folded


@pytest.mark.parametrize("bit", [32, 40, 61, 62])
def test_seeds_that_differ_in_a_high_bit_give_unrelated_noise(bit):
    shape = (100, 100)
    low, high = (SampleNoise([seed])(shape).flatten() for seed in (7, 7 ^ 1 << bit))
    for a, b in ((low, high), (low.abs(), high.abs())):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1].abs() < 0.04  # 4 standard errors


def test_small_seeds_stay_what_they_are():
    assert [folded(seed) for seed in (0, 7, 2**32 - 1)] == [0, 7, 2**32 - 1]
    expected = torch.randn(5, generator=torch.Generator().manual_seed(7))
    assert torch.equal(SampleNoise([7])((5,))[0], expected)


def test_large_seeds_are_hashed_apart():
    large = [k << 40 for k in range(1, 2000)] + [2**63 - 1 - k for k in range(2000)]
    assert len({folded(seed) for seed in large}) > len(large) - 5
    assert all(0 <= folded(seed) < 2**32 for seed in large)
