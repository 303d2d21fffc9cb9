"""Intervals over photos and seeds, against repeated draws of both."""

import numpy as np

from benchmarks.intervals import over_photos_and_seeds


def drawn(random, seeds=4, photos=60, between=0.3, within=1.0):
    """Scores that differ between seeds, between photos and at random."""
    of_seed, of_photo = random.normal(0, between, (seeds, 1)), random.normal(0, between, (1, photos))
    return 0.7 + of_seed + of_photo + random.normal(0, within, (seeds, photos))


def test_a_constant_has_no_width():
    assert over_photos_and_seeds([[0.5, 0.5], [0.5, 0.5]]) == {"mean": 0.5, "low": 0.5, "high": 0.5}


def test_it_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    found = [over_photos_and_seeds(drawn(random)) for _ in range(150)]
    covered = np.mean([one["low"] <= 0.7 <= one["high"] for one in found])
    assert covered > 0.85, "a bootstrap over four seeds is somewhat narrow"
    widths = [one["high"] - one["low"] for one in found]
    means = [one["mean"] for one in found]
    assert 0.6 < np.mean(widths) / (2 * 1.96 * np.std(means)) < 1.4


def test_one_seed_leaves_the_photos():
    random = np.random.default_rng(2)
    values = random.normal(0, 1, 400)
    found = over_photos_and_seeds([values.tolist()])
    assert abs((found["high"] - found["low"]) / (2 * 1.96 * values.std() / 20) - 1) < 0.1
