"""Random views of every photo, cut once and encoded once, so that no training step runs a frozen encoder."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff.config import DataConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples, encoded_name
from mmdiff.device import fast_bfloat16
from mmdiff.modalities import Modality

BATCH = 64


@torch.no_grad()
def cut_views(
    examples: Examples,
    modalities: Mapping[str, Modality],
    config: DataConfig,
    seed: int,
    device: torch.device,
) -> Examples:
    """The same examples with `config.views` random views of each in place of the larger picture.

    Every view is cut, flipped and lit as `draw_batch` does it. Modalities with a frozen encoder are stored in
    their encoding, too, (n, views, z_channels, h, w) in half precision.
    """
    generator = torch.Generator().manual_seed(seed)
    dense = [name for name, m in modalities.items() if m.dense and name in examples.stored]
    frozen = [name for name in dense if modalities[name].frozen_encoder]
    parts: dict[str, list[Tensor]] = {name: [] for name in [*dense, *map(encoded_name, frozen)]}
    options = config.flip, config.light, config.zoom
    for rows in tqdm(torch.arange(len(examples)).split(BATCH), desc="views", mininterval=2):
        views: dict[str, list[Tensor]] = {name: [] for name in parts}
        for _ in range(config.views):
            x, _ = draw_batch(examples, modalities, rows, generator, *options)
            for name in dense:
                views[name].append(_stored(x[name], examples.stored[name].dtype))
            for name in frozen:
                with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16(device)):
                    encoding = modalities[name].encode(x[name].to(device))
                views[encoded_name(name)].append(encoding.cpu().half())
        for name, own in views.items():
            parts[name].append(torch.stack(own, dim=1))
    stored = examples.stored | {name: torch.cat(own) for name, own in parts.items()}
    return replace(examples, stored=stored, margin=0, views=config.views)


def _stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Data-space values as they are kept: photos in [-1, 1] in bytes again."""
    if x.is_floating_point() and dtype == torch.uint8:
        x = ((x + 1) * 127.5).round()
    return x.to(dtype)
