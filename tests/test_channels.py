"""Channels of Z that all modalities share."""

import dataclasses

import pytest
import torch
from synthetic import SIZE, lively_model, read_shapes, tiny_config, tiny_train_config

from mmdiff.checkpoint import load_checkpoint, save_checkpoint
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.network.conditioning import KNOWN, UNKNOWN
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import SampleNoise
from mmdiff.training.trainer import Trainer

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


def noise(model: MultiModalDiffusion, count: int = 3) -> torch.Tensor:
    return SampleNoise(list(range(count)))(model.z_shape)


def test_unknown_channels_are_refused():
    with pytest.raises(ValueError, match="'own' or 'shared'"):
        tiny_config(channels="mixed")


def test_shared_channels_train_save_and_sample(shapes, embedder, tmp_path):
    config = dataclasses.replace(tiny_train_config(), model=tiny_config(channels="shared"))
    trainer = Trainer(config, read_shapes(shapes, config, embedder), CPU)
    losses = [trainer.train_step()["total"] for _ in range(3)]
    assert torch.stack(losses).isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.model.parameters())
    save_checkpoint(trainer.ema.model, tmp_path)
    pipe = Pipeline(load_checkpoint(tmp_path), CPU, embedder)
    out = pipe(given={"label": 1}, wanted=("image", "mask", "embedding"), steps=3, guidance_scale=2.0)
    assert out.image[0].size == (SIZE, SIZE) and out.mask.shape == (1, SIZE, SIZE)


def test_with_shared_channels_sample_k_does_not_depend_on_its_batch(embedder):
    pipe = Pipeline(lively_model(tiny_config(channels="shared")), CPU, embedder)
    together = pipe(wanted=("image", "mask", "label", "embedding"), steps=4, seed=5, num_samples=3)
    alone = pipe(wanted=("image", "mask", "label", "embedding"), steps=4, seed=7)
    torch.testing.assert_close(
        torch.from_numpy(together.embedding[2]), torch.from_numpy(alone.embedding[0]), atol=1e-4, rtol=1e-4
    )


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
    clean, _ = model.denoiser(model.make_schedule(), condition)(noise(model, 2), 900)
    there = model.channels.take("image", clean["image"])
    torch.testing.assert_close(there, model.modalities["image"].encode(photo))
