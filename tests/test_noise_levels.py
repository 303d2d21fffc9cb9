"""The best linear denoiser against closed forms, and the network's errors against calls of its own."""

import json
import math
from contextlib import nullcontext

import pytest
import scipy.fft
import torch
from synthetic import lively_model, tiny_config

from benchmarks import noise_levels
from benchmarks.noise_levels import LEVELS, Wiener, coarse, compare, denoised
from benchmarks.report import build
from mmdiff.pipeline import Pipeline
from mmdiff.schedule import NoiseSchedule


@pytest.fixture(scope="module")
def pipe(embedder):
    return Pipeline(lively_model(tiny_config(core="levels", stem_depth=1)), torch.device("cpu"), embedder)


@pytest.mark.parametrize("level", [-4.0, 0.0, 3.0])
def test_the_linear_denoiser_reaches_the_least_error_of_a_gaussian(level):
    """E|x - E[x | noisy]|^2 of x ~ N(mu, S) is the trace of (S^-1 + snr I)^-1."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.0, 0.0, 0.2]])
    clean = torch.randn(200_000, 3, generator=generator) @ mix + torch.tensor([1.0, -2.0, 0.5])
    signal = 1 / (1 + math.exp(-level))
    noise = torch.randn(clean.shape, generator=generator)
    noisy = math.sqrt(signal) * clean + math.sqrt(1 - signal) * noise
    error = (Wiener.fitted(clean)(noisy, level) - clean).square().sum(1).mean().item()
    covariance = mix.T @ mix
    least = torch.linalg.inv(torch.linalg.inv(covariance) + math.exp(level) * torch.eye(3)).trace().item()
    assert error == pytest.approx(least, rel=0.02)


def test_the_network_denoises_as_in_a_run(pipe, monkeypatch):
    """Against the denoiser that samplers call, at the time at which the modality has this level."""
    monkeypatch.setattr(noise_levels, "precise", nullcontext)
    model = pipe.model
    labels = torch.tensor([0, 2, 1])
    # the mask leads, so that the photo is all but noise alone at this time
    for name, leads, t, given, tolerance in (
        ("image", {}, 60, None, 1e-4),
        ("image", {}, 60, labels, 1e-4),
        ("mask", {"mask": 0.5}, 67, None, 5e-3),
    ):
        schedule = NoiseSchedule(100, model.names, leads)
        noisy = torch.randn(3, model.channels.sizes[name], model.grid, model.grid)
        seen = model.nothing_given(3, torch.device("cpu"), (name,))
        condition = seen if given is None else model.giving(seen, {"label": given})
        z = schedule.rms[name][t].float() * model.channels.place(name, noisy)
        expected = model.denoiser(schedule, condition)(z, t)[0][name]
        found = denoised(pipe, noisy, schedule.level[name][t].item(), name, given)
        torch.testing.assert_close(found, model.channels.take(name, expected), rtol=0, atol=tolerance)


def test_under_noise_alone_the_linear_error_is_the_variance(pipe):
    generator = torch.Generator().manual_seed(1)
    shape = (pipe.model.channels.sizes["image"], pipe.model.grid, pipe.model.grid)
    train, val = (torch.randn(5000, *shape, generator=generator) for _ in range(2))
    found = compare(pipe, "image", train, val[:200])
    errors = [row["wiener"] for row in found]
    assert len(errors) == len(LEVELS) and "with_label" not in found[0]
    assert errors[0] == pytest.approx(1.0, abs=0.05)
    assert errors == sorted(errors, reverse=True)


def test_coarse_frequencies_are_those_of_the_unfolded_picture():
    picture = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(scipy.fft.dctn(picture.numpy(), axes=(2, 3), norm="ortho"))[..., :4, :4]
    torch.testing.assert_close(coarse(torch.nn.functional.pixel_unshuffle(picture, 2), 2), expected)


def test_the_command_refuses_models_without_levels(tmp_path, pipe, monkeypatch):
    monkeypatch.setattr(noise_levels.Pipeline, "from_pretrained", lambda *_, **__: pipe)
    monkeypatch.setattr(type(pipe.model), "has_levels", False)
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit, match="first edition"):
        noise_levels.main(["folder", "--data", "a", "--train", "b", "--out", str(out)])
    assert not out.exists()


def test_the_command_writes_a_table(shapes, tmp_path, pipe, monkeypatch):
    monkeypatch.setattr(noise_levels.Pipeline, "from_pretrained", lambda *_, **__: pipe)
    out, data = tmp_path / "out.json", str(shapes)
    noise_levels.main(["folder", "--data", data, "--train", data, "--out", str(out)])
    results = json.loads(out.read_text())
    table = build(results).to_markdown()
    head = "| Level | Best linear denoiser | Network | … given the label | Coarse: linear | Coarse: network |"
    assert head in table
    row = results["noise_levels"][3]
    assert f"{row['network']:.3f}" in table and f"{row['mask_network']:.3f}" in table
