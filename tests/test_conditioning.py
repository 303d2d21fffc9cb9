"""What the denoiser sees of a request: nothing, more, less in guidance branches, and several joined."""

import pytest
import torch
from synthetic import SIZE, lively_model, tiny_config
from test_first_edition_model import NAMES, draw, flags_of, normal, pixels

from mmdiff.forward_process import q_sample
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Conditioning, joined

CPU = torch.device("cpu")
TIMES = (3, 200, 600, 990)


@pytest.fixture(scope="module")
def reading():
    return lively_model(tiny_config(reader_depth=1))


def random_known() -> torch.Tensor:
    return torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()


def at(t: int) -> torch.Tensor:
    return torch.full((4,), t)


# -- nothing, and more -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "generated"),
    [
        ((), NAMES),
        (("image",), ("image",)),
        (("label",), ("image", "label")),  # the anchor is always generated
        (("mask", "embedding", "image"), ("image", "mask", "embedding")),
    ],
)
def test_where_nothing_is_given_all_or_the_wanted_modalities_are_generated(model, wanted, generated):
    nothing = model.nothing_given(3, CPU, wanted)
    assert len(nothing) == 3 and nothing.flags.dtype == torch.long
    expected = [UNKNOWN if name in generated else ABSENT for name in NAMES]
    assert nothing.flags.tolist() == [expected] * 3
    assert nothing.known_pixels.shape == (3, 1, SIZE, SIZE) and not nothing.known_pixels.any()
    assert not nothing.e and not nothing.hidden and nothing.pixels is None and nothing.read is None


def test_a_model_with_a_reader_sees_nothing_without_a_photo(reading):
    nothing = reading.nothing_given(4, CPU)
    assert nothing.pixels is None and reading.read(nothing) is nothing
    z = normal(4, *reading.z_shape)
    black = reading.condition({}, flags_of(), pixels(), draw()["image"])
    for name, value in reading(z, torch.zeros(4), nothing).items():
        torch.testing.assert_close(value, reading(z, torch.zeros(4), black)[name])


def test_more_can_be_given_beside_what_is(reading):
    x, known, z = draw(), random_known(), normal(4, *reading.z_shape)
    e = reading.encode({"image": x["image"], "mask": x["mask"]})
    before = reading.read(reading.condition(e, flags_of(mask=KNOWN), known, x["image"]))
    more = reading.giving(before, {"label": x["label"], "embedding": x["embedding"]})
    flags = flags_of(mask=KNOWN, label=KNOWN, embedding=KNOWN)
    whole = reading.condition(reading.encode(x), flags, known, x["image"])
    assert torch.equal(more.flags, flags) and more.read is before.read
    assert torch.equal(before.flags, flags_of(mask=KNOWN)) and "label" not in before.e
    for name, value in reading(z, torch.zeros(4), more).items():
        assert torch.equal(value, reading(z, torch.zeros(4), reading.read(whole))[name])


# -- guidance branches -------------------------------------------------------------------------------


