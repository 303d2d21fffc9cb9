"""The shared denoiser: a transformer over the tokens of Z with long skips, and a pixel refiner.

The skeleton follows U-ViT (Bao et al. 2023, long skips between early and late blocks) with adaptive layer
norm (DiT, Peebles & Xie 2023) whose modulation is shared by all blocks up to a table (PixArt-alpha, Chen et
al. 2023).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.config import ModelConfig
from mmdiff.first_edition.convolutions import Readings, Refiner, Stem
from mmdiff.network.transformer import position_table


def timestep_embedding(log_snr: Tensor, dim: int) -> Tensor:
    """Sinusoids of log signal-to-noise ratios: (B,) -> (B, dim)."""
    frequencies = torch.exp(torch.linspace(math.log(0.05), math.log(5.0), dim // 2, device=log_snr.device))
    angles = log_snr[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Block(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate."""

    def __init__(self, width: int, heads: int, dropout: float, skip: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.query_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.key_norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.skip = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, modulation: Tensor, skip: Tensor | None) -> Tensor:
        """x, skip: (B, n, width); modulation: (B, 6, width)."""
        if self.skip is not None:
            x = x + self.skip(torch.cat([x, skip], dim=2))
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unsqueeze(2).unbind(1)
        x = x + gate1 * self._drop(self._attend(self.norm(x) * (1 + scale1) + shift1))
        hidden = F.gelu(self.up(self.norm(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + gate2 * self._drop(self.down(hidden))

    def _attend(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        qkv = self.qkv(x).view(batch, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, n, width / heads)
        q, k = self.query_norm(q).to(v.dtype), self.key_norm(k).to(v.dtype)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, n, width))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Denoiser(nn.Module):
    """(z_t, its log-SNR, what is given) -> features of every cell and of one token per modality.

    Args:
        z_channels: channels of Z. cell_channels: channels that stem and refiner see of every cell.
        num_modalities: size of the flag table and number of register tokens.
        fold: cells along a side of a patch.
    """

    FLAGS = 3  # unknown, known, absent

    def __init__(
        self, config: ModelConfig, *, z_channels: int, cell_channels: int, num_modalities: int, fold: int
    ) -> None:
        super().__init__()
        width, refiner_width, early = config.width, config.refiner_width, config.depth // 2
        self.grid = config.image_size // config.patch_size
        self.width, self.num_modalities = width, num_modalities
        self.embed = nn.Linear(2 * z_channels + config.patch_size**2, width)  # the known map, too
        self.stem = None
        if config.stem_depth:
            self.stem = Stem(width, fold, cell_channels, refiner_width, config.stem_depth)
        self.readings = Readings(refiner_width, width, fold) if config.reader_depth else None
        self.positions = nn.Parameter(position_table(self.grid, width))
        self.registers = nn.Parameter(0.02 * torch.randn(num_modalities, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.flags = nn.Parameter(0.02 * torch.randn(num_modalities, self.FLAGS, width))
        self.pooled = nn.Linear(2 * z_channels, width)
        self.modulation = nn.Linear(width, 6 * width)

        def block(skip: bool) -> Block:
            return Block(width, config.heads, config.dropout, skip)

        self.early = nn.ModuleList(block(skip=False) for _ in range(config.depth - early))
        self.late = nn.ModuleList(block(skip=True) for _ in range(early))
        self.norm = nn.LayerNorm(width)
        self.refiner = Refiner(width, fold, cell_channels, refiner_width)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.late:
            nn.init.zeros_(block.skip.weight)
        # Modulation starts at zero: every block is the identity, gates open as training asks for them.
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.refiner.modulate.weight)
        if self.readings:
            nn.init.zeros_(self.readings.pooled.weight)
        if self.stem:
            nn.init.zeros_(self.stem.modulate.weight)
            nn.init.zeros_(self.stem.leave.weight)
            nn.init.zeros_(self.stem.leave.bias)

    def condition(self, log_snr: Tensor, flags: Tensor, pooled: Tensor, read: Tensor | None) -> Tensor:
        """log_snr as in `forward`, flags (B, N), pooled (B, 2 * z_channels), read -> (B, width)."""
        table = self.flags[torch.arange(self.num_modalities, device=flags.device), flags]  # (B, N, width)
        embedded = self.time(timestep_embedding(log_snr, self.width))
        summed = embedded + table.sum(1) + self.pooled(pooled)
        return F.silu(summed if read is None else summed + self.readings.of_all(read))

    def forward(
        self,
        z_t: Tensor,
        clean: Tensor,
        known: Tensor,
        cells: Tensor,
        log_snr: Tensor,
        flags: Tensor,
        read: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Features of the cells and of the modalities.

        Args:
            z_t, clean: (B, z_channels, h, w), the noisy state and the encodings of what is given.
            known: (B, patch_size^2, h, w), the map of known pixels, patch by patch.
            cells: (B, cell_channels, h * fold, w * fold), z_t, clean and the known map, where they are dense.
            log_snr: (B,); flags: (B, N).
            read: (B, refiner_width, h * fold, w * fold), the reader's features; None: no pixel is known.

        Returns:
            (B, refiner_width, h * fold, w * fold) and (B, N, width).
        """
        batch = z_t.shape[0]
        pooled = torch.cat([z_t, clean], dim=1).mean((2, 3))
        condition = self.condition(log_snr, flags, pooled, read)  # (B, width)
        tokens = torch.cat([z_t, clean, known], dim=1).flatten(2).transpose(1, 2)  # (B, n, channels)
        x = self.embed(tokens) + self.positions
        if self.stem:
            x = x + self.stem(cells, condition)
        if read is not None:
            x = x + self.readings.of_tokens(read)
        x = torch.cat([self.registers.expand(batch, -1, -1).to(x.dtype), x], dim=1)  # (B, N + n, width)
        modulation = self.modulation(condition).view(batch, 6, self.width)
        skips = []
        for block in self.early:
            x = block(x, modulation, None)
            skips.append(x)
        for block in self.late:
            x = block(x, modulation, skips.pop())
        x = self.norm(x)
        registers, patches = x[:, : self.num_modalities], x[:, self.num_modalities :]
        patches = patches.view(batch, self.grid, self.grid, self.width)
        read = None if read is None else self.readings.cells(read)
        return self.refiner(patches, cells, condition, read), registers
