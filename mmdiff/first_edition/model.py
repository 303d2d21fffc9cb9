"""The first edition of the model: one time for all modalities, and flags that say what is given or
ignored.
"""

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.first_edition.convolutions import DETAIL, Reader
from mmdiff.first_edition.schedule import WeightSchedule
from mmdiff.first_edition.transformer import Denoiser
from mmdiff.forward_process import signal
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.channels import CHANNELS
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Call, Conditioning
from mmdiff.network.heads import DetailHead
from mmdiff.schedule import log_snr

LOG_SNR_LIMIT = 15.0  # keeps the time embedding finite at t = 0 and t = T


class FirstEdition(MultiModalDiffusion):
    """Encoders E_i, denoiser and heads D_i of all modalities, for checkpoints whose configuration has flags.

    `config.channels` says how the modalities lie in Z, by default each in channels of its own.
    """

    has_levels = False
    guided_levels = (-math.inf, math.inf)

    def _make_network(self, sizes: Mapping[str, int]) -> None:
        config = self.config
        self.channels = CHANNELS[config.channels](sizes)
        dense_channels = sum(sizes[n] for n in self.dense_names) // self.fold**2
        self.backbone = Denoiser(
            config,
            z_channels=self.z_channels,
            cell_channels=2 * dense_channels + self.cell**2,
            num_modalities=len(self.names),
            fold=self.fold,
        )
        depth = config.reader_depth
        self.reader = Reader(self.cell, config.refiner_width, depth) if depth else None
        self.heads = nn.ModuleDict({n: self._head(m) for n, m in self.modalities.items()})
        self.details = nn.ModuleDict({n: self._detail_head(m) for n, m in self._finer_than_cells().items()})

    def _finer_than_cells(self) -> dict[str, nn.Module]:
        """Dense modalities that the reader has seen finer than the refiner works."""
        if self.reader is None or not self.reader.detail:
            return {}
        return {n: m for n, m in self.modalities.items() if m.dense and m.head_stride <= DETAIL}

    def _detail_head(self, modality: nn.Module) -> DetailHead:
        features, reader = self.config.refiner_width, self.reader
        return DetailHead(
            features, reader.detail, modality.head_channels, reader.fold, DETAIL // modality.head_stride
        )

    def make_schedule(self, leads: Mapping[str, float] | None = None) -> WeightSchedule:
        """The noise schedule that this model is trained and sampled with; it has no leads.

        Raises ValueError if leads are given.
        """
        if leads is not None and any(leads.values()):
            raise ValueError(
                "this checkpoint has no leads: its modalities are decided together; leave leads out."
            )
        others = self.config.modalities[1:]
        return WeightSchedule(
            self.config.num_steps,
            self.names,
            kind=self.config.schedule,
            weights={m.name: m.weights for m in others},
            scales={m.name: m.scale for m in others},
            shift=self.config.schedule_shift,
        )

    def _visible(self, known_pixels: Tensor) -> Tensor:
        return self.modalities[self.anchor].visible(known_pixels)

    def without(self, conditioning: Conditioning, names: Collection[str]) -> Conditioning:
        """A guidance branch: the same without the given modalities ``names``, which become ignored.

        They are also taken out of z_t, which carries them under noise. The anchor cannot be ignored: where it
        is named, the network sees its known pixels as all others, under the noise of z_t; otherwise pixels
        that are given stay given.
        """
        removed = torch.tensor([n in names for n in self.names], device=conditioning.flags.device)
        flags = conditioning.flags.masked_fill(removed & (conditioning.flags == KNOWN), ABSENT)
        known, pixels, read = conditioning.known_pixels, conditioning.pixels, conditioning.read
        if self.anchor in names:
            flags[:, 0] = UNKNOWN
            known, pixels, read = torch.zeros_like(known), None, None
        e = self._given_encodings(conditioning.e, flags, known)
        hidden = {n: v for n, v in conditioning.e.items() if n in names and n != self.anchor}
        return Conditioning(e, flags, known, pixels, read, hidden)

    def forward(self, z_t: Tensor, log_snr_t: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Raw outputs of every head: dense (B, C_i, H, W), global (B, C_i), in float32.

        Args:
            z_t: (B, *Z). log_snr_t: (B,), log abar_t / (1 - abar_t) of the time z_t stands at.
        """
        clean = sum(conditioning.e.values(), start=torch.zeros_like(z_t))
        known = conditioning.known_pixels.to(z_t.dtype)
        if self.config.in_place:
            z_t = torch.where(self._known_entries(conditioning), clean, z_t)
        cells = torch.cat([self._cells(z_t), self._cells(clean), F.pixel_unshuffle(known, self.cell)], dim=1)
        read = self._features(conditioning)
        read, detail = (None, None) if read is None else self.reader.parts(read)
        features, registers = self.backbone(
            z_t,
            clean,
            F.pixel_unshuffle(known, self.config.patch_size),
            cells,
            log_snr_t.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT),
            conditioning.flags,
            read,
        )
        raw = {
            name: self.heads[name](features if m.dense else registers[:, i])
            for i, (name, m) in enumerate(self.modalities.items())
        }
        for name, head in self.details.items():
            raw[name] = raw[name] + head(features, detail)
        return {name: value.float() for name, value in raw.items()}

    def _known_entries(self, conditioning: Conditioning) -> Tensor:
        """Entries of Z that are wholly known, (B, *Z) bool; beside a hole the latents are not."""
        whole = self.coverage(conditioning.known_pixels) == 1
        for i, name in enumerate(self.names[1:], start=1):
            ones = whole.new_ones(1, self.modalities[name].z_channels, self.grid, self.grid)
            own = self.channels.place(name, ones)
            whole = whole | (own & (conditioning.flags[:, i] == KNOWN)[:, None, None, None])
        return whole

    def _cells(self, z: Tensor) -> Tensor:
        """The dense modalities' channels of Z, cell by cell: (B, C, H / cell, W / cell)."""
        return torch.cat([self._cells_of(n, self.channels.take(n, z)) for n in self.dense_names], dim=1)

    @torch.no_grad()
    def call_at(self, schedule: WeightSchedule, z: Tensor, t: int, conditioning: Conditioning) -> Call:
        """The arguments of `forward` for samples that stand at z (B, *Z) at time t."""
        if conditioning.hidden:
            time = torch.full((len(z),), t, device=z.device)
            z = z - signal(schedule, torch.zeros_like(z), time, conditioning.hidden)
        level = log_snr(schedule.log_abar[t]).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        return z, level.float().to(z.device).expand(len(z)), conditioning