@pytest.mark.parametrize("t", TIMES)
def test_a_guidance_branch_does_not_see_what_it_is_without(model, t):
    """Neither flags nor encodings nor z_t, which carries them under noise, may show what is removed."""
    schedule, known = model.make_schedule(), random_known()
    flags, noise = flags_of(mask=KNOWN, label=KNOWN), normal(4, *model.z_shape)
    common = model.encode(draw())
    calls, cleans = [], []
    for seed in (0, 1):
        e = common | {n: v for n, v in model.encode(draw(seed=seed)).items() if n in ("mask", "label")}
        z_t = q_sample(schedule, e["image"], at(t), e, noise)
        condition = model.condition(e, flags, known)
        call = model.call_at(schedule, z_t, t, model.without(condition, ("mask", "label", "embedding")))
        (raw,) = model.answer([call])
        clean = model.clean_encodings(raw, condition)
        for name in ("mask", "label"):  # z_t holds them, so they must still be accounted for in (5)
            assert torch.equal(clean[name], e[name])
        calls.append(call)
        cleans.append(clean)
    (z_a, level_a, blind_a), (z_b, level_b, blind_b) = calls
    torch.testing.assert_close(z_a, z_b, atol=1e-5, rtol=0)
    assert torch.equal(level_a, level_b)
    for blind in (blind_a, blind_b):
        assert torch.equal(blind.flags, flags_of(mask=ABSENT, label=ABSENT))  # the others stay generated
        assert torch.equal(blind.known_pixels, known)  # the anchor cannot be ignored: its pixels stay given
    assert torch.equal(sum(blind_a.e.values()), sum(blind_b.e.values()))
    torch.testing.assert_close(cleans[0]["image"], cleans[1]["image"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("reader", [0, 1])
def test_a_branch_without_the_anchor_sees_it_under_noise_alone(reader, t):
    """As photos made from nothing are in training, whose other modalities stay given."""
    model = lively_model(tiny_config(reader_depth=reader)).eval()
    schedule, photo, known = model.make_schedule(), draw(), random_known()
    known[0] = 1
    flags = flags_of(label=KNOWN)
    flags[0, 0] = KNOWN  # a photo without a hole
    z_t, e = normal(4, *model.z_shape), model.encode(photo)
    given = model.read(model.condition(e, flags, known, photo["image"]))
    (raw,) = model.answer([model.call_at(schedule, z_t, t, model.without(given, {"image"}))])
    dropped = model.clean_encodings(raw, given)
    blank = model.condition(e, flags_of(label=KNOWN), pixels())
    nothing, predictions = model.denoiser(schedule, blank)(z_t, t)
    for name in NAMES:
        torch.testing.assert_close(model.predictions(raw)[name], predictions[name], atol=1e-5, rtol=1e-5)
    determined = model.coverage(known) > 0
    assert torch.equal(dropped["image"][determined], e["image"][determined])  # those that z_t stands on
    assert torch.equal(dropped["image"][~determined], nothing["image"][~determined])
    whole, _ = model.denoiser(schedule, given)(z_t, t)
    assert (whole["image"] - dropped["image"])[~determined].abs().max() > 1e-3


def test_a_branch_without_a_modality_equals_training_with_that_modality_ignored(model):
    """z_t without the modality is what training shows with the flag absent."""
    schedule, t, noise = model.make_schedule(), 300, normal(4, *model.z_shape)
    e = model.encode(draw())
    z_full = q_sample(schedule, e["image"], at(t), e, noise)
    z_without = q_sample(schedule, e["image"], at(t), {n: v for n, v in e.items() if n != "label"}, noise)
    given = model.condition(e, flags_of(label=KNOWN), pixels())
    absent = model.condition(e, flags_of(label=ABSENT), pixels())
    (raw,) = model.answer([model.call_at(schedule, z_full, t, model.without(given, ("label",)))])
    _, training = model.denoiser(schedule, absent)(z_without, t)
    for name in NAMES:
        torch.testing.assert_close(model.predictions(raw)[name], training[name], atol=1e-4, rtol=1e-4)


# -- several calls as one batch ----------------------------------------------------------------------


def call(count: int, names: tuple[str, ...], width: int | None = None, seed: int = 0):
    """A made-up call of ``count`` samples, with encodings of ``names`` and features of ``width`` channels."""
    z = normal(count, 5, 2, 2, seed=seed)
    e = {name: normal(count, 5, 2, 2, seed=seed + k) for k, name in enumerate(names, start=1)}
    flags = torch.full((count, 3), seed % 3)
    read = None if width is None else normal(count, width, 4, 4, seed=seed)
    return z, torch.full((count,), float(seed)), Conditioning(e, flags, torch.ones(count, 1, 8, 8), read=read)


def test_one_call_is_joined_to_itself():
    only = call(2, ("image",))
    assert joined([only]) is only


def test_joined_calls_lie_one_after_the_other_with_zeros_for_what_one_lacks():
    calls = [call(2, ("image",), seed=1), call(1, (), 6, seed=2), call(3, ("label", "image"), 6, seed=3)]
    z, level, seen = joined(calls)
    assert torch.equal(z, torch.cat([own for own, _, _ in calls]))
    assert level.tolist() == [1.0, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert seen.flags[:, 0].tolist() == [1, 1, 2, 0, 0, 0] and len(seen) == 6
    assert seen.known_pixels.shape == (6, 1, 8, 8) and seen.known_pixels.all()
    assert set(seen.e) == {"image", "label"}
    first, second, third = (conditioning for _, _, conditioning in calls)
    zeros = torch.zeros(3, 5, 2, 2)
    assert torch.equal(seen.e["image"], torch.cat([first.e["image"], zeros[:1], third.e["image"]]))
    assert torch.equal(seen.e["label"], torch.cat([zeros, third.e["label"]]))
    assert torch.equal(seen.read, torch.cat([torch.zeros(2, 6, 4, 4), second.read, third.read]))


def test_calls_without_features_are_joined_without_features():
    _, _, seen = joined([call(2, ("image",)), call(1, ("mask",))])
    assert seen.read is None and seen.pixels is None and not seen.hidden


def test_calls_are_answered_together_as_alone(model):
    """Other batch sizes, times and conditions, and a guidance branch among them."""
    schedule, x = model.make_schedule(), draw()
    label = model.condition(model.encode(x), flags_of(label=KNOWN), pixels())
    photo = model.condition(model.encode({"image": x["image"]}), flags_of(mask=ABSENT), random_known())
    nothing = model.nothing_given(1, CPU)
    seen = [(700, label), (700, model.without(label, ("label",))), (40, photo), (999, nothing)]
    calls = [
        model.call_at(schedule, normal(len(own), *model.z_shape, seed=k), t, own)
        for k, (t, own) in enumerate(seen)
    ]
    for one, together in zip(calls, model.answer(calls), strict=True):
        (alone,) = model.answer([one])
        for name in NAMES:
            assert together[name].shape == alone[name].shape
            torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-4)


def test_pixels_that_were_not_read_are_refused_in_a_batch_of_calls():
    model = lively_model(tiny_config(reader_depth=1))
    known = model.condition(
        {}, torch.full((1, 4), UNKNOWN), torch.ones(1, 1, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE)
    )
    call = model.call_at(model.make_schedule(), torch.zeros(1, *model.z_shape), 400, known)
    with pytest.raises(ValueError, match="were not read yet; pass model.read"):
        model.answer([call, call])
