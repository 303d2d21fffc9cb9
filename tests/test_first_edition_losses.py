"""The objective and the exact bound, each term against its definition written out another way.

The bound is compared where the network is replaced by fixed outputs: then L1 does not depend on the noise,
and every term has a closed form of its own.
"""

import dataclasses
import math
from itertools import cycle

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from synthetic import CLASSES, DIM, SIZE, lively_model, tiny_config
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from mmdiff.first_edition.losses import _Bound, bound, total_loss, training_losses, z0_weight
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.schedule import log_snr

NAMES = ("image", "mask", "label", "embedding")
T = 12


def draw(count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Values of every modality, photos of 8 bits."""
    g = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(256, (count, 3, SIZE, SIZE), generator=g) / 127.5 - 1,
        "mask": torch.randint(2, (count, SIZE, SIZE), generator=g),
        "label": torch.randint(len(CLASSES), (count,), generator=g),
        "embedding": F.normalize(torch.randn(count, DIM, generator=g), dim=1),
    }


def draw_raw(x: dict[str, torch.Tensor], error: float, seed: int = 1) -> dict[str, torch.Tensor]:
    """Head outputs; the photo is wrong by about ``error``."""
    g, count = torch.Generator().manual_seed(seed), len(x["image"])
    return {
        "image": (x["image"] + error * torch.randn(x["image"].shape, generator=g)).clamp(-1, 1),
        "mask": torch.randn(count, 2, SIZE, SIZE, generator=g),
        "label": torch.randn(count, len(CLASSES), generator=g),
        "embedding": torch.randn(count, DIM, generator=g),
    }


def make_model(names=NAMES, num_steps=T):
    """A model whose other modalities enter with different weights, and their schedule."""
    config = tiny_config(names, num_steps=num_steps)
    families = {"image": "none", "mask": "joint", "label": "ramp", "embedding": "none"}
    scales = {"image": 1.0, "mask": 0.5, "label": 1.5, "embedding": 1.0}
    modalities = tuple(
        dataclasses.replace(m, weights=families[m.name], scale=scales[m.name]) for m in config.modalities
    )
    model = lively_model(dataclasses.replace(config, modalities=modalities))
    return model, model.make_schedule()


def everything(x) -> dict[str, torch.Tensor]:
    return {name: torch.ones(len(x["image"]), dtype=torch.bool) for name in x}


def exact_bound(model, schedule, x, present, draws=1, seed=0):
    return bound(model, schedule, x, present, torch.Generator().manual_seed(seed), draws)


def at_every_time(monkeypatch) -> None:
    """Take each time once, in order, instead of drawing it: T - 1 draws then sum L1 exactly."""
    times = {low: cycle(range(low, T + 1)) for low in (1, 2)}
    monkeypatch.setattr(_Bound, "draw_t", lambda self, low: torch.full((self.batch,), next(times[low])))


def frozen(monkeypatch, model, raw) -> None:
    """Replace the network by fixed outputs."""
    monkeypatch.setattr(model, "forward", lambda z_t, log_snr_t, condition: raw)


# -- the exact bound ---------------------------------------------------------------------------------


def test_l0_is_the_divergence_of_the_two_normals():
    model, schedule = make_model()
    x = draw()
    present = everything(x) | {"label": torch.tensor([True, False, True])}
    e = {n: v * present[n][:, None, None, None] for n, v in model.encode(x).items()}
    mean = schedule.abar[T].sqrt() * e["image"].double()
    for name in NAMES[1:]:
        mean = mean + schedule.wbar[name][T] * e[name].double()
    last = Normal(mean, (1 - schedule.abar[T]).sqrt())
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = kl_divergence(last, prior).flatten(1).sum(1)
    torch.testing.assert_close(exact_bound(model, schedule, x, present)["L0"], expected, rtol=1e-5, atol=1e-7)


def bayes(schedule, t, z_t, z0, e):
    """q(z_{t-1} | z_t, z_0, X), as the product of (1) and (3) in z_{t-1}: precisions add."""
    a, before = schedule.a[t], schedule.abar[t - 1]
    entering = sum(schedule.w[n][t] * v for n, v in e.items())
    prior_mean = before.sqrt() * z0 + sum(schedule.wbar[n][t - 1] * v for n, v in e.items())
    likelihood, prior = a / (1 - a), 1 / (1 - before)  # precisions
    centre = z_t / a.sqrt() - entering
    mean = (likelihood * centre + prior * prior_mean) / (likelihood + prior)
    return Normal(mean, (likelihood + prior) ** -0.5)


def guessed(model, raw):
    """The encodings that head outputs stand for, each in its place in Z."""
    parts = {n: m.expected_encoding(raw[n]).double() for n, m in model.modalities.items()}
    return {n: model.channels.place(n, part) for n, part in parts.items()}


def divergences(model, schedule, x, raw, present):
    """KL at every t = 2 … T, (T-1, B), of the posterior from Bayes' rule with the truth and with ``raw``."""
    e = {n: v.double() * present[n][:, None, None, None] for n, v in model.encode(x).items()}
    guess = {n: v * present[n][:, None, None, None] for n, v in guessed(model, raw).items()}
    z0, guessed_z0 = e.pop("image"), guess.pop("image")
    z_t = torch.zeros_like(z0)  # any: the divergence does not depend on it
    terms = []
    for t in range(2, T + 1):
        true = bayes(schedule, t, z_t, z0, e)
        model_side = bayes(schedule, t, z_t, guessed_z0, guess)
        terms.append(kl_divergence(true, model_side).flatten(1).sum(1))
    return torch.stack(terms)


def test_l1_is_the_sum_of_the_divergences(monkeypatch):
    model, schedule = make_model()
    x = draw()
    present = everything(x) | {"mask": torch.tensor([True, False, True])}
    raw = draw_raw(x, 0.3)
    expected = divergences(model, schedule, x, raw, present).sum(0)
    frozen(monkeypatch, model, raw)
    at_every_time(monkeypatch)
    result = exact_bound(model, schedule, x, present, draws=T - 1)["L1"]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6)


