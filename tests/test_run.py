"""Changes of conditions on the way: the past stays, what is given takes its place under the same noise.

And what is settled on the way: by a draw from what its head says, after which it is as if given.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from mmdiff.forward_process import signal
from mmdiff.model import ABSENT, KNOWN, UNKNOWN
from mmdiff.pipeline import Change
from mmdiff.samplers import RULES, SampleNoise, Trajectory, implied_noise
from mmdiff.serving.denoising import Run, Segment
from mmdiff.training.masking import Condition


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


def test_what_is_left_out_stays_as_it_was_and_may_come_back(pipe):
    out, back = Change(2, {}, ("image",)), Change(4, {}, ("image", "label"))
    run = steps(pipe, changes=[out, back])
    labels = [step.x_hat["label"].tolist() for step in run]
    assert labels[1] == labels[2] == labels[3] and labels[3] != labels[4] != labels[5]
    masks = [step.x_hat["mask"] for step in run]
    assert all(np.array_equal(masks[1], mask) for mask in masks[2:]) and not np.array_equal(*masks[:2])
    given = steps(pipe, given={"label": 2}, changes=[Change(3, {}, ("image", "mask"))])
    assert all(step.x_hat["label"][0].argmax() == 2 == step.x_hat["label"][0].nonzero()[0] for step in given)


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
    with pytest.raises(ValueError, match="guidance_scale names 'mask', which is not given"):
        pipe.stream(steps=6, changes=[Change(2, {}, guidance_scale={"mask": 2.0})])


def test_nothing_can_be_revised_before_it_was_predicted(pipe):
    trajectory = Trajectory(pipe.schedule, SampleNoise([0])(pipe.model.z_shape), 4)
    with pytest.raises(ValueError, match="nothing has been predicted yet"):
        trajectory.revise(lambda clean: clean)


# -- what is settled on the way ------------------------------------------------------------------------

FOLLOW = {"guidance_scale": {"label": 2.0}, "wanted": ("image", "label", "mask"), "num_samples": 3}


def uniform(seed, pipe):
    """By the modalities' places: of a generator of its own, seeded with a hash of the seed and a high bit."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed + 2**62).generate_state(1)[0]))
    return norm.cdf(torch.randn(len(pipe.modalities), generator=generator).numpy())


def settled_after(pipe, total):
    """Jumps after which z stands below 90 % of T, from the times t_k = T (1 - (k / steps)^2)."""
    T = pipe.schedule.num_steps
    return next(k for k in range(1, total) if round(T * (1 - (k / total) ** 2)) <= 0.9 * T)


def test_a_guided_label_is_drawn_from_what_its_head_said(pipe):
    run, k = steps(pipe, **FOLLOW), settled_after(pipe, 6)
    plain = steps(pipe, wanted=FOLLOW["wanted"], num_samples=3)
    assert [same(a, b) for a, b in zip(run, plain, strict=True)] == [True] * k + [False] * (6 - k)
    before = run[k - 1].x_hat["label"].astype(np.float64)
    assert (before.max(1) < 1).all()
    place = list(pipe.modalities).index("label")
    for sample, (p, now) in enumerate(zip(before, run[-1].x_hat["label"], strict=True)):
        u = uniform(3 + sample, pipe)[place]
        assert now.tolist() == np.eye(len(p))[np.searchsorted(np.cumsum(p), u)].tolist()
        assert all(step.x_hat["label"][sample].tolist() == now.tolist() for step in run[k:])


def test_what_is_settled_is_as_if_it_became_given_then(pipe):
    options = FOLLOW | {"num_samples": 1}
    run, k = steps(pipe, **options), settled_after(pipe, 6)
    label = int(run[-1].x_hat["label"][0].argmax())
    change = Change(k, {"label": label}, ("image", "mask"), guidance_scale={"label": 2.0})
    told = steps(pipe, wanted=FOLLOW["wanted"], changes=[change])
    assert all(same(a, b) for a, b in zip(run, told, strict=True))


def test_the_network_is_asked_for_the_label_until_it_is_settled_then_without_it_too(pipe, monkeypatch):
    asked, forward = [], pipe.model.forward

    def spy(z_t, log_snr_t, condition):
        asked.append(condition.flags[:, pipe.model.names.index("label")].tolist())
        return forward(z_t, log_snr_t, condition)

    monkeypatch.setattr(pipe.model, "forward", spy)
    last = steps(pipe, wanted=("image",), guidance_scale={"label": 2.0})[-1]
    k = settled_after(pipe, 6)
    assert asked == [[UNKNOWN]] * k + [[KNOWN, ABSENT]] * (6 - k)
    assert "label" not in last.x_hat  # nobody asked to see it
    asked.clear()
    steps(pipe, wanted=("image",), guidance_scale={"label": 1.0})
    assert asked == [[ABSENT]] * 6


def test_a_run_takes_its_guided_rows_from_the_start(pipe):
    stream = pipe.stream(steps=6, **FOLLOW)
    assert stream._member.rows == 6
    assert pipe.stream(steps=6, num_samples=3)._member.rows == 3


