"""The model with a level for each modality: what it sees, and what requests to it hold to."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic import CLASSES, lively_model, tiny_config

from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.pipeline import Pipeline
from mmdiff.request import Change, Request
from mmdiff.schedule import LEVEL_MAX, LEVEL_MIN

torch.set_num_threads(1)

SIZE = 16


@pytest.fixture(scope="module", params=[0, 8])
def model(request):
    model = lively_model(tiny_config(core="levels", stem_depth=1, shape_width=request.param))
    with torch.no_grad():
        for block in [*model.backbone.early, *model.backbone.late]:
            block.up.weight *= 0.5  # squared activations of large random weights amplify rounding
    return model


@pytest.fixture(scope="module")
def pipe(model, embedder):
    return Pipeline(model, torch.device("cpu"), embedder)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def values(model, batch=2):
    generator = torch.Generator().manual_seed(1)
    x = {"image": torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1}
    x["mask"] = torch.randint(0, 2, (batch, SIZE, SIZE), generator=generator)
    x["label"] = torch.randint(0, len(CLASSES), (batch,), generator=generator)
    dim = model.modalities["embedding"].shape[0]
    x["embedding"] = torch.nn.functional.normalize(torch.randn(batch, dim, generator=generator), dim=1)
    return x


def call(model, z, levels, flags, x=None, known=None):
    """Raw outputs with the values of ``x`` given where flags (N,) say so."""
    batch = len(z)
    known = torch.zeros(batch, 1, SIZE, SIZE) if known is None else known
    flags = torch.tensor(flags).expand(batch, -1)
    photo = x["image"] if x else torch.zeros(batch, 3, SIZE, SIZE)
    condition = model.condition(model.encode(x) if x else {}, flags, known, photo)
    with torch.no_grad():
        return model(z, torch.as_tensor(levels).float().expand(batch, -1), condition)


def z_of(model, seed=0, batch=2):
    return torch.randn(batch, *model.z_shape, generator=torch.Generator().manual_seed(seed))


def same(one, other, names):
    return all(torch.equal(one[n], other[n]) for n in names)


@pytest.mark.parametrize("place", range(1, 4))
def test_what_is_ignored_is_what_is_not_decided_at_all(model, place):
    """A modality at LEVEL_MIN looks the same whether it is ignored or about to be generated, whatever z
    holds.
    """
    levels = [1.0, 1.0, 1.0, 1.0]
    levels[place] = LEVEL_MIN
    generated, ignored = [UNKNOWN] * 4, [UNKNOWN] * 4
    ignored[place] = ABSENT
    z, other = z_of(model), z_of(model)
    name = model.names[place]
    start = model.channels.offsets[name]
    other[:, start : start + model.channels.sizes[name]] = 7.0
    one = call(model, z, levels, generated)
    assert same(one, call(model, other, levels, generated), model.names)
    levels[place] = 3.0
    assert same(one, call(model, other, levels, ignored), model.names)
    assert not same(one, call(model, z, levels, generated), model.names)


@pytest.mark.parametrize("place", range(1, 4))
def test_what_is_given_is_seen_whatever_z_and_level_hold(model, place):
    x, given = values(model), [UNKNOWN] * 4
    given[place] = KNOWN
    levels, others = [0.5] * 4, [0.5] * 4
    others[place] = -3.0
    z, noise = z_of(model), z_of(model, seed=5)
    name = model.names[place]
    start = model.channels.offsets[name]
    noise[:, :start] = z[:, :start]
    noise[:, start + model.channels.sizes[name] :] = z[:, start + model.channels.sizes[name] :]
    assert same(call(model, z, levels, given, x), call(model, noise, others, given, x), model.names)
    changed = x | {name: x[name].flip(0)}
    assert not same(call(model, z, levels, given, x), call(model, z, levels, given, changed), model.names)


def test_the_network_is_told_of_known_pixels_at_the_highest_level(model):
    known = torch.zeros(1, 1, SIZE, SIZE)
    known[..., : SIZE // 2, :] = 1
    level_map = model._level_map(torch.tensor([-2.0]), known) * 8
    assert (level_map[..., : SIZE // 4, :] == LEVEL_MAX).all() and (
        level_map[..., SIZE // 4 :, :] == -2
    ).all()


def test_hidden_pixels_are_not_seen(model):
    x, known = values(model), torch.zeros(2, 1, SIZE, SIZE)
    known[..., :9, :] = 1
    other = x | {"image": torch.where(known > 0, x["image"], -x["image"])}
    z, levels = z_of(model), [0.3] * 4
    one, two = (call(model, z, levels, [UNKNOWN] * 4, of, known) for of in (x, other))
    assert same(one, two, model.names)
    other = x | {"image": torch.where(known > 0, -x["image"], x["image"])}
    assert not same(one, call(model, z, levels, [UNKNOWN] * 4, other, known), model.names)


def test_blocks_have_unit_variance(model):
    """z of (3) with codes of unit RMS, scaled by `call_at`, at every time."""
    schedule = model.make_schedule({"mask": 0.3, "label": 0.6})
    generator = torch.Generator().manual_seed(0)
    for t in (1, 300, 600, 1000):
        noise = torch.randn(4000, *model.z_shape, generator=generator)
        z = noise * math.sqrt(-math.expm1(schedule.log_abar[t].item()))
        signal = torch.randn(4000, *model.z_shape, generator=generator)
        for name in model.names:
            own = model.channels.place(name, torch.ones(1, model.channels.sizes[name], 1, 1))[0]
            weight = schedule.abar[t].sqrt() if name == "image" else schedule.wbar[name][t]
            z = z + weight.float() * own * signal
        scaled, levels, _ = model.call_at(schedule, z, t, model.nothing_given(1, torch.device("cpu")))
        torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(model.z_channels), rtol=0.03, atol=0)
        assert levels[0].tolist() == pytest.approx(
            [schedule.level[n][t].item() for n in model.names], rel=1e-5
        )


def test_same_seed_same_pixels_and_the_batch_does_not_matter(pipe):
    options = {"steps": 6, "leads": {"label": 0.5, "mask": 0.2}}
    many = pipe(num_samples=3, seed=4, **options)
    alone = [pipe(seed=4 + k, **options) for k in range(3)]
    for k in range(3):
        for name in ("label", "embedding"):
            np.testing.assert_allclose(getattr(many, name)[k], getattr(alone[k], name)[0], atol=1e-5)
        difference = np.asarray(many.image[k], int) - np.asarray(alone[k].image[0], int)
        assert abs(difference).max() <= 1
    again = pipe(seed=4, **options)
    assert np.array_equal(np.asarray(again.image[0]), np.asarray(alone[0].image[0]))


def test_leads_say_what_is_decided_first(pipe):
    """The level of a modality that leads by a whole run is at its top before the photo has begun."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    steps = list(pipe.stream(steps=20, given={"mask": mask}, leads={"label": 1.0}))
    half = steps[11]
    assert half.levels["label"] > 5 and half.levels["image"] < -3
    assert all(step.levels["mask"] == LEVEL_MAX for step in steps)
    steps = list(pipe.stream(steps=20, wanted=("image", "label"), leads={"image": 1.0}))
    assert steps[11].levels["image"] > 5 and steps[11].levels["label"] < -3
    assert all(step.levels["mask"] == LEVEL_MIN for step in steps)


