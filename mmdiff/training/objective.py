"""The task of every training example and its loss: random times, leads and levels, noisy blocks, errors."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdiff.config import TrainConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples, encoded_name
from mmdiff.frequencies import frequency_weights
from mmdiff.losses import Weights, level_weight, total_loss, training_losses
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import KNOWN
from mmdiff.schedule import LEVEL_MIN, anchor_level, level_of, own_times
from mmdiff.training.masking import Draw, chance, draw_flags, draw_known_pixels, draw_only_reading, per_pixel

OTHER_LEADS = 0.6  # random leads are from 0 to this
# share of the examples whose time is one at which the photo is being made; the others' times are uniform in
# the run
PHOTO_TIMES = 0.5


@dataclass(frozen=True)
class LevelDraw(Draw):
    """The same with levels: (B, N), of every modality, and encoded: name -> (B, *Z), what needs no
    encoder.
    """

    levels: Tensor
    encoded: dict[str, Tensor]


class LevelObjective:
    """The reweighted bound with a level for every modality."""

    def __init__(self, model: MultiModalDiffusion, config: TrainConfig, device: torch.device) -> None:
        self.model, self.config = model, config
        self.schedule = model.make_schedule().to(device)

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> LevelDraw:
        """Draw everything random about a training step on the examples ``rows`` (B,), in a fixed order.

        augment: cut, flip and light the examples at random, as `DataConfig` says.
        """
        model, tasks, data, batch = self.model, self.config.tasks, self.config.data, len(rows)
        cuts = generator if augment else None
        x, present = draw_batch(examples, model.modalities, rows, cuts, data.flip, data.light, data.zoom)
        encoded = {n: x.pop(encoded_name(n)) for n in model.names if encoded_name(n) in x}
        holes = chance(tasks.holes, batch, generator)
        flags = draw_flags(present, tasks, generator, holes)
        reading = draw_only_reading(flags, tasks.only_reading, generator)
        image_given = chance(tasks.given, batch, generator)
        image_known = flags[:, 0] == KNOWN
        known = draw_known_pixels(batch, self.config.model.image_size, generator)
        known = known * per_pixel(holes & image_given & ~image_known)
        known = torch.where(per_pixel(image_known), 1.0, known)
        reading = reading | (image_known & chance(tasks.reading, batch, generator))
        levels = self.draw_levels(batch, generator).masked_fill(reading[:, None], LEVEL_MIN)
        noise = torch.randn(batch, *model.z_shape, generator=generator, device=generator.device)
        encoded = {n: model.channels.place(n, value) for n, value in encoded.items()}
        return LevelDraw(x, present, flags, known, noise, levels, encoded)

    def draw_levels(self, batch: int, generator: torch.Generator) -> Tensor:
        """(batch, N) levels at random times, under the model's leads or, for some examples, under random
        ones.
        """
        device, names = generator.device, self.model.names
        own = torch.tensor([self.schedule.leads[n] for n in names], device=device).expand(batch, -1)
        random = OTHER_LEADS * torch.rand(batch, len(names), generator=generator, device=device)
        other = chance(self.config.tasks.other_leads, batch, generator)
        leads = torch.where(other[:, None], random, own)
        leads = leads - leads.amin(1, keepdim=True)
        u = torch.rand(batch, generator=generator, device=device)
        in_photo = (u + leads[:, 0]) / (1 + leads.amax(1))
        u = torch.where(chance(PHOTO_TIMES, batch, generator), in_photo, u)
        times = own_times(u, dict(zip(names, leads.unbind(1), strict=True)))
        level = {name: level_of(time, self.schedule.scales[name]) for name, time in times.items()}
        level[names[0]] = anchor_level(times[names[0]], self.schedule.scales[names[0]])
        return torch.stack([level[name] for name in names], dim=1)

    def losses(self, net: nn.Module, draw: LevelDraw, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of `training_losses`; ``net`` is the model, or what wraps it for this step."""
        model, names = self.model, self.model.names
        e = draw.encoded | model.encode({n: v for n, v in draw.x.items() if n not in draw.encoded})
        e = {n: v * draw.present[:, names.index(n), None, None, None] for n, v in e.items()}
        condition = model.condition(e, draw.flags, draw.known, draw.x[model.anchor])
        raw = net(self.noisy(e, draw.levels, draw.noise), draw.levels, condition)
        weights, z0 = self.weights(draw.levels), e[model.anchor]
        return training_losses(model, raw, draw.x, z0, condition, weights, draw.supervised, counts)

    def weights(self, levels: Tensor) -> Weights:
        """Of errors at levels (B, N)."""
        optim, side = self.config.optim, self.model.grid * self.model.modalities[self.model.anchor].fold
        by_frequency = frequency_weights(levels[:, 0], side, optim.coarse) if optim.coarse else None
        return Weights(level_weight(levels, optim.snr_cap), by_frequency)

    def noisy(self, e: dict[str, Tensor], levels: Tensor, noise: Tensor) -> Tensor:
        """Blocks of unit variance, (B, *Z): (3) in each modality's channels, divided by its scale."""
        names, sizes = self.model.names, self.model.channels.sizes
        rows = [levels[:, i, None].expand(-1, sizes[n]) for i, n in enumerate(names)]
        level = torch.cat(rows, dim=1)[:, :, None, None]
        return torch.sigmoid(level).sqrt() * sum(e.values()) + torch.sigmoid(-level).sqrt() * noise

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        return total_loss(self.model, terms)
