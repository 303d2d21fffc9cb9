"""What a training run will be, before it starts: `python -m mmdiff.training.dry_run CONFIG`.

Prints shapes, parameters, operations of one image, memory and time of a run, and passes a few made-up rows in
the layout of the source through reading, preparation and a training step. With --real it also reads the first
rows of the source itself.
"""

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmdiff.checkpoint import build_model
from mmdiff.config import DataConfig, TrainConfig, load_train_config
from mmdiff.data.examples import Examples
from mmdiff.data.precompute import prepare
from mmdiff.data.stream import StreamedBatches, first_examples
from mmdiff.modalities import Modality
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, UNKNOWN
from mmdiff.training.fake_source import ROWS, SHARDS, write_fake
from mmdiff.training.trainer import OBJECTIVES

H100_PEAK = 989e12  # bfloat16 operations a second, dense, of the SXM card
USED_SHARE = 0.35  # of the peak, in an efficient training run
STATE_BYTES = {"weights": 4, "gradients": 4, "AdamW": 8, "average": 4}  # a parameter, all in float32
REAL_ROWS = 8


@dataclass(frozen=True)
class Work:
    """Cost of one training image.

    Attributes:
        forward, total: floating-point operations of the network, without and with the backward pass.
        encoding: operations that encode the photo into Z.
        activations: numbers kept for the backward pass.
    """

    forward: int
    total: int
    encoding: int
    activations: int

    @property
    def step(self) -> int:
        """All operations of a training image."""
        return self.total + self.encoding


class FakeEmbedder:
    """The same unit vector for every photo and text."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def embed_images(self, images: Sequence) -> Tensor:
        """n photos or texts -> (n, dim)."""
        return F.normalize(torch.ones(len(images), self.dim), dim=1)

    embed_texts = embed_images


def dry_run(config: TrainConfig, real: bool = False) -> str:
    """A report on a configuration.

    Raises ValueError if the model cannot be built, or rows cannot be read or trained on.
    """
    model = build_model(config.model)
    check_embedder(model)
    parts = [describe_shapes(model), describe_parameters(model), describe_cost(config, model)]
    return "\n\n".join([*parts, describe_data(config, model.modalities, real)])


def describe_shapes(model: MultiModalDiffusion) -> str:
    """A line for each modality, and Z."""
    lines = ["modality     value            channels of Z   outputs of the head"]
    for name, m in model.modalities.items():
        per = f" per {m.head_stride} x {m.head_stride} pixels" if m.head_stride > 1 else " per pixel"
        outputs = f"{m.head_channels}{per if m.dense else ''}"
        lines.append(f"{name:<12} {str(m.shape):<16} {m.z_channels:<15} {outputs}")
    tokens = model.grid**2
    lines.append(f"Z            {model.z_shape}, {tokens} tokens + {len(model.names)} registers")
    return "\n".join(lines)


def parameters_by_part(model: MultiModalDiffusion) -> dict[str, int]:
    """Trained numbers of each part."""
    backbone = model.backbone
    blocks = count(backbone.early) + count(backbone.late)
    refiner = count(backbone.refiner)
    reader = count(model.reader) if model.reader else 0
    return {
        "blocks": blocks,
        "refiner": refiner,
        "inputs and conditions": count(backbone) - blocks - refiner,
        "reader": reader,
        "heads": count(model) - count(backbone) - reader,
    }


def count(module: nn.Module) -> int:
    """Trained numbers of a module."""
    return sum(p.numel() for p in module.parameters())


def describe_parameters(model: MultiModalDiffusion) -> str:
    """Parameters by part and in total, in millions."""
    parts = parameters_by_part(model) | {"total": count(model)}
    return "\n".join(f"{name + ' (M)':<25} {value / 1e6:9.3f}" for name, value in parts.items())


def measure(model: MultiModalDiffusion) -> Work:
    """Count the operations of one image, by the model's own layers on the meta device."""
    model = copy.deepcopy(model).to("meta").train()
    kept: dict[int, Tensor] = {}
    weights = {id(p.untyped_storage()) for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor.untyped_storage()) not in weights:
            kept[id(tensor.untyped_storage())] = tensor
        return tensor

    size, anchor = model.config.image_size, model.modalities[model.anchor]
    with torch.device("meta"):
        photo, known = torch.zeros(1, *anchor.shape), torch.zeros(1, 1, size, size)
        flags = torch.zeros(1, len(model.names), dtype=torch.long)
        inputs = model.call_at(
            model.make_schedule(), torch.zeros(1, *model.z_shape), 1, model.condition({}, flags, known, photo)
        )
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(*inputs)
    with FlopCounterMode(display=False) as encoding:
        anchor.encode(photo)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as both, hooks:
        sum(output.sum() for output in model(*inputs).values()).backward()
    numbers = sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())
    return Work(*(mode.get_total_flops() for mode in (forward, both, encoding)), numbers)


