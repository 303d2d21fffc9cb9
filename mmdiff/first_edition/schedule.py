"""The noise schedule: one table of numbers per coefficient of the forward process, index 0 … T, float64.

Notation: t = 0 is data. `a[t]` is the per-step signal factor alpha_t / (N + 1), `abar[t]` the product of
a[1] … a[t], `w[name][t]` the weight with which modality `name` enters at step t and `wbar[name][t]` the
weight with which it is present in z_t, so that (2) wbar_t = sqrt(a_t) (wbar_{t-1} + w_t), wbar_0 = 0.
"""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmdiff.schedule import _checked_modalities, _checked_num_steps, log_snr

MAX_STEP_NOISE = 0.999  # upper limit of 1 - a_t, so that no single step removes the whole signal
COSINE_OFFSET = 0.008


def cosine_log_a(num_steps: int) -> Tensor:
    """log a_1 … log a_T of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), (T,) float64."""
    t = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    signal = torch.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
    return (signal[1:] / signal[:-1]).clamp(min=1 - MAX_STEP_NOISE).log()


def linear_log_a(num_steps: int) -> Tensor:
    """log a_1 … log a_T of DDPM's linear schedule, its 1000 steps stretched to T of them, (T,) float64."""
    stretch = 1000 / num_steps
    noise = torch.linspace(1e-4 * stretch, 0.02 * stretch, num_steps, dtype=torch.float64)
    return torch.log1p(-noise.clamp(max=MAX_STEP_NOISE))


def no_weights(log_a: Tensor, log_abar: Tensor) -> tuple[Tensor, Tensor]:
    """(w, wbar) of a modality that never enters z_t."""
    return torch.zeros_like(log_abar), torch.zeros_like(log_abar)


def joint_weights(log_a: Tensor, log_abar: Tensor) -> tuple[Tensor, Tensor]:
    """(w, wbar) of a modality that enters at the first step and is then diffused like the anchor."""
    w, wbar = torch.zeros_like(log_abar), torch.exp(0.5 * log_abar)
    w[1], wbar[0] = 1.0, 0.0
    return w, wbar


def ramp_weights(log_a: Tensor, log_abar: Tensor) -> tuple[Tensor, Tensor]:
    """(w, wbar) of a modality that enters slowly, peaks at 1 where sqrt(abar) = 1/2, and leaves again."""
    w, wbar = torch.zeros_like(log_abar), -4 * torch.exp(0.5 * log_abar) * torch.expm1(0.5 * log_abar)
    # (2) solved for w_t: the common factor sqrt(abar_{t-1}) cancels, and no difference of like terms is left
    w[1:] = -4 * torch.exp(log_abar[:-1]) * torch.expm1(0.5 * log_a[1:])
    return w, wbar


KINDS: dict[str, Callable[[int], Tensor]] = {"cosine": cosine_log_a, "linear": linear_log_a}
FAMILIES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "joint": joint_weights,
    "ramp": ramp_weights,
    "none": no_weights,
}


class WeightSchedule:
    """Coefficients of the forward process; float64 tensors of shape (T+1,), on the CPU until `to` is called.

    num_steps:  T, at least 1.
    modalities: names of all modalities; the first is the anchor, whose encoding is z_0.
    kind:       "cosine" or "linear".
    weights:    family of each modality, "joint", "ramp" or "none"; by default "none" for the anchor and
                "joint" for every other modality.
    scales:     factor c_i on the weights of each modality, 1 by default.
    shift:      the signal-to-noise ratio is multiplied by shift**2 at every t. Pictures of more pixels keep
                more visible structure under the same noise, so 64/96 gives 96-pixel pictures what 1 gives
                64-pixel ones.

    spacing: power of `mmdiff.samplers.timesteps`. Close together near T, where the global modalities, whose
        code is
             on every token, and the coarse picture are decided in step with one another.

    Attributes: `a`, `log_a`, `abar`, `log_abar`, `alpha` and, by modality name, `w` and `wbar`.
    Raises ValueError for names, kinds, families and numbers that are none of the above.
    """

    spacing = 2.0

    def __init__(
        self,
        num_steps: int = 1000,
        modalities: Sequence[str] = ("image",),
        kind: str = "cosine",
        weights: Mapping[str, str] | None = None,
        scales: Mapping[str, float] | None = None,
        shift: float = 1.0,
    ):
        self.num_steps = _checked_num_steps(num_steps)
        self.modalities = _checked_modalities(modalities)
        self.kind = _one_of(kind, KINDS, "kind")
        self.shift = _number(shift, "shift", above=0)
        weights, scales = dict(weights or {}), dict(scales or {})
        for name in (*weights, *scales):
            _one_of(name, self.modalities, "a modality named in weights or scales")
        families = dict.fromkeys(self.modalities, "joint") | {self.anchor: "none"} | weights
        self.families = {
            name: _one_of(value, FAMILIES, f"weights[{name!r}]") for name, value in families.items()
        }
        scales = dict.fromkeys(self.modalities, 1.0) | scales
        self.scales = {name: _number(value, f"scales[{name!r}]") for name, value in scales.items()}

        self.log_a, self.log_abar = _shifted(KINDS[kind](num_steps), self.shift)
        self.a, self.abar = self.log_a.exp(), self.log_abar.exp()
        self.w: dict[str, Tensor] = {}
        self.wbar: dict[str, Tensor] = {}
        for name, family in self.families.items():
            w, wbar = FAMILIES[family](self.log_a, self.log_abar)
            self.w[name], self.wbar[name] = self.scales[name] * w, self.scales[name] * wbar

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the modalities that enter z_t by their weights."""
        return tuple(name for name, family in self.families.items() if family != "none")

    @property
    def level(self) -> dict[str, Tensor]:
        """One log-SNR for all modalities."""
        return dict.fromkeys(self.modalities, log_snr(self.log_abar))

    @property
    def anchor(self) -> str:
        """Name of the modality whose encoding is z_0."""
        return self.modalities[0]

    @property
    def alpha(self) -> Tensor:
        """(T+1,) alpha_t = (N + 1) a_t, in (0, N + 1) for t > 0."""
        return (len(self.modalities) + 1) * self.a

    def to(self, device: torch.device | str) -> "WeightSchedule":
        """The same schedule with its tables on `device`, which must know float64."""
        moved = copy.copy(self)
        moved.a, moved.log_a = self.a.to(device), self.log_a.to(device)
        moved.abar, moved.log_abar = self.abar.to(device), self.log_abar.to(device)
        moved.w = {name: table.to(device) for name, table in self.w.items()}
        moved.wbar = {name: table.to(device) for name, table in self.wbar.items()}
        return moved


def _shifted(log_a: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """(T,) log a_1 … log a_T -> (T+1,) log_a and log_abar with the SNR multiplied by shift**2."""
    log_a = torch.cat([log_a.new_zeros(1), log_a])
    log_abar = log_a.cumsum(0)
    if shift == 1:
        return log_a, log_abar
    log_abar = logsigmoid(log_snr(log_abar) + 2 * math.log(shift))
    return torch.diff(log_abar, prepend=log_abar.new_zeros(1)), log_abar


def _one_of(value: str, known: Collection[str], what: str) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"{what} is {value!r}, expected one of {', '.join(map(repr, known))}; choose one of these."
        )
    return value


def _number(value: float, what: str, above: float = -math.inf) -> float:
    if not isinstance(value, int | float) or not above < value < math.inf:
        bound = "" if above == -math.inf else f" above {above}"
        raise ValueError(f"{what} is {value!r}, expected a finite number{bound}; 1.0 changes nothing.")
    return float(value)
