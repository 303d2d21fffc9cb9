"""What an example with levels shows in training, and its loss, against plain formulas and counts."""

import dataclasses
import math

import pytest
import scipy.fft
import torch
from synthetic import WordEmbedder, make_rows, read_shapes, tiny_config, write_parquet

from mmdiff.checkpoint import build_model
from mmdiff.config import DataConfig, OptimConfig, TaskConfig, TrainConfig
from mmdiff.frequencies import frequency_weights
from mmdiff.losses import level_weight
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.schedule import LEVEL_MAX, LEVEL_MIN
from mmdiff.training.objective import LevelObjective
from mmdiff.training.trainer import Trainer

torch.set_num_threads(1)

CPU = torch.device("cpu")
LEADS = {"mask": 0.25, "label": 0.5, "embedding": 0.5}


def configuration(**tasks) -> TrainConfig:
    model = tiny_config(core="levels", stem_depth=1)
    modalities = tuple(dataclasses.replace(m, lead=LEADS.get(m.name, 0.0)) for m in model.modalities)
    model = dataclasses.replace(model, modalities=modalities)
    optim = OptimConfig(images=64, batch_size=8, warmup_images=16, save_every_images=32)
    return TrainConfig(model, DataConfig(margin=2), TaskConfig(**tasks), optim)


def objective_of(config: TrainConfig) -> LevelObjective:
    torch.manual_seed(0)
    return LevelObjective(build_model(config.model), config, CPU)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    path = write_parquet(tmp_path_factory.mktemp("shapes") / "shapes.parquet", make_rows(24))
    return read_shapes(path, configuration(), WordEmbedder())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_levels_are_those_of_the_leads_at_one_time():
    """Solved for its clock, every modality's level tells the same time u."""
    levels = objective_of(configuration()).draw_levels(4000, seeded())
    tau = 2 / math.pi * torch.atan(torch.exp(-levels.double() / 2))
    u = (tau + torch.tensor([0.0, *LEADS.values()])) / 1.5
    inside = ((levels > LEVEL_MIN + 0.1) & (levels < LEVEL_MAX - 0.1)).double()
    both = inside.sum(1) >= 2
    spread = (u - (u * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True)).abs() * inside
    assert both.sum() > 500 and spread[both].max() < 1e-3


def test_half_of_the_times_are_such_that_the_photo_is_being_made():
    """Uniform times would be in the photo's two thirds of the run; half of all are drawn from there alone."""
    levels = objective_of(configuration()).draw_levels(20_000, seeded())
    making = (levels[:, 0] > LEVEL_MIN).double().mean().item()
    assert making == pytest.approx(0.5 + 0.5 / 1.5, abs=0.02)


def test_some_examples_have_other_leads():
    objective = objective_of(configuration(other_leads=0.5))
    levels = objective.draw_levels(4000, seeded())
    photo_first = (levels[:, 0] > levels[:, 2] + 0.5) & (levels[:, 0] < LEVEL_MAX)
    assert 0.05 < photo_first.double().mean() < 0.5
    levels = objective_of(configuration()).draw_levels(4000, seeded())
    assert not ((levels[:, 0] > levels[:, 2] + 0.5) & (levels[:, 0] < LEVEL_MAX)).any()


def test_reading_has_no_levels_and_the_whole_photo(examples):
    objective = objective_of(configuration(only_reading=1.0))
    draw = objective.draw(examples, torch.arange(24), seeded(), augment=True)
    assert (draw.levels == LEVEL_MIN).all() and (draw.flags[:, 0] == KNOWN).all() and (draw.known == 1).all()
    assert not (draw.flags[:, 1:] == KNOWN).any()


