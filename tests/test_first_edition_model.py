"""The model as a map of z_t, the time and what is given: what it sees, and what it must not see."""

import pytest
import torch
from synthetic import CLASSES, DIM, SIZE, lively_model, tiny_config

from mmdiff.first_edition.convolutions import Stem
from mmdiff.first_edition.model import LOG_SNR_LIMIT
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.first_edition.transformer import timestep_embedding
from mmdiff.forward_process import q_sample
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.network.transformer import position_table
from mmdiff.schedule import log_snr

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
    return q_sample(schedule, z0, t, e, normal(4, *model.z_shape))


def test_outputs_have_the_shapes_of_the_heads(model, state):
    condition = model.condition({}, flags_of(), pixels())
    raw = model(state, torch.zeros(4), condition)
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
    assert (used.sum(0) == 1).all()  # every channel belongs to exactly one modality
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


def test_outputs_of_a_new_model_are_near_zero(state):
    """Heads start near zero, so that training starts from a known function."""
    torch.manual_seed(0)
    model = MultiModalDiffusion(tiny_config())
    raw = model(state, torch.zeros(4), model.condition({}, flags_of(), pixels()))
    assert all(value.abs().max() < 0.2 for value in raw.values())


@pytest.mark.parametrize("given", NAMES)
@pytest.mark.parametrize("output", NAMES)
def test_every_output_depends_on_everything_that_is_given(model, state, given, output):
    known = pixels(value=float(given == "image"))
    raw = []
    for seed in (0, 1):
        value = draw(seed=seed)[given]
        condition = model.condition(model.encode({given: value}), flags_of(**{given: KNOWN}), known)
        raw.append(model(state, torch.zeros(4), condition)[output])
    changed = (draw(seed=0)[given] != draw(seed=1)[given]).reshape(4, -1).any(1)
    assert ((raw[0] - raw[1]).flatten(1).abs().amax(1) > 1e-6)[changed].all() and changed.any()


def test_outputs_depend_on_time_flags_and_known_map(model, state):
    def label(level=0.0, known=0.0, **states):
        condition = model.condition({}, flags_of(**states), pixels(value=known))
        return model(state, torch.full((4,), level), condition)["label"]

    for other in (label(2.0), label(known=1.0), label(mask=ABSENT), label(embedding=KNOWN)):
        assert (other - label()).abs().max() > 1e-5


def test_extreme_times_are_finite(model, state):
    condition = model.condition({}, flags_of(), pixels())
    for level in (-float("inf"), -1e4, 1e4, float("inf")):
        raw = model(state, torch.full((4,), level), condition)
        assert all(value.isfinite().all() for value in raw.values())


def test_what_is_not_flagged_known_does_not_enter(model, state):
    flags = flags_of(mask=UNKNOWN, label=ABSENT, embedding=UNKNOWN)
    conditions = [model.condition(model.encode(draw(seed=s)), flags, pixels()) for s in (0, 1)]
    raw = [model(state, torch.zeros(4), condition) for condition in conditions]
    assert all(torch.equal(raw[0][name], raw[1][name]) for name in NAMES)


def test_the_anchor_enters_pixel_by_pixel(model, state):
    """Only pixels of the known map reach the network, and each of them does."""
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    flags = flags_of()
    photo = draw()["image"]

    def raw(image):
        condition = model.condition(model.encode({"image": image}), flags, known)
        return model(state, torch.zeros(4), condition)["image"]

    hidden_changed = torch.where(known > 0, photo, -photo)
    assert torch.equal(raw(photo), raw(hidden_changed))
    photo.requires_grad_(True)
    raw(photo).square().sum().backward()
    assert ((photo.grad != 0).all(1, keepdim=True) == (known > 0)).all()


def test_examples_do_not_see_each_other(model, state):
    condition = model.condition(model.encode(draw()), flags_of(label=KNOWN), pixels())
    together = model(state, torch.zeros(4), condition)
    for k in range(4):
        one = {name: value[k : k + 1] for name, value in draw().items()}
        alone = model.condition(model.encode(one), flags_of(1, label=KNOWN), pixels(1))
        raw = model(state[k : k + 1], torch.zeros(1), alone)
        for name in NAMES:
            torch.testing.assert_close(raw[name], together[name][k : k + 1], atol=1e-5, rtol=1e-5)


# -- predictions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [3, 600, 990])
def test_given_modalities_keep_their_true_encodings(model, state, t):
    schedule, e = model.make_schedule(), model.encode(draw())
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    condition = model.condition(e, flags_of(mask=KNOWN, label=ABSENT), known)
    clean, _ = model.denoiser(schedule, condition)(state, t)
    assert tuple(clean) == NAMES and all(value.shape == state.shape for value in clean.values())
    assert torch.equal(clean["mask"], e["mask"])  # given: the true encoding
    assert (clean["label"] == 0).all()  # ignored: none
    raw = model(*model.call_at(schedule, state, t, condition))
    expected = model.modalities["embedding"].expected_encoding(raw["embedding"])
    assert torch.equal(clean["embedding"], model.channels.place("embedding", expected))  # the head's
    photo = torch.nn.functional.pixel_shuffle(clean["image"][:, : 3 * 16], 4)
    assert torch.equal(torch.where(known > 0, photo, 0), torch.where(known > 0, draw()["image"], 0))
    assert (photo != draw()["image"])[(known == 0).expand_as(photo)].all()


