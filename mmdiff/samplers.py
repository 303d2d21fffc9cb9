"""Samplers: free functions over a denoiser callable that yield a `Step` after every jump of a `Trajectory`.

One rule carries them all, (5), the jump from time t to any earlier time s with the clean predictions held
fixed. `sample_ddim` applies it as it is, `sample_ancestral` with eta = 1, where it is the exact posterior
q(z_s | z_t, z_0, X), and `sample_dpmpp_2m` with eta = 0 after extrapolating the predictions along the way.
The rules take one (t, s) per sample, so that samples at different times can share a batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmdiff.forward_process import gather, noise_std, per_sample, signal
from mmdiff.schedule import NoiseSchedule, log_snr
from mmdiff.seeds import folded


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says about the clean data behind a batch of z_t.

    z0: (B, *Z) encoding of the anchor modality.
    e:  name -> (B, *Z) encodings of the other modalities: the true one where it is given, zero where absent.
    x:  name -> (B, ...) data-space prediction of every head.
    """

    z0: Tensor
    e: Mapping[str, Tensor]
    x: Mapping[str, Tensor]

    @property
    def clean(self) -> Tensor:
        """(B, *Z) everything in one point of Z: z_0 plus all encodings."""
        return sum(self.e.values(), start=self.z0)


Denoiser = Callable[[Tensor, Tensor], Prediction]  # z_t (B, *Z), t (B,) long


@dataclass(frozen=True)
class Step:
    """One step of a trajectory.

    index:   1 … total.
    t:       time of z_t, which the predictions were made from.
    z:       (B, *Z) state after the jump.
    eps_hat: (B, *Z) noise in z_t that the predictions imply.
    x_hat:   name -> (B, ...) clean prediction of every head.
    """

    index: int
    total: int
    t: int
    z: Tensor
    eps_hat: Tensor
    x_hat: Mapping[str, Tensor]


class SampleNoise:
    """Standard normal noise in which sample k depends on the k-th seed and on nothing else in the batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        if not seeds or not all(isinstance(seed, int) and 0 <= seed < 2**63 for seed in seeds):
            raise ValueError(
                f"seeds is {seeds!r}, expected one whole number from 0 to 2**63 - 1 per sample; "
                "pass a list such as [0, 1, 2]."
            )
        self.device = torch.device(device)
        # on the CPU, where the same seed means the same numbers whatever the device
        self.generators = [torch.Generator().manual_seed(folded(seed)) for seed in seeds]

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Shape of one sample -> (B, *shape) float32 on the device; every call draws further numbers."""
        samples = [torch.randn(*shape, generator=generator) for generator in self.generators]
        return torch.stack(samples).to(self.device)