def test_leads_of_the_model_are_taken_unless_a_request_has_its_own(embedder):
    config = tiny_config(core="levels")
    leading = tuple(replace(m, lead=0.4 if m.name == "label" else 0.0) for m in config.modalities)
    own = Pipeline(lively_model(replace(config, modalities=leading)), torch.device("cpu"), embedder)
    images = [np.asarray(own(steps=5, leads=leads).image[0]) for leads in (None, {"label": 0.4}, {})]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    ("given", "wanted"), [({"label": 1}, ("image",)), ({}, ("image",)), ({"label": 1}, ("image", "mask"))]
)
def test_no_step_passes_in_which_nothing_is_generated(pipe, given, wanted):
    """Leads of what is given or ignored all along change nothing; the photo begins with the first step."""
    leads = {"label": 1.0, "embedding": 2.0}
    runs = [list(pipe.stream(steps=6, given=given, wanted=wanted, leads=own)) for own in (leads, {})]
    for one, other in zip(*runs, strict=True):
        assert one.levels == other.levels
        np.testing.assert_array_equal(one.x_hat["image"], other.x_hat["image"])
    assert runs[0][0].levels["image"] < runs[0][1].levels["image"]


def test_leads_count_among_what_is_generated(pipe):
    """With the photo given, the label's lead over the mask is all that is left."""
    leads, photo = {"label": 0.5, "mask": 0.2}, np.zeros((SIZE, SIZE, 3), np.uint8)
    options = {"steps": 10, "given": {"image": photo}, "wanted": ("mask", "label")}
    found, expected = (
        [step.levels for step in pipe.stream(**options, leads=own)] for own in (leads, {"label": 0.3})
    )
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other)
    assert found[-1]["label"] >= found[-1]["mask"] and found[1]["label"] > found[1]["mask"]


