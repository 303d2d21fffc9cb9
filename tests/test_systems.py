"""Compared systems: what each trains on, counted in its draws, and that every example has a loss."""

import dataclasses

import pytest
import torch
from synthetic import read_shapes, tiny_config, tiny_train_config

from benchmarks.questions import QUESTIONS, Setting, in_turn, whole_photos
from benchmarks.study import CPU, fingerprint, optim_with, tasks_with
from benchmarks.systems import (
    ClassConditional,
    EveryExample,
    MaskedAutoencoder,
    NoisyClassifier,
    Reconstruction,
    draw_known_patches,
    fine_tuned,
    restricted,
)
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.schedule import LEVEL_MIN
from mmdiff.training.trainer import Trainer

SHARES = {
    "joint": 0.4,
    "given": 0.35,
    "holes": 0.6,
    "reading": 0.5,
    "only_reading": 0.12,
    "other_leads": 0.25,
}
SYSTEMS = {f"{q}: {name}": system for q, systems in QUESTIONS.items() for name, system in systems.items()}
LEARNING = {name: system for name, system in SYSTEMS.items() if system.learns}


@pytest.fixture(scope="module")
def base():
    """The shares of the small configuration of butterflies, on a tiny network."""
    config = dataclasses.replace(tiny_train_config(images=16), model=tiny_config(core="levels"))
    return tasks_with(**SHARES)(config)


@pytest.fixture(scope="module")
def examples(base, shapes, embedder):
    return read_shapes(shapes, base, embedder)


def drawn(system, base, examples, times=40):
    """A trainer of the system, and a draw of every one of its examples so many times."""
    config = system.configured(16, Setting()).change(base)
    given = restricted(examples, ("image", *system.used))
    if system.annotated:
        given = given.take(given.present[system.annotated].nonzero()[:, 0])
    trainer = system.trainer(config, given, CPU)
    rows = torch.arange(len(given)).repeat(times)
    return trainer, trainer.draw(given, rows, trainer.generator(0), augment=True)


def without_a_loss(draw):
    """Examples in which nothing is scored, counted one by one."""
    count = 0
    for k in range(len(draw.flags)):
        scored = [i for i in range(draw.flags.shape[1]) if draw.flags[k, i] == UNKNOWN and draw.present[k, i]]
        hidden = int((draw.known[k] == 0).sum())
        count += not (set(scored) - {0} or (0 in scored and hidden))
    return count


@pytest.mark.parametrize("name", list(LEARNING))
def test_every_example_carries_a_loss(name, base, examples):
    assert without_a_loss(drawn(LEARNING[name], base, examples)[1]) == 0


def test_ours_as_it_is_trained_otherwise_has_examples_without_a_loss(base, examples):
    trainer = Trainer(base, examples, CPU)
    draw = trainer.draw(examples, torch.arange(24).repeat(40), trainer.generator(0), augment=True)
    lost = without_a_loss(draw)
    assert 0 < lost < 0.1 * len(draw.flags)
    kept = EveryExample(base, examples, CPU)
    mended = kept.draw(examples, torch.arange(24).repeat(40), kept.generator(0), augment=True)
    changed = (mended.flags != draw.flags).any(1) | (mended.known != draw.known).flatten(1).any(1)
    assert int(changed.sum()) == lost, "nothing else is changed"


@pytest.mark.parametrize("name", [name for name, system in LEARNING.items() if not system.used])
def test_systems_of_photos_alone_predict_pixels_in_every_example(name, base, examples):
    _, draw = drawn(LEARNING[name], base, examples)
    assert draw.supervised[:, 0].all() and not draw.supervised[:, 1:].any()
    assert (draw.flags[:, 1:] == ABSENT).all() and (draw.flags[:, 0] == UNKNOWN).all()
    hidden = (draw.known == 0).flatten(1).sum(1)
    assert hidden.min() > 0, "no whole photo is ever given"
    holed = float((hidden < draw.known[0].numel()).double().mean())
    if "RePaint" in name or "embedding" in name or "guidance" in name:
        assert holed == 0
    elif "augmentation" in name or "many_in_one" in name:
        assert abs(holed - 0.5) < 0.05
    else:
        assert holed > 0.95


