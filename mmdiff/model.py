"""The model: modality encoders into Z, one denoiser over Z, modality heads back out. It keeps no state."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import ModelConfig
from mmdiff.forward_process import signal
from mmdiff.lazy_mapping import LazyMapping
from mmdiff.modalities import build_modality
from mmdiff.network.channels import CHANNELS
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Call, Conditioning, joined
from mmdiff.network.convolutions import DETAIL, Reader
from mmdiff.network.heads import DenseHead, DetailHead, GlobalHead
from mmdiff.network.transformer import Denoiser
from mmdiff.samplers import Encodings
from mmdiff.schedule import NoiseSchedule, log_snr

LOG_SNR_LIMIT = 15.0  # keeps the time embedding finite at t = 0 and t = T


class MultiModalDiffusion(nn.Module):
    """Encoders E_i, denoiser and heads D_i of all modalities; the first one is the anchor z_0.

    Z has shape (channels, grid, grid); `config.channels` says how the modalities lie in it, by default each
    in channels of its own. The dense ones are refined in cells: two pixels a side, or the coarsest of their
    strides.
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
        sizes = {name: modality.z_channels for name, modality in self.modalities.items()}
        self.channels = CHANNELS[config.channels](sizes)
        self.z_channels = self.channels.total
        self.grid = config.image_size // config.patch_size
        self.dense_names = tuple(n for n, m in self.modalities.items() if m.dense)
        self.cell = max(2, *(self.modalities[n].stride for n in self.dense_names))
        if config.patch_size % self.cell:
            raise ValueError(
                f"patch_size is {config.patch_size}; make it a multiple of {self.cell}, the coarsest stride."
            )
        fold = config.patch_size // self.cell
        dense_channels = sum(self.modalities[n].z_channels for n in self.dense_names) // fold**2
        self.backbone = Denoiser(
            config,
            z_channels=self.z_channels,
            cell_channels=2 * dense_channels + self.cell**2,
            num_modalities=len(self.names),
            fold=fold,
        )
        depth = config.reader_depth
        self.reader = Reader(self.cell, config.refiner_width, depth) if depth else None
        self.heads = nn.ModuleDict({n: self._head(m) for n, m in self.modalities.items()})
        self.details = nn.ModuleDict({n: self._detail_head(m) for n, m in self._finer_than_cells().items()})

    def _head(self, modality: nn.Module) -> nn.Module:
        if modality.dense:
            fold = self.cell // modality.head_stride
            return DenseHead(self.config.refiner_width, modality.head_channels, fold)
        return GlobalHead(self.config.width, modality.head_channels)

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

    def encode(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """E_i of every value in ``x``, each (B, *Z)."""
        return {n: self.channels.place(n, self.modalities[n].encode(value)) for n, value in x.items()}

    def load_pretrained(self, folder: str | Path) -> None:
        """Frozen parts of the modalities from the folder of all checkpoints; ValueError if they lack."""
        for modality in self.modalities.values():
            modality.load_pretrained(Path(folder))

    def encode_given(
        self, x: Mapping[str, Tensor], e: Mapping[str, Tensor], known_pixels: Tensor
    ) -> dict[str, Tensor]:
        """Encodings of what may be seen of ``x``: those in ``e``, but of the anchor only its known pixels.

        Args:
            known_pixels: (B, 1, H, W) of 0 and 1; concerns the anchor.
        """
        if self.anchor not in e:
            return dict(e)
        anchor = self.modalities[self.anchor]
        whole = self.channels.take(self.anchor, e[self.anchor])
        seen = anchor.encode_known(x[self.anchor], known_pixels, whole)
        return {**e, self.anchor: e[self.anchor] if seen is whole else self.channels.place(self.anchor, seen)}

    # -- conditioning --------------------------------------------------------------------------------------

    def condition(
        self, e: Mapping[str, Tensor], flags: Tensor, known_pixels: Tensor, photo: Tensor | None = None
    ) -> Conditioning:
        """What is given, from encodings: what is not flagged known is dropped, of the anchor by pixel.

        Args:
            e: name -> (B, *Z), of `encode_given`, at least for everything that is given.
            flags: (B, N) long; known_pixels: (B, 1, H, W) of 0 and 1.
            photo: the anchor itself, (B, 3, H, W) in [-1, 1], for the reader; None if no pixel is known.

        Raises:
            ValueError: pixels are known, and the reader cannot see them.
        """
        kept = Conditioning(self._given_encodings(e, flags, known_pixels), flags, known_pixels)
        if self.reader is None:
            return kept
        if photo is None:
            if known_pixels.any():
                raise ValueError("this model reads the photo's pixels: give condition() the photo.")
            return kept
        known = known_pixels.to(photo.dtype)
        return replace(kept, pixels=torch.cat([photo * known, known], dim=1))

    def _given_encodings(
        self, e: Mapping[str, Tensor], flags: Tensor, known_pixels: Tensor
    ) -> dict[str, Tensor]:
        kept = {}
        for i, name in enumerate(self.names):
            if name == self.anchor and name in e:
                visible = self.modalities[name].visible(known_pixels).to(e[name].dtype)
                kept[name] = e[name] * self.channels.place(name, visible)
            elif name in e:
                kept[name] = e[name] * (flags[:, i] == KNOWN)[:, None, None, None]
        return kept

    def nothing_given(self, batch: int, device: torch.device, wanted: Collection[str] = ()) -> Conditioning:
        """Nothing is given to ``batch`` samples, of whom all modalities are wanted, or ``wanted`` alone."""
        flags = torch.full((batch, len(self.names)), ABSENT, device=device)
        for i, name in enumerate(self.names):
            if not wanted or name in wanted or name == self.anchor:
                flags[:, i] = UNKNOWN
        size = self.config.image_size
        return self.condition({}, flags, torch.zeros(batch, 1, size, size, device=device))

    def giving(self, conditioning: Conditioning, x: Mapping[str, Tensor]) -> Conditioning:
        """The same with more given: values ``x`` of other modalities than the anchor, (B, *shape) each."""
        flags = conditioning.flags.clone()
        for name in x:
            flags[:, self.names.index(name)] = KNOWN
        return replace(conditioning, e={**conditioning.e, **self.encode(x)}, flags=flags)

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

    def read(self, conditioning: Conditioning) -> Conditioning:
        """The same with the reader's features computed, once for all steps; unchanged without a reader."""
        if conditioning.pixels is None:
            return conditioning
        return replace(conditioning, pixels=None, read=self._features(conditioning))

    def _features(self, conditioning: Conditioning) -> Tensor | None:
        if conditioning.read is not None or conditioning.pixels is None:
            return conditioning.read
        return self.reader(conditioning.pixels)

    def coverage(self, known_pixels: Tensor) -> Tensor:
        """Known pixels (B, 1, H, W) -> the share of each of the anchor's entries of Z that they are."""
        return self.channels.place(self.anchor, self.modalities[self.anchor].coverage(known_pixels))

    # -- the network ---------------------------------------------------------------------------------------

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
        return torch.cat([self._cells_of(name, z) for name in self.dense_names], dim=1)

    def _cells_of(self, name: str, z: Tensor) -> Tensor:
        stride = self.modalities[name].stride
        unfolded = F.pixel_shuffle(self.channels.take(name, z), self.config.patch_size // stride)
        return F.pixel_unshuffle(unfolded, self.cell // stride)

    # -- sampling ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def call_at(self, schedule: NoiseSchedule, z: Tensor, t: int, conditioning: Conditioning) -> Call:
        """The arguments of `forward` for samples that stand at z (B, *Z) at time t."""
        if conditioning.hidden:
            time = torch.full((len(z),), t, device=z.device)
            z = z - signal(schedule, torch.zeros_like(z), time, conditioning.hidden)
        level = log_snr(schedule.log_abar[t]).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        return z, level.float().to(z.device).expand(len(z)), conditioning

    @torch.no_grad()
    def answer(self, calls: Sequence[Call]) -> list[dict[str, Tensor]]:
        """Raw outputs for each of the calls, from one run of the network."""
        raw = self(*joined(calls))
        sizes = [len(z) for z, _, _ in calls]
        parts = {name: value.split(sizes) for name, value in raw.items()}
        return [{name: part[k] for name, part in parts.items()} for k in range(len(calls))]

    def clean_encodings(self, raw: Mapping[str, Tensor], conditioning: Conditioning) -> dict[str, Tensor]:
        """Raw outputs -> the clean encoding of every modality, (B, *Z) by name, with what is given in it."""
        e = {n: self.channels.place(n, m.expected_encoding(raw[n])) for n, m in self.modalities.items()}
        return self.with_given(e, conditioning)

    def with_given(self, e: Encodings, conditioning: Conditioning) -> dict[str, Tensor]:
        """The encodings with the true ones of what is given, and zeros for what is ignored."""
        e = dict(e)
        if self.anchor in conditioning.e:
            determined = self.modalities[self.anchor].determined(conditioning.known_pixels)
            determined = self.channels.place(self.anchor, determined.to(e[self.anchor].dtype)) > 0
            e[self.anchor] = torch.where(determined, conditioning.e[self.anchor], e[self.anchor])
        for i, name in enumerate(self.names):
            if name != self.anchor:
                unknown = conditioning.flags[:, i, None, None, None] == UNKNOWN
                true = conditioning.e.get(name, torch.zeros_like(e[name]))
                e[name] = torch.where(unknown, e[name], true)
        return e

    def predictions(self, raw: Mapping[str, Tensor]) -> LazyMapping[Tensor]:
        """Raw outputs -> every head's prediction in data space, computed where somebody looks at it."""
        return LazyMapping({n: partial(m.predict, raw[n]) for n, m in self.modalities.items()})

    def denoiser(
        self, schedule: NoiseSchedule, conditioning: Conditioning
    ) -> Callable[[Tensor, int], tuple[Encodings, Mapping[str, Tensor]]]:
        """(z, t) -> the clean encodings that a sampler is sent, and the predictions in data space."""
        with torch.no_grad():
            conditioning = self.read(conditioning)

        def denoise(z: Tensor, t: int) -> tuple[Encodings, Mapping[str, Tensor]]:
            (raw,) = self.answer([self.call_at(schedule, z, t, conditioning)])
            return self.clean_encodings(raw, conditioning), self.predictions(raw)

        return denoise
