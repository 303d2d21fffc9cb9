"""The noise schedule: one table of numbers per coefficient of the forward process, index 0 … T, float64.

Notation: t = 0 is data and u = t / T. `a[t]` is the per-step signal factor alpha_t / (N + 1), `abar[t]` the
product of a[1] … a[t], `w[name][t]` the weight with which modality `name` enters at step t and
`wbar[name][t]` the weight with which it is present in z_t, so that (2) wbar_t = sqrt(a_t) (wbar_{t-1} + w_t),
wbar_0 = 0.

Every modality has a clock of its own, on which it leads the others by l_i (Semantic-First Diffusion, Liu et
al. 2025; Diffusion Forcing, Chen et al. 2024):

    tau_i(u) = clamp((1 + L) u - l_i, 0, 1), L = max l_i        level_i(t) = lambda(tau_i)

where lambda is the log signal-to-noise ratio of the cosine schedule. In sampling it starts l_i earlier than a
modality without a lead, and is decided l_i earlier. The levels define the weights:

    abar_t = sigmoid(level_anchor(t))        wbar_t^(i) = sqrt(1 - abar_t) exp(level_i(t) / 2)
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmdiff.leads import check_name, checked_leads, checked_number

LEVEL_MIN, LEVEL_MAX = -10.0, 6.0  # nothing can be seen; decided
ANCHOR_MAX = 14.0  # the anchor's level goes on rising above LEVEL_MAX, where fine detail is made
# slope of the anchor's level, per unit of its clock, beyond LEVEL_MIN and ANCHOR_MAX: every step adds some
# noise
CREEP = 0.25


def log_snr(log_abar: Tensor) -> Tensor:
    """log( abar / (1 - abar) ), +inf where abar is 1."""
    return log_abar - torch.log(-torch.expm1(log_abar))


def cosine_level(tau: Tensor) -> Tensor:
    """lambda(tau) = -2 log tan(pi tau / 2) for tau in [0, 1]: log-SNR of abar = cos^2(pi tau / 2)."""
    return -2 * torch.log(torch.tan(math.pi / 2 * tau.clamp(0, 1)).abs())  # in float32 tan(pi / 2) < 0


def own_times(u: Tensor, leads: Mapping[str, Tensor | float]) -> dict[str, Tensor]:
    """The clocks (1 + L) u - l_i before they are clamped, from u in [0, 1]; leads count from the least of
    them.

    Leads are numbers or tensors like ``u``.
    """
    rows = torch.stack(
        [torch.as_tensor(lead, dtype=u.dtype, device=u.device).expand_as(u) for lead in leads.values()]
    )
    rows = rows - rows.amin(0)
    times = (1 + rows.amax(0)) * u - rows
    return dict(zip(leads, times, strict=True))


def level_of(time: Tensor, scale: float = 1.0) -> Tensor:
    """lambda(clamp(time, 0, 1)) + 2 log scale, clamped to [LEVEL_MIN, LEVEL_MAX]."""
    return (cosine_level(time) + 2 * math.log(scale)).clamp(LEVEL_MIN, LEVEL_MAX)


def anchor_level(time: Tensor, scale: float = 1.0) -> Tensor:
    """The same for the anchor, which falls strictly: beyond LEVEL_MIN and ANCHOR_MAX it creeps on."""
    level = cosine_level(time) + 2 * math.log(scale)
    bottom, top = (2 / math.pi * math.atan(scale * math.exp(-end / 2)) for end in (LEVEL_MIN, ANCHOR_MAX))
    level = torch.where(time > bottom, LEVEL_MIN - CREEP * (time - bottom), level)
    return torch.where(time < top, ANCHOR_MAX + CREEP * (top - time), level)


class NoiseSchedule:
    """Coefficients of the forward process; float64 tensors of shape (T+1,), on the CPU until `to` is called.

    num_steps:  T, at least 1.
    modalities: names of all modalities; the first is the anchor, whose encoding is z_0.
    leads:      by how much each modality leads, 0 to `MAX_LEAD` in units of the anchor's own run; 0 by
        default.
                Only differences count, so a lead of the anchor alone has the photo decided first.
    scales:     factor c_i on the weights of each modality, 1 by default: its level moves by 2 log c_i. A
        global
                modality's code is on every token, so that it is readable under more noise than a photo.

    spacing:    power of `mmdiff.samplers.timesteps`: sampling takes its steps evenly.

    Attributes: `a`, `log_a`, `abar`, `log_abar`, `alpha` and, by modality name, `level`, `w`, `wbar` and
    `rms`, which is sqrt(wbar_i^2 + 1 - abar), of a modality's channels of z_t.
    Raises ValueError for names and numbers that are none of the above.
    """

    spacing = 1.0

    def __init__(
        self,
        num_steps: int = 1000,
        modalities: Sequence[str] = ("image",),
        leads: Mapping[str, float] | None = None,
        scales: Mapping[str, float] | None = None,
    ):
        self.num_steps = _checked_num_steps(num_steps)
        self.modalities = _checked_modalities(modalities)
        self.leads = checked_leads(leads, self.modalities)
        self.scales = dict.fromkeys(self.modalities, 1.0)
        for name, scale in (scales or {}).items():
            check_name(name, self.modalities, "scales")
            self.scales[name] = checked_number(scale, f"scales[{name!r}]", low=0.0)
        times = own_times(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps, self.leads)
        self.level = {name: level_of(time, self.scales[name]) for name, time in times.items()}
        level = anchor_level(times[self.anchor], self.scales[self.anchor])
        level[0] = math.inf
        self.level[self.anchor] = level
        self.log_abar = logsigmoid(level)
        self.log_a = torch.diff(self.log_abar, prepend=self.log_abar.new_zeros(1))
        self.a, self.abar = self.log_a.exp(), self.log_abar.exp()
        self.rms = {self.anchor: torch.ones_like(level)}
        self.wbar = {n: torch.zeros_like(level) for n in self.modalities}
        self.w = {n: torch.zeros_like(level) for n in self.modalities}
        for name in self.weighted:
            wbar = torch.exp(0.5 * (logsigmoid(-level) + self.level[name]))  # sqrt(1 - abar) exp(level / 2)
            wbar[0] = 0.0
            self.wbar[name] = wbar
            self.rms[name] = torch.sqrt(wbar**2 - torch.expm1(self.log_abar))
            self.w[name][1:] = wbar[1:] / torch.exp(0.5 * self.log_a[1:]) - wbar[:-1]

    @property
    def anchor(self) -> str:
        """Name of the modality whose encoding is z_0."""
        return self.modalities[0]

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the modalities that enter z_t by their weights: all but the anchor."""
        return self.modalities[1:]

    @property
    def alpha(self) -> Tensor:
        """(T+1,) alpha_t = (N + 1) a_t, in (0, N + 1) for t > 0."""
        return (len(self.modalities) + 1) * self.a

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule with its tables on `device`, which must know float64."""
        moved = copy.copy(self)
        for table in ("a", "log_a", "abar", "log_abar"):
            setattr(moved, table, getattr(self, table).to(device))
        for tables in ("w", "wbar", "level", "rms"):
            setattr(moved, tables, {name: own.to(device) for name, own in getattr(self, tables).items()})
        return moved


def _checked_num_steps(num_steps: int) -> int:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}, expected a whole number of at least 1; try 1000.")
    return num_steps


def _checked_modalities(modalities: Sequence[str]) -> tuple[str, ...]:
    names = tuple(modalities)
    named = not isinstance(modalities, str) and all(isinstance(name, str) and name for name in names)
    if not named or not names or len(set(names)) < len(names):
        raise ValueError(
            f"modalities is {modalities!r}, expected a tuple of at least one name and no name twice; "
            'list each modality once, the anchor first, such as ("image", "mask").'
        )
    return names