@pytest.mark.parametrize("name", [name for name, system in LEARNING.items() if system.annotated])
def test_readers_see_whole_annotated_photos(name, base, examples):
    system = LEARNING[name]
    trainer, draw = drawn(system, base, examples)
    own = trainer.model.names.index(system.annotated)
    assert len(trainer.batches.examples) == int(examples.present[system.annotated].sum())
    assert (draw.known == 1).all() and (draw.flags[:, 0] == KNOWN).all() and (draw.levels == LEVEL_MIN).all()
    assert (draw.flags[:, own] == UNKNOWN).all() and draw.supervised.sum() == len(draw.flags)
    weights = {m.name: m.loss_weight for m in trainer.config.model.modalities}
    assert weights.pop(system.annotated) == 1 and set(weights.values()) == {0}


def test_pairs_use_what_they_are_named_after(base, examples):
    for name in ("mask", "label", "embedding"):
        trainer, draw = drawn(QUESTIONS["many_in_one"][f"photo and {name}"], base, examples)
        own = trainer.model.names.index(name)
        rest = [i for i in (1, 2, 3) if i != own]
        assert (draw.flags[:, rest] == ABSENT).all() and len(draw.flags[:, own].unique()) == 3
        assert draw.flags[:, own].ne(ABSENT).any()


def test_unused_modalities_have_no_lead(base):
    led = dataclasses.replace(
        base.model,
        modalities=tuple(
            dataclasses.replace(m, lead=0.3 * (m.name != "image")) for m in base.model.modalities
        ),
    )
    base = dataclasses.replace(base, model=led)
    for name, system in LEARNING.items():
        config = system.configured(100, Setting()).change(base)
        led = {m.name for m in config.model.modalities if m.lead}
        silent = {"embedding"} if "not lead" in name else set()
        assert led == set(system.used) - silent


def test_a_setting_changes_rate_and_weights_alone(base):
    system = QUESTIONS["many_in_one"]["ours"]
    plain = system.configured(400, Setting()).change(base)
    other = system.configured(400, Setting(rate=0.5, weight=4.0)).change(base)
    assert other.optim == dataclasses.replace(plain.optim, lr=plain.optim.lr / 2)
    pairs = list(zip(plain.model.modalities, other.model.modalities, strict=True))
    assert [b.loss_weight / a.loss_weight for a, b in pairs] == [1, 4, 4, 4]
    assert plain.optim.images == 400 and all(len(s.settings_tried) == 3 for s in LEARNING.values())


@pytest.mark.parametrize("trainer", [Reconstruction, MaskedAutoencoder])
def test_one_call_sees_nothing_of_what_is_hidden(trainer, base, examples):
    system = next(s for s in LEARNING.values() if s.trainer is trainer)
    made, draw = drawn(system, base, examples, times=2)
    model, names = made.model.eval(), made.model.names
    outputs = []
    for seed in (0, 1):  # other noise, other hidden pixels
        noise = torch.randn(draw.noise.shape, generator=torch.Generator().manual_seed(seed))
        photo = torch.where(draw.known == 1, draw.x["image"], float(seed))
        e = {
            n: v * draw.present[:, names.index(n), None, None, None]
            for n, v in model.encode(draw.x | {"image": photo}).items()
        }
        seen = model.condition(e, draw.flags, draw.known, photo)
        with torch.no_grad():
            outputs.append(model(made.objective.noisy(e, draw.levels, noise), draw.levels, seen)["image"])
    hidden = (draw.known == 0).expand_as(outputs[0])
    assert torch.allclose(outputs[0][hidden], outputs[1][hidden], atol=1e-6)


