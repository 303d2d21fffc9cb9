"""The switches of the ablation study: what each changes, and that the default is what checkpoints hold."""

import dataclasses

import pytest
import torch
from synthetic import SIZE, lively_model, read_shapes, tiny_config, tiny_train_config

from mmdiff.checkpoint import load_checkpoint, save_checkpoint
from mmdiff.config import ModelConfig, from_dict, to_dict
from mmdiff.forward_process import q_sample
from mmdiff.model import ABSENT, KNOWN, UNKNOWN, MultiModalDiffusion
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import Prediction, SampleNoise, sample_ddim
from mmdiff.training.masking import Condition
from mmdiff.training.trainer import Trainer

SWITCHES = {
    "shared channels": {"channels": "shared"},
    "no flags": {"flags": False},
    "self-conditioning": {"self_conditioning": True},
}
CPU = torch.device("cpu")


def values(model: MultiModalDiffusion, count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Data-space values of every modality."""
    g = torch.Generator().manual_seed(seed)
    vector = torch.randn(count, *model.modalities["embedding"].shape, generator=g)
    return {
        "image": torch.rand(count, 3, SIZE, SIZE, generator=g) * 2 - 1,
        "mask": torch.randint(2, (count, SIZE, SIZE), generator=g),
        "label": torch.randint(4, (count,), generator=g),
        "embedding": torch.nn.functional.normalize(vector, dim=1),
    }


def nothing_given(model: MultiModalDiffusion, count: int = 3, flag: int = UNKNOWN):
    flags = torch.full((count, 4), UNKNOWN)
    flags[:, 1:] = flag
    return model.condition({}, flags, torch.zeros(count, 1, SIZE, SIZE))


def noise(model: MultiModalDiffusion, count: int = 3) -> torch.Tensor:
    return SampleNoise(list(range(count)))(model.z_shape)


# -- the default -------------------------------------------------------------------------------------


def block(name: str, skip: bool, width: int = 32, head: int = 16) -> dict[str, tuple[int, ...]]:
    shapes = {
        "modulation": (6, width),
        "qkv.weight": (3 * width, width),
        "qkv.bias": (3 * width,),
        "query_norm.weight": (head,),
        "key_norm.weight": (head,),
        "out.weight": (width, width),
        "out.bias": (width,),
        "up.weight": (4 * width, width),
        "up.bias": (4 * width,),
        "down.weight": (width, 4 * width),
        "down.bias": (width,),
    }
    if skip:
        shapes |= {"skip.weight": (width, 2 * width), "skip.bias": (width,)}
    return {f"backbone.{name}.{key}": shape for key, shape in shapes.items()}


def test_the_default_has_the_weights_that_trained_checkpoints_hold():
    """Written out, because a checkpoint that is no longer loaded is worse than a long test."""
    z = 48 + 16 + 3 + 8  # channels of image, mask, label and embedding
    expected = {
        "modalities.mask.codes": (2, 1),
        "modalities.label.codes": (4, 3),
        "modalities.embedding.projection": (8, 8),
        "backbone.embed.weight": (32, 2 * z + 16),
        "backbone.embed.bias": (32,),
        "backbone.positions": (16, 32),
        "backbone.registers": (4, 32),
        "backbone.time.0.weight": (32, 32),
        "backbone.time.0.bias": (32,),
        "backbone.time.2.weight": (32, 32),
        "backbone.time.2.bias": (32,),
        "backbone.flags": (4, 3, 32),
        "backbone.pooled.weight": (32, 2 * z),
        "backbone.pooled.bias": (32,),
        "backbone.modulation.weight": (192, 32),
        "backbone.modulation.bias": (192,),
        "backbone.norm.weight": (32,),
        "backbone.norm.bias": (32,),
        "backbone.refiner.expand.weight": (32, 32),
        "backbone.refiner.expand.bias": (32,),
        "backbone.refiner.enter.weight": (8, 8 + 4 * 9, 3, 3),
        "backbone.refiner.enter.bias": (8,),
        "backbone.refiner.middle.weight": (8, 8, 3, 3),
        "backbone.refiner.middle.bias": (8,),
        "backbone.refiner.leave.weight": (8, 8, 3, 3),
        "backbone.refiner.leave.bias": (8,),
        "backbone.refiner.modulate.weight": (16, 32),
        "backbone.refiner.modulate.bias": (16,),
        "heads.image.conv.weight": (12, 8, 3, 3),
        "heads.image.conv.bias": (12,),
        "heads.mask.conv.weight": (8, 8, 3, 3),
        "heads.mask.conv.bias": (8,),
        "heads.label.mlp.0.weight": (32, 32),
        "heads.label.mlp.0.bias": (32,),
        "heads.label.mlp.2.weight": (4, 32),
        "heads.label.mlp.2.bias": (4,),
        "heads.embedding.mlp.0.weight": (32, 32),
        "heads.embedding.mlp.0.bias": (32,),
        "heads.embedding.mlp.2.weight": (8, 32),
        "heads.embedding.mlp.2.bias": (8,),
    }
    expected |= block("early.0", skip=False) | block("early.1", skip=False) | block("late.0", skip=True)
    state = MultiModalDiffusion(tiny_config()).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_a_configuration_that_knows_no_switches_gets_the_default():
    older = to_dict(tiny_config())
    for name in ("channels", "flags", "self_conditioning"):
        del older[name]
    assert from_dict(ModelConfig, older) == from_dict(ModelConfig, to_dict(tiny_config()))
    default = tiny_config()
    assert (default.channels, default.flags, default.self_conditioning) == ("own", True, False)


def test_a_run_saved_before_the_switches_can_go_on(shapes, embedder, tmp_path, monkeypatch):
    config = tiny_train_config()
    examples = read_shapes(shapes, config, embedder)
    older = to_dict(config.model)
    for name in ("channels", "flags", "self_conditioning"):
        del older[name]
    trainer = Trainer(config, examples, CPU)
    trainer.train_step()
    with monkeypatch.context() as before:
        before.setattr(trainer, "_identity", lambda: older)
        trainer.save_state(tmp_path / "state.safetensors")
    resumed = Trainer(config, examples, CPU)
    resumed.load_state(tmp_path / "state.safetensors")
    assert resumed.step == 1


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="'own' or 'shared'"):
        tiny_config(channels="mixed")


# -- every switch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", SWITCHES.values(), ids=SWITCHES)
def test_every_switch_trains_saves_and_samples(options, shapes, embedder, tmp_path):
    config = dataclasses.replace(tiny_train_config(), model=tiny_config(**options))
    trainer = Trainer(config, read_shapes(shapes, config, embedder), CPU)
    losses = [trainer.train_step()["total"] for _ in range(3)]
    assert torch.stack(losses).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.model.parameters())
    save_checkpoint(trainer.ema.model, tmp_path)
    pipe = Pipeline(load_checkpoint(tmp_path), CPU, embedder)
    out = pipe(given={"label": 1}, wanted=("image", "mask", "embedding"), steps=3, guidance_scale=2.0)
    assert out.image[0].size == (SIZE, SIZE) and out.mask.shape == (1, SIZE, SIZE)


@pytest.mark.parametrize("options", SWITCHES.values(), ids=SWITCHES)
def test_with_every_switch_sample_k_is_its_own(options, embedder):
    pipe = Pipeline(lively_model(tiny_config(**options)), CPU, embedder)
    together = pipe(wanted=("image", "mask", "label", "embedding"), steps=4, seed=5, num_samples=3)
    alone = pipe(wanted=("image", "mask", "label", "embedding"), steps=4, seed=7)
    torch.testing.assert_close(
        torch.from_numpy(together.embedding[2]), torch.from_numpy(alone.embedding[0]), atol=1e-4, rtol=1e-4
    )


# -- channels ----------------------------------------------------------------------------------------


def test_shared_channels_keep_norms_and_can_be_undone():
    model = lively_model(tiny_config(channels="shared"))
    x = values(model)
    sizes = {name: m.z_channels for name, m in model.modalities.items()}
    assert model.z_shape == (max(sizes.values()), 4, 4)
    for name, placed in model.encode(x).items():
        own = model.modalities[name].encode(x[name])
        torch.testing.assert_close(placed.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
        torch.testing.assert_close(model.channels.take(name, placed), own, atol=1e-4, rtol=1e-4)


def test_shared_channels_overlap_and_the_anchor_lies_in_them_as_it_is():
    model = lively_model(tiny_config(channels="shared"))
    x = values(model, 20)
    e = model.encode(x)
    used = torch.stack([(v.abs() > 1e-6).any(0).any(-1).any(-1) for v in e.values()])
    assert used.all()
    assert torch.equal(e["image"], model.modalities["image"].encode(x["image"]))


def test_shared_channels_hold_an_anchor_smaller_than_another_modality():
    """Known pixels come back exactly also where Z has more channels than the image."""
    config = tiny_config(("image", "embedding"), channels="shared")
    large = dataclasses.replace(config.modalities[1], options={"dim": 64})
    model = lively_model(dataclasses.replace(config, modalities=(config.modalities[0], large)))
    assert model.z_channels == 64
    photo = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    condition = model.condition(
        model.encode({"image": photo}), torch.tensor([[KNOWN, UNKNOWN]] * 2), torch.ones(2, 1, SIZE, SIZE)
    )
    prediction = model.denoiser(model.make_schedule(), condition)(noise(model, 2), torch.tensor([10, 900]))
    there = model.channels.take("image", prediction.z0)
    torch.testing.assert_close(there, model.modalities["image"].encode(photo))


# -- flags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [True, False])
def test_flags_reach_the_network_only_if_switched_on(flags):
    model = lively_model(tiny_config(flags=flags))
    z, log_snr = noise(model), torch.zeros(3)
    raw = [model(z, log_snr, nothing_given(model, flag=flag))["image"] for flag in (UNKNOWN, ABSENT)]
    assert torch.equal(*raw) != flags


def test_without_flags_the_encodings_still_tell_what_is_given():
    model = lively_model(tiny_config(flags=False))
    x, flags = values(model), torch.full((3, 4), UNKNOWN)
    flags[:, 2] = KNOWN
    given = model.condition(model.encode({"label": x["label"]}), flags, torch.zeros(3, 1, SIZE, SIZE))
    z, log_snr = noise(model), torch.zeros(3)
    raw = [model(z, log_snr, c)["image"] for c in (given, nothing_given(model))]
    assert (raw[0] - raw[1]).abs().max() > 1e-5


# -- self-conditioning -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recurrent() -> MultiModalDiffusion:
    return lively_model(tiny_config(self_conditioning=True))


def chain(model: MultiModalDiffusion, z: torch.Tensor, times: list[int]) -> list[Prediction]:
    """Predictions of the network fed with its own last one, without the denoiser under test."""
    schedule, condition, found = model.make_schedule(), nothing_given(model, len(z)), []
    for t in times:
        log_abar = schedule.log_abar[t]
        log_snr = (log_abar - torch.log(-torch.expm1(log_abar))).clamp(-15, 15).float().expand(len(z))
        if found:
            condition = dataclasses.replace(condition, previous=found[-1].z0 + sum(found[-1].e.values()))
        with torch.no_grad():
            found.append(model.interpret(model(z, log_snr, condition), condition))
    return found


def test_the_denoiser_hands_on_its_last_prediction(recurrent):
    z, times = noise(recurrent), [900, 600, 300]
    denoise = recurrent.denoiser(recurrent.make_schedule(), nothing_given(recurrent))
    found = [denoise(z, torch.full((3,), t)) for t in times]
    for mine, theirs in zip(found, chain(recurrent, z, times), strict=True):
        torch.testing.assert_close(mine.z0, theirs.z0, atol=1e-5, rtol=1e-5)
    fresh = recurrent.denoiser(recurrent.make_schedule(), nothing_given(recurrent))(z, torch.full((3,), 300))
    assert (fresh.z0 - found[-1].z0).abs().max() > 1e-5


def test_a_new_trajectory_starts_without_a_prediction(recurrent):
    """Sample by sample: one whose time went up again is as on the first call, the others go on."""
    z = noise(recurrent)
    denoise = recurrent.denoiser(recurrent.make_schedule(), nothing_given(recurrent))
    first = denoise(z, torch.tensor([500, 500, 500]))
    second = denoise(z, torch.tensor([500, 400, 1000]))
    torch.testing.assert_close(second.z0[0], first.z0[0])
    [top] = chain(recurrent, z[2:], [1000])
    torch.testing.assert_close(second.z0[2], top.z0[0], atol=1e-5, rtol=1e-5)
    *_, lower = chain(recurrent, z[1:2], [500, 400])
    torch.testing.assert_close(second.z0[1], lower.z0[0], atol=1e-5, rtol=1e-5)


def test_sampling_twice_with_one_denoiser_gives_the_same(recurrent):
    schedule = recurrent.make_schedule()
    denoise = recurrent.denoiser(schedule, nothing_given(recurrent))
    ends = [list(sample_ddim(schedule, denoise, noise(recurrent), 4))[-1].z for _ in range(2)]
    assert torch.equal(*ends)


def test_what_guidance_hides_does_not_come_back_with_the_last_prediction(recurrent, monkeypatch):
    schedule, flags = recurrent.make_schedule(), torch.full((3, 4), UNKNOWN)
    flags[:, 2] = KNOWN
    seen, forward = [], type(recurrent).forward

    def spy(z_t, log_snr_t, condition):
        seen.append(condition.previous)
        return forward(recurrent, z_t, log_snr_t, condition)

    monkeypatch.setattr(recurrent, "forward", spy)
    e = recurrent.encode({"label": torch.tensor([0, 1, 2])})
    condition = recurrent.condition(e, flags, torch.zeros(3, 1, SIZE, SIZE))
    blind = recurrent.unconditional_denoiser(schedule, condition)
    zeros = torch.zeros(3, *recurrent.z_shape)
    for t in (800, 400):
        time = torch.full((3,), t)
        shown = blind(q_sample(schedule, zeros, time, e, noise(recurrent)), time)
    assert torch.equal(shown.e["label"], e["label"])
    assert seen[0] is None and (recurrent.channels.take("label", seen[1]) == 0).all()
    assert seen[1].abs().max() > 0


def test_half_of_the_training_examples_have_a_first_pass(shapes, embedder, monkeypatch):
    config = dataclasses.replace(tiny_train_config(batch_size=24), model=tiny_config(self_conditioning=True))
    trainer = Trainer(config, read_shapes(shapes, config, embedder), CPU)
    seen, forward = [], type(trainer.model).forward

    def spy(z_t, log_snr_t, condition):
        seen.append((condition.previous, torch.is_grad_enabled()))
        return forward(trainer.model, z_t, log_snr_t, condition)

    monkeypatch.setattr(trainer.model, "forward", spy)
    for _ in range(10):
        trainer.train_step()
    first, second = seen[::2], seen[1::2]
    assert all(previous is None and not grad for previous, grad in first)
    assert all(grad and not previous.requires_grad for previous, grad in second)
    shown = torch.cat([previous.flatten(1).abs().amax(1) > 0 for previous, _ in second[1:]])
    assert 0.35 < shown.double().mean() < 0.65


# -- a time of its own for every modality ----------------------------------------------------------------


@pytest.fixture(scope="module")
def apart():
    return lively_model(tiny_config(in_place=True, separate_times=True))


def conditions(model: MultiModalDiffusion, flag: int):
    """The mask is ``flag``, everything else unknown."""
    flags = torch.full((3, 4), UNKNOWN)
    flags[:, 1] = flag
    return model.condition(model.encode(values(model)), flags, torch.zeros(3, 1, SIZE, SIZE))


def test_one_time_for_all_says_the_same_as_equal_times(apart):
    z, log_snr = noise(apart), torch.tensor([-2.0, 0.0, 3.0])
    one, many = (apart(z, times, nothing_given(apart)) for times in (log_snr, log_snr[:, None].expand(3, 4)))
    for name in one:
        torch.testing.assert_close(one[name], many[name])


@pytest.mark.parametrize(("flag", "matters"), [(UNKNOWN, True), (KNOWN, False), (ABSENT, False)])
def test_only_of_what_is_unknown_the_time_matters(apart, flag, matters):
    z, early, late = noise(apart), torch.zeros(3, 4), torch.zeros(3, 4)
    late[:, 1] = 4.0
    one, two = (apart(z, times, conditions(apart, flag))["label"] for times in (early, late))
    assert torch.allclose(one, two) != matters


def test_every_modality_is_diffused_to_its_own_time(shapes, embedder):
    config = dataclasses.replace(
        tiny_train_config(), model=tiny_config(in_place=True, separate_times=True, num_steps=100)
    )
    trainer = Trainer(config, read_shapes(shapes, config, embedder), CPU)
    model, e = trainer.model, trainer.model.encode(values(trainer.model))
    z0, standard = e.pop("image"), noise(model)
    t = torch.tensor([[100, 1, 50, 20], [7, 100, 3, 90], [40, 40, 40, 40]])
    z_t = trainer._diffused(z0, t, e, standard)
    for i, name in enumerate(model.names):
        shared = q_sample(trainer.schedule, z0, t[:, i], e, standard)
        assert torch.equal(model.channels.take(name, z_t), model.channels.take(name, shared))
    draw = trainer.draw(
        trainer.batches.examples, torch.arange(24).repeat(40), trainer.generator(0), augment=False
    )
    assert draw.t.shape == (960, 4)
    # independent and uniform in 1 … 100: correlations of 960 draws stay within a few hundredths
    correlation = torch.corrcoef(draw.t.double().T) - torch.eye(4)
    assert correlation.abs().max() < 0.12 and abs(draw.t.double().mean() - 50.5) < 2
    before = model.backbone.time[0].weight.detach().clone()
    trainer.train_step()
    changed = (model.backbone.time[0].weight != before).view(32, 4, 32).any(0).any(1)
    assert changed.all()


def test_separate_times_sample_like_any_other_model(apart):
    pipe = Pipeline(apart, CPU)
    label = torch.tensor([0, 3])
    *_, last = pipe.run(Condition({"label": label}), ("image", "mask"), [0, 1], 3)
    assert last.x_hat["mask"].isfinite().all() and last.x_hat["image"].shape == (2, 3, SIZE, SIZE)


def test_separate_times_need_what_is_given_in_place():
    with pytest.raises(ValueError, match="set model.in_place"):
        tiny_config(separate_times=True)