def is_whole(number: object) -> bool:
    """Whether it is a whole number of Python or numpy."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def timesteps(num_steps: int, steps: int) -> list[int]:
    """`steps` + 1 strictly decreasing times from T = num_steps to 0, t_k = T (1 - (k / steps)^2).

    They are close together where t is near T: there the global modalities, whose code is heard on every
    token, and the coarse picture are decided, and they have to be decided in step with one another.
    """
    if not is_whole(steps) or not 1 <= steps <= num_steps:
        raise ValueError(
            f"steps is {steps!r}, expected a whole number from 1 to {num_steps}, the length of the noise "
            f"schedule; try {min(30, num_steps)}."
        )
    times = [num_steps]
    for k in range(1, steps + 1):
        times.append(min(times[-1] - 1, round(num_steps * (1 - (k / steps) ** 2))))
    return times


def implied_noise(schedule: NoiseSchedule, z_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """eps_hat of (5): (z_t - sqrt(abar_t) z0_hat - m_t) / sqrt(1 - abar_t), (B, *Z), for t (B,) above 0."""
    std = noise_std(gather(schedule.log_abar, t))
    return (z_t - signal(schedule, prediction.z0, t, prediction.e)) / per_sample(std, z_t)


def jump(
    schedule: NoiseSchedule,
    z_t: Tensor,
    t: Tensor,
    s: Tensor,
    prediction: Prediction,
    noise: Tensor | None = None,
    eta: float | Tensor = 0.0,
) -> Tensor:
    """(5): z_s (B, *Z) from z_t (B, *Z) for t, s (B,) long with 0 <= s < t; at s = 0 exactly z0_hat.

    eta in [0, 1], a number or one per sample (B,), sets how much of the noise is drawn anew:
    sigma^2 = eta^2 (1-abar_s)/(1-abar_t) (1 - abar_t/abar_s). 0 draws none, 1 makes the jump a draw from
    q(z_s | z_t, z_0, X), which for s = t-1 is (4). `noise` (B, *Z) is needed unless eta is 0.
    """
    if noise is None and (isinstance(eta, Tensor) or eta != 0):
        raise ValueError(
            f"eta is {eta} and no noise was given; pass standard normal noise like z_t, or eta=0."
        )
    if noise is not None and noise.shape != z_t.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}, expected {tuple(z_t.shape)} as z_t; "
            "draw it for each sample."
        )
    log_abar_t, log_abar_s = gather(schedule.log_abar, t), gather(schedule.log_abar, s)
    kept = torch.exp(log_abar_t - log_abar_s)
    noise_s, noise_t = -torch.expm1(log_abar_s), -torch.expm1(log_abar_t)
    eta_squared = torch.as_tensor(eta, dtype=kept.dtype, device=kept.device) ** 2
    # 1 - abar_s - sigma^2, rearranged so that nothing cancels when eta is 1
    direction = noise_s * (1 - eta_squared + eta_squared * kept * noise_s / noise_t)
    eps_hat = implied_noise(schedule, z_t, t, prediction)
    z_s = signal(schedule, prediction.z0, s, prediction.e) + per_sample(direction.sqrt(), z_t) * eps_hat
    if noise is None:
        return z_s
    variance = eta_squared * noise_s / noise_t * -torch.expm1(log_abar_t - log_abar_s)
    return z_s + per_sample(variance.sqrt(), z_t) * noise


def extrapolate(
    schedule: NoiseSchedule,
    prediction: Prediction,
    previous: Prediction | None,
    t: Tensor,
    s: Tensor,
    t_previous: Tensor | None,
) -> Prediction:
    """Second-order multistep correction of DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) to z_0 and every e.

    `prediction` was made at t, `previous` at t_previous > t, and the jump goes to s; all (B,) long. The
    predictions are continued linearly in half the log-SNR to the middle of the jump. A sample without a
    previous prediction (`previous` None, or its t_previous equal to t) and the jump to s = 0, which is
    infinitely long in log-SNR, stay first order.
    """
    if previous is None:
        return prediction
    snr_s, snr_t, snr_previous = (log_snr(gather(schedule.log_abar, time)) for time in (s, t, t_previous))
    second_order = ((s > 0) & (t_previous > t)).to(snr_t.device)
    factor = torch.where(second_order, (snr_s - snr_t) / (2 * (snr_t - snr_previous)), 0.0)

    def corrected(now: Tensor, before: Tensor) -> Tensor:
        return now + per_sample(factor, now) * (now - before)  # exactly `now` for a given modality

    return replace(
        prediction,
        z0=corrected(prediction.z0, previous.z0),
        e={name: corrected(encoding, previous.e[name]) for name, encoding in prediction.e.items()},
    )


@dataclass(frozen=True)
class Rule:
    """How a trajectory goes on: eta of (5), and whether predictions are extrapolated (DPM-Solver++(2M))."""

    eta: float = 0.0
    multistep: bool = False


RULES = {"ddim": Rule(), "ancestral": Rule(eta=1.0), "dpmpp_2m": Rule(multistep=True)}


class Trajectory:
    """A batch of samples on their way from z_T to z_0, one jump (5) at a time.

    Attributes:
        z: (B, *Z), where they stand. index: jumps made. times: of z after each number of jumps.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        z_T: Tensor,
        steps: int,
        rule: Rule = RULES["ddim"],
        noise: SampleNoise | None = None,
    ) -> None:
        """`noise` is needed if the rule's eta is not 0. Raises ValueError for what cannot be sampled."""
        if not 0 <= rule.eta <= 1:
            raise ValueError(
                f"eta is {rule.eta}, expected a number from 0 (deterministic) to 1 (ancestral); try 0."
            )
        if rule.eta > 0 and noise is None:
            raise ValueError(
                f"eta is {rule.eta} and no noise was given; pass SampleNoise with one seed per sample, "
                "or eta=0."
            )
        self.schedule, self.rule, self.noise = schedule, rule, noise
        self.z, self.index, self.times = z_T, 0, timesteps(schedule.num_steps, steps)
        self._clean: Prediction | None = None  # what the last jump held fixed
        self._previous: tuple[Prediction, Tensor] | None = None  # for the next extrapolation

    @property
    def done(self) -> bool:
        return self.index == len(self.times) - 1

    @property
    def t(self) -> Tensor:
        """(B,) long, the time of z."""
        return self._filled(self.times[self.index])

    @torch.no_grad()
    def advance(self, prediction: Prediction) -> Step:
        """The jump to the next time, from the prediction made of z."""
        t, s = self.t, self._filled(self.times[self.index + 1])
        eps_hat = implied_noise(self.schedule, self.z, t, prediction)
        clean = prediction
        if self.rule.multistep:
            previous, t_previous = self._previous or (None, None)
            clean = extrapolate(self.schedule, prediction, previous, t, s, t_previous)
            self._previous = prediction, t
        fresh = self.noise(self.z.shape[1:]).to(self.z) if self.rule.eta > 0 else None
        self.z = jump(self.schedule, self.z, t, s, clean, fresh, self.rule.eta)
        self._clean = clean
        self.index += 1
        return Step(
            self.index, len(self.times) - 1, self.times[self.index - 1], self.z, eps_hat, prediction.x
        )

    @torch.no_grad()
    def revise(self, put: Callable[[Prediction], Prediction]) -> None:
        """Replaces parts of the clean data on which z stands, under the same noise; at least one jump in.

        `put` maps the prediction that the last jump held fixed to the one it should have held. The next jump
        is first order.
        """
        if self._clean is None:
            raise ValueError("nothing has been predicted yet that could be revised; advance first.")
        old, new = self._clean, put(self._clean)
        differences = {name: new.e[name] - old.e[name] for name in old.e}
        self.z = self.z + signal(self.schedule, new.z0 - old.z0, self.t, differences)
        self._clean, self._previous = new, None

    def _filled(self, t: int) -> Tensor:
        return torch.full((len(self.z),), t, dtype=torch.long, device=self.z.device)