def test_encodings_from_elsewhere_get_what_is_given_in_the_same_way(model):
    """`with_given` alone, as at a change of conditions: what is generated stays as it is."""
    true, other = model.encode(draw()), model.encode(draw(seed=1))
    known = torch.rand(4, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).round()
    condition = model.condition(true, flags_of(mask=KNOWN, label=ABSENT), known)
    before = dict(other)
    e = model.with_given(other, condition)
    assert torch.equal(e["mask"], true["mask"]) and (e["label"] == 0).all()
    assert torch.equal(e["embedding"], other["embedding"])
    mixed = model.encode({"image": torch.where(known > 0, draw()["image"], draw(seed=1)["image"])})["image"]
    assert torch.equal(e["image"], mixed)
    assert all(other[name] is before[name] for name in NAMES)


def test_predictions_are_those_of_the_heads_and_made_when_first_read(model, state, monkeypatch):
    schedule, condition = model.make_schedule(), model.condition({}, flags_of(), pixels())
    made = []
    for name, modality in model.modalities.items():
        predict = modality.predict
        monkeypatch.setattr(
            modality, "predict", lambda raw, name=name, predict=predict: made.append(name) or predict(raw)
        )
    _, predictions = model.denoiser(schedule, condition)(state, 500)
    assert tuple(predictions) == NAMES
    made.clear()  # those that the encodings needed
    label = predictions["label"]
    assert made == ["label"] and predictions["label"] is label
    raw = model(*model.call_at(schedule, state, 500, condition))
    assert torch.equal(label, raw["label"].softmax(1))


@pytest.mark.parametrize("t", [3, 600, 990])
def test_denoised_samples_do_not_depend_on_their_batch(model, state, t):
    schedule = model.make_schedule()
    together, _ = model.denoiser(schedule, model.condition({}, flags_of(), pixels()))(state, t)
    denoise = model.denoiser(schedule, model.condition({}, flags_of(1), pixels(1)))
    for k in range(4):
        alone, _ = denoise(state[k : k + 1], t)
        for name in NAMES:
            torch.testing.assert_close(alone[name], together[name][k : k + 1], atol=1e-5, rtol=1e-5)
    assert not any(encoding.requires_grad for encoding in together.values())


def test_the_network_gets_the_log_snr_of_the_time(model, state):
    schedule, condition = model.make_schedule(), model.condition({}, flags_of(), pixels())
    table = log_snr(schedule.log_abar).float()
    for t in (1, 200, 600, 990, 1000):
        z, level, seen = model.call_at(schedule, state, t, condition)
        assert torch.equal(z, state) and seen is condition
        assert level.dtype == torch.float32 and level.shape == (4,)
        assert (level == table[t].clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)).all()
    denoise = model.denoiser(schedule, condition)
    early, late = (denoise(state, t)[0] for t in (200, 600))
    assert all((early[name] - late[name]).abs().max() > 1e-5 for name in NAMES)


# -- parts -------------------------------------------------------------------------------------------


def test_embeddings_of_times_and_positions_differ():
    times = timestep_embedding(torch.linspace(-15, 15, 400), 32)
    places = position_table(6, 32)
    assert times.shape == (400, 32) and places.shape == (36, 32)
    assert torch.pdist(times).min() > 1e-2 and torch.pdist(places).min() > 1e-2
    assert max(times.abs().max(), places.abs().max()) <= 1


def test_a_new_stem_adds_nothing(state):
    plain = lively_model(tiny_config())
    stemmed = MultiModalDiffusion(tiny_config(stem_depth=2)).eval()
    lacking, unknown = stemmed.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and lacking and all(name.startswith("backbone.stem.") for name in lacking)
    condition = plain.condition({}, flags_of(), pixels())
    before, after = (model(state, torch.zeros(4), condition) for model in (plain, stemmed))
    assert all(torch.equal(before[name], after[name]) for name in NAMES)
    torch.nn.init.normal_(stemmed.backbone.stem.leave.weight)
    after = stemmed(state, torch.zeros(4), condition)
    assert not any(torch.allclose(before[name], after[name]) for name in NAMES)


def test_a_stem_is_translation_equivariant():
    """A picture that moves by one patch moves its tokens by one, without any table of positions."""
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


def test_in_place_the_noise_under_known_entries_changes_nothing():
    """With `in_place` the clean encodings stand there; elsewhere noise does change the outputs."""
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
