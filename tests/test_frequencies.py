"""Cosine transform against SciPy's, known shares against a regression, and what the weights leave alone."""

import pytest
import scipy.fft
import torch

from mmdiff.frequencies import cosine_transform, frequency_weights, known_share

LEVELS = torch.tensor([-8.0, -4.0, 0.0, 4.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def variances(side: int) -> torch.Tensor:
    """Of every frequency of a photo, one on average."""
    places = torch.arange(side)
    variance = 1 / (1.0 + places**2 + places[:, None] ** 2)
    return variance / variance.mean()


@pytest.mark.parametrize("side", [1, 2, 8, 15])
def test_the_transform_is_that_of_scipy(side):
    x = torch.randn(3, 2, side, side, generator=seeded())
    expected = torch.from_numpy(scipy.fft.dctn(x.numpy(), axes=(2, 3), norm="ortho"))
    torch.testing.assert_close(cosine_transform(x), expected, atol=1e-5, rtol=1e-5)


def test_the_known_share_is_what_the_linear_denoiser_explains():
    """Monte Carlo: variance of the regression of clean on noisy, over that of clean."""
    variance = variances(4)
    for level in LEVELS:
        signal = torch.sigmoid(level)
        clean = variance.sqrt() * torch.randn(200_000, 4, 4, generator=seeded(1))
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * torch.randn(clean.shape, generator=seeded(2))
        slope = (clean * noisy).mean(0) / noisy.square().mean(0)
        explained = (slope * noisy).square().mean(0) / clean.square().mean(0)
        torch.testing.assert_close(known_share(level[None], 4)[0], explained, atol=0.01, rtol=0.02)


def test_weights_lean_to_what_can_be_known_and_leave_the_total_error():
    weights = frequency_weights(LEVELS, 16, 0.5)
    variance = variances(16)
    snr = LEVELS.exp()[:, None, None]
    error = variance / (1 + snr * variance)  # of the Wiener filter
    torch.testing.assert_close((weights * error).sum((1, 2)), error.sum((1, 2)))
    assert (weights >= 0.5).all()
    leaning = weights[:, 0, 0] / weights[:, 15, 15]
    assert (leaning[:3] > 2).all() and (leaning[1:].diff() < 0).all()  # less noise, less leaning
    torch.testing.assert_close(frequency_weights(torch.tensor([20.0]), 16, 0.5), torch.ones(1, 16, 16))
    torch.testing.assert_close(frequency_weights(LEVELS, 16, 0.0), torch.ones(4, 16, 16))


def test_the_conditional_mean_still_has_the_least_loss():
    """A scalar toy in each frequency: of all constants the mean minimises the weighted error."""
    pictures = torch.randn(5000, 8, 8, generator=seeded()) + torch.linspace(-1, 1, 8)
    weights = frequency_weights(torch.tensor([-5.0]), 8, 0.5)
    guess = torch.zeros(8, 8, requires_grad=True)
    optimizer = torch.optim.LBFGS([guess], line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (cosine_transform(pictures - guess).square() * weights).mean()
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(loss)
    torch.testing.assert_close(guess.detach(), pictures.mean(0), atol=1e-3, rtol=0)
