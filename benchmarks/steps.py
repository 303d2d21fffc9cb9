"""Images a second of training steps: levels against the first edition, for the same parameters and tokens.

    python benchmarks/steps.py configs/butterflies-cpu.toml --out docs/results/training-steps.json

Both train on the same made-up examples, in turn, so that a change of the machine's pace meets both. The first
edition computes in float32 and encodes every photo in every step, as it did on CPUs; its depth is such that
it has about as many parameters. The share of the machine's rate is that of one large matrix product in
bfloat16.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdiff.checkpoint import build_model  # noqa: E402
from mmdiff.config import TrainConfig, load_train_config  # noqa: E402
from mmdiff.data.examples import Examples, encoded_name  # noqa: E402
from mmdiff.device import fast_bfloat16  # noqa: E402
from mmdiff.training.dry_run import measure  # noqa: E402
from mmdiff.training.trainer import Trainer  # noqa: E402

CPU = torch.device("cpu")
EXAMPLES = 256
FIRST_EDITION = {"core": "flags", "route": 0.0, "stem_depth": 2, "reader_depth": 2, "in_place": True}


def made_up(config: TrainConfig, views: bool) -> Examples:
    """Random examples that have all modalities, with one view and its encoding or as whole photos."""
    model = build_model(config.model)
    generator, size = torch.Generator().manual_seed(0), config.model.image_size
    stored: dict[str, torch.Tensor] = {}
    for name, modality in model.modalities.items():
        classes = len(modality.classes)
        if modality.form == "picture":
            stored[name] = torch.randint(
                256, (EXAMPLES, 3, size, size), dtype=torch.uint8, generator=generator
            )
        elif modality.form == "class_map":
            stored[name] = torch.randint(
                classes, (EXAMPLES, size, size), dtype=torch.uint8, generator=generator
            )
        elif modality.form == "class":
            stored[name] = torch.randint(classes, (EXAMPLES,), dtype=torch.int32, generator=generator)
        else:
            vectors = torch.randn(EXAMPLES, *modality.shape, generator=generator)
            stored[name] = F.normalize(vectors, dim=1).half()
        if views and modality.dense:
            stored[name] = stored[name][:, None]
        if views and modality.frozen_encoder:
            shape = EXAMPLES, 1, modality.z_channels, model.grid, model.grid
            stored[encoded_name(name)] = torch.randn(shape, generator=generator).half()
    present = {name: torch.ones(EXAMPLES, dtype=torch.bool) for name in model.names}
    return Examples(stored, present, [""] * EXAMPLES, views=int(views))


def first_edition(config: TrainConfig, parameters: int) -> TrainConfig:
    """The same sizes with flags, and the depth that comes nearest to so many parameters."""
    modalities = tuple(replace(m, lead=0.0) for m in config.model.modalities)
    tasks = replace(config.tasks, other_leads=0.0)

    def at(depth: int) -> TrainConfig:
        model = replace(config.model, **FIRST_EDITION, modalities=modalities, depth=depth)
        return replace(config, model=model, tasks=tasks)

    def distance(depth: int) -> int:
        return abs(sum(p.numel() for p in build_model(at(depth).model).parameters()) - parameters)

    return at(min(range(2, config.model.depth + 3), key=distance))


def seconds_of(step: Callable[[], Any], count: int) -> float:
    """Of one step, the mean of so many."""
    started = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - started) / count


def matmul_rate(dtype: torch.dtype) -> float:
    """Operations a second of a product of two matrices of 2,048 a side, the best of five."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    torch.mm(a, b)
    return 2 * 2048**3 / min(seconds_of(lambda: torch.mm(a, b), 3) for _ in range(5))


def compare(config: TrainConfig, batch: int, rounds: int, steps: int) -> dict[str, Any]:
    """Images a second of both, the ratio by pairs, and the share of the rate of large products."""
    config = replace(config, optim=replace(config.optim, batch_size=batch))
    levels = Trainer(config, made_up(config, views=True), CPU)
    parameters = sum(p.numel() for p in levels.model.parameters())
    other = first_edition(config, parameters)
    flags = Trainer(other, made_up(other, views=False), CPU)
    for trainer in (levels, flags):
        trainer.train_step()
    pairs = [
        (seconds_of(levels.train_step, steps), seconds_of(flags.train_step, steps)) for _ in range(rounds)
    ]
    ours, theirs = (statistics.median(each) for each in zip(*pairs, strict=True))
    rate = matmul_rate(torch.bfloat16 if levels.bfloat16 else torch.float32)
    return {
        "batch": batch,
        "parameters": parameters,
        "first_edition_parameters": sum(p.numel() for p in flags.model.parameters()),
        "bfloat16": levels.bfloat16,
        "images_per_second": round(batch / ours, 1),
        "first_edition_images_per_second": round(batch / theirs, 1),
        "times_as_fast": round(statistics.median(b / a for a, b in pairs), 2),
        "matmul_gflops": round(rate / 1e9),
        "share_of_matmul_rate": round(batch * measure(levels.model).total / ours / rate, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="TOML file of a configuration with levels")
    parser.add_argument("--batch", type=int, default=64, help="images a step (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of each in a pair (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    arguments = parser.parse_args()
    facts = {"config": Path(arguments.config).name, "cores": os.cpu_count(), "torch": torch.__version__}
    facts |= {"python": platform.python_version(), "fast_bfloat16": fast_bfloat16(CPU)}
    config = load_train_config(arguments.config)
    text = (
        json.dumps(facts | compare(config, arguments.batch, arguments.rounds, arguments.steps), indent=1)
        + "\n"
    )
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
