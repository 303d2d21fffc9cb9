"""How the autoencoder is trained: L1 + LPIPS, later also against a patch discriminator."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmdiff.autoencoder.discriminator import PatchDiscriminator, combined_gradient, hinge_loss
from mmdiff.autoencoder.network import STRIDE, WIDTHS, Autoencoder
from mmdiff.device import fast_bfloat16
from mmdiff.evaluation.perceptual import lpips_network
from mmdiff.files import write_tensors
from mmdiff.options import option
from mmdiff.training.learning_rate import warm_cosine
from mmdiff.training.recipe import TimedRecipe
from mmdiff.training.state import load_moments, moments_of, part_of

WARMUP = 0.03  # of the training
DISCRIMINATOR_ALONE = 0.03  # of the training
EMA = 0.998


@dataclass(frozen=True)
class Recipe(TimedRecipe):
    """How to train; `images` counts random parts of photos."""

    lr: float = option(8e-4, "peak learning rate; the discriminator's is half of it")
    size: int = option(104, "pixels; photos are cut to a square of that size when they are read")
    crop: int = option(64, "pixels of the random part of it that a step uses")
    perceptual: float = option(1.0, "weight of LPIPS beside the mean absolute error")
    noise: float = option(0.15, "standard deviation of the noise on latents, which have that of 1")
    latent_channels: int = option(6, "numbers at each position of the latents")
    widths: Sequence[int] = option(
        WIDTHS, "channels at 1/2, 1/4 and 1/8 of the photo's size", type=int, nargs=len(WIDTHS)
    )
    adversarial: float = option(0.0, "norm of the discriminator's gradient, as a share of that of L1 + LPIPS")
    adversarial_after: float = option(0.5, "share of the training after which the discriminator takes part")
    decoder_only: bool = option(False, "the encoder stays, so that latents keep their meaning")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.widths) != len(WIDTHS) or min(self.latent_channels, *self.widths) < 1:
            raise ValueError(
                f"latent_channels is {self.latent_channels} and widths are {self.widths}; give a number of "
                f"channels and {len(WIDTHS)} numbers of channels."
            )
        if self.adversarial < 0 or not 0 <= self.adversarial_after <= 1:
            raise ValueError(
                f"adversarial is {self.adversarial} after {self.adversarial_after}; give a share of at least "
                "0, and a part of the training from 0 to 1."
            )
        if self.crop % STRIDE or not 0 < self.crop <= self.size:
            raise ValueError(
                f"crop is {self.crop}; give a multiple of {STRIDE} of at most the size, {self.size}."
            )


def draw_crops(photos: Tensor, count: int, crop: int, generator: torch.Generator) -> Tensor:
    """Random photos' random parts, half of them mirrored: (count, 3, crop, crop) in [-1, 1]."""
    rows = torch.randint(len(photos), (count,), generator=generator)
    top, left = torch.randint(photos.shape[-1] - crop + 1, (2, count, 1), generator=generator)
    span = torch.arange(crop)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    ys, xs = top + span, left + torch.where(mirrored, span.flip(0), span)
    channels = torch.arange(3)[:, None, None]
    places = rows[:, None, None, None], channels, ys[:, None, :, None], xs[:, None, None, :]
    picked = photos[tuple(index.to(photos.device) for index in places)]
    return picked.float() / 127.5 - 1


