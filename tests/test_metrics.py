"""Metrics against torchmetrics, scipy and closed forms."""

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_jaccard_index,
)
from torchmetrics.functional.image import peak_signal_noise_ratio

from mmdiff.evaluation import metrics
from mmdiff.evaluation.classical_inpainting import mean_fill


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("ignore", [None, 0])
def test_iou_and_pixel_accuracy_equal_torchmetrics(generator, ignore):
    target = torch.randint(0, 4, (6, 16, 16), generator=generator)
    right = torch.rand(target.shape, generator=generator) < 0.7
    predicted = torch.where(right, target, torch.randint(1, 4, target.shape, generator=generator))
    counts = metrics.confusion(predicted, target, 4, ignore)
    kept = slice(0 if ignore is None else 1, None)
    expected = multiclass_jaccard_index(predicted, target, 4, average="none", ignore_index=ignore)[kept]
    torch.testing.assert_close(metrics.iou(counts.sum(0))[kept].float(), expected)
    for k in range(6):
        each = multiclass_jaccard_index(predicted[k], target[k], 4, average="none", ignore_index=ignore)[kept]
        torch.testing.assert_close(metrics.iou(counts)[k, kept].float(), each)
    accuracy = multiclass_accuracy(predicted, target, 4, average="micro", ignore_index=ignore)
    torch.testing.assert_close(metrics.pixel_accuracy(counts.sum(0)).float(), accuracy)


def test_void_pixels_count_for_nothing():
    target = torch.tensor([[[0, 0], [1, 2]]])
    for under_void in (0, 1, 2):
        predicted = torch.tensor([[[under_void, under_void], [1, 2]]])
        assert metrics.iou(metrics.confusion(predicted, target, 3, ignore=0))[0, 1:].tolist() == [1, 1]


def test_iou_of_a_class_that_never_occurs_is_nan():
    ones = torch.ones(1, 4, 4, dtype=torch.long)
    result = metrics.iou(metrics.confusion(ones, ones, 3))[0]
    assert result[1] == 1 and result[0].isnan() and result[2].isnan()


def test_object_iou_of_shifted_squares():
    a, b = torch.zeros(2, 2, 10, 10, dtype=torch.bool)
    a[0, 2:6, 2:6] = True
    b[0, 2:6, 4:8] = True
    assert metrics.object_iou(a, b).tolist() == pytest.approx([8 / 24, 1])  # the second pair is empty


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_equals_torchmetrics(generator, k):
    probabilities = torch.rand(200, 7, generator=generator).softmax(1)
    target = torch.randint(0, 7, (200,), generator=generator)
    expected = multiclass_accuracy(probabilities, target, 7, average="micro", top_k=k)
    assert metrics.top_k_hits(probabilities, target, k).float().mean() == pytest.approx(expected.item())


def test_top_k_of_fewer_classes_than_k_always_hits():
    assert metrics.top_k_hits(torch.tensor([[0.9, 0.1]]), torch.tensor([1]), 5).all()


def test_psnr_inside_holes_equals_torchmetrics_on_the_hidden_values(generator):
    truth = torch.rand(3, 3, 12, 12, generator=generator) * 2 - 1
    guess = (truth + 0.2 * torch.randn(truth.shape, generator=generator)).clamp(-1, 1)
    known = torch.rand(3, 12, 12, generator=generator) < 0.5
    squares, values = metrics.hole_error(guess, truth, known)
    for k in range(3):
        hidden = (~known[k]).expand(3, -1, -1)
        expected = peak_signal_noise_ratio(
            (guess[k][hidden] + 1) / 2, (truth[k][hidden] + 1) / 2, data_range=1.0
        )
        assert metrics.psnr(squares / values)[k].item() == pytest.approx(expected.item(), abs=1e-4)


def test_psnr_closed_form_and_cap():
    assert metrics.psnr(torch.tensor(0.01)).item() == pytest.approx(20)
    assert metrics.psnr(torch.tensor(0.0)).item() == pytest.approx(100)


def test_known_pixels_do_not_enter_the_error():
    truth, known = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    known[0, 0] = False
    guess = torch.where(known[:, None], 1.0, truth + 0.5)
    squares, values = metrics.hole_error(guess, truth, known)
    assert values.item() == 12 and squares.item() == pytest.approx(12 * 0.25**2)


def test_mean_fill_leaves_the_variance_of_the_hidden_part(generator):
    image = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    known = torch.zeros(2, 8, 8, dtype=torch.bool)
    known[:, :, :4] = True
    filled = mean_fill(image, known)
    assert torch.equal(filled[..., :4], image[..., :4])
    expected = image[..., :4].mean((2, 3))[:, :, None, None].expand(-1, -1, 8, 4)
    torch.testing.assert_close(filled[..., 4:], expected)
    assert (mean_fill(image, torch.zeros_like(known)) == 0).all()


def test_white_rule_finds_a_disc_with_a_white_highlight():
    y, x = torch.meshgrid(torch.arange(48), torch.arange(48), indexing="ij")
    disc = (y - 24) ** 2 + (x - 20) ** 2 < 15**2
    highlight = (y - 20) ** 2 + (x - 18) ** 2 < 3**2
    colour = torch.tensor([0.6, -0.2, -0.5])[:, None, None]
    image = torch.where(disc & ~highlight, colour, 1.0)[None]
    assert torch.equal(metrics.white_background_mask(image)[0], disc)


def test_white_rule_tolerates_slightly_grey_white():
    image = torch.full((1, 3, 8, 8), 1 - 2 * 30 / 255)
    assert not metrics.white_background_mask(image).any()
    assert metrics.white_background_mask(image - 2 * 20 / 255).all()


@pytest.mark.parametrize("sharpness", [0.3, 2.0])
def test_calibration_error_equals_torchmetrics(generator, sharpness):
    logits = sharpness * torch.randn(500, 7, generator=generator)
    target = torch.randint(7, (500,), generator=generator)
    expected = multiclass_calibration_error(logits.softmax(1), target, 7, n_bins=15, norm="l1")
    assert metrics.calibration_error(logits.softmax(1), target) == pytest.approx(expected.item(), abs=1e-5)


def test_nll_is_the_cross_entropy(generator):
    logits, target = torch.randn(50, 7, generator=generator), torch.arange(50) % 7
    expected = torch.nn.functional.cross_entropy(logits.double(), target, reduction="none")
    torch.testing.assert_close(metrics.nll(logits.double().softmax(1), target), expected)
    sure = torch.tensor([[1.0, 0.0]])
    assert metrics.nll(sure, torch.tensor([0])) == 0 and 20 < metrics.nll(sure, torch.tensor([1])) < 40
