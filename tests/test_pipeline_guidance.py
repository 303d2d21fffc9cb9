"""Guidance of a pipeline: by one number or by modality, at the stated cost, with errors that help."""

import numpy as np
import pytest
import torch
from synthetic import CLASSES, SIZE, draw_shape

from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.request import Request
from mmdiff.samplers import SampleNoise, timesteps

STEPS = 4


def given(pipe, *names, batch=2):
    """Random values."""
    generator = torch.Generator().manual_seed(0)
    values = {
        "image": torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1,
        "mask": torch.randint(2, (batch, SIZE, SIZE), generator=generator),
        "label": torch.randint(len(CLASSES), (batch,), generator=generator),
        "embedding": pipe.modalities["embedding"].from_stored(torch.randn(batch, 8, generator=generator)),
    }
    return {name: values[name] for name in names}


def run(pipe, values, guidance_scale, known_pixels=None, steps=STEPS):
    """Two samples of the image."""
    request = Request(values, ("image",), known_pixels, guidance_scale, steps=steps)
    return pipe.run_batch(request, [0, 1])


def final(pipe, values, guidance_scale, known_pixels=None):
    *_, last = run(pipe, values, guidance_scale, known_pixels)
    return last


def predicted(pipe, values, z, t, without=(), known_pixels=None):
    """Clean encodings at z that the network predicts from these values without some of them."""
    conditioning = run(pipe, values, 1.0, known_pixels)._member._conditioning
    seen = pipe.model.without(conditioning, without) if without else conditioning
    (raw,) = pipe.model.answer([pipe.model.call_at(pipe.schedule, z, t, seen)])
    return pipe.model.clean_encodings(raw, conditioning)


@pytest.fixture
def calls(pipe, monkeypatch):
    """The flags of every row that the network sees, of the first of the two samples."""
    flags, forward = [], pipe.model.forward

    def spy(z_t, log_snr_t, conditioning):
        for row in conditioning.flags[::2].tolist():
            flags.append(dict(zip(pipe.model.names, row, strict=True)))
        return forward(z_t, log_snr_t, conditioning)

    monkeypatch.setattr(pipe.model, "forward", spy)
    return flags


def test_scales_of_one_change_nothing_and_cost_nothing(pipe, calls):
    values = given(pipe, "mask", "label")
    plain = final(pipe, values, 1.0)
    assert len(calls) == STEPS
    for scale in ({}, {"mask": 1.0}, {"mask": 1, "label": 1.0}):
        assert torch.equal(final(pipe, values, scale).x_hat["image"], plain.x_hat["image"])
    assert len(calls) == 4 * STEPS


@pytest.mark.parametrize(
    ("scale", "extra"),
    [(2.0, 1), ({"mask": 2.0}, 1), ({"mask": 2.0, "label": 1.0}, 1), ({"mask": 2.0, "label": 3.0}, 2)],
)
def test_every_other_scale_adds_a_row_to_each_call_of_the_network(pipe, calls, scale, extra):
    final(pipe, given(pipe, "mask", "label"), scale)
    assert len(calls) == STEPS * (1 + extra)


def test_each_guidance_branch_hides_one_modality(pipe, calls):
    final(pipe, given(pipe, "mask", "label", "embedding"), {"mask": 2.0, "embedding": 3.0})
    everything = {"image": UNKNOWN, "mask": KNOWN, "label": KNOWN, "embedding": KNOWN}
    assert calls[:3] == [everything, everything | {"mask": ABSENT}, everything | {"embedding": ABSENT}]
    calls.clear()
    final(pipe, given(pipe, "mask", "label"), 2.0)
    hidden = {"image": UNKNOWN, "mask": ABSENT, "label": ABSENT, "embedding": ABSENT}
    assert calls[1] == hidden  # one number: everything given in one branch


def test_one_given_modality_may_be_scaled_either_way(pipe):
    values = given(pipe, "label")
    one, by_name = (final(pipe, values, scale).x_hat["image"] for scale in (2.5, {"label": 2.5}))
    assert torch.equal(one, by_name)
    assert not torch.allclose(one, final(pipe, values, 1.0).x_hat["image"], atol=1e-3)


def test_modalities_are_scaled_apart(pipe):
    values = given(pipe, "mask", "label")
    scales = (2.0, {"mask": 2.0}, {"label": 2.0}, {"mask": 2.0, "label": 2.0})
    pictures = [final(pipe, values, scale).x_hat["image"] for scale in scales]
    for k, picture in enumerate(pictures):
        assert all((picture - other).abs().max() > 1e-3 for other in pictures[:k])