class Training:
    """The network, its moving average, the discriminator, their optimizers, and the progress.

    Everything random in step k is drawn from generators seeded by (seed, k), so that a training that is
    stopped and resumed equals one that was not.

    Args:
        network: trained in place. photos: (n, 3, S, S) uint8.

    Attributes:
        step, images, seconds: progress so far; images counts random crops.

    Raises:
        ValueError: LPIPS is not installed.
    """

    def __init__(self, network: Autoencoder, photos: Tensor, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.photos = recipe, device, photos.to(device)
        self.network = network.to(device, memory_format=torch.channels_last).train()
        if recipe.decoder_only:
            network.encoder.requires_grad_(False)
            network.norm.eval()
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(EMA), use_buffers=True)
        self.discriminator = PatchDiscriminator().to(device, memory_format=torch.channels_last)
        self.perceptual = lpips_network(device)
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, recipe.lr, (0.9, 0.99), weight_decay=0, fused=True)
        self.critic = torch.optim.AdamW(
            self.discriminator.parameters(), recipe.lr / 2, (0.5, 0.99), weight_decay=0, fused=True
        )
        self.step, self.images, self.seconds = 0, 0, 0.0

    @property
    def share(self) -> float:
        """Share of the recipe that is done, 0 to 1."""
        return self.recipe.share(self.images, self.seconds)

    def train_step(self) -> dict[str, Tensor]:
        """One step of both networks; returns the terms of the loss, on the device."""
        recipe, start = self.recipe, time.monotonic()
        rate = warm_cosine(self.share, recipe.lr, WARMUP)
        for optimizer, own in ((self.optimizer, rate), (self.critic, rate / 2)):
            for group in optimizer.param_groups:
                group["lr"] = own
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + self.step)
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        photos = draw_crops(self.photos, recipe.batch, recipe.crop, generator)
        photos = photos.contiguous(memory_format=torch.channels_last)
        begun = recipe.adversarial > 0 and self.share >= recipe.adversarial_after
        # a discriminator that has learnt nothing yet would push the decoder anywhere
        is_adversarial = begun and self.share >= recipe.adversarial_after + DISCRIMINATOR_ALONE
        self.optimizer.zero_grad(set_to_none=True)
        with _autocast(self.device):
            latents = self.network.encode(photos)
            decoded = self.network.decode(latents + recipe.noise * torch.randn_like(latents))
        terms = self._backward(decoded, photos, is_adversarial)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.network)
        if begun:
            terms["critic"] = self._train_discriminator(decoded.detach(), photos)
        self.step, self.images = self.step + 1, self.images + recipe.batch
        self.seconds += time.monotonic() - start
        return terms | {"lr": torch.tensor(rate)}

    def _backward(self, decoded: Tensor, photos: Tensor, is_adversarial: bool) -> dict[str, Tensor]:
        """Gradients of the loss at the pixels, then through the network."""
        pixels = decoded.detach().requires_grad_()
        with _autocast(self.device):
            l1, lpips = (pixels - photos).abs().mean(), self.perceptual(pixels, photos).mean()
            loss = l1 + self.recipe.perceptual * lpips
            adversarial = -self.discriminator(pixels).mean() if is_adversarial else None
        if adversarial is None:
            (gradient,) = torch.autograd.grad(loss, pixels)
        else:
            gradient = combined_gradient(pixels, loss, adversarial, self.recipe.adversarial)
        decoded.backward(gradient)
        return {"l1": l1.detach(), "lpips": lpips.detach()}

    def _train_discriminator(self, decoded: Tensor, photos: Tensor) -> Tensor:
        with _autocast(self.device):
            loss = hinge_loss(self.discriminator(photos), self.discriminator(decoded))
        self.critic.zero_grad(set_to_none=True)
        loss.backward()
        self.critic.step()
        return loss.detach()

    def save_state(self, path: Path) -> None:
        """Everything that a resumed training needs. Raises OSError if it cannot be written."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        states |= {name: moments_of(optimizer) for name, optimizer in self._optimizers().items()}
        tensors = {f"{name}/{n}": t for name, state in states.items() for n, t in state.items()}
        write_tensors(tensors, path, {n: str(getattr(self, n)) for n in ("step", "images", "seconds")})

    def load_state(self, path: Path) -> None:
        """Continue from `save_state`. Raises ValueError if it is damaged or of another network."""
        try:
            with safe_open(path, "pt") as file:
                position = file.metadata()
                tensors = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
            for name, part in self._parts().items():
                part.load_state_dict(part_of(tensors, f"{name}/"))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} is of another network; use a new --out folder ({error}).") from error
        for name, optimizer in self._optimizers().items():
            load_moments(optimizer, part_of(tensors, f"{name}/"))
        self.step, self.images = int(position["step"]), int(position["images"])
        self.seconds = float(position["seconds"])

    def _parts(self) -> dict[str, nn.Module]:
        return {"network": self.network, "average": self.average, "discriminator": self.discriminator}

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"optimizer": self.optimizer, "critic": self.critic}


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device))
