"""A request on its way through the engine: changes of its conditions, and modalities that are sampled first.

The steps before a change stay as they are, and what becomes given replaces what z holds of it under the same
noise. What is sampled first is drawn from the prediction of its head, and is given from there on.
"""

from unittest.mock import Mock

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from mmdiff.forward_process import signal
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.request import Change, Request
from mmdiff.samplers import SAMPLERS, implied_noise


def steps(pipe, **options):
    return list(pipe.stream(**({"steps": 6, "seed": 3} | options)))


def same(a, b):
    return all(np.array_equal(a.x_hat[name], b.x_hat[name]) for name in a.x_hat if name in b.x_hat)


def agreement(one, two):
    return [same(a, b) for a, b in zip(one, two, strict=True)]


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ancestral"}], ids=str)
@pytest.mark.parametrize("given", [{}, {"label": 1}], ids=str)
def test_a_change_to_the_same_conditions_changes_nothing(pipe, options, given):
    wanted = tuple(n for n in pipe.modalities if n not in given)
    plain = steps(pipe, given=given, wanted=wanted, **options)
    change = Change(3, Request(given, wanted))
    changed = steps(pipe, given=given, wanted=wanted, changes=[change], **options)
    assert all(agreement(plain, changed))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_before_a_change_stay_and_later_ones_follow_it(pipe, sampler):
    plain = steps(pipe, sampler=sampler)
    changed = steps(pipe, sampler=sampler, changes=[Change(3, Request({"label": 2}))])
    assert agreement(plain, changed) == [True] * 3 + [False] * 3
    assert all(step.x_hat["label"][0].argmax() == 2 for step in changed[3:])
    assert np.allclose(changed[-1].x_hat["label"], np.eye(len(changed[-1].x_hat["label"][0]))[2])


def test_a_change_that_fails_is_made_when_it_is_tried_again(pipe, monkeypatch):
    """As the engine does where a call for several runs fails."""
    change = Change(2, Request({"label": torch.tensor([2])}, ("image",)))
    request = Request(wanted=pipe.model.names, steps=4, changes=(change,))
    plain, tried = (pipe.run_batch(request, [0])._member for _ in range(2))
    for member in (plain, tried):
        for _ in range(2):
            member.advance(pipe.model.answer(member.queries()))
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(type(pipe.model), "encode", Mock(side_effect=RuntimeError("out of memory")))
        tried.queries()
    ends = [member.advance(pipe.model.answer(member.queries())).z for member in (plain, tried)]
    assert torch.equal(*ends)


def test_a_second_change_and_other_guidance_take_effect(pipe):
    first = Change(2, Request({"label": 2}))
    second = Change(4, Request({"label": 1}, guidance_scale={"label": 3.0}))
    once, twice = steps(pipe, changes=[first]), steps(pipe, changes=[first, second])
    assert agreement(once, twice) == [True] * 4 + [False] * 2


