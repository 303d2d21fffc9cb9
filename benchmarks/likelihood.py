"""What is the bound on the likelihood, by modality, and what do the other modalities cost the photo?

    python benchmarks/likelihood.py configs/butterflies-small.toml --train data/butterflies/train.parquet \
        --val data/butterflies/val.parquet --images 160000 --keep runs/evidence \
        --out docs/results/evidence-butterflies-likelihood.json

Ours, ours without leads, and the same network with N = 1, the photo alone, which DDPM's bound is for. All see
equally many images. The photo's part of a joint bound is given the others' noisy values, so the models are
compared by the photo alone, with all else ignored and no lead.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.evidence import compared, recorded, trained
from benchmarks.intervals import over_photos_and_seeds
from benchmarks.measures import Measured
from benchmarks.questions import NOISE_ALONE, Setting, System, in_turn, with_modalities
from benchmarks.report import build
from benchmarks.study import CPU, Bench, add_arguments, command, load_bench, pair, study, write
from benchmarks.tables.questions import named
from benchmarks.tables.studies import OURS
from mmdiff.bound import bound
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.augment import draw_batch
from mmdiff.data.batches import make_embedder
from mmdiff.data.examples import Examples
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.model import MultiModalDiffusion

SYSTEMS = {
    OURS: System(),
    "ours, nothing leads": System(with_modalities(lambda m: {"lead": 0.0})),
    "the photo alone, N = 1": System(partial(in_turn, (pair(""), NOISE_ALONE)), used=()),
}
BATCH = 128
NORMAL = 1.96  # standard errors in half of a 95 % interval


def run(system: System, config: TrainConfig, bench: Bench) -> dict[str, Any]:
    """Train a system and measure its bounds; seconds are CPU time."""
    trainer, seconds = trained(system, config, bench)
    start = time.process_time()
    model, settings = trainer.ema.model, bench.settings
    rows = torch.arange(len(bench.val))[: settings.limit]
    found = together(model, bench.val, rows, settings) | photo_alone(model, bench.val, rows, settings)
    return recorded(found, [trainer], 0, seconds, start)


def together(
    model: MultiModalDiffusion, examples: Examples, rows: Tensor, settings: EvaluationSettings
) -> Measured:
    """The bound on all that an example has, and its parts by modality."""
    terms, present = bounds(model, examples, rows, settings, model.names, leads=None)
    each = {"photo_bits": bits(model, terms["L1/image"] + terms["L3"])}
    for name in model.names[1:]:
        each[f"{name}_nats"] = (terms[f"L1/{name}"] + terms[f"L2/{name}"])[present[name]]
    each["prior_nats"] = terms["L0"]
    if len(model.names) > 1:
        each["total_nats"] = sum(terms.values())
    return Measured.means({name: values for name, values in each.items() if len(values)})


def photo_alone(
    model: MultiModalDiffusion, examples: Examples, rows: Tensor, settings: EvaluationSettings
) -> Measured:
    """The bound on the photo, all else ignored and nothing leading: DDPM's for any of the models."""
    terms, _ = bounds(model, examples, rows, settings, (model.anchor,), leads={})
    return Measured.means({"photo_alone_bits": bits(model, sum(terms.values()))})


def bounds(
    model: MultiModalDiffusion,
    examples: Examples,
    rows: Tensor,
    settings: EvaluationSettings,
    used: Sequence[str],
    leads: Mapping[str, float] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Terms of every example (n,) by name, and which modalities it has; what is not used is ignored."""
    schedule, generator = model.make_schedule(leads), torch.Generator().manual_seed(settings.seed)
    parts, has = [], []
    for index in rows.split(BATCH):
        x, there = draw_batch(examples, model.modalities, index, None, flip=False)
        present = {name: there[:, i] & (name in used) for i, name in enumerate(model.names)}
        parts.append(bound(model, schedule, x, present, generator, settings.bound_draws))
        has.append(present)
    terms = {name: torch.cat([part[name].double() for part in parts]) for name in parts[0]}
    return terms, {name: torch.cat([part[name] for part in has]) for name in model.names}


def bits(model: MultiModalDiffusion, nats: Tensor) -> Tensor:
    """Bits per dimension of the photo."""
    return nats / math.prod(model.modalities[model.anchor].shape) / math.log(2)


def standard_errors(variants: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of every figure's mean, over photos, random times and seeds."""
    return {
        name: {
            figure: _error([run["each"][figure] for run in entry["runs"].values()])
            for figure in entry["figures"]
        }
        for name, entry in variants.items()
    }


def _error(rows: list[list[int]]) -> float:
    found = over_photos_and_seeds([[value / 1e4 for value in row] for row in rows])
    return round((found["high"] - found["low"]) / (2 * NORMAL), 5)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    out, variants = Path(args.out), {}
    try:
        base = load_train_config(args.config)
        settings = EvaluationSettings(limit=args.photos, bound_draws=args.draws)
        embedder = make_embedder(base, None, CPU)
        bench = load_bench(base, args.train, args.val, None, embedder, settings, args.keep)
        facts = {
            "command": command("likelihood", arguments),
            "question": "likelihood",
            "data": {"train": Path(args.train).name, "val": Path(args.val).name},
            "device": "cpu",
            "tuning": None,
        }
        for images in args.images:
            for name, system in SYSTEMS.items():
                variants[named(name, images)] = system.configured(images, Setting())
        report = study(variants, base, bench, args.seeds, out, facts, run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    compared(report, SYSTEMS, args.images)
    report["standard_errors"] = standard_errors(report["variants"])
    write(report, out)
    print(build(report).to_markdown())


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a small size, such as configs/butterflies-small.toml")
    add_arguments(parser)
    parser.add_argument("--images", type=int, nargs="+", default=[160_000], help="budgets (%(default)s)")
    parser.add_argument("--photos", type=int, default=384, help="to measure on (%(default)s)")
    parser.add_argument("--draws", type=int, default=16, help="random times a photo (%(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