def test_a_masked_autoencoder_sees_a_quarter_of_the_patches(base, examples):
    known = draw_known_patches(400, 32, 8, torch.Generator().manual_seed(0))
    patches = known.view(400, 4, 8, 4, 8).transpose(2, 3).flatten(3)
    assert known.shape == (400, 1, 32, 32) and (patches == patches[..., :1]).all()  # whole or not at all
    assert (patches[..., 0].sum((1, 2)) == 4).all()
    # each of the 16 is shown in a quarter of 400 photos: 100, standard deviation 8.7
    assert (patches[..., 0].sum(0) - 100).abs().max() < 40
    _, draw = drawn(SYSTEMS["masked_pretraining: masked autoencoder"], base, examples, times=2)
    assert (draw.known.mean((1, 2, 3)) == 0.25).all()


def test_labels_are_given_but_for_a_tenth(base, examples):
    system = next(s for s in LEARNING.values() if s.trainer is ClassConditional)
    trainer, draw = drawn(system, base, examples, times=200)
    label = trainer.model.names.index("label")
    has = draw.present[:, label]
    assert abs((draw.flags[has, label] == KNOWN).double().mean() - 0.9) < 0.02
    assert set(draw.flags[:, label].tolist()) == {KNOWN, ABSENT} and (draw.flags[~has, label] == ABSENT).all()
    assert (draw.known == 0).all() and draw.supervised[:, 0].all() and not draw.supervised[:, 1:].any()


def test_a_classifier_of_noisy_photos_never_sees_the_label(base, examples):
    system = QUESTIONS["image_and_label"]["classifier guidance"].reader
    made, draw = drawn(system, base, examples, times=4)
    label = made.model.names.index("label")
    assert draw.supervised[:, label].all() and (draw.levels[:, label] == LEVEL_MIN).all()
    assert len(draw.levels[:, 0].unique()) > 50 and draw.levels[:, 0].std() > 3  # noisy photos of all kinds
    assert [m.loss_weight for m in made.config.model.modalities] == [0, 0, 1, 0]
    model = made.model.eval()
    outputs = []
    for shift in (0, 1):
        x = draw.x | {"label": (draw.x["label"] + shift) % 4}
        e = model.encode(x)
        with torch.no_grad():
            noisy = made.objective.noisy(e, draw.levels, draw.noise)
            outputs.append(model(noisy, draw.levels, model.condition(e, draw.flags, draw.known, x["image"])))
    assert torch.equal(outputs[0]["label"], outputs[1]["label"])


def test_what_is_not_used_is_taken_away(examples):
    kept = restricted(examples, ("image", "label"))
    assert not kept.present["mask"].any() and not kept.present["embedding"].any()
    assert torch.equal(kept.present["label"], examples.present["label"])
    assert examples.present["mask"].any(), "the examples themselves stay as they are"


def test_fine_tuning_starts_from_the_averaged_weights(base, examples):
    before = EveryExample(base, examples, CPU)
    for _ in range(3):
        before.train_step()
    still = in_turn((whole_photos, optim_with(lr=0.0, images=16)), base)
    after = fine_tuned(before, still, examples)
    assert after.images == 16
    weights = before.ema.model.state_dict()
    for model in (after.model, after.ema.model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)


def test_what_is_trained_otherwise_has_another_fingerprint(base, examples):
    relabelled = examples.take(torch.arange(len(examples)))
    relabelled.stored["label"] = relabelled.stored["label"].roll(1)
    runs = [
        (EveryExample, base, examples),
        (Reconstruction, base, examples),
        (NoisyClassifier, base, examples),
        (EveryExample, optim_with(seed=1)(base), examples),
        (EveryExample, base, examples.take(torch.arange(1, len(examples)))),
        (EveryExample, base, relabelled),
        (EveryExample, base, restricted(examples, ("image",))),
    ]
    assert len({fingerprint(*run) for run in runs}) == 7 and fingerprint(*runs[0]) == fingerprint(*runs[0])