def test_times_are_drawn_uniformly():
    model, schedule = make_model()
    estimator = _Bound(model, schedule, draw(), everything(draw()), torch.Generator().manual_seed(0))
    for low in (1, 2):
        drawn = torch.cat([estimator.draw_t(low) for _ in range(2000)])
        counts = drawn.bincount(minlength=T + 1)
        assert len(counts) == T + 1 and (counts[:low] == 0).all()
        expected = len(drawn) / (T + 1 - low)
        assert ((counts[low:] - expected).abs() < 5 * expected**0.5).all()


def test_l1_is_exact_where_there_is_one_time(monkeypatch):
    """T = 2 has the single term t = 2, so nothing is left to chance."""
    model = lively_model(tiny_config(("image", "label"), num_steps=2))
    schedule, x = model.make_schedule(), {n: draw()[n] for n in ("image", "label")}
    raw = draw_raw(draw(), 0.3)
    frozen(monkeypatch, model, raw)
    e = {n: v.double() for n, v in model.encode(x).items()}
    guess = guessed(model, raw)
    zero = torch.zeros_like(e["image"])
    true = bayes(schedule, 2, zero, e["image"], {"label": e["label"]})
    model_side = bayes(schedule, 2, zero, guess["image"], {"label": guess["label"]})
    expected = kl_divergence(true, model_side).flatten(1).sum(1)
    torch.testing.assert_close(
        exact_bound(model, schedule, x, everything(x))["L1"], expected, rtol=1e-4, atol=1e-6
    )


def test_l2_is_the_likelihood_of_every_modality(monkeypatch):
    model, schedule = make_model()
    x, raw = draw(), draw_raw(draw(), 0.3)
    present = everything(x) | {"label": torch.tensor([True, False, True])}
    frozen(monkeypatch, model, raw)
    terms = exact_bound(model, schedule, x, present)
    label = F.cross_entropy(raw["label"], x["label"], reduction="none").double()
    assert terms["L2/label"][1] == 0
    torch.testing.assert_close(terms["L2/label"][[0, 2]], label[[0, 2]])
    mask = F.cross_entropy(raw["mask"], x["mask"], reduction="none").sum((1, 2)).double()
    torch.testing.assert_close(terms["L2/mask"], mask, rtol=1e-5, atol=0)
    sigma = model.modalities["image"].sigma
    image = -Normal(raw["image"], sigma).log_prob(x["image"]).sum((1, 2, 3)).double()
    torch.testing.assert_close(terms["L2/image"], image, rtol=1e-5, atol=0)


