"""Inpainting masks: hidden share, shape, and that each depends on its seed and number alone."""

import pytest
import torch

from mmdiff.evaluation.holes import HOLES, box, half, random_blocks


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("size", [64, 96])
def test_random_blocks_hide_exactly_the_fraction(size, fraction):
    known = random_blocks(20, size, seed=3, fraction=fraction)
    assert known.shape == (20, size, size) and known.dtype == torch.bool
    assert ((~known).sum((1, 2)) == fraction * size**2).all()


def test_random_blocks_are_blocks():
    side = 64 // 8
    known = random_blocks(5, 64)
    tiles = known.unfold(1, side, side).unfold(2, side, side).flatten(-2)
    assert ((tiles.sum(-1) == 0) | (tiles.sum(-1) == side**2)).all()
    assert not torch.equal(known[0], known[1])


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_random_blocks_come_close_where_the_size_is_awkward(fraction):
    hidden = (~random_blocks(200, 50, fraction=fraction)).double().mean((1, 2))
    assert abs(hidden.mean().item() - fraction) < 0.01
    assert (hidden - fraction).abs().max() < 0.06


def test_random_blocks_favour_no_place():
    share = random_blocks(2000, 16).double().mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / 2000**0.5


@pytest.mark.parametrize("kind", HOLES)
def test_a_map_depends_on_seed_and_number_alone(kind):
    draw = HOLES[kind]
    assert torch.equal(draw(12, 32, 7)[:5], draw(5, 32, 7))
    assert not torch.equal(draw(12, 32, 7), draw(12, 32, 8))


@pytest.mark.parametrize("kind", ["half", "lines"])
def test_half_and_lines_hide_half_in_every_orientation(kind):
    known = HOLES[kind](64, 32, 0)
    assert ((~known).sum((1, 2)) == 512).all()
    assert len({tuple(k.flatten().tolist()) for k in known}) == 4


def test_half_hides_one_connected_side():
    for known in half(16, 32):
        rows, columns = known.all(1).sum(), known.all(0).sum()
        assert sorted((int(rows), int(columns))) == [0, 16]


def test_box_is_one_square_of_the_asked_area():
    for known in box(30, 64, fraction=0.25):
        rows, columns = (~known).any(1), (~known).any(0)
        assert rows.sum() == columns.sum() == 32
        assert torch.equal(~known, rows[:, None] & columns)
        assert rows.nonzero().diff(dim=0).eq(1).all()


@pytest.mark.parametrize(("kind", "step"), [("super2", 2), ("super4", 4)])
def test_super_resolution_shows_a_regular_grid(kind, step):
    known = HOLES[kind](40, 32, 0)
    squares = known.unfold(1, step, step).unfold(2, step, step).flatten(-2)  # (40, n, n, step^2)
    assert (squares.sum(-1) == 1).all()
    assert (squares == squares[:, :1, :1]).all()
    assert len({tuple(place) for place in squares[:, 0, 0].int().tolist()}) == step**2


@pytest.mark.parametrize(
    ("kind", "hidden"), [("blocks10", 6), ("blocks25", 16), ("blocks75", 48), ("blocks90", 58)]
)
def test_blocks_come_in_several_amounts(kind, hidden):
    assert ((~HOLES[kind](3, 64, 0)).sum((1, 2)) == hidden * 64).all()


@pytest.mark.parametrize(
    ("count", "size", "fraction"), [(0, 64, 0.5), (1, 4, 0.5), (1, 64, 0.0), (1, 64, 1.5)]
)
def test_impossible_requests_are_refused(count, size, fraction):
    with pytest.raises(ValueError, match="ask for|between 0 and 1"):
        random_blocks(count, size, fraction=fraction)