def test_pixels_that_become_known_are_exact(pipe):
    size = pipe.model.config.image_size
    photo = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    known = np.zeros((size, size), dtype=bool)
    known[: size // 2] = True
    *_, last = steps(pipe, changes=[Change(2, Request({"image": photo}, (), known))])
    assert np.array_equal(last.x_hat["image"][0][known], photo[known])
    assert (last.x_hat["image"][0][~known] != photo[~known]).mean() > 0.5


def test_an_ignored_modality_keeps_its_last_prediction_until_it_is_wanted_again(pipe):
    out, back = Change(2, Request(wanted=("image",))), Change(4, Request(wanted=("image", "label")))
    run = steps(pipe, changes=[out, back])
    labels = [step.x_hat["label"].tolist() for step in run]
    assert labels[1] == labels[2] == labels[3] and labels[3] != labels[4] != labels[5]
    masks = [step.x_hat["mask"] for step in run]
    assert all(np.array_equal(masks[1], mask) for mask in masks[2:]) and not np.array_equal(*masks[:2])
    given = steps(pipe, given={"label": 2}, changes=[Change(3, Request(wanted=("image", "mask")))])
    assert all(step.x_hat["label"][0].argmax() == 2 == step.x_hat["label"][0].nonzero()[0] for step in given)


def test_a_value_that_becomes_given_enters_z_under_the_same_noise(pipe):
    """z at the change, against the marginal (3) written out with the new encoding."""
    model, schedule, label = pipe.model, pipe.schedule, torch.tensor([2])
    change = Change(2, Request({"label": label}, ("image", "mask", "embedding")))
    member = pipe.run_batch(Request(wanted=model.names, steps=4, changes=(change,)), [0])._member
    assert (member._conditioning.flags == UNKNOWN).all()
    for _ in range(2):
        member.advance(model.answer(member.queries()))
    t, z, clean = member._t, member._z, member._clean
    eps = implied_noise(schedule, z, t, clean)
    member.queries()  # the change happens here
    std = torch.sqrt(-torch.expm1(schedule.log_abar[t])).float()
    e = dict(clean) | {"label": model.encode({"label": label})["label"]}
    expected = signal(schedule, clean[model.anchor], torch.tensor([t]), e) + std * eps
    torch.testing.assert_close(member._z, expected, rtol=0, atol=1e-5)
    assert (member._z - z).abs().max() > 1e-2


# -- what is sampled first -------------------------------------------------------------------------------

WANTED = ("image", "label", "mask")
FIRST = {"guidance_scale": {"label": 2.0}, "sample_first": ("label",)}
FOLLOW = FIRST | {"wanted": WANTED, "num_samples": 3}
ONE = FOLLOW | {"num_samples": 1}


def drawn(p, seed, pipe):
    """The class that the label's own uniform number picks from p (K,).

    The numbers are in the modalities' order, from a generator whose seed hashes that of the sample with a
    high bit.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed + 2**62).generate_state(1)[0]))
    uniform = norm.cdf(torch.randn(len(pipe.modalities), generator=generator).numpy())
    return np.searchsorted(np.cumsum(p.astype(np.float64)), uniform[list(pipe.modalities).index("label")])


def steps_before_the_draw(pipe, total):
    """Steps after which z is at or below 90 % of T, from the times t_k = T (1 - (k / steps)^2)."""
    T = pipe.schedule.num_steps
    return next(k for k in range(1, total) if round(T * (1 - (k / total) ** 2)) <= 0.9 * T)


def test_a_label_is_drawn_from_the_prediction_of_its_head(pipe):
    run, k = steps(pipe, **FOLLOW), steps_before_the_draw(pipe, 6)
    plain = steps(pipe, wanted=WANTED, num_samples=3)
    assert agreement(run, plain) == [True] * k + [False] * (6 - k)
    before = run[k - 1].x_hat["label"]
    assert (before.max(1) < 1).all()
    for sample, (p, now) in enumerate(zip(before, run[-1].x_hat["label"], strict=True)):
        assert now.tolist() == np.eye(len(p))[drawn(p, 3 + sample, pipe)].tolist()
        assert all(step.x_hat["label"][sample].tolist() == now.tolist() for step in run[k:])


def test_a_sampled_label_acts_as_if_it_became_given_then(pipe):
    run, k = steps(pipe, **ONE), steps_before_the_draw(pipe, 6)
    label = int(run[-1].x_hat["label"][0].argmax())
    change = Change(k, Request({"label": label}, ("image", "mask"), guidance_scale={"label": 2.0}))
    assert all(agreement(run, steps(pipe, wanted=WANTED, changes=[change])))


def test_one_number_guides_what_was_sampled_first(pipe):
    assert all(agreement(steps(pipe, **FOLLOW), steps(pipe, **(FOLLOW | {"guidance_scale": 2.0}))))


def test_the_network_generates_the_label_until_it_is_drawn_then_sees_it_and_in_a_branch_not(
    pipe, monkeypatch
):
    seen, forward = [], pipe.model.forward

    def spy(z_t, log_snr_t, conditioning):
        seen.append(conditioning.flags[:, pipe.model.names.index("label")].tolist())
        return forward(z_t, log_snr_t, conditioning)

    monkeypatch.setattr(pipe.model, "forward", spy)
    last = steps(pipe, wanted=("image",), **FIRST)[-1]
    k = steps_before_the_draw(pipe, 6)
    assert seen == [[UNKNOWN]] * k + [[KNOWN, ABSENT]] * (6 - k)
    assert "label" not in last.x_hat  # it is not wanted
    seen.clear()
    steps(pipe, wanted=("image",), sample_first=("label",))
    assert seen == [[UNKNOWN]] * k + [[KNOWN]] * (6 - k)  # without guidance there is no branch
    seen.clear()
    steps(pipe, wanted=("image",))
    assert seen == [[ABSENT]] * 6


def test_the_engine_counts_guidance_branches_from_the_start(pipe):
    assert pipe.stream(steps=6, **FOLLOW)._member.rows == 6
    assert pipe.stream(steps=6, num_samples=3)._member.rows == 3


def test_one_given_label_is_guided_alike_by_its_name_and_by_one_number(pipe):
    given = {"wanted": ("image", "mask"), "num_samples": 3, "given": {"label": 2}}
    by_name, by_number = (steps(pipe, **given, guidance_scale=s) for s in ({"label": 2.0}, 2.0))
    assert all(agreement(by_name, by_number))


def test_a_change_keeps_a_sampled_label_unless_it_gives_another(pipe):
    run = steps(pipe, **FOLLOW)
    kept = Change(4, Request(wanted=WANTED, **FIRST))
    assert all(agreement(run, steps(pipe, **FOLLOW, changes=[kept])))
    other = (int(run[-1].x_hat["label"][0].argmax()) + 1) % run[-1].x_hat["label"].shape[1]
    given = Change(4, Request({"label": other}, ("image", "mask"), guidance_scale={"label": 2.0}))
    changed = steps(pipe, **FOLLOW, changes=[given])
    assert agreement(run, changed) == [True] * 4 + [False] * 2
    assert (changed[-1].x_hat["label"].argmax(1) == other).all()


def test_a_change_may_begin_to_sample_first(pipe):
    plain = steps(pipe, wanted=WANTED)
    run = steps(pipe, wanted=WANTED, changes=[Change(4, Request(wanted=WANTED, **FIRST))])
    # drawn a step later: after a change the network first predicts under the new conditions
    assert agreement(run, plain) == [True] * 5 + [False]
    assert sorted(run[-1].x_hat["label"][0].tolist())[-2:] == [0, 1]


def test_a_label_that_was_given_is_predicted_for_a_step_before_it_is_drawn(pipe):
    given = {"given": {"label": 2}, "wanted": ("image", "mask")}
    run = steps(pipe, **given, changes=[Change(3, Request(wanted=WANTED, **FIRST))])
    free = steps(pipe, **given, changes=[Change(3, Request(wanted=WANTED))])
    assert agreement(run, free) == [True] * 4 + [False] * 2
    assert run[-1].x_hat["label"][0].argmax() == drawn(free[3].x_hat["label"][0], 3, pipe)


def test_a_sampled_label_is_drawn_anew_after_another_was_given(pipe):
    options = ONE | {"steps": 8}
    first = steps(pipe, **options)
    other = (int(first[-1].x_hat["label"][0].argmax()) + 1) % first[-1].x_hat["label"].shape[1]
    given = Change(4, Request({"label": other}, ("image", "mask")))
    run = steps(pipe, **options, changes=[given, Change(5, Request(wanted=WANTED, **FIRST))])
    p = run[5].x_hat["label"][0]  # predicted for a step, then drawn from that prediction
    assert p.max() < 1
    assert run[-1].x_hat["label"][0].argmax() == drawn(p, 3, pipe)


def test_draws_depend_on_the_seed_alone(pipe):
    together = steps(pipe, **FOLLOW)[-1].x_hat
    alone = steps(pipe, **(ONE | {"seed": 5}))[-1].x_hat
    assert np.array_equal(together["label"][2], alone["label"][0])
    assert abs(together["image"][2].astype(int) - alone["image"][0]).max() <= 1


def test_the_tensor_interface_samples_the_same_first(pipe):
    *_, last = pipe.run_batch(Request(wanted=WANTED, steps=6, **FIRST), [3, 4, 5])
    assert np.array_equal(last.x_hat["label"].numpy(), steps(pipe, **FOLLOW)[-1].x_hat["label"])


def test_one_step_is_too_few_to_sample_anything_first(pipe):
    only = {"wanted": WANTED, "steps": 1}
    assert same(steps(pipe, **only, **FIRST)[0], steps(pipe, **only)[0])


def test_labels_are_drawn_as_often_as_they_are_probable(pipe):
    """Frequencies of 20,000 draws against the probabilities, by the chi-squared test."""
    label, count = pipe.modalities["label"], 20_000
    p = torch.rand(len(label.classes), generator=torch.Generator().manual_seed(0)).softmax(0)
    uniform = torch.rand(count, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(label.draw(p.expand(count, -1), uniform), minlength=len(p))
    assert chisquare(counts, (p.double() / p.double().sum()) * count).pvalue > 0.01
    never = torch.eye(len(p))[[1]] * (1 - 1e-6)
    assert label.draw(never, torch.tensor([0.0])).item() == 1  # what has no chance is not drawn, even at 0
    assert label.draw(never, torch.tensor([1 - 1e-7])).item() < len(p)