def reconstruction_by_sums(x, mean, std, cells=400):
    """-log of the Gaussian mass in each pixel's bin, by a fine midpoint sum in logarithms."""
    width = 2 / 255
    x, mean = x.double().numpy(), mean.double().numpy()
    total = np.zeros(len(x))
    for index in np.ndindex(x.shape):
        low, high = x[index] - width / 2, x[index] + width / 2
        if x[index] < -0.999:
            low = min(low, mean[index] - 12 * std)
        if x[index] > 0.999:
            high = max(high, mean[index] + 12 * std)
        nodes = max(cells, int((high - low) / std * 100))
        u = low + (np.arange(nodes) + 0.5) * (high - low) / nodes
        log_density = -0.5 * ((u - mean[index]) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))
        total[index[0]] -= logsumexp(log_density) + math.log((high - low) / nodes)
    return torch.from_numpy(total)


@pytest.mark.parametrize("error", [0.01, 0.5])
def test_l3_is_a_discretised_gaussian(monkeypatch, error):
    """Also where the prediction is so wrong that the mass of the bin underflows."""
    model, schedule = make_model(num_steps=1000)
    x = {name: value[:2] for name, value in draw().items()}
    x["image"][:, :, 0] = 1.0  # the bins at both ends are open
    x["image"][:, :, 1] = -1.0
    raw = draw_raw(x, error)
    frozen(monkeypatch, model, raw)
    std = math.sqrt(1 - float(schedule.a[1]))
    expected = reconstruction_by_sums(x["image"], raw["image"], std)
    torch.testing.assert_close(
        exact_bound(model, schedule, x, everything(x))["L3"], expected, rtol=1e-3, atol=1e-3
    )


def test_the_network_sees_the_forward_process_with_nothing_given(monkeypatch):
    """L1 and L2 of the network's own outputs at draws of (3) made here."""
    model, schedule = make_model()
    x, noise = draw(), torch.Generator().manual_seed(7)
    e = {n: v.double() for n, v in model.encode(x).items()}
    z0 = e.pop("image")
    condition = model.condition({}, torch.full((3, 4), UNKNOWN), torch.zeros(3, 1, SIZE, SIZE))
    l1, label, repeats = 0.0, 0.0, 10
    for _ in range(repeats):
        for t in range(1, T + 1):
            mean = schedule.abar[t].sqrt() * z0 + sum(schedule.wbar[n][t] * v for n, v in e.items())
            z_t = mean + (1 - schedule.abar[t]).sqrt() * torch.randn(z0.shape, generator=noise)
            with torch.no_grad():
                raw = model(z_t.float(), log_snr(schedule.log_abar)[t].float().expand(3), condition)
            label = label + F.cross_entropy(raw["label"], x["label"], reduction="none") / T / repeats
            if t > 1:
                guess = guessed(model, raw)
                true = bayes(schedule, t, z_t, z0, e)
                network = bayes(schedule, t, z_t, guess.pop("image"), guess)
                l1 = l1 + kl_divergence(true, network).flatten(1).sum(1) / repeats
    at_every_time(monkeypatch)
    terms = exact_bound(model, schedule, x, everything(x), draws=T * (T - 1))
    assert set(terms) == {"L0", "L1", "L3"} | {f"L2/{name}" for name in NAMES}
    assert all(value.shape == (3,) and value.isfinite().all() for value in terms.values())
    torch.testing.assert_close(terms["L1"], l1, rtol=0.05, atol=0)
    torch.testing.assert_close(terms["L2/label"], label.double(), rtol=0.05, atol=0.02)


