"""The mixture of tasks in training: every subset occurs, in the shares of the configuration."""

from collections import Counter
from itertools import product

import pytest
import torch

from mmdiff.config import TaskConfig
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.training.masking import draw_flags, draw_known_pixels

COUNT = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flags_of(config: TaskConfig, present: torch.Tensor | None = None, holes: float = 0.0) -> torch.Tensor:
    if present is None:
        present = torch.ones(COUNT, 3, dtype=torch.bool)
    has_holes = torch.rand(len(present), generator=generator(1)) < holes
    return draw_flags(present, config, generator(), has_holes)


def share(condition: torch.Tensor) -> float:
    return condition.float().mean().item()


def test_every_subset_appears():
    flags = flags_of(TaskConfig(), holes=0.5)
    seen = Counter(map(tuple, flags.tolist()))
    expected = set(product((UNKNOWN, KNOWN), *[(UNKNOWN, KNOWN, ABSENT)] * 2))
    assert set(seen) == expected  # all of them, and never an absent anchor
    assert min(seen.values()) > 0.001 * COUNT


def test_shares_follow_the_configuration():
    config = TaskConfig(joint=0.3, given=0.4, absent=0.15)
    flags = flags_of(config)
    known = 0.7 * 0.4
    for i in range(3):
        assert share(flags[:, i] == KNOWN) == pytest.approx(known, abs=0.02)
    for i in (1, 2):
        assert share(flags[:, i] == ABSENT) == pytest.approx((1 - known) * 0.15, abs=0.02)
    nothing = (flags != KNOWN).all(1)
    assert share(nothing) == pytest.approx(0.3 + 0.7 * 0.6**3, abs=0.02)


def test_given_modalities_are_drawn_independently():
    flags = flags_of(TaskConfig(joint=0.0, given=0.5)) == KNOWN
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert share(flags[:, i] & flags[:, j]) == pytest.approx(0.25, abs=0.02)


def test_joint_examples_are_given_nothing():
    assert (flags_of(TaskConfig(joint=1.0, given=1.0)) != KNOWN).all()


def test_a_photo_with_holes_is_never_known():
    present = torch.ones(COUNT, 3, dtype=torch.bool)
    flags = draw_flags(present, TaskConfig(), generator(), torch.ones(COUNT, dtype=torch.bool))
    assert (flags[:, 0] == UNKNOWN).all() and (flags[:, 1] == KNOWN).any()


def test_what_an_example_lacks_is_absent():
    present = torch.rand(COUNT, 3, generator=generator(2)) < 0.5
    present[:, 0] = True
    flags = flags_of(TaskConfig(), present)
    assert (flags[~present] == ABSENT).all()
    assert share(flags[:, 1][present[:, 1]] == ABSENT) < 0.2


def test_the_same_generator_draws_the_same_flags():
    assert torch.equal(flags_of(TaskConfig()), flags_of(TaskConfig()))


@pytest.mark.parametrize("size", [16, 64, 96, 100])
def test_known_maps(size):
    known = draw_known_pixels(600, size, generator())
    assert known.shape == (600, 1, size, size)
    assert ((known == 0) | (known == 1)).all()
    shares = known.mean((1, 2, 3))
    assert shares.min() < 0.1 and shares.max() > 0.9  # from almost nothing to almost everything
    assert 0.3 < shares.mean() < 0.7
    centre, corner = known[:, 0, size // 2, size // 2], known[:, 0, 0, 0]
    assert ((centre == 0) & (corner == 1)).any()  # a hole
    assert ((centre == 1) & (corner == 0)).any()  # an outpainting


def test_known_maps_are_blocks_or_boxes():
    """Half are one box, the others have blocks that are constant on a grid of 4, 8, 16 or 32 cells."""
    known = draw_known_pixels(400, 64, generator())[:, 0]

    def is_box(one):
        for inside in (one, 1 - one):
            rows, columns = inside.any(1), inside.any(0)
            if torch.equal(inside.bool(), rows[:, None] & columns[None]):
                return True
        return False

    def is_blocks(one, cells):
        cell = 64 // cells
        corners = one[::cell, ::cell]
        return torch.equal(one, corners.repeat_interleave(cell, 0).repeat_interleave(cell, 1))

    kinds = Counter()
    for one in known:
        grid = next((cells for cells in (4, 8, 16, 32) if is_blocks(one, cells)), None)
        kinds["box" if is_box(one) else grid] += 1
    assert None not in kinds and set(kinds) == {"box", 4, 8, 16, 32}
    assert 150 < kinds["box"] < 280


def test_lacking_modalities_can_be_predicted_as_often_as_others():
    """The odds of unknown to absent are the same, so that the flags tell nothing about the source."""
    present = torch.ones(COUNT, 3, dtype=torch.bool)
    present[: COUNT // 2, 1] = False
    config = TaskConfig(ask_for_lacking=True)
    flags = draw_flags(present, config, generator(), torch.zeros(COUNT, dtype=torch.bool))
    assert not (flags[: COUNT // 2, 1] == KNOWN).any()
    shares = []
    for rows in (slice(0, COUNT // 2), slice(COUNT // 2, COUNT)):
        unknown, absent = ((flags[rows, 1] == f).sum().item() for f in (UNKNOWN, ABSENT))
        shares.append(unknown / (unknown + absent))
    assert shares[0] == pytest.approx(1 - config.absent, abs=0.02)
    assert shares[1] == pytest.approx(1 - config.absent, abs=0.02)
    others = draw_flags(present, TaskConfig(), generator(), torch.zeros(COUNT, dtype=torch.bool))
    assert torch.equal(flags[present], others[present])
