"""The shared denoiser: convolutions over cells, a transformer over patches of cells, convolutions back out.

Almost all of its work is in matrix products over tokens. The skeleton follows U-ViT (Bao et al. 2023, long
skips between early and late blocks) with adaptive layer norm (DiT, Peebles & Xie 2023) whose modulation is
shared by all blocks up to a table (PixArt-alpha, Chen et al. 2023). In training a part of the patches may go
round all blocks but the first and the last (TREAD, Krause et al. 2025). Attention is written as two matrix
products: for up to 256 tokens their backward pass is faster than that of the fused kernel on CPUs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import ModelConfig

LEVEL_WAVES = 16  # sine and cosine frequencies of a level
LEVEL_UNIT = 8.0  # levels are divided by it where a number is needed


def level_embedding(levels: Tensor) -> Tensor:
    """Sinusoids of levels: (B, N) -> (B, N * 2 * LEVEL_WAVES)."""
    frequencies = torch.exp(torch.linspace(math.log(0.05), math.log(3.0), LEVEL_WAVES, device=levels.device))
    angles = levels[:, :, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1)


def position_table(grid: int, dim: int) -> Tensor:
    """Two-dimensional sinusoids, the start of the learned positions: (grid * grid, dim)."""
    frequencies = 1.0 / 100 ** (torch.arange(dim // 4) / (dim // 4))
    axis = torch.arange(grid)[:, None] * frequencies  # (grid, dim / 4)
    waves = torch.cat([axis.sin(), axis.cos()], dim=1)  # (grid, dim / 2)
    rows = waves[:, None].expand(grid, grid, -1)
    columns = waves[None, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, dim)


class Block(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate.

    drop: share of the samples whose update is left out in training (stochastic depth, Huang et al. 2016).
    """

    def __init__(self, width: int, heads: int, drop: float, skip: bool) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.skip = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, modulation: Tensor, skip: Tensor | None) -> Tensor:
        """x, skip: (B, n, width); modulation: (B, 6, width)."""
        if self.skip is not None:
            x = x + self.skip(torch.cat([x, skip], dim=2))
        table = (modulation + self.modulation).to(x.dtype).unsqueeze(2)
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unbind(1)
        x = torch.addcmul(x, self._kept(gate1), self._attend(_modulated(x, shift1, scale1)))
        hidden = F.relu(self.up(_modulated(x, shift2, scale2))).square()
        return torch.addcmul(x, self._kept(gate2), self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        size = width // self.heads
        q, k, v = self.qkv(x).view(batch, n, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        # normalised queries and keys keep attention from saturating (Dehghani et al. 2023)
        q, k = F.layer_norm(q, (size,)), F.layer_norm(k, (size,))
        weights = torch.matmul(q * size**-0.5, k.transpose(-1, -2)).softmax(-1, dtype=v.dtype)
        return self.out(torch.matmul(weights, v).transpose(1, 2).reshape(batch, n, width))

    def _kept(self, gate: Tensor) -> Tensor:
        """The gates (B, 1, width) with some samples' at zero in training, the others' as much larger."""
        if not self.training or not self.drop:
            return gate
        kept = torch.rand(len(gate), 1, 1, device=gate.device) >= self.drop
        return gate * (kept / (1 - self.drop)).to(gate.dtype)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class ConvBlock(nn.Module):
    """x + two 3x3 convolutions, the first modulated by the condition; it starts as the identity."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(width, 2 * channels)
        for layer in (self.conv2, self.modulate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, channels, h, w), condition (B, width)."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = torch.addcmul(shift, self.conv1(F.silu(x)), 1 + scale)
        return x + self.conv2(F.silu(hidden))


class PixelReader(nn.Module):
    """Known pixels (B, 4, H, W) -> what each cell shows of them, (B, channels, H / cell, W / cell).

    The four channels are RGB in [-1, 1], zero where nothing is given, and the known map of 0 and 1. Latents
    tell nothing of cells on the edge of a hole; here their known pixels are seen as they are. Where no pixel
    of a photo is known its features are zero. They depend on neither z_t nor t, so that sampling computes
    them once.
    """

    def __init__(self, cell: int, channels: int) -> None:
        super().__init__()
        self.cell = cell
        self.enter = nn.Conv2d(4 * cell**2, channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.leave(F.silu(self.enter(F.pixel_unshuffle(pixels, self.cell))))
        return features * (pixels[:, 3:].amax((2, 3), keepdim=True) > 0)


class Denoiser(nn.Module):
    """(blocks of z, their levels, known pixels) -> features of every cell and of one token per modality.

    Args:
        cell_channels: of the dense blocks and the level map, cell by cell.
        global_channels: channels of each modality's block that has one code for the whole photo, else 0.
        fold: cells along a side of a patch.
    """

    def __init__(
        self, config: ModelConfig, *, cell_channels: int, global_channels: tuple[int, ...], fold: int
    ) -> None:
        super().__init__()
        width, channels, early = config.width, config.refiner_width, config.depth // 2
        self.route = config.route
        self.grid, self.fold, self.width = config.image_size // config.patch_size, fold, width
        self.enter = nn.Conv2d(cell_channels, channels, 1)
        self.stem = nn.ModuleList(ConvBlock(channels, width) for _ in range(config.stem_depth))
        self.embed = nn.Conv2d(channels, width, fold, stride=fold)
        self.positions = nn.Parameter(position_table(self.grid, width))
        self.registers = nn.Parameter(0.02 * torch.randn(len(global_channels), width))
        self.codes = nn.ModuleList(
            nn.Linear(size, width, bias=False) if size else nn.Identity() for size in global_channels
        )
        inputs = 2 * LEVEL_WAVES * len(global_channels)
        self.levels = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)

        def block(skip: bool) -> Block:
            return Block(width, config.heads, config.dropout, skip)

        self.early = nn.ModuleList(block(skip=False) for _ in range(config.depth - early))
        self.late = nn.ModuleList(block(skip=True) for _ in range(early))
        self.expand = nn.Linear(width, channels * fold**2)
        self.across = nn.Conv2d(channels, channels, 1, bias=False)
        self.refiner = ConvBlock(channels, width)
        self._initialise()

    def _initialise(self) -> None:
        for module in [*self.levels, *self.early.modules(), *self.late.modules(), self.expand]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for block in self.late:
            nn.init.zeros_(block.skip.weight)
        # Modulation starts at zero: every block is the identity, gates open as training asks for them.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, cells: Tensor, codes: list[Tensor | None], levels: Tensor, read: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Features of the cells and of the modalities, and the condition that modulates all layers.

        Args:
            cells: (B, cell_channels, h * fold, w * fold), dense blocks and level map.
            codes: of every modality the mean of its block (B, C_i), None if it is dense.
            levels: (B, N). read: of the `PixelReader`, (B, channels, h * fold, w * fold); None: nothing is
                known.

        Returns:
            (B, channels, h * fold, w * fold), (B, N, width) and (B, width).
        """
        entered = [None if c is None else layer(c) for layer, c in zip(self.codes, codes, strict=True)]
        condition = self.levels(level_embedding(levels)) + sum(e for e in entered if e is not None)
        condition = F.silu(condition)
        features = self.enter(cells) if read is None else self.enter(cells) + read
        for block in self.stem:
            features = block(features, condition)
        x = self.embed(features).flatten(2).transpose(1, 2)
        x = x + self.positions.to(x.dtype)
        blank = torch.zeros_like(x[:, 0])
        tokens = torch.stack([blank if e is None else e.to(x.dtype) for e in entered], dim=1)
        x = torch.cat([tokens + self.registers.to(x.dtype), x], dim=1)  # (B, N + n, width)
        x = self._transform(x, self.modulation(condition).unflatten(1, (6, self.width)))
        registers, patches = x[:, : len(codes)], x[:, len(codes) :]
        patches = self.expand(patches).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        features = F.pixel_shuffle(patches, self.fold) + self.across(features)
        return self.refiner(features, condition), registers, condition

    def _transform(self, x: Tensor, modulation: Tensor) -> Tensor:
        first, *early = self.early
        x = first(x, modulation, None)
        skips, whole, routed = [x], x, self._routed(x)
        if routed is not None:
            x = x.gather(1, routed)
        for block in early:
            x = block(x, modulation, None)
            skips.append(x)
        for block in self.late:
            if routed is not None and block is self.late[-1]:
                x = whole.scatter(1, routed, x.to(whole.dtype))
            x = block(x, modulation, skips.pop())
        return F.layer_norm(x, x.shape[-1:])

    def _routed(self, x: Tensor) -> Tensor | None:
        """(B, m, width) rows of the tokens that pass all blocks, None if all do: modalities' and random
        patches.
        """
        if not self.training or not self.route:
            return None
        order = torch.rand(x.shape[:2], device=x.device)
        order[:, : len(self.registers)] = -1.0
        kept = x.shape[1] - round(self.route * (x.shape[1] - len(self.registers)))
        return order.argsort(dim=1)[:, :kept, None].expand(-1, -1, x.shape[2])
