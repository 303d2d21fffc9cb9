"""How the first edition is trained: one random time an example, and flags."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmdiff.config import TrainConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples
from mmdiff.first_edition.losses import total_loss, training_losses, z0_weight
from mmdiff.first_edition.model import FirstEdition
from mmdiff.forward_process import q_sample
from mmdiff.network.conditioning import ABSENT, KNOWN
from mmdiff.schedule import log_snr
from mmdiff.training.masking import Draw, chance, draw_flags, draw_known_pixels, draw_only_reading, per_pixel


@dataclass(frozen=True)
class TimedDraw(Draw):
    """The same with t: (B,) long, 1 to T."""

    t: Tensor


def draw_step(
    model: FirstEdition,
    config: TrainConfig,
    examples: Examples,
    rows: Tensor,
    generator: torch.Generator,
    augment: bool,
) -> TimedDraw:
    """Draw everything random about a training step on the examples ``rows`` (B,), in a fixed order.

    Args:
        augment: cut, flip and light the examples at random, as `DataConfig` says.
    """
    tasks, data, batch = config.tasks, config.data, len(rows)
    cuts = generator if augment else None
    x, present = draw_batch(examples, model.modalities, rows, cuts, data.flip, data.light, data.zoom)
    holes = chance(tasks.holes, batch, generator)
    flags = draw_flags(present, tasks, generator, holes)
    reading = draw_only_reading(flags, tasks.only_reading, generator)
    image_given = chance(tasks.given, batch, generator)
    image_known = flags[:, 0] == KNOWN
    known = draw_known_pixels(batch, config.model.image_size, generator)
    known = known * per_pixel(holes & image_given & ~image_known)
    known = torch.where(per_pixel(image_known), 1.0, known)
    t = torch.randint(1, config.model.num_steps + 1, (batch,), generator=generator, device=generator.device)
    if tasks.reading:
        reading = reading | (image_known & chance(tasks.reading, batch, generator))
    t = torch.where(reading, config.model.num_steps, t)
    noise = torch.randn(batch, *model.z_shape, generator=generator, device=generator.device)
    return TimedDraw(x, present, flags, known, noise, t)


class FlagObjective:
    """The reweighted bound of the first edition; see `mmdiff.training.objective.LevelObjective`."""

    def __init__(self, model: FirstEdition, config: TrainConfig, device: torch.device) -> None:
        self.model, self.config = model, config
        schedule = model.make_schedule()
        self.schedule = schedule.to(device)
        self.log_snr = log_snr(schedule.log_abar).clamp(-30, 30).float().to(device)

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> TimedDraw:
        return draw_step(self.model, self.config, examples, rows, generator, augment)

    def losses(self, net: nn.Module, draw: TimedDraw, counts: Tensor | None = None) -> dict[str, Tensor]:
        model, names = self.model, self.model.names
        e = model.encode(draw.x)
        given = model.encode_given(draw.x, e, draw.known)
        condition = model.condition(given, draw.flags, draw.known, draw.x[model.anchor])
        z0 = e.pop(model.anchor)
        diffused = (draw.flags != ABSENT) & draw.present
        e = {name: value * diffused[:, names.index(name), None, None, None] for name, value in e.items()}
        z_t = q_sample(self.schedule, z0, draw.t, e, draw.noise)
        log_snr_t = self.log_snr[draw.t]
        raw = net(z_t, log_snr_t, condition)
        weight = z0_weight(log_snr_t, self.config.optim.snr_cap)
        return training_losses(model, raw, draw.x, z0, condition, weight, draw.supervised, counts)

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return total_loss(self.model, terms)
