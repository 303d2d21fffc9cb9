"""What the trainings of the CLIP model and of the autoencoder share: they may end by the clock."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from mmdiff.options import option


@dataclass(frozen=True)
class TimedRecipe:
    """How to train. The end is at `images` or `max_minutes`, whichever comes first.

    Raises ValueError for values that cannot be used.
    """

    images: float = option(math.inf, "stop after that many pictures")
    max_minutes: float = option(math.inf, "stop after that time")
    batch: int = option(16, "pictures a step")
    lr: float = option(1e-3, "peak learning rate")
    seed: int = option(0, "of everything random")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.images) or math.isfinite(self.max_minutes)):
            raise ValueError("the training has no end; give --images or --max-minutes, or both.")
        if min(self.images, self.max_minutes, self.batch, self.lr) <= 0:
            raise ValueError(f"images, max_minutes, batch and lr must be positive: {self}.")

    def share(self, images: int, seconds: float) -> float:
        """Share of the training that is done after that many pictures and seconds, 1 or more at its end."""
        return max(images / self.images, seconds / (60 * self.max_minutes))

    def as_dict(self) -> dict[str, Any]:
        """The recipe for JSON, which has no infinite numbers."""
        return {name: value for name, value in asdict(self).items() if value != math.inf}