def test_a_step_follows_the_formula(pipe):
    """The first jump of DDIM, recomputed from the model's own predictions."""
    values = given(pipe, "mask", "label")
    first, plain = (next(run(pipe, values, scale)) for scale in ({"mask": 3, "label": 0.5}, 1))
    t, s = timesteps(pipe.schedule.num_steps, STEPS)[:2]
    z_T = SampleNoise([0, 1])(pipe.model.z_shape)
    conditional, no_mask, no_label = (
        predicted(pipe, values, z_T, t, without)["image"] for without in ((), ("mask",), ("label",))
    )
    moved = 2 * (conditional - no_mask) - 0.5 * (conditional - no_label)
    # (5) is linear in z0: z_s = sqrt(abar_s) z0 + m_s + sqrt(1 - abar_s) (z_t - sqrt(abar_t) z0 - ...)
    abar_t, abar_s = pipe.schedule.abar[t], pipe.schedule.abar[s]
    slope = abar_s.sqrt() - ((1 - abar_s) * abar_t / (1 - abar_t)).sqrt()
    torch.testing.assert_close(first.z - plain.z, slope.float() * moved, atol=1e-5, rtol=1e-4)
    assert (slope * moved).abs().max() > 1e-2


def test_what_is_given_stays_exact_under_guidance(pipe):
    photo = torch.from_numpy(draw_shape(0, 1)).permute(2, 0, 1).float() / 127.5 - 1
    known = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    known[:, :5] = True
    values = given(pipe, "label", "embedding") | {"image": photo.expand(2, -1, -1, -1)}
    last = final(pipe, values, {"label": 4.0, "embedding": 0.0}, known)
    assert torch.equal(last.x_hat["image"][:, :, :5], values["image"][:, :, :5])
    encoded = pipe.model.encode(values)
    for name in ("label", "embedding"):
        assert torch.equal(last.x_hat[name], pipe.modalities[name].as_prediction(values[name]))
        for t in (500, 3):
            branch = predicted(pipe, values, torch.randn(2, *pipe.model.z_shape), t, {name}, known)
            assert torch.equal(branch[name], encoded[name])


HOLES = torch.ones(2, SIZE, SIZE, dtype=torch.bool)
HOLES[:, 4:12, 6:] = False


def test_holes_follow_the_known_pixels(pipe, calls):
    values = given(pipe, "image", "label")
    plain, guided, more = (final(pipe, values, {"image": s}, HOLES).x_hat["image"] for s in (1, 2.0, 3.0))
    assert len(calls) == STEPS * 5
    assert all(flags["label"] == KNOWN for flags in calls)  # only the photo is hidden
    known = HOLES[:, None].expand_as(plain)
    for filled in (plain, guided, more):
        assert torch.equal(filled[known], values["image"][known])
    assert all((a - b)[~known].abs().max() > 1e-3 for a, b in ((plain, guided), (guided, more)))
    by_number = final(pipe, values, 2.0, HOLES).x_hat["image"]  # of everything given but the photo
    assert torch.equal(by_number, final(pipe, values, {"label": 2.0}, HOLES).x_hat["image"])


def test_a_step_in_a_hole_follows_the_formula(pipe):
    """The clean photo of the last jump is the guided z_0 itself."""
    values, scale = given(pipe, "image", "label"), 2.5
    (only,) = run(pipe, values, {"image": scale}, HOLES, steps=1)
    z_T, T = SampleNoise([0, 1])(pipe.model.z_shape), pipe.schedule.num_steps
    conditional = predicted(pipe, values, z_T, T, known_pixels=HOLES)["image"]
    without = predicted(pipe, values, z_T, T, ("image",), HOLES)["image"]
    torch.testing.assert_close(
        only.z, conditional + (scale - 1) * (conditional - without), atol=1e-5, rtol=1e-4
    )
    assert (conditional - without).abs().max() > 1e-2


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
def test_mistakes_are_named_before_the_first_step(pipe, scale, message):
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


def test_with_nothing_to_guide_a_name_is_refused_and_a_number_has_no_effect(pipe):
    with pytest.raises(ValueError, match="'mask', which is not given; .* once they are given"):
        pipe.stream(wanted=("image",), guidance_scale={"mask": 2.0})
    assert pipe(wanted=("image",), steps=2, guidance_scale=3.0).image  # a number guides what there is
