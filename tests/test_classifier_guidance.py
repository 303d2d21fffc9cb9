"""Classifier guidance on a mixture of two Gaussians, whose denoiser and classifier are known."""

import math

import pytest
import torch
from synthetic import lively_model, tiny_config

from benchmarks.classifier_guidance import guided, log_probabilities, noisy_scores, score_gradient
from mmdiff.samplers import sample_ddim, timesteps
from mmdiff.schedule import NoiseSchedule

CENTRES, SHARES, WIDTH, COUNT = (-1.0, 2.0), (0.8, 0.2), 0.5, 4000
SCHEDULE = NoiseSchedule(1000, ("image",))


def parts(z, t):
    """log of share times density of z_t of every component, (B, 2), written out."""
    abar = SCHEDULE.abar[t]
    variance = abar * WIDTH**2 + 1 - abar
    means = abar.sqrt() * torch.tensor(CENTRES, dtype=torch.float64)
    shares = torch.tensor(SHARES, dtype=torch.float64).log()
    return shares - (z - means).square() / (2 * variance) - 0.5 * torch.log(2 * math.pi * variance)


def denoise(z, t):
    """E[z_0 | z_t], by the posterior of the components and of z_0 in each."""
    abar = SCHEDULE.abar[t]
    centres = torch.tensor(CENTRES, dtype=torch.float64)
    gain = abar.sqrt() * WIDTH**2 / (abar * WIDTH**2 + 1 - abar)
    each = centres + gain * (z - abar.sqrt() * centres)
    return {"image": (parts(z, t).softmax(1) * each).sum(1, keepdim=True)}


def log_second(z, t):
    return parts(z, t).log_softmax(1)[:, 1]


def samples(scale, most=math.inf, eta=0.0):
    generator = torch.Generator().manual_seed(0)

    def noise(shape):
        return torch.randn(COUNT, *shape, dtype=torch.float64, generator=generator)

    times = timesteps(SCHEDULE.num_steps, 250, SCHEDULE.spacing)
    sampler = sample_ddim(SCHEDULE, noise((1,)), times, noise, eta)
    return guided(SCHEDULE, sampler, denoise, log_second, scale, most)["image"][:, 0]


def test_without_a_scale_it_is_the_mixture():
    made = samples(0.0)
    assert (made > 0.5).double().mean().item() == pytest.approx(SHARES[1], abs=0.03)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_at_a_scale_of_one_it_is_the_class(eta):
    made = samples(1.0, eta=eta)
    assert made.mean().item() == pytest.approx(CENTRES[1], abs=0.03)
    assert made.std().item() == pytest.approx(WIDTH, abs=0.03)


def test_more_guidance_goes_further_from_the_other_class():
    assert samples(4.0).mean() > samples(1.0).mean() + 0.03


def test_values_are_held_where_they_are_to_be():
    assert samples(4.0, most=1.5).max() <= 1.5


def test_the_gradient_is_that_of_finite_differences():
    model = lively_model(tiny_config(core="levels")).requires_grad_(False)
    schedule, labels = model.make_schedule(), torch.tensor([0, 3])
    scores = noisy_scores(model, schedule, labels)
    z = torch.randn(2, *model.z_shape, generator=torch.Generator().manual_seed(0))
    gradient = score_gradient(scores, z, 400)
    # the best direction of the same length: central differences along it give the gradient's length
    length = gradient.flatten(1).norm(dim=1)
    step = 1e-2 * gradient / length[:, None, None, None]
    with torch.no_grad():
        slope = (scores(z + step, 400) - scores(z - step, 400)) / 2e-2
    torch.testing.assert_close(slope, length, rtol=0.02, atol=1e-4)


def test_the_classifier_reads_the_photo_alone():
    model = lively_model(tiny_config(core="levels"))
    schedule = model.make_schedule()
    z = torch.randn(2, *model.z_shape, generator=torch.Generator().manual_seed(0))
    photo = model.channels.take("image", z)
    same = model.channels.place("image", photo)
    with torch.no_grad():
        of_all, of_photo = (log_probabilities(model, schedule, one, 300) for one in (z, same))
        other = log_probabilities(model, schedule, -z, 300)
    assert torch.equal(of_all, of_photo) and not torch.allclose(of_all, other)
    assert torch.allclose(of_all.exp().sum(1), torch.ones(2))