def test_a_lead_counts_if_it_is_generated_later(pipe):
    later = Change(3, Request(wanted=("image", "label")))
    request = Request({"label": 1}, ("image",), steps=6, leads={"label": 1.0}, changes=[later])
    assert request.made(pipe.model.names) == {"image", "label"}
    assert pipe._schedule_of(request).leads == {"image": 0.0, "mask": 0.0, "label": 1.0, "embedding": 0.0}


@pytest.mark.parametrize("leads", [{"depth": 1}, {"label": -1}, {"label": "soon"}, {"label": 99}, [0.1]])
def test_leads_that_cannot_be_are_refused_before_anything_runs(pipe, leads):
    with pytest.raises(ValueError, match="leads"):
        pipe.stream(leads=leads)


def test_known_pixels_come_back_exactly(pipe, photo):
    known = np.zeros((SIZE, SIZE), bool)
    known[:7] = True
    out = pipe(given={"image": photo}, known_pixels=known, steps=4)
    assert (np.asarray(out.image[0])[known] == photo[known]).all()


def test_a_generated_modality_can_be_guided(pipe):
    plain, strong = (
        pipe(steps=8, seed=2, guidance_scale=scale, leads={"label": 1.0}) for scale in ({}, {"label": 4.0})
    )
    assert not np.array_equal(np.asarray(plain.image[0]), np.asarray(strong.image[0]))
    with pytest.raises(ValueError, match="sample_first"):
        pipe.stream(sample_first=("label",))


def test_guidance_of_what_is_not_decided_does_nothing(pipe):
    """While the label is at LEVEL_MIN, with and without it are the same, also where guidance acts."""
    steps = [
        list(pipe.stream(steps=20, leads={"image": 2.0}, guidance_scale=s)) for s in ({}, {"label": 5.0})
    ]
    least, most = pipe.model.guided_levels
    assert least < steps[0][2].levels["image"] < most and steps[0][2].levels["label"] == LEVEL_MIN
    np.testing.assert_array_equal(steps[0][2].x_hat["image"], steps[1][2].x_hat["image"])


def test_guidance_acts_in_the_middle_of_a_run_alone(pipe):
    """At .9 T the photo's level, -2 log tan(.45 pi), is below -3, and at .2 T above 2: one call there."""
    label = torch.tensor([1])
    plain, guided = (
        pipe.run_batch(Request({"label": label}, ("image",), steps=10, guidance_scale=s), [0])
        for s in (1.0, 4.0)
    )
    calls = []
    for k in range(10):
        calls.append(len(guided._member.queries()))
        after = [run._member.advance(pipe.model.answer(run._member.queries())) for run in (plain, guided)]
        assert torch.equal(after[0].z, after[1].z) == (k < 2)
    assert pipe.model.guided_levels == (-3, 2) and calls == [1, 1, *[2] * 6, 1, 1]
