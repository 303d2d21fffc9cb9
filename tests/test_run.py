"""Changes of conditions on the way: the past stays, what is given takes its place under the same noise."""

import numpy as np
import pytest
import torch

from mmdiff.forward_process import signal
from mmdiff.model import UNKNOWN
from mmdiff.pipeline import Change
from mmdiff.run import Run, Segment
from mmdiff.samplers import RULES, SampleNoise, Trajectory, implied_noise
from mmdiff.tasks import Condition


def steps(pipe, **options):
    return list(pipe.stream(**({"steps": 6, "seed": 3} | options)))


def same(a, b):
    return all(np.array_equal(a.x_hat[name], b.x_hat[name]) for name in a.x_hat if name in b.x_hat)


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ancestral"}], ids=str)
@pytest.mark.parametrize("given", [{}, {"label": 1}], ids=str)
def test_a_change_to_the_same_conditions_changes_nothing(pipe, options, given):
    wanted = tuple(n for n in pipe.modalities if n not in given)
    plain = steps(pipe, given=given, wanted=wanted, **options)
    changed = steps(pipe, given=given, wanted=wanted, changes=[Change(3, given, wanted)], **options)
    assert all(same(a, b) for a, b in zip(plain, changed, strict=True))


@pytest.mark.parametrize("sampler", RULES)
def test_the_past_stays_and_the_future_follows_the_change(pipe, sampler):
    plain = steps(pipe, sampler=sampler)
    forked = steps(pipe, sampler=sampler, changes=[Change(3, {"label": 2})])
    assert [same(a, b) for a, b in zip(plain, forked, strict=True)] == [True] * 3 + [False] * 3
    assert all(step.x_hat["label"][0].argmax() == 2 for step in forked[3:])
    assert np.allclose(forked[-1].x_hat["label"], np.eye(len(forked[-1].x_hat["label"][0]))[2])


def test_changes_add_up_and_guidance_may_change(pipe):
    first, second = Change(2, {"label": 2}), Change(4, {"label": 1}, guidance_scale={"label": 3.0})
    once, twice = steps(pipe, changes=[first]), steps(pipe, changes=[first, second])
    assert [same(a, b) for a, b in zip(once, twice, strict=True)] == [True] * 4 + [False] * 2


def test_pixels_that_become_known_are_exact(pipe):
    size = pipe.model.config.image_size
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    known = np.zeros((size, size), dtype=bool)
    known[: size // 2] = True
    *_, last = steps(pipe, changes=[Change(2, {"image": photo}, (), known)])
    assert np.array_equal(last.x_hat["image"][0][known], photo[known])
    assert (last.x_hat["image"][0][~known] != photo[~known]).mean() > 0.5


def test_what_becomes_given_takes_its_place_under_the_same_noise(pipe):
    """z at the change, against the marginal (3) written out with the new encoding."""
    model, schedule = pipe.model, pipe.schedule
    label = torch.tensor([2])
    nothing = pipe._encode(Condition({}), tuple(model.names), 1)
    given = pipe._encode(Condition({"label": label}), ("image", "mask", "embedding"), 1)
    noise = SampleNoise([0])
    trajectory = Trajectory(schedule, noise(model.z_shape), 4)
    segments = [Segment(0, Condition({}), nothing), Segment(2, Condition({"label": label}), given)]
    run = Run(model, trajectory, segments)
    for _ in range(2):
        run.advance(model.answer(run.queries()))
    t, clean = trajectory.t, trajectory._clean
    eps = implied_noise(schedule, trajectory.z, t, clean)
    assert (nothing.flags == UNKNOWN).all()
    run.queries()  # the change happens here
    std = torch.sqrt(-torch.expm1(schedule.log_abar[t])).float()
    e = dict(clean.e) | {"label": model.encode({"label": label})["label"]}
    expected = signal(schedule, clean.z0, t, e) + std * eps
    torch.testing.assert_close(trajectory.z, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("after", [[0], [6], [2.5], [True], [3, 3], [4, 2]])
def test_changes_at_impossible_steps_are_explained(pipe, after):
    with pytest.raises(ValueError, match="a change comes after step .* give whole numbers from"):
        pipe.stream(steps=6, changes=[Change(a, {"label": 1}) for a in after])


def test_changes_are_checked_like_everything_else(pipe):
    with pytest.raises(ValueError, match="no modality is called 'sound'"):
        pipe.stream(steps=6, changes=[Change(2, {"sound": 1})])
    with pytest.raises(ValueError, match="guidance_scale names 'label', which is not given"):
        pipe.stream(steps=6, changes=[Change(2, {}, guidance_scale={"label": 2.0})])


def test_nothing_can_be_revised_before_it_was_predicted(pipe):
    trajectory = Trajectory(pipe.schedule, SampleNoise([0])(pipe.model.z_shape), 4)
    with pytest.raises(ValueError, match="nothing has been predicted yet"):
        trajectory.revise(lambda clean: clean)
