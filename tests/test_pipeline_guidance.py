"""Guidance of a pipeline: by one number or by modality, at the stated cost, with errors that help."""

import numpy as np
import pytest
import torch
from synthetic import CLASSES, SIZE, draw_shape

from mmdiff.model import ABSENT, KNOWN, UNKNOWN
from mmdiff.samplers import SampleNoise, timesteps
from mmdiff.training.masking import Condition

STEPS = 4


def given(pipe, *names, batch=2):
    """A condition of random values."""
    generator = torch.Generator().manual_seed(0)
    values = {
        "image": torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1,
        "mask": torch.randint(2, (batch, SIZE, SIZE), generator=generator),
        "label": torch.randint(len(CLASSES), (batch,), generator=generator),
        "embedding": pipe.modalities["embedding"].from_stored(torch.randn(batch, 8, generator=generator)),
    }
    return Condition({name: values[name] for name in names})


def final(pipe, condition, guidance_scale, wanted=("image",), **options):
    *_, last = pipe.run(condition, wanted, [0, 1], STEPS, guidance_scale=guidance_scale, **options)
    return last


@pytest.fixture
def calls(pipe, monkeypatch):
    """The flags of every row that the network is asked about, of the first of the two samples."""
    flags, forward = [], pipe.model.forward

    def spy(z_t, log_snr_t, condition):
        for row in condition.flags[::2].tolist():
            flags.append(dict(zip(pipe.model.names, row, strict=True)))
        return forward(z_t, log_snr_t, condition)

    monkeypatch.setattr(pipe.model, "forward", spy)
    return flags


def test_scales_of_one_change_nothing_and_cost_nothing(pipe, calls):
    condition = given(pipe, "mask", "label")
    plain = final(pipe, condition, 1.0)
    assert len(calls) == STEPS
    for scale in ({}, {"mask": 1.0}, {"mask": 1, "label": 1.0}):
        assert torch.equal(final(pipe, condition, scale).x_hat["image"], plain.x_hat["image"])
    assert len(calls) == 4 * STEPS


@pytest.mark.parametrize(
    ("scale", "extra"),
    [(2.0, 1), ({"mask": 2.0}, 1), ({"mask": 2.0, "label": 1.0}, 1), ({"mask": 2.0, "label": 3.0}, 2)],
)
def test_every_other_scale_asks_the_network_once_more_a_step(pipe, calls, scale, extra):
    final(pipe, given(pipe, "mask", "label"), scale)
    assert len(calls) == STEPS * (1 + extra)


def test_each_question_hides_one_modality(pipe, calls):
    final(pipe, given(pipe, "mask", "label", "embedding"), {"mask": 2.0, "embedding": 3.0})
    told = {"image": UNKNOWN, "mask": KNOWN, "label": KNOWN, "embedding": KNOWN}
    assert calls[:3] == [told, told | {"mask": ABSENT}, told | {"embedding": ABSENT}]
    calls.clear()
    final(pipe, given(pipe, "mask", "label"), 2.0)
    hidden = {"image": UNKNOWN, "mask": ABSENT, "label": ABSENT, "embedding": ABSENT}
    assert calls[1] == hidden  # one number: all that is given, at once


def test_one_given_modality_may_be_scaled_either_way(pipe):
    condition = given(pipe, "label")
    one, by_name = (final(pipe, condition, scale).x_hat["image"] for scale in (2.5, {"label": 2.5}))
    assert torch.equal(one, by_name)
    assert not torch.allclose(one, final(pipe, condition, 1.0).x_hat["image"], atol=1e-3)


def test_modalities_are_scaled_apart(pipe):
    condition = given(pipe, "mask", "label")
    scales = (2.0, {"mask": 2.0}, {"label": 2.0}, {"mask": 2.0, "label": 2.0})
    pictures = [final(pipe, condition, scale).x_hat["image"] for scale in scales]
    for k, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 1e-3 for other in pictures[:k])


def test_a_step_follows_the_formula(pipe):
    """The first jump of DDIM, recomputed from the model's own predictions."""
    condition, scale = given(pipe, "mask", "label"), {"mask": 3, "label": 0.5}
    first, plain = (
        next(iter(pipe.run(condition, ("image",), [0, 1], STEPS, guidance_scale=s))) for s in (scale, 1)
    )
    t, s = timesteps(pipe.schedule.num_steps, STEPS)[:2]
    internal = pipe._encode(condition, ("image",), 2)
    z_T = SampleNoise([0, 1])(pipe.model.z_shape)
    denoisers = [pipe.model.denoiser(pipe.schedule, internal)]
    for name in scale:
        denoisers.append(pipe.model.unconditional_denoiser(pipe.schedule, internal, {name}))
    told, *without = (denoiser(z_T, torch.tensor([t, t])).z0 for denoiser in denoisers)
    moved = 2 * (told - without[0]) - 0.5 * (told - without[1])
    # (5) is linear in z0: z_s = sqrt(abar_s) z0 + m_s + sqrt(1 - abar_s) (z_t - sqrt(abar_t) z0 - ...)
    abar_t, abar_s = pipe.schedule.abar[t], pipe.schedule.abar[s]
    slope = abar_s.sqrt() - ((1 - abar_s) * abar_t / (1 - abar_t)).sqrt()
    torch.testing.assert_close(first.z - plain.z, slope.float() * moved, atol=1e-5, rtol=1e-4)
    assert (slope * moved).abs().max() > 1e-2