def test_a_given_label_is_followed_and_not_drawn(pipe):
    given = FOLLOW | {"wanted": ("image", "mask"), "given": {"label": 2}}
    one, all_at_once = steps(pipe, **given), steps(pipe, **(given | {"guidance_scale": 2.0}))
    assert all(same(a, b) for a, b in zip(one, all_at_once, strict=True))


def test_later_changes_keep_what_was_drawn_unless_they_give_it(pipe):
    run, wanted = steps(pipe, **FOLLOW), FOLLOW["wanted"]
    kept = Change(4, {}, wanted, guidance_scale={"label": 2.0})
    assert all(same(a, b) for a, b in zip(run, steps(pipe, **FOLLOW, changes=[kept]), strict=True))
    other = (int(run[-1].x_hat["label"][0].argmax()) + 1) % run[-1].x_hat["label"].shape[1]
    given = Change(4, {"label": other}, ("image", "mask"), guidance_scale={"label": 2.0})
    forked = steps(pipe, **FOLLOW, changes=[given])
    assert [same(a, b) for a, b in zip(run, forked, strict=True)] == [True] * 4 + [False] * 2
    assert (forked[-1].x_hat["label"].argmax(1) == other).all()


def test_a_change_may_settle_what_was_open(pipe):
    plain = steps(pipe, wanted=FOLLOW["wanted"])
    change = Change(4, {}, FOLLOW["wanted"], guidance_scale={"label": 2.0})
    run = steps(pipe, wanted=FOLLOW["wanted"], changes=[change])
    # one step more is open, as a head says nothing of worth about what is given
    assert [same(a, b) for a, b in zip(run, plain, strict=True)] == [True] * 5 + [False]
    assert sorted(run[-1].x_hat["label"][0].tolist())[-2:] == [0, 1]


def test_what_was_given_is_open_for_a_step_before_it_is_settled(pipe):
    given = {"given": {"label": 2}, "wanted": ("image", "mask")}
    change = Change(3, {}, FOLLOW["wanted"], guidance_scale={"label": 2.0})
    run = steps(pipe, **given, changes=[change])
    free = steps(pipe, **given, changes=[Change(3, {}, FOLLOW["wanted"])])
    assert [same(a, b) for a, b in zip(run, free, strict=True)] == [True] * 4 + [False] * 2
    p = free[3].x_hat["label"][0].astype(np.float64)
    place = list(pipe.modalities).index("label")
    assert run[-1].x_hat["label"][0].argmax() == np.searchsorted(np.cumsum(p), uniform(3, pipe)[place])


def test_what_was_drawn_is_forgotten_once_something_else_took_its_place(pipe):
    first = steps(pipe, **(FOLLOW | {"num_samples": 1, "steps": 8}))
    other = (int(first[-1].x_hat["label"][0].argmax()) + 1) % first[-1].x_hat["label"].shape[1]
    given = Change(4, {"label": other}, ("image", "mask"))
    again = Change(5, {}, FOLLOW["wanted"], guidance_scale={"label": 2.0})
    run = steps(pipe, **(FOLLOW | {"num_samples": 1, "steps": 8}), changes=[given, again])
    p = run[5].x_hat["label"][0].astype(np.float64)  # open for a step, then drawn from what it is then
    place = list(pipe.modalities).index("label")
    assert p.max() < 1
    assert run[-1].x_hat["label"][0].argmax() == np.searchsorted(np.cumsum(p), uniform(3, pipe)[place])


def test_draws_depend_on_the_seed_alone(pipe):
    together = steps(pipe, **FOLLOW)[-1].x_hat
    alone = steps(pipe, **(FOLLOW | {"seed": 5, "num_samples": 1}))[-1].x_hat
    assert np.array_equal(together["label"][2], alone["label"][0])
    assert abs(together["image"][2].astype(int) - alone["image"][0]).max() <= 1


def test_the_tensor_interface_settles_the_same(pipe):
    *_, last = pipe.run(Condition({}), FOLLOW["wanted"], [3, 4, 5], 6, guidance_scale={"label": 2.0})
    assert np.array_equal(last.x_hat["label"].numpy(), steps(pipe, **FOLLOW)[-1].x_hat["label"])


def test_one_step_is_too_few_to_settle_anything(pipe):
    only = {"wanted": FOLLOW["wanted"], "steps": 1}
    assert same(steps(pipe, **only, guidance_scale={"label": 2.0})[0], steps(pipe, **only)[0])


def test_labels_are_drawn_as_often_as_they_are_probable(pipe):
    """Frequencies of 20,000 draws against the probabilities, by the chi-squared test."""
    label, count = pipe.modalities["label"], 20_000
    p = torch.rand(len(label.classes), generator=torch.Generator().manual_seed(0)).softmax(0)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1))
    drawn = label.draw(p.expand(count, -1), uniform)
    assert (
        chisquare(torch.bincount(drawn, minlength=len(p)), (p.double() / p.double().sum()) * count).pvalue
        > 0.01
    )
    never = torch.eye(len(p))[[1]] * (1 - 1e-6)
    assert label.draw(never, torch.tensor([0.0])).item() == 1  # what has no chance is not drawn, even at 0
    assert label.draw(never, torch.tensor([1 - 1e-7])).item() < len(p)