def test_blocks_are_the_encodings_under_the_noise_of_their_levels(examples):
    objective = objective_of(configuration())
    model = objective.model
    draw = objective.draw(examples, torch.arange(24), seeded(), augment=False)
    e = model.encode(draw.x)
    z = objective.noisy(e, draw.levels, draw.noise)
    for i, name in enumerate(model.names):
        signal = (1 / (1 + torch.exp(-draw.levels[:, i])))[:, None, None, None]
        block, noise, own = (model.channels.take(name, v) for v in (z, draw.noise, e[name]))
        expected = signal.sqrt() * own + (1 - signal).sqrt() * noise
        torch.testing.assert_close(block, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_perfect_prediction_is_zero_and_holes_alone_have_one(examples):
    objective = objective_of(configuration())
    draw = objective.draw(examples, torch.arange(24), seeded(), augment=False)
    half = torch.zeros_like(draw.known)
    half[..., :8, :] = 1
    flags = torch.full_like(draw.flags, UNKNOWN).where(draw.present, torch.tensor(ABSENT))
    draw = dataclasses.replace(draw, known=half, flags=flags)
    photo = draw.x["image"]
    raw = {
        "image": photo.clone(),
        "mask": torch.nn.functional.one_hot(draw.x["mask"], 2).permute(0, 3, 1, 2) * 50.0,
        "label": torch.nn.functional.one_hot(draw.x["label"], 4) * 50.0,
        "embedding": draw.x["embedding"].clone(),
    }
    terms = objective.losses(lambda *_: raw, draw)
    assert all(term.item() == pytest.approx(0, abs=1e-6) for term in terms.values())
    raw["image"] = photo + 3 * half  # wrong where it is known
    assert objective.losses(lambda *_: raw, draw)["L1"] == 0
    raw["image"] = photo + 0.5 * (1 - half)
    expected = (level_weight(draw.levels[:, 0], 5.0) * 0.25 / 2).mean()
    torch.testing.assert_close(objective.losses(lambda *_: raw, draw)["L1"], expected)


def test_parts_of_a_batch_add_up(examples):
    """Losses of two halves with the whole batch's counts are the whole's."""
    objective = objective_of(configuration())
    objective.model.eval()
    draw = objective.draw(examples, torch.arange(24), seeded(), augment=True)
    whole = objective.losses(objective.model, draw)
    counts = draw.supervised.sum(0)
    parts = [objective.losses(objective.model, part, counts) for part in draw.split(2)]
    for name, value in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_training_lowers_every_term(examples):
    config = configuration(reading=0.5, other_leads=0.25)
    optim = dataclasses.replace(config.optim, images=1600, batch_size=16, lr=3e-3, warmup_images=64)
    trainer = Trainer(dataclasses.replace(config, optim=optim), examples, CPU)
    before = trainer.validate(examples)
    trainer.ema.decay = 0.9
    for _ in range(100):
        trainer.train_step()
    after = trainer.validate(examples)
    assert all(after[name] < 0.9 * before[name] for name in before), (before, after)


def test_weights_of_frequencies_are_those_of_the_photos_levels(examples):
    """Against SciPy's transform of the hidden errors, photo by photo."""
    base = configuration()
    objective = objective_of(dataclasses.replace(base, optim=dataclasses.replace(base.optim, coarse=0.5)))
    objective.model.eval()
    draw = objective.draw(examples, torch.arange(24), seeded(), augment=False)
    photo, found = draw.x["image"], {}
    error = torch.randn(photo.shape, generator=seeded())

    def net(*inputs):
        found.update(objective.model(*inputs))
        return found | {"image": photo + error}

    term = objective.losses(net, draw)["L1"]
    coefficients = scipy.fft.dctn((error * (1 - draw.known)).numpy(), axes=(2, 3), norm="ortho")
    levels = draw.levels[:, 0]
    weights = (
        frequency_weights(levels, photo.shape[-1], 0.5)[:, None]
        * level_weight(levels, 5.0)[:, None, None, None]
    )
    errors = (torch.from_numpy(coefficients) ** 2 * weights).mean((1, 2, 3))
    torch.testing.assert_close(term, errors[draw.supervised[:, 0]].mean())
