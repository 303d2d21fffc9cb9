"""The model: modality encoders into Z, one denoiser over Z, modality heads back out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.backbone import Backbone
from mmdiff.config import ModelConfig
from mmdiff.forward_process import signal
from mmdiff.modalities import Modality, build_modality
from mmdiff.samplers import Denoiser, Prediction
from mmdiff.schedule import NoiseSchedule, log_snr

UNKNOWN, KNOWN, ABSENT = 0, 1, 2
LOG_SNR_LIMIT = 15.0  # keeps the time embedding finite at t = 0 and t = T


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about a batch, in the space Z.

    Attributes:
        e: name -> (B, C, h, w), the true encodings; zero where a modality is not known.
        flags: (B, N) long, `UNKNOWN`, `KNOWN` or `ABSENT` for each modality in order.
        known_pixels: (B, 1, H, W) float, 1 where the anchor's pixel is given.
    """

    e: dict[str, Tensor]
    flags: Tensor
    known_pixels: Tensor


class DenseHead(nn.Module):
    """Pixel features (B, r, H / 2, W / 2) -> (B, channels, H, W)."""

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, 4 * channels, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=1e-3)
        nn.init.zeros_(self.conv.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(pixels), 2)


class GlobalHead(nn.Module):
    """A modality's own token (B, width) -> (B, channels)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))
        nn.init.normal_(self.mlp[2].weight, std=1e-3)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, token: Tensor) -> Tensor:
        return self.mlp(token)


class MultiModalDiffusion(nn.Module):
    """Encoders E_i, denoiser and heads D_i of all modalities; the first one is the anchor z_0.

    Every modality has its own channels of Z, so Z has shape (sum of z_channels, grid, grid).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = nn.ModuleDict(
            {m.name: build_modality(m, config.image_size, config.patch_size) for m in config.modalities}
        )
        self.names = tuple(self.modalities)
        self.anchor = self.names[0]
        if self.modalities[self.anchor].kind != "image":
            raise ValueError(f"the first modality is the anchor and must be an image, not {self.anchor!r}.")
        self.z_channels = sum(m.z_channels for m in self.modalities.values())
        self.grid = config.image_size // config.patch_size
        self.offsets: dict[str, int] = {}
        for name, modality in self.modalities.items():
            self.offsets[name] = sum(self.modalities[n].z_channels for n in self.offsets)
        self.dense_names = tuple(n for n, m in self.modalities.items() if m.dense)
        dense_channels = sum(self.modalities[n].z_channels for n in self.dense_names) // config.patch_size**2
        self.backbone = Backbone(
            z_channels=self.z_channels,
            pixel_channels=2 * dense_channels + 1,
            num_modalities=len(self.names),
            grid=self.grid,
            patch=config.patch_size,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            refiner_width=config.refiner_width,
            dropout=config.dropout,
        )
        self.heads = nn.ModuleDict(
            {
                n: DenseHead(config.refiner_width, m.head_channels)
                if m.dense
                else GlobalHead(config.width, m.head_channels)
                for n, m in self.modalities.items()
            }
        )

    def make_schedule(self) -> NoiseSchedule:
        """The noise schedule that this model is trained and sampled with."""
        others = self.config.modalities[1:]
        return NoiseSchedule(
            self.config.num_steps,
            self.names,
            kind=self.config.schedule,
            weights={m.name: m.weights for m in others},
            scales={m.name: m.scale for m in others},
            shift=self.config.schedule_shift,
        )

    @property
    def z_shape(self) -> tuple[int, int, int]:
        """Shape of one point of Z."""
        return (self.z_channels, self.grid, self.grid)

    def place(self, name: str, encoding: Tensor) -> Tensor:
        """A modality's channels (B, z_channels_i, h, w) -> the same in all of Z, zero elsewhere."""
        before = self.offsets[name]
        after = self.z_channels - before - self.modalities[name].z_channels
        return F.pad(encoding, (0, 0, 0, 0, before, after))

    def encode(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E_i of every value in ``x``, each (B, *Z)."""
        return {name: self.place(name, self.modalities[name].encode(value)) for name, value in x.items()}

    def condition(self, e: Mapping[str, Tensor], flags: Tensor, known_pixels: Tensor) -> Conditioning:
        """What is given, from true encodings: those not flagged known are dropped, the anchor's pixel by pixel.

        Args:
            e: name -> (B, *Z), true encodings of (at least) everything that is given.
            flags: (B, N) long; known_pixels: (B, 1, H, W) of 0 and 1.
        """
        kept = {}
        for i, name in enumerate(self.names):
            if name == self.anchor and name in e:
                kept[name] = e[name] * self._fold_known(known_pixels, name)
            elif name in e:
                kept[name] = e[name] * (flags[:, i] == KNOWN)[:, None, None, None]
        return Conditioning(kept, flags, known_pixels)

    def _fold_known(self, known_pixels: Tensor, name: str) -> Tensor:
        channels = self.modalities[name].z_channels // self.config.patch_size**2
        folded = F.pixel_unshuffle(known_pixels.expand(-1, channels, -1, -1), self.config.patch_size)
        return self.place(name, folded)

    def forward(self, z_t: Tensor, log_snr_t: Tensor, condition: Conditioning) -> dict[str, Tensor]:
        """Raw outputs of every head: dense (B, C_i, H, W), global (B, C_i), in float32.

        Args:
            z_t: (B, *Z); log_snr_t: (B,), log abar_t / (1 - abar_t) of the time z_t stands at.
        """
        clean = sum(condition.e.values(), start=torch.zeros_like(z_t))
        known = condition.known_pixels.to(z_t.dtype)
        pixels = torch.cat([self._pixels(z_t), self._pixels(clean), known], dim=1)
        folded = F.pixel_unshuffle(known, self.config.patch_size)
        features, registers = self.backbone(
            z_t, clean, folded, pixels, log_snr_t.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT), condition.flags
        )
        return {
            name: self.heads[name](features if m.dense else registers[:, i]).float()
            for i, (name, m) in enumerate(self.modalities.items())
        }

    def _pixels(self, z: Tensor) -> Tensor:
        """The dense modalities' channels of Z at full resolution: (B, C, H, W)."""
        parts = [
            z[:, self.offsets[n] : self.offsets[n] + self.modalities[n].z_channels] for n in self.dense_names
        ]
        return torch.cat([F.pixel_shuffle(p, self.config.patch_size) for p in parts], dim=1)

    def interpret(self, raw: Mapping[str, Tensor], condition: Conditioning) -> Prediction:
        """Raw head outputs -> clean predictions in data space and in Z, with what is given put in place."""
        e = {n: self.place(n, m.expected_encoding(raw[n])) for n, m in self.modalities.items()}
        for i, name in enumerate(self.names):
            if name == self.anchor:
                known = self._fold_known(condition.known_pixels, name)
                e[name] = torch.where(known > 0, condition.e[name], e[name]) if name in condition.e else e[name]
                continue
            flag = condition.flags[:, i, None, None, None]
            true = condition.e.get(name, torch.zeros_like(e[name]))  # zero where absent
            e[name] = torch.where(flag == UNKNOWN, e[name], true)
        x = {n: m.predict(raw[n]) for n, m in self.modalities.items()}
        return Prediction(z0=e.pop(self.anchor), e=e, x=x)

    def denoiser(self, schedule: NoiseSchedule, condition: Conditioning) -> Denoiser:
        """(z_t, t) -> `Prediction`, for samplers; runs without gradients."""
        table = _clamped_log_snr(schedule)

        @torch.no_grad()
        def denoise(z_t: Tensor, t: Tensor) -> Prediction:
            return self.interpret(self(z_t, _at(table, t, z_t), condition), condition)

        return denoise

    def unconditional_denoiser(self, schedule: NoiseSchedule, condition: Conditioning) -> Denoiser:
        """The denoiser that is not told of the given modalities, for guidance.

        They are made absent: not only flagged, but also taken out of z_t, which carries them under noise.
        The anchor cannot be absent, so pixels that are given stay given.
        """
        table = _clamped_log_snr(schedule)
        given = {n: v for n, v in condition.e.items() if n != self.anchor}
        flags = condition.flags.clone()
        flags[:, 1:][flags[:, 1:] == KNOWN] = ABSENT
        blind = self.condition({n: v for n, v in condition.e.items() if n == self.anchor}, flags, condition.known_pixels)

        @torch.no_grad()
        def denoise(z_t: Tensor, t: Tensor) -> Prediction:
            without = z_t - signal(schedule, torch.zeros_like(z_t), t, given)
            return self.interpret(self(without, _at(table, t, z_t), blind), condition)

        return denoise


def _clamped_log_snr(schedule: NoiseSchedule) -> Tensor:
    return log_snr(schedule.log_abar).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)


def _at(table: Tensor, t: Tensor, z_t: Tensor) -> Tensor:
    return table[t.to(table.device)].to(z_t.device, torch.float32)
