"""Recoloured copies of photos, with any kind of object in any colour.

In the data some colours occur with some kinds only: there is no grey tomato. A copy is the photo of one
example in the colour of another, with a caption of the new colour.
"""

from collections import defaultdict
from collections.abc import Collection

import torch
from torch import Tensor

from mmdiff.clip.captions import with_article
from mmdiff.data.examples import Examples
from mmdiff.evaluation.colours import Said, hsv, median_colour, parse

LEAST_SATURATION = 0.2  # of a photo to recolour; the hue of what is greyer is noise


def from_hsv(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """The inverse of `hsv`: each (B, ...), hue in degrees -> (B, 3, ...) in [0, 1]."""
    offset = torch.tensor([5.0, 3.0, 1.0], device=hue.device).view(1, 3, *[1] * (hue.ndim - 1))
    sector = (offset + hue[:, None] / 60) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(sector, 4 - sector).clamp(0, 1))


def recolour(images: Tensor, inside: Tensor, colours: Tensor) -> Tensor:
    """Change the colours of the pixels ``inside`` so that their median becomes another one.

    Hue is turned, saturation scaled, and brightness raised to a power, which keeps highlights and shadows.

    Args:
        images: (B, 3, H, W) in [-1, 1]. inside: (B, H, W) bool. colours: (B, 3) in [0, 1], the new medians.

    Returns:
        (B, 3, H, W) in [-1, 1], unchanged outside.
    """
    hue, saturation, value = hsv((images + 1) / 2)
    now, aim = (
        [part[:, None, None] for part in hsv(colour)] for colour in (median_colour(images, inside), colours)
    )
    hue = (hue + aim[0] - now[0]) % 360
    saturation = (saturation * aim[1] / now[1].clamp(min=1e-3)).clamp(0, 1)
    power = aim[2].clamp(0.02, 0.98).log() / now[2].clamp(0.02, 0.98).log()
    moved = 2 * from_hsv(hue, saturation, value.clamp(0, 1) ** power) - 1
    return torch.where(inside[:, None], moved, images)


def with_colour(caption: str, colour: str) -> str:
    """A caption that `parse` can read, with another colour."""
    start, _, rest = caption.partition(f" {parse(caption).colour} ")
    before = start.removesuffix("an").removesuffix("a")
    return f"{before}{with_article('a', colour)} {rest}"


def recoloured_copies(
    examples: Examples, count: int, image: str, mask: str, seed: int, wanted: Collection[Said] | None = None
) -> Examples:
    """``count`` copies of examples in the colours of others, with captions of the new colours.

    Every kind gets every colour equally often; with ``wanted`` only the copies of these combinations are
    made. The object is where the mask is 1. Captions must read "a photo of a COLOUR SHAPE KIND"; examples
    with other captions are not copied.

    Raises:
        ValueError: if there are no masks of two classes, or no captions of this form.
    """
    if mask not in examples.stored or examples.stored[mask].max() > 1:
        raise ValueError("recolouring needs masks of two classes, background and object.")
    colours = _object_colours(examples, image, mask)
    rows, donors = _pairs(examples, colours, count, image, mask, torch.Generator().manual_seed(seed))
    captions = [
        with_colour(examples.captions[row], parse(examples.captions[donor]).colour)
        for row, donor in zip(rows.tolist(), donors.tolist(), strict=True)
    ]
    kept = [k for k, caption in enumerate(captions) if wanted is None or parse(caption) in wanted]
    copies, aims = examples.take(rows[kept]), colours[donors[kept]]
    copies.captions = [captions[k] for k in kept]
    for chunk in torch.arange(len(kept)).split(256):
        inside = copies.stored[mask][chunk] == 1
        moved = recolour(copies.stored[image][chunk].float() / 127.5 - 1, inside, aims[chunk])
        copies.stored[image][chunk] = ((moved + 1) * 127.5).round().to(torch.uint8)
    return copies


def _object_colours(examples: Examples, image: str, mask: str) -> Tensor:
    """Median colour of each example's object, (n, 3) in [0, 1], NaN where there is none."""
    batches = zip(examples.stored[image].split(256), examples.stored[mask].split(256), strict=True)
    return torch.cat([median_colour(pixels.float() / 127.5 - 1, where == 1) for pixels, where in batches])


def _pairs(
    examples: Examples, colours: Tensor, count: int, image: str, mask: str, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows to copy and rows whose colour the copies take, (count,) each, kinds and colours in turn."""
    by_kind, by_colour = defaultdict(list), defaultdict(list)
    vivid = (hsv(colours)[1] >= LEAST_SATURATION) & examples.present[mask] & examples.present[image]
    for row, caption in enumerate(examples.captions):
        if (said := parse(caption)) and examples.present[mask][row]:
            by_colour[said.colour].append(row)
            if vivid[row]:
                by_kind[said.kind].append(row)
    if not by_kind:
        raise ValueError(
            'recolouring needs captions such as "a photo of a dark red round apple" on photos with a mask.'
        )

    def drawn(pool: list[int]) -> int:
        return pool[int(torch.randint(len(pool), (), generator=generator))]

    kinds, names = sorted(by_kind), sorted(by_colour)
    rows = [drawn(by_kind[kinds[k % len(kinds)]]) for k in range(count)]
    donors = [drawn(by_colour[names[k // len(kinds) % len(names)]]) for k in range(count)]
    return torch.tensor(rows), torch.tensor(donors)
