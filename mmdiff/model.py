"""The model: modality encoders into Z, one denoiser over Z, modality heads back out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import ModelConfig
from mmdiff.forward_process import signal
from mmdiff.lazy import Lazy
from mmdiff.modalities import build_modality
from mmdiff.network.channels import CHANNELS
from mmdiff.network.heads import DenseHead, DetailHead, GlobalHead
from mmdiff.network.reader import DETAIL, Reader
from mmdiff.network.transformer import Backbone
from mmdiff.samplers import Prediction
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
        previous: (B, C, h, w), the last `Prediction.clean` of the same samples, for self-conditioning; zero
            where there is none, None if there is none at all.
        pixels: (B, 4, H, W), what a `Reader` looks at; None: there is none, or it has nothing to look at.
        read: (B, channels, H / cell, W / cell), what it has made of that, if it was asked before.
    """

    e: dict[str, Tensor]
    flags: Tensor
    known_pixels: Tensor
    previous: Tensor | None = None
    pixels: Tensor | None = None
    read: Tensor | None = None


@dataclass(frozen=True)
class Query:
    """One call of the network: z_t (B, *Z), log_snr (B,) of its time and what the network is told."""

    z_t: Tensor
    log_snr: Tensor
    seen: Conditioning


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
        self.backbone = Backbone(
            z_channels=self.z_channels,
            extra_channels=config.patch_size**2 + config.self_conditioning * self.z_channels,
            cell_channels=2 * dense_channels + self.cell**2,
            num_modalities=len(self.names),
            grid=self.grid,
            fold=fold,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            refiner_width=config.refiner_width,
            stem_depth=config.stem_depth,
            reader=config.reader_depth > 0,
            dropout=config.dropout,
            num_times=len(self.names) if config.separate_times else 1,
        )
        depth = config.reader_depth
        self.reader = Reader(self.cell, config.refiner_width, depth) if depth else None
        self.heads = nn.ModuleDict(
            {
                n: DenseHead(config.refiner_width, m.head_channels, self.cell // m.head_stride)
                if m.dense
                else GlobalHead(config.width, m.head_channels)
                for n, m in self.modalities.items()
            }
        )
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
        """Encodings of what may be seen of ``x``: those in ``e``, E_i of all of it, but of known pixels.

        Args:
            known_pixels: (B, 1, H, W) of 0 and 1; concerns the anchor.
        """
        if self.anchor not in e:
            return dict(e)
        anchor = self.modalities[self.anchor]
        whole = self.channels.take(self.anchor, e[self.anchor])
        seen = anchor.encode_known(x[self.anchor], known_pixels, whole)
        return {**e, self.anchor: e[self.anchor] if seen is whole else self.channels.place(self.anchor, seen)}

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
        kept = self._condition(e, flags, known_pixels)
        if self.reader is None:
            return kept
        if photo is None:
            if known_pixels.any():
                raise ValueError("this model reads the photo's pixels: give condition() the photo.")
            return kept
        known = known_pixels.to(photo.dtype)
        return replace(kept, pixels=torch.cat([photo * known, known], dim=1))

    def _condition(self, e: Mapping[str, Tensor], flags: Tensor, known_pixels: Tensor) -> Conditioning:
        kept = {}
        for i, name in enumerate(self.names):
            if name == self.anchor and name in e:
                visible = self.modalities[name].visible(known_pixels).to(e[name].dtype)
                kept[name] = e[name] * self.channels.place(name, visible)
            elif name in e:
                kept[name] = e[name] * (flags[:, i] == KNOWN)[:, None, None, None]
        return Conditioning(kept, flags, known_pixels)

    def become_known(self, condition: Conditioning, x: Mapping[str, Tensor]) -> Conditioning:
        """The same with more given: values ``x`` of other modalities than the anchor, (B, *shape) each."""
        flags = condition.flags.clone()
        for name in x:
            flags[:, self.names.index(name)] = KNOWN
        return replace(condition, e={**condition.e, **self.encode(x)}, flags=flags)

    def read(self, seen: Conditioning) -> Tensor | None:
        """What the reader makes of the known pixels; None if there are none, or no reader."""
        if seen.read is not None or seen.pixels is None:
            return seen.read
        return self.reader(seen.pixels)

    def coverage(self, known_pixels: Tensor) -> Tensor:
        """Known pixels (B, 1, H, W) -> the share of each of the anchor's entries of Z that they are."""
        return self.channels.place(self.anchor, self.modalities[self.anchor].coverage(known_pixels))

    def forward(self, z_t: Tensor, log_snr_t: Tensor, condition: Conditioning) -> dict[str, Tensor]:
        """Raw outputs of every head: dense (B, C_i, H, W), global (B, C_i), in float32.

        Args:
            z_t: (B, *Z). log_snr_t: (B,), log abar_t / (1 - abar_t) of the time z_t stands at, or (B, N) of
                the times that its modalities stand at, if they have their own.
        """
        clean = sum(condition.e.values(), start=torch.zeros_like(z_t))
        known = condition.known_pixels.to(z_t.dtype)
        if self.config.in_place:
            z_t = torch.where(self._known_entries(condition), clean, z_t)
        cells = torch.cat([self._cells(z_t), self._cells(clean), F.pixel_unshuffle(known, self.cell)], dim=1)
        extra = F.pixel_unshuffle(known, self.config.patch_size)
        if self.config.self_conditioning:
            previous = torch.zeros_like(z_t) if condition.previous is None else condition.previous
            extra = torch.cat([extra, previous], dim=1)
        log_snr_t = log_snr_t.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        if self.config.separate_times:
            log_snr_t = self._own_times(log_snr_t, condition.flags)
        flags = condition.flags if self.config.flags else torch.full_like(condition.flags, UNKNOWN)
        read = self.read(condition)
        read, detail = (None, None) if read is None else self.reader.parts(read)
        features, registers = self.backbone(
            z_t,
            clean,
            extra,
            cells,
            log_snr_t,
            flags,
            read,
        )
        raw = {
            name: self.heads[name](features if m.dense else registers[:, i])
            for i, (name, m) in enumerate(self.modalities.items())
        }
        for name, head in self.details.items():
            raw[name] = raw[name] + head(features, detail)
        return {name: value.float() for name, value in raw.items()}

    def _own_times(self, log_snr_t: Tensor, flags: Tensor) -> Tensor:
        """log SNR of every modality, (B, N): what is given has no noise, and what is absent nothing else."""
        each = log_snr_t if log_snr_t.dim() == 2 else log_snr_t[:, None].expand(-1, len(self.names))
        each = each.masked_fill(flags == KNOWN, LOG_SNR_LIMIT)
        return each.masked_fill(flags == ABSENT, -LOG_SNR_LIMIT)

    def _known_entries(self, condition: Conditioning) -> Tensor:
        """Entries of Z that are wholly known, (B, *Z) bool; beside a hole the latents are not."""
        whole = self.coverage(condition.known_pixels) == 1
        for i, name in enumerate(self.names[1:], start=1):
            ones = whole.new_ones(1, self.modalities[name].z_channels, self.grid, self.grid)
            own = self.channels.place(name, ones)
            whole = whole | (own & (condition.flags[:, i] == KNOWN)[:, None, None, None])
        return whole

    def _cells(self, z: Tensor) -> Tensor:
        """The dense modalities' channels of Z, cell by cell: (B, C, H / cell, W / cell)."""
        return torch.cat([self._cells_of(name, z) for name in self.dense_names], dim=1)

    def _cells_of(self, name: str, z: Tensor) -> Tensor:
        stride = self.modalities[name].stride
        unfolded = F.pixel_shuffle(self.channels.take(name, z), self.config.patch_size // stride)
        return F.pixel_unshuffle(unfolded, self.cell // stride)

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[dict[str, Tensor]]:
        """Raw outputs for each of the queries, from one call of the network."""
        joined = queries[0] if len(queries) == 1 else _joined(queries)
        raw = self(joined.z_t, joined.log_snr, joined.seen)
        sizes = [len(query.z_t) for query in queries]
        parts = {name: value.split(sizes) for name, value in raw.items()}
        return [{name: part[k] for name, part in parts.items()} for k in range(len(queries))]

    def interpret(self, raw: Mapping[str, Tensor], condition: Conditioning) -> Prediction:
        """Raw head outputs -> clean predictions in data space and in Z, with what is given put in place."""
        e = {n: self.channels.place(n, m.expected_encoding(raw[n])) for n, m in self.modalities.items()}
        x = Lazy({n: partial(m.predict, raw[n]) for n, m in self.modalities.items()})
        return self.put_in_place(Prediction(z0=e.pop(self.anchor), e=e, x=x), condition)

    def put_in_place(self, prediction: Prediction, condition: Conditioning) -> Prediction:
        """The prediction with the true encodings of what is given, and zeros for what is absent."""
        z0, e = prediction.z0, dict(prediction.e)
        if self.anchor in condition.e:
            determined = self.modalities[self.anchor].determined(condition.known_pixels)
            determined = self.channels.place(self.anchor, determined.to(z0.dtype)) > 0
            z0 = torch.where(determined, condition.e[self.anchor], z0)
        for i, name in enumerate(self.names):
            if name != self.anchor:
                unknown = condition.flags[:, i, None, None, None] == UNKNOWN
                e[name] = torch.where(unknown, e[name], condition.e.get(name, torch.zeros_like(e[name])))
        return replace(prediction, z0=z0, e=e)

    def denoiser(self, schedule: NoiseSchedule, condition: Conditioning) -> TrajectoryDenoiser:
        """(z_t, t) -> `Prediction`, for samplers; runs without gradients."""
        return TrajectoryDenoiser(self, schedule, condition)

    def unconditional_denoiser(
        self, schedule: NoiseSchedule, condition: Conditioning, dropped: Collection[str] | None = None
    ) -> TrajectoryDenoiser:
        """The denoiser that is not told of the given modalities ``dropped`` (None: of any), for guidance.

        They are made absent: not only flagged, but also taken out of z_t, which carries them under noise.
        The anchor cannot be absent. Where it is dropped by name the network sees its known pixels as all
        others, under the noise of z_t; otherwise pixels that are given stay given.
        """
        names = set(self.names[1:] if dropped is None else dropped)
        hidden = torch.tensor([n in names for n in self.names], device=condition.flags.device)
        flags = condition.flags.masked_fill(hidden & (condition.flags == KNOWN), ABSENT)
        known, pixels, read = condition.known_pixels, condition.pixels, condition.read
        if self.anchor in names:
            flags[:, 0] = UNKNOWN
            known, pixels, read = torch.zeros_like(known), None, None
        blind = replace(self._condition(condition.e, flags, known), pixels=pixels, read=read)
        taken = {n: v for n, v in condition.e.items() if n in names and n != self.anchor}
        return TrajectoryDenoiser(self, schedule, blind, shown=condition, taken=taken)


class TrajectoryDenoiser:
    """(z_t, t) -> `Prediction` of a batch of trajectories, without gradients.

    With self-conditioning it hands the network its own last prediction of every sample. A sample whose time
    has not decreased since the last call begins a new trajectory and has none. `query` and `interpret` are
    the two halves of a call, for a network that is asked elsewhere, together with other queries.

    Args:
        seen: what the network is told. shown: what is put in place in the predictions, by default the same.
        taken: encodings that are taken out of z_t.
    """

    def __init__(
        self,
        model: MultiModalDiffusion,
        schedule: NoiseSchedule,
        seen: Conditioning,
        shown: Conditioning | None = None,
        taken: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.schedule, self.shown = model, schedule, shown or seen
        with torch.no_grad():  # the reader is asked once, whatever the number of steps
            self.seen = replace(seen, pixels=None, read=model.read(seen))
        self.taken = taken or {}
        self.log_snr = log_snr(schedule.log_abar).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
        self.last: tuple[Tensor, Tensor] | None = None  # t (B,) and `Prediction.clean` (B, *Z)

    def __call__(self, z_t: Tensor, t: Tensor) -> Prediction:
        return self.interpret(*self.model.answer([self.query(z_t, t)]), t)

    @torch.no_grad()
    def query(self, z_t: Tensor, t: Tensor) -> Query:
        """What to ask the network."""
        log_snr_t = self.log_snr[t.to(self.log_snr.device)].to(z_t.device, torch.float32)
        if self.taken:
            z_t = z_t - signal(self.schedule, torch.zeros_like(z_t), t, self.taken)
        seen = self.seen
        if self.model.config.self_conditioning:
            seen = replace(seen, previous=self._previous(t))
        return Query(z_t, log_snr_t, seen)

    @torch.no_grad()
    def interpret(self, raw: Mapping[str, Tensor], t: Tensor) -> Prediction:
        """What the network's answer to `query` says."""
        if self.model.config.self_conditioning:
            # not of `shown`, which holds what the network is not to see
            self.last = t, self.model.interpret(raw, self.seen).clean
        return self.model.interpret(raw, self.shown)

    def _previous(self, t: Tensor) -> Tensor | None:
        if self.last is None:
            return None
        t_last, clean = self.last
        return clean * (t < t_last).to(clean.device)[:, None, None, None]


def _joined(queries: Sequence[Query]) -> Query:
    """The queries as one batch. What one of them lacks is zero there, which says the same."""
    seen = [query.seen for query in queries]
    names = dict.fromkeys(name for s in seen for name in s.e)
    zeros = [torch.zeros_like(query.z_t) for query in queries]
    e = {n: torch.cat([s.e.get(n, zero) for s, zero in zip(seen, zeros, strict=True)]) for n in names}
    previous = None
    if any(s.previous is not None for s in seen):
        previous = torch.cat(
            [zero if s.previous is None else s.previous for s, zero in zip(seen, zeros, strict=True)]
        )
    read = None
    if any(s.read is not None for s in seen):
        shape = next(s.read for s in seen if s.read is not None).shape[1:]
        nothing = [zero.new_zeros(len(zero), *shape) for zero in zeros]
        read = torch.cat([none if s.read is None else s.read for s, none in zip(seen, nothing, strict=True)])
    joined = Conditioning(
        e,
        torch.cat([s.flags for s in seen]),
        torch.cat([s.known_pixels for s in seen]),
        previous,
        read=read,
    )
    return Query(torch.cat([q.z_t for q in queries]), torch.cat([q.log_snr for q in queries]), joined)
