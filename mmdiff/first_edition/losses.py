"""The training objective and the exact bound, both by name: L0, L1, L2 of each modality, L3 (in nats)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmdiff.bound import _Bound as LevelBound
from mmdiff.bound import binned_nll
from mmdiff.forward_process import q_posterior, q_sample
from mmdiff.losses import level_weight
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import UNKNOWN, Conditioning
from mmdiff.schedule import NoiseSchedule, log_snr

z0_weight = level_weight  # of the one level that all modalities have


def training_losses(
    model: MultiModalDiffusion,
    raw: Mapping[str, Tensor],
    x: Mapping[str, Tensor],
    z0: Tensor,
    condition: Conditioning,
    weight: Tensor,
    supervised: Tensor | None = None,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The reweighted bound of a batch, each term a scalar: "L1" (z_0) and "L2/<name>" of every modality.

    Absent and given modalities have no L2 term, and in a photo with holes only the holes have a loss. Terms
    are averages over the examples they apply to, so that a rare annotation keeps its weight.

    Args:
        z0: (B, *Z), encoding of the anchor in ``x``. weight: (B,), of its error in L1, see `z0_weight`.
        supervised: (B, N) bool, which predictions have a loss. None: those of all unknown modalities.
        counts: (N,), supervised examples of each modality in the whole batch that these are part of, so that
            terms of all parts add up to those of the whole. None: these are the whole batch.
    """
    terms: dict[str, Tensor] = {}
    supervised = condition.flags == UNKNOWN if supervised is None else supervised
    counts = supervised.sum(0) if counts is None else counts
    for i, (name, modality) in enumerate(model.modalities.items()):
        if name == model.anchor:
            predicted = model.channels.place(name, modality.folded(raw[name]))
            squares = (predicted - z0).square() * (1 - model.coverage(condition.known_pixels))
            # Divided by the whole photo: a small hole has few entries and little weight.
            error = squares.sum((1, 2, 3)) / (modality.z_channels * model.grid**2)
            terms["L1"] = _mean_where(weight * error, supervised[:, i], counts[i])
            terms[f"L2/{name}"] = _mean_where(error, supervised[:, i], counts[i])
        else:
            terms[f"L2/{name}"] = _mean_where(modality.loss(raw[name], x[name]), supervised[:, i], counts[i])
    return terms


def _mean_where(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    return torch.where(mask, values, 0).sum() / count.clamp(min=1)


def total_loss(model: MultiModalDiffusion, terms: Mapping[str, Tensor]) -> Tensor:
    """L1 + sum_i lambda_i L2_i."""
    weights = {f"L2/{m.name}": m.loss_weight for m in model.config.modalities}
    return terms["L1"] + sum(weight * terms[name] for name, weight in weights.items())


@torch.no_grad()
def bound(
    model: MultiModalDiffusion,
    schedule: NoiseSchedule,
    x: Mapping[str, Tensor],
    present: Mapping[str, Tensor],
    generator: torch.Generator,
    draws: int = 8,
) -> dict[str, Tensor]:
    """Monte Carlo estimate of the exact terms of the bound with nothing given, in nats an example: (B,) each.

    Args:
        x: name -> (B, *shape), all modalities; present: name -> (B,) bool.
        draws: random times an example; L0 is exact, L1 and L2 are unbiased over t ~ U{2..T} and U{1..T}.

    Returns:
        "L0", "L1", "L2/<name>" and "L3"; L3 is the likelihood of 8-bit pixels.
    """
    estimator = _Bound(model, schedule, x, present, generator)
    times = schedule.num_steps
    l1 = torch.stack([estimator.kl(estimator.draw_t(2)) for _ in range(draws)]).mean(0) * (times - 1)
    l2 = [estimator.modality_nll(estimator.draw_t(1)) for _ in range(draws)]
    terms = {"L0": estimator.prior_kl(), "L1": l1}
    terms |= {f"L2/{n}": torch.stack([nll[n] for nll in l2]).mean(0) for n in model.names}
    return terms | {"L3": estimator.reconstruction()}


class _Bound(LevelBound):
    """The pieces of `bound` for one batch, at one time for all modalities."""

    def draw_t(self, low: int) -> Tensor:
        high = self.schedule.num_steps + 1
        return torch.randint(low, high, (self.batch,), generator=self.generator, device=self.device)

    def _raw_at(self, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.randn(self.z0.shape, generator=self.generator, device=self.device)
        z_t = q_sample(self.schedule, self.z0, t, self.e, noise)
        table = log_snr(self.schedule.log_abar)
        return z_t, self.model(z_t, table[t.to(table.device)].to(self.device).float(), self.condition)

    def kl(self, t: Tensor) -> Tensor:
        """KL( q(z_{t-1} | z_t, z_0, X) || p(z_{t-1} | z_t) ), both with the variance of (4)."""
        z_t, raw = self._raw_at(t)
        clean = self.model.clean_encodings(raw, self.condition)
        mean, variance = q_posterior(self.schedule, z_t, t, self.z0, self.e)
        mean_hat, _ = q_posterior(self.schedule, z_t, t, clean[self.model.anchor], clean)
        return ((mean - mean_hat).double().square() / (2 * variance.double())).flatten(1).sum(1)

    def modality_nll(self, t: Tensor) -> dict[str, Tensor]:
        """-log p(x_i | z_t); zero where the modality is absent."""
        _, raw = self._raw_at(t)
        return {
            n: torch.where(self.present[n], m.nll(raw[n], self.x[n]).double(), 0)
            for n, m in self.model.modalities.items()
        }

    def reconstruction(self) -> Tensor:
        """L3 = -log p(x | z_1) of 8-bit pixels: binned Gaussians of variance 1 - a_1 (Ho et al. 2020, 13)."""
        t = torch.ones(self.batch, dtype=torch.long, device=self.device)
        _, raw = self._raw_at(t)
        x = self.x[self.model.anchor].double()
        mean = self.model.modalities[self.model.anchor].predict(raw[self.model.anchor]).double()
        std = math.sqrt(1 - float(self.schedule.a[1]))
        return binned_nll(x, mean, std)
