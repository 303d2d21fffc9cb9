"""The model as a map of z_t, the time and what is given: what it sees, and what it must not see."""

import pytest
import torch
from synthetic import CLASSES, DIM, SIZE, lively_model, tiny_config

from mmdiff.forward_process import q_sample
from mmdiff.model import ABSENT, KNOWN, UNKNOWN, MultiModalDiffusion
from mmdiff.network.transformer import Stem, position_table, timestep_embedding

NAMES = ("image", "mask", "label", "embedding")


def draw(count: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """Data-space values of every modality."""
    g = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(count, 3, SIZE, SIZE, generator=g) * 2 - 1,
        "mask": torch.randint(2, (count, SIZE, SIZE), generator=g),
        "label": torch.randint(len(CLASSES), (count,), generator=g),
        "embedding": torch.nn.functional.normalize(torch.randn(count, DIM, generator=g), dim=1),
    }


def flags_of(count: int = 4, **states: int) -> torch.Tensor:
    return torch.tensor([[states.get(name, UNKNOWN) for name in NAMES]]).repeat(count, 1)


def pixels(count: int = 4, value: float = 0.0) -> torch.Tensor:
    return torch.full((count, 1, SIZE, SIZE), value)


def normal(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def state(model):
    """z_t of a batch at various times, with everything in it."""
    schedule, e = model.make_schedule(), model.encode(draw())
    t = torch.tensor([3, 200, 600, 990])
    z0 = e.pop("image")
    return q_sample(schedule, z0, t, e, normal(4, *model.z_shape)), t


def test_outputs_have_the_shapes_of_the_heads(model, state):
    condition = model.condition({}, flags_of(), pixels())
    raw = model(state[0], torch.zeros(4), condition)
    assert {name: tuple(value.shape) for name, value in raw.items()} == {
        "image": (4, 3, SIZE, SIZE),
        "mask": (4, 2, SIZE, SIZE),
        "label": (4, len(CLASSES)),
        "embedding": (4, DIM),
    }
    assert all(value.dtype == torch.float32 for value in raw.values())


def test_every_modality_owns_its_channels_of_z(model):
    assert model.z_shape == (sum(m.z_channels for m in model.modalities.values()), 4, 4)
    used = torch.stack([(e != 0).any(0).any(-1).any(-1) for e in model.encode(draw(20)).values()])
    assert (used.sum(0) == 1).all()  # every channel is somebody's, and nobody shares one
    e = model.encode(draw())
    for name, modality in model.modalities.items():
        low = model.channels.offsets[name]
        own = e[name][:, low : low + modality.z_channels]
        torch.testing.assert_close(own, modality.encode(draw()[name]))


def test_the_schedule_is_that_of_the_configuration():
    model = MultiModalDiffusion(tiny_config(num_steps=40, schedule="linear", schedule_shift=0.5))
    schedule = model.make_schedule()
    assert (schedule.num_steps, schedule.kind, schedule.shift) == (40, "linear", 0.5)
    assert schedule.modalities == NAMES and schedule.families["image"] == "none"


def test_a_new_model_is_calm(state):
    """Heads start near zero, so that training starts from a known function."""
    torch.manual_seed(0)
    model = MultiModalDiffusion(tiny_config())
    raw = model(state[0], torch.zeros(4), model.condition({}, flags_of(), pixels()))
    assert all(value.abs().max() < 0.2 for value in raw.values())


@pytest.mark.parametrize("given", NAMES)
@pytest.mark.parametrize("output", NAMES)
def test_every_output_depends_on_everything_that_is_given(model, state, given, output):
    known = pixels(value=float(given == "image"))
    raw = []
    for seed in (0, 1):
        value = draw(seed=seed)[given]
        condition = model.condition(model.encode({given: value}), flags_of(**{given: KNOWN}), known)
        raw.append(model(state[0], torch.zeros(4), condition)[output])
    changed = (draw(seed=0)[given] != draw(seed=1)[given]).reshape(4, -1).any(1)
    assert ((raw[0] - raw[1]).flatten(1).abs().amax(1) > 1e-6)[changed].all() and changed.any()


def test_outputs_depend_on_time_flags_and_known_map(model, state):
    def label(log_snr=0.0, known=0.0, **states):
        condition = model.condition({}, flags_of(**states), pixels(value=known))
        return model(state[0], torch.full((4,), log_snr), condition)["label"]

    for other in (label(2.0), label(known=1.0), label(mask=ABSENT), label(embedding=KNOWN)):
        assert (other - label()).abs().max() > 1e-5


def test_extreme_times_are_finite(model, state):
    condition = model.condition({}, flags_of(), pixels())
    for log_snr in (-float("inf"), -1e4, 1e4, float("inf")):
        raw = model(state[0], torch.full((4,), log_snr), condition)
        assert all(value.isfinite().all() for value in raw.values())


def test_what_is_not_flagged_known_does_not_enter(model, state):
    flags = flags_of(mask=UNKNOWN, label=ABSENT, embedding=UNKNOWN)
    conditions = [model.condition(model.encode(draw(seed=s)), flags, pixels()) for s in (0, 1)]
    raw = [model(state[0], torch.zeros(4), condition) for condition in conditions]
    assert all(torch.equal(raw[0][name], raw[1][name]) for name in NAMES)


def test_the_anchor_enters_pixel_by_pixel(model, state):
    """Only pixels of the known map reach the network, and each of them does."""
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    flags = flags_of()
    photo = draw()["image"]

    def raw(image):
        condition = model.condition(model.encode({"image": image}), flags, known)
        return model(state[0], torch.zeros(4), condition)["image"]

    hidden_changed = torch.where(known > 0, photo, -photo)
    assert torch.equal(raw(photo), raw(hidden_changed))
    photo.requires_grad_(True)
    raw(photo).square().sum().backward()
    assert ((photo.grad != 0).all(1, keepdim=True) == (known > 0)).all()


def test_examples_do_not_see_each_other(model, state):
    z, t = state
    condition = model.condition(model.encode(draw()), flags_of(label=KNOWN), pixels())
    together = model(z, torch.zeros(4), condition)
    for k in range(4):
        one = {name: value[k : k + 1] for name, value in draw().items()}
        alone = model.condition(model.encode(one), flags_of(1, label=KNOWN), pixels(1))
        raw = model(z[k : k + 1], torch.zeros(1), alone)
        for name in NAMES:
            torch.testing.assert_close(raw[name], together[name][k : k + 1], atol=1e-5, rtol=1e-5)


# -- predictions -------------------------------------------------------------------------------------


def test_what_is_given_is_put_in_place(model, state):
    schedule, e = model.make_schedule(), model.encode(draw())
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    condition = model.condition(e, flags_of(mask=KNOWN, label=ABSENT), known)
    prediction = model.denoiser(schedule, condition)(*state)
    assert torch.equal(prediction.e["mask"], e["mask"])  # given: the true encoding
    assert (prediction.e["label"] == 0).all()  # absent: none
    embedding = model.modalities["embedding"]
    raw = model(state[0], torch.zeros(4), condition)["embedding"]
    assert prediction.e["embedding"].shape == e["embedding"].shape
    assert (prediction.e["embedding"] != e["embedding"]).any()  # unknown: the head's expectation
    assert embedding.expected_encoding(raw).shape[1] == embedding.z_channels
    photo = torch.nn.functional.pixel_shuffle(prediction.z0[:, : 3 * 16], 4)
    assert torch.equal(torch.where(known > 0, photo, 0), torch.where(known > 0, draw()["image"], 0))
    assert (photo != draw()["image"])[(known == 0).expand_as(photo)].all()


def test_the_denoiser_reads_the_time_of_each_sample(model, state):
    schedule = model.make_schedule()
    condition = model.condition({}, flags_of(), pixels())
    denoise = model.denoiser(schedule, condition)
    together = denoise(*state)
    z, t = state
    for k in range(4):
        alone = model.condition({}, flags_of(1), pixels(1))
        one = model.denoiser(schedule, alone)(z[k : k + 1], t[k : k + 1])
        torch.testing.assert_close(one.z0, together.z0[k : k + 1], atol=1e-5, rtol=1e-5)
    assert not together.z0.requires_grad


def test_the_unconditional_denoiser_is_not_told(model, monkeypatch):
    """Neither flags nor encodings nor z_t, from which it must be taken out, may tell what is given."""
    schedule, t = model.make_schedule(), torch.tensor([3, 200, 600, 990])
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    flags, noise = flags_of(mask=KNOWN, label=KNOWN), normal(4, *model.z_shape)
    common = model.encode(draw())
    inputs, predictions = [], []
    forward = type(model).forward

    def spy(z_t, log_snr_t, condition):
        inputs.append((z_t, log_snr_t, condition))
        return forward(model, z_t, log_snr_t, condition)

    monkeypatch.setattr(model, "forward", spy)
    for seed in (0, 1):
        e = common | {n: v for n, v in model.encode(draw(seed=seed)).items() if n in ("mask", "label")}
        entering = {name: value for name, value in e.items() if name != "image"}
        z_t = q_sample(schedule, e["image"], t, entering, noise)
        condition = model.condition(e, flags, known)
        predictions.append((model.unconditional_denoiser(schedule, condition)(z_t, t), e))
    (z_a, snr_a, blind_a), (z_b, snr_b, blind_b) = inputs
    torch.testing.assert_close(z_a, z_b, atol=1e-5, rtol=0)
    assert torch.equal(snr_a, snr_b)
    assert all(torch.equal(blind.flags, flags_of(mask=ABSENT, label=ABSENT)) for blind in (blind_a, blind_b))
    assert torch.equal(blind_a.known_pixels, known)  # the anchor cannot be absent: its pixels stay given
    clean_a, clean_b = sum(blind_a.e.values()), sum(blind_b.e.values())
    assert torch.equal(clean_a, clean_b)
    for prediction, e in predictions:  # what is in z_t must still be accounted for in (5)
        assert torch.equal(prediction.e["mask"], e["mask"]) and torch.equal(prediction.e["label"], e["label"])
    torch.testing.assert_close(predictions[0][0].z0, predictions[1][0].z0, atol=1e-4, rtol=0)


@pytest.mark.parametrize("reader", [0, 1])
def test_a_dropped_anchor_is_seen_under_noise_alone(reader):
    """As photos made from nothing are in training, whose other modalities stay given."""
    model = lively_model(tiny_config(reader_depth=reader)).eval()
    schedule, t, photo = model.make_schedule(), torch.tensor([3, 200, 600, 990]), draw()
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    known[0] = 1
    flags = flags_of(label=KNOWN)
    flags[0, 0] = KNOWN  # a photo without a hole
    z_t, e = normal(4, *model.z_shape), model.encode(photo)
    given = model.condition(e, flags, known, photo["image"])
    dropped = model.unconditional_denoiser(schedule, given, {"image"})(z_t, t)
    nothing = model.denoiser(schedule, model.condition(e, flags_of(label=KNOWN), pixels()))(z_t, t)
    for name in NAMES:
        torch.testing.assert_close(dropped.x[name], nothing.x[name], atol=1e-5, rtol=1e-5)
    settled = model.coverage(known) > 0
    assert torch.equal(dropped.z0[settled], e["image"][settled])  # the sampler goes on with the true ones
    assert torch.equal(dropped.z0[~settled], nothing.z0[~settled])
    assert (model.denoiser(schedule, given)(z_t, t).z0 - dropped.z0)[~settled].abs().max() > 1e-3


def test_an_absent_modality_in_training_equals_one_made_absent_for_guidance(model):
    """z_t without the modality is what training shows with the flag absent."""
    schedule, t, noise = model.make_schedule(), torch.full((4,), 300), normal(4, *model.z_shape)
    e = model.encode(draw())
    entering = {n: v for n, v in e.items() if n != "image"}
    z_full = q_sample(schedule, e["image"], t, entering, noise)
    z_without = q_sample(schedule, e["image"], t, {n: v for n, v in entering.items() if n != "label"}, noise)
    given = model.condition(e, flags_of(label=KNOWN), pixels())
    absent = model.condition(e, flags_of(label=ABSENT), pixels())
    guiding = model.unconditional_denoiser(schedule, given)(z_full, t)
    training = model.denoiser(schedule, absent)(z_without, t)
    for name in NAMES:
        torch.testing.assert_close(guiding.x[name], training.x[name], atol=1e-4, rtol=1e-4)


# -- parts -------------------------------------------------------------------------------------------


def test_embeddings_tell_times_and_places_apart():
    times = timestep_embedding(torch.linspace(-15, 15, 400), 32)
    places = position_table(6, 32)
    assert times.shape == (400, 32) and places.shape == (36, 32)
    assert torch.pdist(times).min() > 1e-2 and torch.pdist(places).min() > 1e-2
    assert max(times.abs().max(), places.abs().max()) <= 1


def test_a_stem_begins_by_adding_nothing(state):
    plain = lively_model(tiny_config())
    stemmed = MultiModalDiffusion(tiny_config(stem_depth=2)).eval()
    lacking, unknown = stemmed.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and lacking and all(name.startswith("backbone.stem.") for name in lacking)
    condition = plain.condition({}, flags_of(), pixels())
    before, after = (model(state[0], torch.zeros(4), condition) for model in (plain, stemmed))
    assert all(torch.equal(before[name], after[name]) for name in NAMES)
    torch.nn.init.normal_(stemmed.backbone.stem.leave.weight)
    after = stemmed(state[0], torch.zeros(4), condition)
    assert not any(torch.allclose(before[name], after[name]) for name in NAMES)


def test_what_a_stem_sees_in_a_place_it_sees_in_another():
    """A picture that moves by one patch moves its tokens by one, which no table of positions tells."""
    torch.manual_seed(1)
    stem, fold, grid = Stem(width=12, fold=2, cell_channels=3, stem_width=16, depth=1).eval(), 2, 12
    cells = torch.zeros(2, 3, fold * grid, fold * grid)
    cells[:, :, 10:14, 8:12] = normal(2, 3, 4, 4)
    condition = normal(2, 12)
    tokens = stem(cells, condition).view(2, grid, grid, 12)
    moved = stem(cells.roll((fold, 2 * fold), (2, 3)), condition).view(2, grid, grid, 12)
    torch.testing.assert_close(moved[:, 3:-2, 4:-2], tokens[:, 2:-3, 2:-4])
    assert not torch.allclose(moved[:, 3:-2, 4:-2], tokens[:, 3:-2, 4:-2])


@pytest.mark.parametrize("options", [{"stem_depth": -1}, {"stem_depth": 1, "refiner_width": 12}])
def test_impossible_stems_are_refused(options):
    with pytest.raises(ValueError, match="a depth of at least 0, and with a stem a width"):
        tiny_config(**options)


def test_seeds_make_equal_models():
    one, two = (lively_model(tiny_config(), seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_is_given_takes_its_noisy_versions_place():
    """With `in_place` the noise under what is known changes nothing; elsewhere it does."""
    model = lively_model(tiny_config(in_place=True))
    known = torch.zeros(4, 1, SIZE, SIZE)
    known[:, :, :, : SIZE // 2] = 1
    x = draw()
    condition = model.condition(model.encode(x), flags_of(label=KNOWN), known)
    z = torch.randn(4, *model.z_shape, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(4, *model.z_shape, generator=torch.Generator().manual_seed(4))
    where = model.channels.place("label", torch.ones(1, model.modalities["label"].z_channels, *z.shape[2:]))
    where = where + model.coverage(known)
    plain = model(z, torch.zeros(4), condition)
    under = model(z + noise * where, torch.zeros(4), condition)
    beside = model(z + noise * (1 - where), torch.zeros(4), condition)
    for name in plain:
        assert torch.equal(plain[name], under[name])
        assert not torch.equal(plain[name], beside[name])
    before = lively_model(tiny_config())
    changed = before(z + noise * where, torch.zeros(4), condition)["image"]
    assert not torch.equal(before(z, torch.zeros(4), condition)["image"], changed)
    with pytest.raises(ValueError, match="channels of their own"):
        tiny_config(in_place=True, channels="shared")