def _followed(trajectory: Trajectory, denoiser: Denoiser) -> Iterator[Step]:
    while not trajectory.done:
        with torch.no_grad():
            prediction = denoiser(trajectory.z, trajectory.t)
        yield trajectory.advance(prediction)


def sample_ddim(
    schedule: NoiseSchedule,
    denoiser: Denoiser,
    z_T: Tensor,
    steps: int,
    noise: SampleNoise | None = None,
    eta: float = 0.0,
) -> Iterator[Step]:
    """Yield `steps` jumps (5) from z_T (B, *Z) to z_0; `noise` is used if eta, in [0, 1], is not 0."""
    return _followed(Trajectory(schedule, z_T, steps, Rule(eta), noise), denoiser)


def sample_ancestral(
    schedule: NoiseSchedule, denoiser: Denoiser, z_T: Tensor, steps: int, noise: SampleNoise
) -> Iterator[Step]:
    """Yield `steps` posterior draws, (5) with eta = 1; where times differ by one, that is (4)."""
    return _followed(Trajectory(schedule, z_T, steps, RULES["ancestral"], noise), denoiser)


def sample_dpmpp_2m(
    schedule: NoiseSchedule, denoiser: Denoiser, z_T: Tensor, steps: int, noise: SampleNoise | None = None
) -> Iterator[Step]:
    """Yield `steps` jumps of DPM-Solver++(2M) from z_T (B, *Z) to z_0.

    Deterministic: `noise` is accepted so that all samplers can be called alike, and left alone.
    """
    return _followed(Trajectory(schedule, z_T, steps, RULES["dpmpp_2m"]), denoiser)


SAMPLERS: dict[str, Callable[..., Iterator[Step]]] = {
    "ddim": sample_ddim,
    "ancestral": sample_ancestral,
    "dpmpp_2m": sample_dpmpp_2m,
}
