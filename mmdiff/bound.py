"""The exact bound on -log p(X) with nothing given, by name and in nats an example.

L0 = KL(q(z_T|X) || p(z_T)). L1/<name> = sum over t > 1 of E KL(q(z_{t-1}|z_t, z_0, X) || p(z_{t-1}|z_t)) in
the channels of a modality, L2/<name> = -log p(x_i|z_1) of every modality but the anchor, L3 = -log
p(x_anchor|z_1). They add up to a bound on the likelihood of all modalities together, and for the anchor alone
they are DDPM's bound (Ho et al. 2020, equation 5).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmdiff.forward_process import q_posterior, q_sample, signal
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, UNKNOWN
from mmdiff.schedule import NoiseSchedule

KNOTS = 16  # times at which a pilot measures the size of L1's terms
UNIFORM = 0.1  # share of the random times that are uniform, wherever the pilot found little


@torch.no_grad()
def bound(
    model: MultiModalDiffusion,
    schedule: NoiseSchedule,
    x: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    generator: torch.Generator,
    draws: int = 8,
) -> dict[str, Tensor]:
    """Monte Carlo estimates of the terms of every example, (B,) each; L0 is exact, the others are unbiased.

    Args:
        x: name -> (B, *shape), all modalities; present: name -> (B,) bool.
        draws: random times an example for L1. They are drawn in proportion to the size of its terms, of which
            nine tenths can lie at the first few times.
    """
    estimator = _Bound(model, schedule, x, present, generator)
    proposal = estimator.proposal()
    kls = [estimator.weighted_kl(proposal) for _ in range(draws)]
    terms = {f"L1/{n}": torch.stack([kl[n] for kl in kls]).mean(0) for n in model.names}
    return {"L0": estimator.prior_kl()} | terms | estimator.likelihoods()


class _Bound:
    """The pieces of `bound` for one batch."""

    def __init__(
        self,
        model: MultiModalDiffusion,
        schedule: NoiseSchedule,
        x: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> None:
        self.model, self.schedule, self.x, self.present = model, schedule, x, present
        self.generator = generator
        self.e = {n: v * present[n][:, None, None, None] for n, v in model.encode(x).items()}
        self.z0 = self.e.pop(model.anchor)
        self.batch, self.device = len(self.z0), self.z0.device
        flags = torch.stack([torch.where(present[n], UNKNOWN, ABSENT) for n in model.names], 1)
        size = model.config.image_size
        self.condition = model.condition(
            {}, flags, torch.zeros(self.batch, 1, size, size, device=self.device)
        )

    def kl(self, t: Tensor) -> dict[str, Tensor]:
        """KL(q(z_{t-1}|z_t, z_0, X) || p(z_{t-1}|z_t)) at times (B,), both with the variance of (4), by
        modality.
        """
        z_t, raw = self._raw_at(t)
        clean = self.model.clean_encodings(raw, self.condition)
        mean, variance = q_posterior(self.schedule, z_t, t, self.z0, self.e)
        mean_hat, _ = q_posterior(self.schedule, z_t, t, clean[self.model.anchor], clean)
        nats = (mean - mean_hat).double().square() / (2 * variance.double())
        return {n: self.model.channels.take(n, nats).flatten(1).sum(1) for n in self.model.names}

    def proposal(self) -> Tensor:
        """(T+1,) probabilities of times 2 to T, about in proportion to the sum of the KLs there."""
        last = self.schedule.num_steps
        probabilities = torch.zeros(last + 1, dtype=torch.float64)
        if last < 2:
            return probabilities
        spaced = torch.logspace(math.log10(2), math.log10(last), KNOTS)
        knots = torch.unique(spaced.round().long().clamp(2, last))
        sizes = [sum(self.kl(self._at(t)).values()).mean().item() for t in knots.tolist()]
        times = torch.arange(2, last + 1, dtype=torch.float64)
        right = torch.searchsorted(knots.double(), times).clamp(1, max(1, len(knots) - 1))
        log_knots, log_sizes = knots.double().log(), torch.tensor(sizes).double().clamp(min=1e-12).log()
        left = (right - 1).clamp(max=len(knots) - 1)
        right = right.clamp(max=len(knots) - 1)
        share = (times.log() - log_knots[left]) / (log_knots[right] - log_knots[left]).clamp(min=1e-9)
        size = torch.lerp(log_sizes[left], log_sizes[right], share.clamp(0, 1)).exp()
        probabilities[2:] = (1 - UNIFORM) * size / size.sum() + UNIFORM / len(times)
        return probabilities

    def weighted_kl(self, proposal: Tensor) -> dict[str, Tensor]:
        """KL divided by the probability of its random time: by modality an estimate of the sum over t > 1."""
        if self.schedule.num_steps < 2:
            nothing = torch.zeros(self.batch, dtype=torch.float64, device=self.device)
            return dict.fromkeys(self.model.names, nothing)
        drawn = torch.rand(self.batch, dtype=torch.float64, generator=self.generator, device=self.device)
        drawn = drawn.cpu()
        t = torch.searchsorted(proposal.cumsum(0), drawn, right=True)
        t = t.clamp(2, self.schedule.num_steps)
        weight = (1 / proposal[t]).to(self.device)
        return {name: nats * weight for name, nats in self.kl(t.to(self.device)).items()}

    def prior_kl(self) -> Tensor:
        """L0 = KL(N(signal_T, (1 - abar_T) I) || N(0, I))."""
        mean = signal(self.schedule, self.z0, self._at(self.schedule.num_steps), self.e)
        abar = float(self.schedule.abar[-1])
        each = mean.double().square() - abar - math.log1p(-abar)
        return 0.5 * each.flatten(1).sum(1)

    def likelihoods(self) -> dict[str, Tensor]:
        """L2 of the other modalities, zero where one is absent, and L3; all at the same z_1."""
        anchor, modalities = self.model.anchor, self.model.modalities
        _, raw = self._raw_at(self._at(1))
        terms = {
            f"L2/{n}": torch.where(self.present[n], m.nll(raw[n], self.x[n]).double(), 0)
            for n, m in modalities.items()
            if n != anchor
        }
        mean = modalities[anchor].predict(raw[anchor]).double()
        std = math.sqrt(1 - float(self.schedule.a[1]))
        return terms | {"L3": binned_nll(self.x[anchor].double(), mean, std)}

    def _raw_at(self, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """z_t of random noise, and the network's outputs there; times (B,) may differ."""
        noise = torch.randn(self.z0.shape, generator=self.generator, device=self.device)
        z_t = q_sample(self.schedule, self.z0, t, self.e, noise)
        return z_t, self.model(*self.model.call_at(self.schedule, z_t, t, self.condition))

    def _at(self, t: int) -> Tensor:
        return torch.full((self.batch,), t, device=self.device)


def binned_nll(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """-log p of 8-bit pixels x in [-1, 1], (B,): binned Gaussians around ``mean`` (Ho et al. 2020, equation
    13).
    """
    half, infinity = 1 / 255, torch.tensor(math.inf, dtype=x.dtype, device=x.device)
    upper = torch.where(x > 0.999, infinity, (x + half - mean) / std)
    lower = torch.where(x < -0.999, -infinity, (x - half - mean) / std)
    return -_log_normal_mass(lower, upper).flatten(1).sum(1)


def _log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """log of the standard normal mass between ``lower`` and ``upper``, also where the mass underflows."""
    # mirrored into the left tail, where log_ndtr keeps its digits
    lower, upper = torch.where(lower > 0, -upper, lower), torch.where(lower > 0, -lower, upper)
    log_upper = torch.special.log_ndtr(upper)
    return log_upper + torch.log(-torch.expm1(torch.special.log_ndtr(lower) - log_upper))
