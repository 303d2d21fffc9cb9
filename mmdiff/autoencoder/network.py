"""The autoencoder's network and its folder: config.json, model.safetensors (half precision), README.md.

A latent has 1/8 of the photo's height and width, as in latent diffusion (Rombach et al. 2022), but is
deterministic: instead of a KL term, latents are normalised to unit variance and the decoder is trained with
noise on them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, write_text, write_weights

REMEDY = "; train one with python -m mmdiff.autoencoder.train."
STRIDE = 8  # pixels a side that one latent position stands for
WIDTHS = (32, 64, 128)  # channels at a half, a quarter and an eighth of the photo's size
BLOCKS = (2, 3, 3)  # residual blocks of the decoder there; the encoder has 2 at each


class ResidualBlock(nn.Module):
    """x + two 3x3 convolutions, which start as zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class Upsample(nn.Module):
    """(B, inputs, h, w) -> (B, outputs, 2h, 2w) by a convolution and a pixel shuffle."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Autoencoder(nn.Module):
    """Photos (B, 3, H, W) in [-1, 1] <-> latents (B, latent_channels, H / 8, W / 8) of unit variance.

    H and W are multiples of 8. In training mode the latents are normalised with the batch's own statistics,
    otherwise with those of the photos that it was trained on.
    """

    def __init__(self, latent_channels: int = 6, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.latent_channels, self.widths = latent_channels, tuple(widths)
        half, quarter, eighth = widths
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            *(ResidualBlock(quarter) for _ in range(2)),
            nn.Conv2d(quarter, eighth, 3, 2, padding=1),
            *(ResidualBlock(eighth) for _ in range(2)),
            nn.Conv2d(eighth, latent_channels, 1),
        )
        self.norm = nn.BatchNorm2d(latent_channels, affine=False, momentum=0.01)
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *(ResidualBlock(eighth) for _ in range(BLOCKS[2])),
            Upsample(eighth, quarter),
            *(ResidualBlock(quarter) for _ in range(BLOCKS[1])),
            Upsample(quarter, half),
            *(ResidualBlock(half) for _ in range(BLOCKS[0])),
            Upsample(half, 3),
        )

    def encode(self, photos: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, latent_channels, H / 8, W / 8)."""
        return self.norm(self.encoder(photos))

    def decode(self, latents: Tensor) -> Tensor:
        """The way back: (B, latent_channels, h, w) -> (B, 3, 8h, 8w), about in [-1, 1], not clamped."""
        return self.decoder(latents)

    @property
    def options(self) -> dict[str, Any]:
        """What the constructor takes to build the same network."""
        return {"latent_channels": self.latent_channels, "widths": list(self.widths)}

    def save(self, folder: str | Path, facts: dict[str, Any], card: str) -> None:
        """Write the folder. facts: what was measured, kept in config.json; card: the text of README.md."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(self.state_dict(), folder / WEIGHTS_FILE)
        content = {"format": "mmdiff-autoencoder", "autoencoder": self.options, "training": facts}
        write_text(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
        write_text(folder / CARD_FILE, card)

    def take_weights(self, folder: str | Path) -> None:
        """Those of a trained one of the same size. Raises ValueError if there is none."""
        other = Autoencoder.from_pretrained(folder)
        if other.options != self.options:
            raise ValueError(f"the autoencoder in {folder} has {other.options}, not {self.options}.")
        self.load_state_dict(other.state_dict())

    def start_from(self, folder: str | Path) -> None:
        """The same, also from one of fewer latent channels: the further ones keep their random weights."""
        other = Autoencoder.from_pretrained(folder)
        if other.widths != self.widths or other.latent_channels > self.latent_channels:
            raise ValueError(f"the autoencoder in {folder} has {other.options}, not {self.options}.")
        weights, fewer = self.state_dict(), other.latent_channels
        for name, theirs in other.state_dict().items():
            part = weights[name][:, :fewer] if name == "decoder.0.weight" else weights[name]
            part = part[: len(theirs)] if theirs.ndim else part
            part.copy_(theirs)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Autoencoder:
        """The trained network of a folder, in float32, for use. Raises ValueError if there is none."""
        try:
            content = read_config(folder)
            network = cls(**content["autoencoder"])
            network.load_state_dict(load_file(Path(folder) / WEIGHTS_FILE))  # copies into float32
        except (SafetensorError, KeyError, TypeError, OSError, RuntimeError) as error:
            raise ValueError(f"no autoencoder in {folder} ({error}){REMEDY}") from error
        return network.eval().requires_grad_(False)


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of an autoencoder's folder: "autoencoder", its options, and "training", the facts.

    Raises ValueError if there is none.
    """
    try:
        content = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no autoencoder in {folder} ({error}){REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != "mmdiff-autoencoder":
        raise ValueError(f"no autoencoder in {folder} (its {CONFIG_FILE} is of something else){REMEDY}")
    return content