def test_what_is_given_stays_exact_under_guidance(pipe):
    photo = torch.from_numpy(draw_shape(0, 1)).permute(2, 0, 1).float() / 127.5 - 1
    known = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    known[:, :5] = True
    values = given(pipe, "label", "embedding").given | {"image": photo.expand(2, -1, -1, -1)}
    last = final(pipe, Condition(values, known), {"label": 4.0, "embedding": 0.0})
    assert torch.equal(last.x_hat["image"][:, :, :5], values["image"][:, :, :5])
    encoded = pipe.model.encode(values)
    for name in ("label", "embedding"):
        assert torch.equal(last.x_hat[name], pipe.modalities[name].as_prediction(values[name]))
        entered = pipe.model.unconditional_denoiser(
            pipe.schedule, pipe._encode(Condition(values, known), ("image",), 2), {name}
        )(torch.randn(2, *pipe.model.z_shape), torch.tensor([500, 3]))
        assert torch.equal(entered.e[name], encoded[name])


def with_holes(pipe):
    condition = given(pipe, "image", "label")
    known = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
    known[:, 4:12, 6:] = False
    return Condition(condition.given, known)


def test_holes_follow_the_known_pixels(pipe, calls):
    condition = with_holes(pipe)
    plain, guided, more = (final(pipe, condition, {"image": s}).x_hat["image"] for s in (1, 2.0, 3.0))
    assert len(calls) == STEPS * 5
    assert all(flags["label"] == KNOWN for flags in calls)  # only the photo is hidden
    known = condition.known_pixels[:, None].expand_as(plain)
    for filled in (plain, guided, more):
        assert torch.equal(filled[known], condition.given["image"][known])
    assert all((a - b)[~known].abs().max() > 1e-3 for a, b in ((plain, guided), (guided, more)))
    by_number = final(pipe, condition, 2.0).x_hat["image"]  # of everything given but the photo
    assert torch.equal(by_number, final(pipe, condition, {"label": 2.0}).x_hat["image"])


def test_a_step_in_a_hole_follows_the_formula(pipe):
    """The clean photo of the last jump is the guided z_0 itself."""
    condition, scale = with_holes(pipe), 2.5
    (only,) = pipe.run(condition, ("image",), [0, 1], 1, guidance_scale={"image": scale})
    internal = pipe._encode(condition, ("image",), 2)
    z_T, t = SampleNoise([0, 1])(pipe.model.z_shape), torch.full((2,), pipe.schedule.num_steps)
    told = pipe.model.denoiser(pipe.schedule, internal)(z_T, t).z0
    free = pipe.model.unconditional_denoiser(pipe.schedule, internal, {"image"})(z_T, t).z0
    torch.testing.assert_close(only.z, told + (scale - 1) * (told - free), atol=1e-5, rtol=1e-4)
    assert (told - free).abs().max() > 1e-2


def test_samples_do_not_depend_on_the_batch_under_guidance(pipe):
    scale = {"label": 2.0, "embedding": 1.5}
    options = {"wanted": ("image",), "steps": 3, "guidance_scale": scale}
    whole = pipe({"label": 1, "embedding": "a red disc"}, num_samples=3, **options)
    one = pipe({"label": 1, "embedding": "a red disc"}, seed=2, **options)
    difference = np.asarray(whole.image[2]).astype(int) - np.asarray(one.image[0]).astype(int)
    assert abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"colour": 2.0}, "'colour', which is no modality of this checkpoint; .* guide label, embedding"),
        ({"mask": 2.0}, "'mask', which is not given; leave it out, and guide label, embedding"),
        ({"image": 2.0}, "'image', which is kept as it is given"),
        ({"label": -1}, "guidance_scale of 'label' is -1; give a number from 0 to 100"),
        ({"label": "strong"}, "guidance_scale of 'label' is 'strong'"),
        ({"label": True}, "guidance_scale of 'label' is True"),
        ({"label": float("nan")}, "guidance_scale of 'label' is nan"),
        (101, "guidance_scale is 101"),
        ("2", "guidance_scale is '2'"),
        ([2.0], r"guidance_scale is \[2.0\]"),
    ],
)
def test_mistakes_are_named_at_once(pipe, scale, message):
    photo = draw_shape(0, 1)
    with pytest.raises(ValueError, match=message):
        pipe.stream({"image": photo, "label": 0, "embedding": "x"}, ("mask",), steps=2, guidance_scale=scale)


def test_a_photo_can_be_named_where_it_has_holes(pipe):
    photo, known = draw_shape(0, 1), np.ones((SIZE, SIZE), dtype=bool)
    known[4:8] = False
    options = {"wanted": ("image",), "steps": 2, "known_pixels": known, "seed": 3}
    guided = pipe({"image": photo}, guidance_scale={"image": 4.0}, **options).image[0]
    plain = pipe({"image": photo}, **options).image[0]
    differs = (np.asarray(guided) != np.asarray(plain)).any(-1)
    assert differs[4:8].any() and not differs[known].any()
    with pytest.raises(ValueError, match="'mask', which is not given; leave it out, and guide image"):
        pipe.stream({"image": photo}, guidance_scale={"mask": 2.0}, **options)


def test_nothing_to_guide_is_said(pipe):
    with pytest.raises(ValueError, match="'mask', which is not given; .* once they are given"):
        pipe.stream(wanted=("image",), guidance_scale={"mask": 2.0})
    assert pipe(wanted=("image",), steps=2, guidance_scale=3.0).image  # a number guides what there is