def test_with_one_modality_the_bound_is_that_of_ddpm(monkeypatch):
    """Ho et al. 2020 in their own letters: betas, alphas and the posterior of their equations (6) and (7)."""
    model, schedule = make_model(("image",))
    x = {"image": draw()["image"]}
    raw = draw_raw(draw(), 0.2)
    frozen(monkeypatch, model, raw)
    alphas_cumprod = schedule.abar.numpy()
    alphas = alphas_cumprod[1:] / alphas_cumprod[:-1]
    betas = 1 - alphas
    x_0 = x["image"].double().flatten(1).numpy()
    predicted = raw["image"].double().flatten(1).numpy()
    x_t = np.random.default_rng(0).normal(size=x_0.shape)

    variance = 1 - alphas_cumprod[-1]
    mean = math.sqrt(alphas_cumprod[-1]) * x_0
    l_t = 0.5 * (mean**2 + variance - 1 - math.log(variance)).sum(1)

    terms = []
    for t in range(2, T + 1):
        beta, alpha, now, before = betas[t - 1], alphas[t - 1], alphas_cumprod[t], alphas_cumprod[t - 1]

        def mu(start, t_beta=beta, t_alpha=alpha, now=now, before=before):
            return (math.sqrt(before) * t_beta * start + math.sqrt(t_alpha) * (1 - before) * x_t) / (1 - now)

        sigma2 = (1 - before) / (1 - now) * beta
        terms.append(((mu(x_0) - mu(predicted)) ** 2).sum(1) / (2 * sigma2))
    terms = np.stack(terms)

    at_every_time(monkeypatch)
    result = exact_bound(model, schedule, x, everything(x), draws=T - 1)
    np.testing.assert_allclose(result["L0"], l_t, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result["L1"], terms.sum(0), rtol=1e-4)
    one = {"image": x["image"][:1]}
    frozen(monkeypatch, model, {"image": raw["image"][:1]})
    l_0 = reconstruction_by_sums(one["image"], raw["image"][:1], math.sqrt(betas[0]))
    torch.testing.assert_close(
        exact_bound(model, schedule, one, everything(one))["L3"], l_0, rtol=1e-4, atol=1e-3
    )


def test_a_modality_that_does_not_enter_leaves_the_other_terms_alone(monkeypatch):
    """With weights "none" the label adds its L2 and changes nothing else."""
    config = tiny_config(("image", "label"), num_steps=T)
    label = dataclasses.replace(config.modalities[1], weights="none")
    model = lively_model(dataclasses.replace(config, modalities=(config.modalities[0], label)))
    alone = lively_model(tiny_config(("image",), num_steps=T))
    x, raw = draw(), draw_raw(draw(), 0.2)
    frozen(monkeypatch, model, raw)
    frozen(monkeypatch, alone, raw)
    two = {n: x[n] for n in ("image", "label")}
    both = exact_bound(model, model.make_schedule(), two, everything(two), draws=1)
    one = {"image": x["image"]}
    single = exact_bound(alone, alone.make_schedule(), one, everything(one), draws=1)
    for name in ("L0", "L3", "L2/image"):
        torch.testing.assert_close(both[name], single[name])


