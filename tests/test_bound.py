"""The bound of one modality against DDPM's, written out by another paper's formula, and its unbiasedness."""

import math

import pytest
import torch
from synthetic import lively_model, make_rows, tiny_config

from mmdiff.bound import _Bound, bound
from mmdiff.modalities import build_modality

torch.set_num_threads(1)

STEPS, COUNT = 40, 3


def problem(names=("image",)):
    config = tiny_config(names, core="levels", num_steps=STEPS)
    model = lively_model(config)
    x = {}
    for m in config.modalities:
        modality = build_modality(m, config.image_size, config.patch_size)
        whole = [row for row in make_rows(8) if row["mask"] and row["label"] >= 0][:COUNT]
        stored = [torch.tensor(modality.store(row[m.name], config.image_size)) for row in whole]
        x[m.name] = modality.from_stored(torch.stack(stored))
    present = {n: torch.ones(COUNT, dtype=torch.bool) for n in names}
    return model, model.make_schedule(), x, present


def ddpm_terms(model, schedule, x, noise_of):
    """L_0 ... L_T of Ho et al. 2020: betas, equation 12 for eps with sigma^2 = beta tilde, and L_T in closed
    form.
    """
    abar = schedule.abar.tolist()
    x0 = model.encode(x)["image"]
    condition = model.nothing_given(COUNT, torch.device("cpu"))
    total = torch.zeros(COUNT, dtype=torch.float64)
    for t in range(2, STEPS + 1):
        alpha = abar[t] / abar[t - 1]
        beta_tilde = (1 - abar[t - 1]) / (1 - abar[t]) * (1 - alpha)
        eps = noise_of(t)
        x_t = math.sqrt(abar[t]) * x0 + math.sqrt(1 - abar[t]) * eps
        with torch.no_grad():
            raw = model(*model.call_at(schedule, x_t, t, condition))
        x0_hat = model.clean_encodings(raw, condition)["image"]
        eps_hat = (x_t - math.sqrt(abar[t]) * x0_hat) / math.sqrt(1 - abar[t])
        weight = (1 - alpha) ** 2 / (2 * beta_tilde * alpha * (1 - abar[t]))
        total += weight * (eps - eps_hat).double().square().flatten(1).sum(1)
    return total


def test_for_the_photo_alone_it_is_the_bound_of_ddpm():
    model, schedule, x, present = problem()
    terms = bound(model, schedule, x, present, torch.Generator().manual_seed(0), draws=400)
    assert set(terms) == {"L0", "L1/image", "L3"}
    generator = torch.Generator().manual_seed(1)
    rounds = [
        ddpm_terms(model, schedule, x, lambda t: torch.randn(COUNT, *model.z_shape, generator=generator))
        for _ in range(20)
    ]
    expected = torch.stack(rounds).mean(0)
    torch.testing.assert_close(terms["L1/image"], expected, rtol=0.06, atol=0)
    mean = math.sqrt(schedule.abar[-1]) * model.encode(x)["image"].double()
    variance = 1 - schedule.abar[-1].item()
    q = torch.distributions.Normal(mean, math.sqrt(variance))
    prior = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros_like(mean), 1.0))
    torch.testing.assert_close(terms["L0"], prior.flatten(1).sum(1), rtol=1e-5, atol=1e-9)


def test_the_random_times_are_weighted_by_their_probability():
    """The exact sum over all times, with the same noise everywhere, lies within the estimate's standard
    error.
    """
    names = ("image", "mask", "label")
    model, schedule, x, present = problem(names)
    estimator = _Bound(model, schedule, x, present, torch.Generator().manual_seed(2))
    proposal = estimator.proposal()
    assert (
        proposal.sum().item() == pytest.approx(1) and (proposal[2:] > 0).all() and (proposal[:2] == 0).all()
    )
    with torch.no_grad():
        drawn = [estimator.weighted_kl(proposal) for _ in range(600)]
        every = [[estimator.kl(torch.full((COUNT,), t)) for t in range(2, STEPS + 1)] for _ in range(12)]
    for name in names:
        estimates = torch.stack([kl[name] for kl in drawn])
        exact = torch.stack([torch.stack([kl[name] for kl in of]).sum(0) for of in every])
        error = estimates.std(0) / math.sqrt(len(estimates)) + exact.std(0) / math.sqrt(len(exact))
        assert ((estimates.mean(0) - exact.mean(0)).abs() < 4 * error).all()


def test_other_modalities_have_their_terms_and_absent_ones_none():
    model, schedule, x, present = problem(("image", "mask", "label"))
    present["mask"][1] = False
    terms = bound(model, schedule, x, present, torch.Generator().manual_seed(0), draws=2)
    assert set(terms) == {"L0", "L1/image", "L1/mask", "L1/label", "L2/mask", "L2/label", "L3"}
    assert terms["L2/mask"][1] == 0 and terms["L1/mask"][1] == 0 and (terms["L2/mask"][[0, 2]] > 0).all()
