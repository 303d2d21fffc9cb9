"""Views of photos that are cut and encoded before training: what they show, and that no step encodes."""

import dataclasses

import pytest
import torch
from synthetic import SIZE, WordEmbedder, make_rows, tiny_config, write_parquet

from mmdiff.autoencoder.network import Autoencoder
from mmdiff.checkpoint import build_model
from mmdiff.config import DataConfig, ModalityConfig, OptimConfig, TaskConfig, TrainConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.batches import MemoryBatches, load_examples, training_data, validation_data
from mmdiff.data.examples import encoded_name
from mmdiff.training.processes import Processes
from mmdiff.training.trainer import Trainer

torch.set_num_threads(1)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = write_parquet(tmp_path_factory.mktemp("shapes") / "shapes.parquet", make_rows(24, 2 * SIZE))
    model = tiny_config(core="levels", patch_size=8)
    options = {"latent_channels": 2, "latent_widths": [8, 8, 8]}
    image = ModalityConfig("image", "latent_image", options=options)
    model = dataclasses.replace(model, modalities=(image, *model.modalities[1:]))
    data = DataConfig(str(path), str(path), margin=SIZE, margin_from="resize", views=3, zoom=0.6, light=0.1)
    optim = OptimConfig(images=64, batch_size=8, warmup_images=16, save_every_images=32)
    config = TrainConfig(model, data, TaskConfig(), optim)
    torch.manual_seed(0)
    blueprint = build_model(model)
    train = training_data(config, blueprint, WordEmbedder(), Processes(), 1)
    return config, blueprint, train, validation_data(config, blueprint, WordEmbedder())


def test_every_photo_has_its_views_and_their_encodings(prepared):
    config, model, train, val = prepared
    photos = train.stored["image"]
    assert photos.shape == (24, 3, 3, SIZE, SIZE) and photos.dtype == torch.uint8
    assert train.stored[encoded_name("image")].shape == (24, 3, 2, 2, 2) and train.margin == 0
    assert val.stored["image"].shape == (24, 3, SIZE, SIZE), "validation photos are whole"
    views = train.stored["image"][:, 0].float() / 127.5 - 1
    own = model.modalities["image"].encode(views)
    torch.testing.assert_close(train.stored[encoded_name("image")][:, 0].float(), own, rtol=0.05, atol=0.05)


def test_photos_are_embedded_whole(prepared):
    config, model, *_ = prepared
    examples = load_examples(config.data.train, model, config, WordEmbedder())
    assert examples.stored["image"].shape[-1] == 2 * SIZE
    whole = WordEmbedder().embed_images(examples.stored["image"].float() / 127.5 - 1)
    torch.testing.assert_close(examples.stored["embedding"][:, 0].float(), whole, atol=2e-3, rtol=0)


def test_views_differ_and_masks_show_what_their_photos_show(prepared):
    _, _, train, _ = prepared
    photos, masks = train.stored["image"], train.stored["mask"]
    assert not torch.equal(photos[:, 0], photos[:, 1])
    has = train.present["mask"]
    for view in range(3):
        seen = photos[has, view].amin(1) < 170  # white under less light is lighter
        assert (seen == (masks[has, view] > 0)).float().mean() > 0.9


def test_a_batch_takes_one_view_of_each_with_its_encoding(prepared):
    _, model, train, _ = prepared
    rows = torch.arange(24)
    x, present = draw_batch(train, model.modalities, rows, torch.Generator().manual_seed(0), True, 0.1, 0.6)
    assert present.shape == (24, 4)
    stored = train.stored["image"].float() / 127.5 - 1
    match = (stored == x["image"][:, None]).flatten(2).all(2)
    assert match.any(1).all() and match.float().argmax(1).unique().numel() == 3
    chosen = match.float().argmax(1)
    torch.testing.assert_close(
        x[encoded_name("image")], train.stored[encoded_name("image")][rows, chosen].float()
    )


def test_steps_run_no_encoder(prepared, monkeypatch):
    config, _, train, _ = prepared

    def never(*_):
        raise AssertionError("a step encoded a photo")

    monkeypatch.setattr(Autoencoder, "encode", never)
    trainer = Trainer(config, train, CPU)
    assert trainer.train_step()["total"].isfinite()
    assert isinstance(trainer.batches, MemoryBatches)


def test_views_and_streams_exclude_each_other():
    with pytest.raises(ValueError, match="views needs all examples in memory"):
        DataConfig(views=2, stream=True)
    with pytest.raises(ValueError, match="data.views is -1"):
        DataConfig(views=-1)


def test_embeddings_are_of_the_whole_photo(prepared):
    """As the photo's part that a view shows changes, the caption speaks of all of it."""
    config, model, train, _ = prepared
    plain = dataclasses.replace(config, data=dataclasses.replace(config.data, margin=0, views=0))
    whole = load_examples(config.data.train, model, plain, WordEmbedder())
    photos = train.stored["embedding"][:, 0].float(), whole.stored["embedding"][:, 0].float()
    assert torch.nn.functional.cosine_similarity(*photos).min() > 0.99