# -- the training objective --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batch():
    """A model, values, outputs with gradients, and flags under which everything but the photo varies."""
    model, schedule = make_model()
    x = draw(4)
    raw = {name: value.requires_grad_(True) for name, value in draw_raw(x, 0.3).items()}
    flags = torch.tensor(
        [
            [UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN],
            [UNKNOWN, ABSENT, KNOWN, UNKNOWN],
            [UNKNOWN, UNKNOWN, ABSENT, ABSENT],
            [KNOWN, KNOWN, UNKNOWN, ABSENT],
        ]
    )
    known = torch.zeros(4, 1, SIZE, SIZE)
    known[1, :, :, : SIZE // 2] = 1  # a photo with a hole
    known[3] = 1
    return model, x, raw, flags, known, torch.tensor([-8.0, -1.0, 0.5, 9.0])


def training_terms(batch, **changes):
    model, x, raw, flags, known, snr = batch
    x = x | changes.get("x", {})
    condition = model.condition(model.encode(x), flags, known)
    return training_losses(model, raw, x, model.encode(x)["image"], condition, z0_weight(snr, 5.0))


def test_terms_are_means_over_what_is_predicted(batch):
    model, x, raw, flags, known, snr = batch
    terms = training_terms(batch)
    squares = (raw["image"] - x["image"]).square()
    squares[1, :, :, : SIZE // 2] = 0
    errors = squares.flatten(1).mean(1)[:3]  # the fourth photo is given
    weights = torch.tensor([math.exp(-8) + 1, math.exp(-1) + 1, math.exp(0.5) + 1])
    torch.testing.assert_close(terms["L2/image"], errors.mean())
    torch.testing.assert_close(terms["L1"], (weights * errors).mean())
    label = F.cross_entropy(raw["label"][[0, 3]], x["label"][[0, 3]])
    torch.testing.assert_close(terms["L2/label"], label)
    mask = F.cross_entropy(raw["mask"][[0, 2]], x["mask"][[0, 2]])
    torch.testing.assert_close(terms["L2/mask"], mask)
    embedding = (raw["embedding"][:2] - x["embedding"][:2]).square().sum(1).mean()
    torch.testing.assert_close(terms["L2/embedding"], embedding)


def test_the_weight_keeps_low_snr_and_caps_high_snr():
    snr = torch.tensor([0.0, 1e-6, 1.0, 3.9, 4.1, 1e9])
    expected = torch.tensor([1.0, 1.0, 2.0, 4.9, 5.0, 5.0])
    torch.testing.assert_close(z0_weight(snr.log(), 5.0), expected)


def test_the_total_weighs_the_terms(batch):
    model = batch[0]
    terms = training_terms(batch)
    heavy = lively_model(
        dataclasses.replace(
            model.config,
            modalities=tuple(
                dataclasses.replace(m, loss_weight=w)
                for m, w in zip(model.config.modalities, (0.2, 0.3, 0.0, 2.0), strict=True)
            ),
        )
    )
    expected = terms["L1"] + 0.2 * terms["L2/image"] + 0.3 * terms["L2/mask"] + 2 * terms["L2/embedding"]
    torch.testing.assert_close(total_loss(heavy, terms), expected)


def test_heads_hear_only_what_is_predicted(batch):
    """No gradient from given and absent modalities, nor from known pixels."""
    model, x, raw, flags, known, snr = batch
    for value in raw.values():
        value.grad = None
    total_loss(model, training_terms(batch)).backward()
    for i, name in enumerate(NAMES):
        heard = raw[name].grad.flatten(1).abs().sum(1) > 0
        assert torch.equal(heard, flags[:, i] == UNKNOWN), name
    assert (raw["image"].grad[1, :, :, : SIZE // 2] == 0).all()


def test_values_of_absent_modalities_do_not_matter(batch):
    _, x, _, flags, _, _ = batch
    other = draw(4, seed=9)
    changed = {}
    for i, name in enumerate(NAMES):
        absent = (flags[:, i] == ABSENT).view(-1, *[1] * (x[name].dim() - 1))
        changed[name] = torch.where(absent, other[name], x[name])
    assert any((changed[name] != x[name]).any() for name in NAMES)
    before, after = training_terms(batch), training_terms(batch, x=changed)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_batch_without_a_modality_has_no_loss_for_it(batch):
    model, x, raw, _, known, snr = batch
    flags = torch.tensor([[UNKNOWN, ABSENT, KNOWN, ABSENT]] * 4)
    condition = model.condition(model.encode(x), flags, torch.zeros_like(known))
    terms = training_losses(model, raw, x, model.encode(x)["image"], condition, z0_weight(snr, 5.0))
    assert all(terms[f"L2/{name}"] == 0 for name in NAMES[1:]) and terms["L1"] > 0


def test_the_training_error_is_the_bound_up_to_weights(batch):
    """L1 of the bound and of the objective measure the same error: their ratio depends on t alone."""
    model, x, raw, *_ = batch
    schedule = model.make_schedule()
    flags = torch.tensor([[UNKNOWN, ABSENT, ABSENT, ABSENT]] * 4)
    condition = model.condition({}, flags, torch.zeros(4, 1, SIZE, SIZE))
    raw = {name: value.detach() for name, value in raw.items()}
    only_photo = everything(x) | {name: torch.zeros(4, dtype=torch.bool) for name in NAMES[1:]}
    per_time = divergences(model, schedule, x, raw, only_photo)  # (T-1, B)
    for t in (2, 5, T):
        snr = log_snr(schedule.log_abar)[t].float().expand(4)
        errors = [
            training_losses(
                model,
                {n: v[k : k + 1] for n, v in raw.items()},
                {n: v[k : k + 1] for n, v in x.items()},
                model.encode(x)["image"][k : k + 1],
                model.condition({}, condition.flags[k : k + 1], condition.known_pixels[k : k + 1]),
                z0_weight(snr[k : k + 1], math.inf),
            )["L2/image"]
            for k in range(4)
        ]
        ratio = per_time[t - 2] / torch.stack(errors).double()
        torch.testing.assert_close(ratio, ratio[:1].expand(4), rtol=1e-4, atol=0)
