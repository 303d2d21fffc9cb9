"""Distances of two sets of pictures: Fréchet and kernel distance, precision and recall.

All use one feature space: the activations of AlexNet's last convolution (torchvision's weights, see
`mmdiff.evaluation.perceptual`), averaged over positions, 256 numbers per picture; it is independent of the
models measured here. Distances of finite sets are not zero even for sets from one source, and depend on the
number of pictures, so every figure stands beside that of two sets of real photos of the same size.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from mmdiff.evaluation.evaluation import Evaluation, Outcome
from mmdiff.evaluation.perceptual import LAYERS, NO_TORCHMETRICS, alexnet, in_batches
from mmdiff.evaluation.skip import Skip

NEIGHBOURS = 3  # pictures are near a picture within the distance of its third nearest neighbour
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of intensities in [0, 1], as AlexNet was trained


def load_features(device: torch.device, batch: int = 128) -> Callable[[Tensor], Tensor]:
    """Pictures (n, 3, H, W) in [-1, 1] -> features (n, 256) on the CPU. Raises `Skip` without AlexNet."""
    from torchvision.models import alexnet as make

    network = make().features[: LAYERS[-1] + 2]  # with the last convolution's ReLU
    weights = alexnet()
    network.load_state_dict({name: weights[f"features.{name}"] for name in network.state_dict()})
    network = network.to(device).eval().requires_grad_(False)
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (MEAN, STD))
    return in_batches("AlexNet", lambda x: network(((x + 1) / 2 - mean) / std).mean((2, 3)), device, batch)


def distances(real: Tensor, made: Tensor) -> dict[str, float]:
    """Fréchet (Heusel et al. 2017) and kernel distance (Bińkowski et al. 2018) of features (n, D), (m, D).

    The kernel is (x·y / D + 1)^3; its distance is unbiased and can be below zero.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        raise Skip(NO_TORCHMETRICS) from None
    same = nn.Identity()
    same.num_features = real.shape[1]
    frechet = FrechetInceptionDistance(same)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        kernel = KernelInceptionDistance(same, subsets=1, subset_size=min(len(real), len(made)))
    for metric in (frechet, kernel):
        metric.update(real.double(), real=True)  # the kernel's sums nearly cancel
        metric.update(made.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # it shuffles
        torch.manual_seed(0)
        return {"frechet": frechet.compute().item(), "kernel": kernel.compute()[0].item()}


def precision_recall(real: Tensor, made: Tensor) -> dict[str, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019): the means of `manifold_bits`."""
    return {name: bits.mean().item() for name, bits in manifold_bits(real, made).items()}


def manifold_bits(real: Tensor, made: Tensor) -> dict[str, Tensor]:
    """Precision of each made photo, (m,), and recall of each real one, (n,), from features (n, D), (m, D).

    Precision: whether it lies nearer to some real one than this one's k-th nearest real one, k being
    `NEIGHBOURS`; recall: the same with the two sets exchanged.
    """
    between = torch.cdist(real.double(), made.double())
    return {
        "precision": (between <= _radii(real, NEIGHBOURS)[:, None]).any(0).double(),
        "recall": (between <= _radii(made, NEIGHBOURS)).any(1).double(),
    }


def _radii(features: Tensor, neighbours: int) -> Tensor:
    """Distance of each point to its ``neighbours``-th nearest other one: (n,) float64."""
    apart = torch.cdist(features.double(), features.double())
    return apart.fill_diagonal_(0).kthvalue(neighbours + 1, dim=1).values


def likeness(ev: Evaluation) -> Outcome:
    """Generated photos against unseen real ones, beside training photos against the same.

    "following_label" are photos from nothing that follow their label, with the settings' guidance.
    """
    features = load_features(ev.pipe.device)
    rows = ev.drawn(ev.rows_with("image"))
    if len(rows) <= NEIGHBOURS:
        raise Skip(f"sets of {len(rows)} photos are too small to compare; {NEIGHBOURS + 1} are needed")
    real = features(ev.read(rows)["image"])
    figures: dict = {"n": len(rows)}
    out = ev.sample("likeness", ["image"], len(rows))["image"]
    compared = {"generated": out}
    with suppress(Skip):
        guided = ev.following_label()
        out = ev.sample("likeness, following label", ["image", "label"], len(rows), **guided)["image"]
        compared["following_label"] = out
    if ev.train_photos is not None:
        generator = torch.Generator().manual_seed(ev.settings.seed)
        drawn = torch.randperm(len(ev.train_photos), generator=generator)[: len(rows)]
        compared = {"training_photos": ev.train_photos[drawn].float() / 127.5 - 1} | compared
    for name, photos in compared.items():
        seen = features(photos)
        figures[name] = distances(real, seen) | precision_recall(real, seen)
    return Outcome(figures, [ev.picture(out)], [""] * len(rows))