def describe_cost(config: TrainConfig, model: MultiModalDiffusion) -> str:
    """Work, memory and time."""
    optim, work = config.optim, measure(model)
    state = count(model) * sum(STATE_BYTES.values())
    kept = work.activations * optim.batch_size
    hours = work.step * optim.images / (USED_SHARE * H100_PEAK) / 3600
    return "\n".join(
        [
            f"one training image        {work.step / 1e9:.2f} GFLOP ({work.forward / 1e9:.2f} forward"
            + (f", {work.encoding / 1e9:.2f} to encode the photo)" if work.encoding else ")"),
            f"weights, gradients, AdamW, average  {state / 2**30:.2f} GiB",
            f"activations at batch {optim.batch_size}  {2 * kept / 2**30:.1f} GiB (bfloat16) to "
            f"{4 * kept / 2**30:.1f} GiB (float32), divided by the number of cards",
            f"{optim.images / 1e6:g} M images            {_duration(hours)} on one H100 "
            f"({USED_SHARE:.0%} of {H100_PEAK / 1e12:.0f} TFLOP/s in bfloat16)",
        ]
    )


def _duration(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.1f} seconds"
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"


def check_embedder(model: MultiModalDiffusion) -> None:
    """Raise ValueError if the embedder's vectors have another size than the model's embeddings."""
    embedder = model.config.embedder
    dim = embedder_dim(embedder)
    for name, modality in model.modalities.items():
        if modality.takes_text and dim not in (None, modality.shape[0]):
            raise ValueError(
                f"modality {name!r} has dim {modality.shape[0]}, but {embedder} makes {dim} "
                f"numbers; set dim to {dim}."
            )


def embedder_dim(embedder: str) -> int | None:
    """Numbers that an embedder makes, without loading it; None if that cannot be known."""
    import open_clip

    file = Path("checkpoints", embedder, "open_clip_config.json")
    if embedder and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["model_cfg"]["embed_dim"]
    known = open_clip.get_model_config(embedder.partition("/")[0]) if embedder else None
    return known["embed_dim"] if known else None


def describe_data(config: TrainConfig, modalities: Mapping[str, Modality], real: bool) -> str:
    """Pass rows through source, mapping, preparation and a training step; returns a line on each pass."""
    texts = [name for name, m in modalities.items() if m.takes_text and config.model.embedder]
    made = {name for name in texts if name not in config.data.columns}
    embedder = FakeEmbedder(modalities[next(iter(made))].shape[0]) if made else None
    with tempfile.TemporaryDirectory(prefix="mmdiff-") as folder:
        fakes, shards = Path(folder, "source"), Path(folder, "prepared")
        fakes.mkdir()
        data = write_fake(config.data, modalities, made, fakes)
        trained = _train_on(replace(data, prepared=""), modalities, config, embedder)
        lines = [f"made-up rows like {config.data.train or 'a Parquet file'}: {trained}"]
        if config.data.prepared:
            data = replace(data, val="", prepared=str(shards))
            prepare(replace(config, data=data), "train", shards, embedder, rows_per_shard=3)
            lines.append("prepared shards of them: " + _train_on(data, modalities, config, None))
    if real:
        source = replace(config.data, val=config.data.train, prepared="")
        rows = first_examples(source, modalities, REAL_ROWS, embedder)
        lines.append(f"first rows of {config.data.train}: " + _step(rows, config))
    return "\n".join(lines)


def _train_on(
    data: DataConfig, modalities: Mapping[str, Modality], config: TrainConfig, embedder: FakeEmbedder | None
) -> str:
    with closing(StreamedBatches(data, modalities, batch=2, embedder=embedder)) as stream:
        for _ in range(SHARDS * ROWS // 2):  # every row, even if one is left out
            batch = stream.next_batch()
    if stream.broken:
        raise ValueError(f"{stream.broken} made-up rows cannot be read; the warnings say why.")
    return _step(batch, config)


def _step(examples: Examples, config: TrainConfig) -> str:
    """Loss and gradients of a narrow model with the same modalities; returns a summary."""
    torch.manual_seed(0)
    small = replace(config.model, width=32, depth=2, heads=2, refiner_width=32)
    model = build_model(small)
    objective = OBJECTIVES[small.core](model, replace(config, model=small), torch.device("cpu"))
    rows, generator = torch.arange(len(examples)), torch.Generator().manual_seed(0)
    draw = objective.draw(examples, rows, generator, augment=True)
    flags = torch.where(draw.present, UNKNOWN, ABSENT)
    draw = replace(draw, flags=flags, known=torch.zeros_like(draw.known))
    terms = objective.losses(model, draw)
    loss = objective.total(terms)
    loss.backward()
    if not torch.isfinite(loss):
        raise ValueError(f"the loss of the first rows is {loss.item()}: {terms}.")
    there = dict(zip(model.names, draw.present.any(0).tolist(), strict=True))
    absent = [name for name in there if not there[name]]
    if absent:
        raise ValueError(f"no row has {', '.join(absent)}; name its column in data.columns.")
    return f"{', '.join(model.names)} come through, loss {loss.item():.3g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.training.dry_run", description=__doc__.splitlines()[0]
    )
    parser.add_argument("config", help="TOML file, see configs/")
    parser.add_argument("--batch-size", type=int, help="default: optim.batch_size of the configuration")
    parser.add_argument("--real", action="store_true", help="also read the first rows of the source itself")
    args = parser.parse_args(arguments)
    try:
        config = load_train_config(args.config)
        if args.batch_size is not None:
            optim = replace(config.optim, batch_size=args.batch_size)
            config = replace(config, optim=optim)
        print(dry_run(config, args.real))
    except ValueError as error:
        sys.exit(f"mmdiff.training.dry_run: {error}")


if __name__ == "__main__":
    main()
