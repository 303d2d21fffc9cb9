"""The model: modality encoders into Z, one denoiser over Z, modality heads back out. It keeps no state."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import ModelConfig
from mmdiff.lazy_mapping import LazyMapping
from mmdiff.modalities import build_modality
from mmdiff.network.channels import OwnChannels
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Call, Conditioning, joined
from mmdiff.network.heads import DenseHead, GlobalHead
from mmdiff.network.shape_head import ShapeHead
from mmdiff.network.transformer import LEVEL_UNIT, Denoiser, PixelReader
from mmdiff.samplers import Encodings
from mmdiff.schedule import LEVEL_MAX, LEVEL_MIN, NoiseSchedule


class MultiModalDiffusion(nn.Module):
    """Encoders E_i, denoiser and heads D_i of all modalities; the first one is the anchor z_0.

    Z has shape (channels, grid, grid), and every modality lies in channels of its own. The dense ones are
    refined in
    cells: two pixels a side, or the coarsest of their strides.
    """

    has_levels = True  # a request may set leads, and guide what is generated
    # Levels of the photo between which guidance acts: above, the photo is decided; below, guidance makes
    # shapes that are alike and unlike any photo's (Kynkäänniemi et al. 2024).
    guided_levels = (-3.0, 2.0)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = nn.ModuleDict(
            {m.name: build_modality(m, config.image_size, config.patch_size) for m in config.modalities}
        )
        self.names = tuple(self.modalities)
        self.anchor = self.names[0]
        if (kind := self.modalities[self.anchor].kind) != "image":
            raise ValueError(f"the first modality is the anchor and must be an image, not a {kind}.")
        self.grid = config.image_size // config.patch_size
        self.dense_names = tuple(n for n, m in self.modalities.items() if m.dense)
        self.cell = max(2, *(self.modalities[n].stride for n in self.dense_names))
        if config.patch_size % self.cell:
            raise ValueError(
                f"patch_size is {config.patch_size}; make it a multiple of {self.cell}, the coarsest stride."
            )
        self.fold = config.patch_size // self.cell
        for m in config.modalities:
            self.modalities[m.name].lead = m.lead if self.has_levels else None
        self._make_network({name: modality.z_channels for name, modality in self.modalities.items()})

    def _make_network(self, sizes: Mapping[str, int]) -> None:
        config, anchor = self.config, self.modalities[self.anchor]
        self.channels = OwnChannels(sizes)
        dense = sum(sizes[name] for name in self.dense_names) // self.fold**2
        cells = dense + (self.cell // anchor.stride) ** 2  # the level map, too
        self.backbone = Denoiser(
            config,
            cell_channels=cells,
            global_channels=tuple(0 if m.dense else sizes[n] for n, m in self.modalities.items()),
            fold=self.fold,
        )
        self.reader = PixelReader(self.cell, config.refiner_width)
        self.heads = nn.ModuleDict({n: self._head(m, cells) for n, m in self.modalities.items()})

    def _head(self, modality: nn.Module, cells: int = 0) -> nn.Module:
        """Of a modality; cells: channels of the blocks of z, cell by cell."""
        width, features = self.config.width, self.config.refiner_width
        if not modality.dense:
            return GlobalHead(width, modality.head_channels)
        sizes = features, modality.head_channels, self.cell // modality.head_stride
        if modality.form == "class_map" and self.config.shape_width:
            if (side := self.grid * self.fold) % 4:
                raise ValueError(f"model.shape_width needs a multiple of 4 cells a side, not {side}.")
            return ShapeHead(*sizes, cells=cells, condition=width, width=self.config.shape_width)
        return DenseHead(*sizes)

    def make_schedule(self, leads: Mapping[str, float] | None = None) -> NoiseSchedule:
        """The noise schedule that this model is sampled with, with other `leads` than its own if they are
        given.
        """
        modalities = self.config.modalities
        own = {m.name: m.lead for m in modalities}
        scales = {m.name: m.scale for m in modalities} | {self.anchor: self.config.schedule_shift}
        return NoiseSchedule(self.config.num_steps, self.names, own if leads is None else leads, scales)

    @property
    def z_channels(self) -> int:
        """Channels of Z."""
        return self.channels.total

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
                visible = self._visible(known_pixels).to(e[name].dtype)
                kept[name] = e[name] * self.channels.place(name, visible)
            elif name in e:
                kept[name] = e[name] * (flags[:, i] == KNOWN)[:, None, None, None]
        return kept

    def _visible(self, known_pixels: Tensor) -> Tensor:
        return self.modalities[self.anchor].determined(known_pixels)

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
        """A guidance branch, which does not see the modalities ``names``, whether they are given or
        generated.

        Their level is `LEVEL_MIN` there, as if they were ignored. The anchor cannot be ignored: where it is
        named, the network sees its known pixels as all others, under the noise of z_t; otherwise pixels that
        are given stay given.
        """
        removed = torch.tensor([n in names and n != self.anchor for n in self.names])
        flags = conditioning.flags.masked_fill(removed.to(conditioning.flags.device), ABSENT)
        known, pixels, read = conditioning.known_pixels, conditioning.pixels, conditioning.read
        if self.anchor in names:
            flags[:, 0] = UNKNOWN
            known, pixels, read = torch.zeros_like(known), None, None
        return Conditioning(self._given_encodings(conditioning.e, flags, known), flags, known, pixels, read)

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

    def forward(self, z: Tensor, levels: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """Raw outputs of every head: dense (B, C_i, H, W), global (B, C_i), in float32.

        What is given is seen clean at `LEVEL_MAX`, what is ignored not at all at `LEVEL_MIN`, whatever z and
        levels hold for it.

        Args:
            z: (B, *Z), blocks of unit variance: sqrt(sigmoid(level_i)) e_i + sqrt(sigmoid(-level_i)) noise.
            levels: (B, N), the level of every modality in z.
        """
        (cells, codes, levels, read), block = self.seen(z, levels, conditioning)
        raw = self.outputs(cells, codes, levels, read)
        raw[self.anchor] = self._clean(block, levels[:, 0], raw[self.anchor])
        return raw

    def seen(
        self, z: Tensor, levels: Tensor, conditioning: Conditioning
    ) -> tuple[tuple[Tensor, list[Tensor | None], Tensor, Tensor | None], Tensor]:
        """The arguments of `forward` -> those of `outputs`, and the anchor's block."""
        flags, known = conditioning.flags, conditioning.known_pixels
        levels = levels.masked_fill(flags == KNOWN, LEVEL_MAX).masked_fill(flags == ABSENT, LEVEL_MIN)
        blocks = self._blocks(z, levels, conditioning)
        level_map = self._level_map(levels[:, 0], known)
        cells = torch.cat([*(self._cells_of(n, blocks[n]) for n in self.dense_names), level_map], dim=1)
        codes = [None if m.dense else blocks[n].mean((2, 3)) for n, m in self.modalities.items()]
        return (cells, codes, levels, self._features(conditioning)), blocks[self.anchor]

    def outputs(
        self, cells: Tensor, codes: Sequence[Tensor | None], levels: Tensor, read: Tensor | None
    ) -> dict[str, Tensor]:
        """The network itself: what the `Denoiser` takes to the outputs of all heads, in float32.

        The anchor's is v, of which `forward` makes z_0.
        """
        features, registers, condition = self.backbone(cells, codes, levels, read)
        raw = {}
        for i, (name, modality) in enumerate(self.modalities.items()):
            head = self.heads[name]
            if isinstance(head, ShapeHead):
                raw[name] = head(features, cells, condition).float()
            else:
                raw[name] = head(features if modality.dense else registers[:, i]).float()
        return raw

    def _blocks(self, z: Tensor, levels: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """name -> (B, C_i, h, w), what the network sees of each modality."""
        blocks, take = {}, self.channels.take
        for i, name in enumerate(self.names):
            block = take(name, z)
            block = block * (levels[:, i] > LEVEL_MIN)[:, None, None, None]
            if name in conditioning.e:
                given = (conditioning.flags[:, i] == KNOWN)[:, None, None, None]
                if name == self.anchor:
                    given = given | self.modalities[name].determined(conditioning.known_pixels)
                block = torch.where(given, take(name, conditioning.e[name]), block)
            blocks[name] = block
        return blocks

    def _level_map(self, level: Tensor, known_pixels: Tensor) -> Tensor:
        """The anchor's level in every cell, in units of `LEVEL_UNIT`: `LEVEL_MAX` where pixels are known.

        level (B,), known_pixels (B, 1, H, W) -> (B, (cell / stride)^2, H / cell, W / cell).
        """
        anchor = self.modalities[self.anchor]
        known = F.pixel_shuffle(anchor.determined(known_pixels).to(level.dtype), anchor.fold)[:, :1]
        known = F.pixel_unshuffle(known, self.cell // anchor.stride)
        return torch.lerp(level[:, None, None, None], torch.full_like(known, LEVEL_MAX), known) / LEVEL_UNIT

    def _clean(self, block: Tensor, level: Tensor, v: Tensor) -> Tensor:
        """z_0 = sqrt(abar) z_t - sqrt(1 - abar) v (Salimans & Ho 2022), in positions of the head's output."""
        signal, noise = (torch.sigmoid(s * level).sqrt()[:, None, None, None] for s in (1, -1))
        return signal * F.pixel_shuffle(block, self.modalities[self.anchor].fold) - noise * v

    def _cells_of(self, name: str, block: Tensor) -> Tensor:
        """A dense modality's channels of Z, cell by cell: (B, C, H / cell, W / cell)."""
        stride = self.modalities[name].stride
        unfolded = F.pixel_shuffle(block, self.config.patch_size // stride)
        return F.pixel_unshuffle(unfolded, self.cell // stride)

    # -- sampling ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def call_at(
        self, schedule: NoiseSchedule, z: Tensor, t: int | Tensor, conditioning: Conditioning
    ) -> Call:
        """The arguments of `forward` for samples that stand at z (B, *Z) at time t, or at times t (B,)."""
        t = torch.as_tensor(t, device=schedule.abar.device).expand(len(z))
        levels = torch.stack([schedule.level[n][t] for n in self.names], dim=1)
        rms = [schedule.rms[n][t, None].expand(-1, self.channels.sizes[n]) for n in self.names]
        scales = torch.cat(rms, dim=1).to(z.dtype).to(z.device)
        return z / scales[:, :, None, None], levels.to(z.dtype).to(z.device), conditioning

    @torch.no_grad()
    def answer(self, calls: Sequence[Call]) -> list[dict[str, Tensor]]:
        """Raw outputs for each of the calls, from one run of the network."""
        raw = self(*joined(calls))
        sizes = [len(z) for z, _, _ in calls]
        parts = {name: value.split(sizes) for name, value in raw.items()}
        return [{name: split[k] for name, split in parts.items()} for k in range(len(calls))]

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

    def decoded(self, z: Tensor) -> LazyMapping[Tensor | None]:
        """What z (B, *Z) itself shows of the dense modalities, noise and all, decoded if somebody looks."""
        take = self.channels.take
        return LazyMapping({n: partial(self._decoded, n, take(n, z)) for n in self.dense_names})

    def _decoded(self, name: str, block: Tensor) -> Tensor | None:
        return self.modalities[name].decode(block)

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
