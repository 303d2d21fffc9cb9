"""The learning rate against torch's own schedulers."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from mmdiff.training.learning_rate import warm_cosine


@pytest.mark.parametrize("warm", [5, 30])
def test_rates_are_those_of_torchs_schedulers(warm):
    steps, peak = 100, 1e-3
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    rising = LinearLR(optimizer, start_factor=1e-8, total_iters=warm)
    falling = CosineAnnealingLR(optimizer, T_max=steps - warm)
    schedule = SequentialLR(optimizer, [rising, falling], milestones=[warm])
    for step in range(steps):
        expected = optimizer.param_groups[0]["lr"]
        assert warm_cosine(step / steps, peak, warm / steps) == pytest.approx(expected, rel=1e-6, abs=3e-5)
        optimizer.step()
        schedule.step()


def test_the_first_step_moves_and_the_last_one_does_not():
    assert 0 < warm_cosine(0, 1e-3, 0.05) < 1e-4
    assert warm_cosine(0.05, 1e-3, 0.05) == pytest.approx(1e-3)
    assert warm_cosine(1, 1e-3, 0.05) == pytest.approx(0, abs=1e-12)
