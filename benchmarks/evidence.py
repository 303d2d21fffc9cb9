"""Is one model for everything as good as models for one thing? Questions, each with systems that answer it.

    python benchmarks/evidence.py configs/butterflies-small.toml --question many_in_one --tune \
        --train data/butterflies/train.parquet --val data/butterflies/val.parquet \
        --judge benchmarks/judges/butterflies-32 --images 40000 160000 --keep runs/evidence \
        --out docs/results/evidence-butterflies-many_in_one.json --plot docs/evidence_many_in_one.png

Every system trains the same network on as many images, of which each has a loss, and is measured on the same
photos with the same holes and the same noise. With `--tune` it is trained in three settings first, on a third
of the budget, and keeps the best of them by photos that are held out from the training. Finished runs are
kept in the file, so that a study that was cut off continues; models in the folder of `--keep` are trained
once, whatever question they answer.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.budgets import plot
from benchmarks.intervals import over_photos_and_seeds
from benchmarks.measures import Measured, real_photos
from benchmarks.questions import FINE_TUNING, QUESTIONS, Setting, System, in_turn, tuned_reading, whole_photos
from benchmarks.report import build
from benchmarks.study import (
    CPU,
    Bench,
    add_arguments,
    command,
    load_bench,
    opened,
    optim_with,
    photos_judged,
    study,
    write,
)
from benchmarks.systems import fine_tuned, restricted
from benchmarks.tables.questions import lower_is_better, named
from benchmarks.tables.studies import OURS
from benchmarks.trials import Reference, Trial
from mmdiff.checkpoint import build_model
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import make_embedder
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.pipeline import Pipeline
from mmdiff.training.dry_run import count
from mmdiff.training.trainer import Trainer

GROUPS = 28  # of photos, whose means stand in the file in place of single photos
HELD_OUT = 15  # of so many training photos one is held out while a system is tuned
TUNING_PHOTOS = 480  # generated to compare settings
REPLACED = 4  # models that one of everything replaces: it is also compared at the cost of their sum


@dataclass(frozen=True)
class Stage(Bench):
    """A bench with the real photos that generated ones are compared with."""

    reference: Reference | None = None

    @classmethod
    def of(cls, bench: Bench, base: TrainConfig) -> Stage:
        """The same bench with a reference for its settings."""
        parts = {field.name: getattr(bench, field.name) for field in dataclasses.fields(Bench)}
        modalities = dict(build_model(base.model).modalities.items())
        return cls(**parts, reference=Reference(bench.train, modalities, bench.judge, bench.settings.samples))

    def for_tuning(self, base: TrainConfig) -> Stage:
        """A bench on the training photos alone, some of them held out to measure on."""
        held = torch.arange(len(self.train)) % HELD_OUT == 0
        train, val = (self.train.take(rows.nonzero()[:, 0]) for rows in (~held, held))
        samples = min(TUNING_PHOTOS, self.settings.samples)
        settings = dataclasses.replace(self.settings, samples=samples)
        return self.of(dataclasses.replace(self, train=train, val=val, settings=settings), base)

    def trial(self, trainer: Trainer, system: System, **options: Any) -> Trial:
        """The trial of a system's averaged model."""
        pipe = Pipeline(trainer.ema.model, CPU, self.embedder, precision="auto")
        settings = dataclasses.replace(self.settings, **system.settings)
        used = tuple(n for n in trainer.model.names if n in ("image", *system.used))
        options = {"used": used, "reference": self.reference} | options
        options |= getattr(system.trial, "keywords", {})  # those of a `partial` are meant to stay
        return system.trial(pipe, self.val, settings, self.judge, **options)


# -- a run -----------------------------------------------------------------------------------------------


def run(system: System, config: TrainConfig, stage: Stage) -> dict[str, Any]:
    """Train a system and measure it; seconds are CPU time, as other work may share the machine."""
    trainer, seconds = trained(system, config, stage)
    trainers, beside = [trainer], {}
    if system.reader:
        other = optim_with(seed=config.optim.seed)(system.reader.change(config))
        companion, more = trained(system.reader, other, stage)
        trainers, beside, seconds = [trainer, companion], {"reader": companion.ema.model}, seconds + more
    start = time.process_time()
    trial = stage.trial(trainer, system, **beside)
    found = measured(system, trial)
    if system.tuned:
        found |= read_after(trainer, config, stage)
    return recorded(found, trainers, trial.calls, seconds, start)


def recorded(
    found: Measured, trainers: Sequence[Trainer], calls: int, seconds: float, start: float
) -> dict[str, Any]:
    """A run as the file keeps it.

    Args:
        calls: of the network that fill a hole. seconds: CPU time of the training. start: of measuring.
    """
    return {
        "figures": {name: round(value, 5) for name, value in found.figures.items()},
        "each": {name: grouped(values) for name, values in found.each.items()},
        "validation": {},
        "calls": calls,
        "images": sum(one.images for one in trainers),
        "parameters": sum(count(one.model) for one in trainers),
        "train_cpu_seconds": round(seconds, 1),
        "cpu_seconds": round(seconds + time.process_time() - start, 1),
    }


def trained(system: System, config: TrainConfig, bench: Bench) -> tuple[Trainer, float]:
    """A trained system and the CPU seconds that it took."""
    examples = restricted(bench.train, ("image", *system.used))
    if not system.learns:
        return system.trainer(config, examples, CPU), 0.0
    return system.train(config, examples, bench.kept)


def measured(system: System, trial: Trial) -> Measured:
    """All that a system is measured on."""
    found = Measured()
    for measure in system.measures:
        found |= measure(trial)
    return found


def read_after(trainer: Trainer, config: TrainConfig, stage: Stage) -> Measured:
    """What the system reads once it was fine-tuned on that alone, with a tenth of its images."""
    images = max(1, round(FINE_TUNING * config.optim.images))
    shorter = optim_with(images=images, warmup_images=images // 10)
    tuned = fine_tuned(trainer, in_turn((whole_photos, shorter), config), stage.train)
    return tuned_reading(stage.trial(tuned, System()))


def grouped(values: Tensor, groups: int = GROUPS) -> list[int]:
    """Means of groups of photos in ten-thousandths, for the bootstrap; photo k is in group k mod groups."""
    groups = min(groups, len(values))
    index = torch.arange(len(values)) % groups
    sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, index, values.double().cpu())
    return (1e4 * sums / index.bincount()).round().long().tolist()


# -- tuning ----------------------------------------------------------------------------------------------


def tune(
    systems: Mapping[str, System],
    base: TrainConfig,
    stage: Stage,
    images: int,
    report: dict[str, Any],
    out: Path,
) -> dict[str, Setting]:
    """The best setting of each system at a budget; what the file lacks is trained and kept in it."""
    best = {}
    for name, system in systems.items():
        if not system.learns:
            continue
        tried = report.setdefault("tuned", {}).setdefault(named(name, images), {})
        for setting in system.settings_tried:
            if setting.name not in tried:
                configured = dataclasses.replace(system.configured(images // 3, setting), tuned=False)
                found = run(configured, configured.change(base), stage)
                figures = {aim: found["figures"][aim] for aim in system.aims if aim in found["figures"]}
                tried[setting.name] = figures | {"cpu_seconds": found["cpu_seconds"]}
                write(report, out)
                print(f"{named(name, images)}, {setting.name}: {tried[setting.name]}", flush=True)
        best[name] = chosen(system.settings_tried, tried, system.aims)
        report["tuned"][named(name, images)] = tried | {"chosen": best[name].name}
    return best


def chosen(settings: Sequence[Setting], tried: Mapping[str, Any], aims: Iterable[str]) -> Setting:
    """The setting with the best mean rank over the aims; the first of those that are equally good."""
    ranks = np.zeros(len(settings))
    for aim in aims:
        values = np.array([tried[setting.name].get(aim, 0.0) for setting in settings])
        worse = values[:, None] > values if lower_is_better(aim) else values[:, None] < values
        ranks += worse.sum(1)
    return settings[int(ranks.argmin())]


# -- comparisons -----------------------------------------------------------------------------------------


def differences(variants: Mapping[str, Any], pairs: Mapping[str, str]) -> dict[str, Any]:
    """Name of a variant -> figure -> ours less its own, where ``pairs`` names ours, with its interval.

    Intervals are over groups of photos and seeds, with the same photos and the seeds that both have.
    """
    found = {}
    for name, mine in pairs.items():
        ours, theirs = (variants[key]["runs"] for key in (mine, name))
        seeds = sorted(set(ours) & set(theirs))
        figures = ours[seeds[0]]["each"].keys() & theirs[seeds[0]]["each"].keys() if seeds else set()
        found[name] = {
            figure: over_photos_and_seeds(
                [(np.subtract(ours[s]["each"][figure], theirs[s]["each"][figure]) / 1e4) for s in seeds]
            )
            for figure in sorted(figures)
        }
    return {name: by_figure for name, by_figure in found.items() if by_figure}


def compared(report: dict[str, Any], systems: Iterable[str], budgets: Sequence[int]) -> None:
    """Put the comparisons of ours with all others into the report: at equal images, and at the sum's cost."""
    made = report["variants"]
    for key, times in (("against", 1), ("against_sum", REPLACED)):
        pairs = {
            named(name, images): named(OURS, times * images)
            for images in budgets
            for name in systems
            if name != OURS and named(name, images) in made and named(OURS, times * images) in made
        }
        report[key] = differences(made, pairs)


# -- the command -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        report = answered(args, command("evidence", arguments))
    except ValueError as error:
        sys.exit(f"error: {error}")
    if args.plot:
        plot(report, args.plot)
    print(build(report).to_markdown())


def answered(args: argparse.Namespace, made_by: str) -> dict[str, Any]:
    """Make the runs that are lacking and compare them. Raises ValueError for what cannot be used."""
    base, stage = prepared(args)
    facts = {
        "command": made_by,
        "question": args.question,
        "data": {"train": Path(args.train).name, "val": Path(args.val).name, "judge": Path(args.judge).name},
        "device": "cpu",
        "photos_judged": photos_judged(base, stage),
        "tuning": "three settings on a third of the images" if args.tune else None,
    }
    out, everyone = Path(args.out), QUESTIONS[args.question]
    systems = {name: everyone[name] for name in args.systems or everyone}
    report, variants = opened(base, stage, out, facts), {}
    beside = stage.for_tuning(base)
    for images in args.images:
        best = tune(systems, base, beside, images, report, out) if args.tune else {}
        for name, system in systems.items():
            variants[named(name, images)] = system.configured(images, best.get(name, Setting()))
        if best:
            write(report, out)
        report = study(variants, base, stage, args.seeds, out, facts, run)
    compared(report, list(everyone), args.images)
    if any("precision" in entry["figures"] for entry in report["variants"].values()):
        report["real_photos"] = {n: round(v, 5) for n, v in real_photos(stage.reference).items()}
    write(report, out)
    return report


def prepared(args: argparse.Namespace) -> tuple[TrainConfig, Stage]:
    """The configuration and the bench."""
    base = load_train_config(args.config)
    if base.model.core != "levels":
        raise ValueError(f"{args.config} is of the first edition; give one with model.core = 'levels'.")
    unknown = sorted(set(args.systems or ()) - set(QUESTIONS[args.question]))
    if unknown:
        known = ", ".join(QUESTIONS[args.question])
        raise ValueError(f"{args.question} has no system {', '.join(unknown)}; it compares {known}.")
    settings = EvaluationSettings(
        steps=args.steps,
        filling_steps=args.filling_steps,
        samples=args.samples,
        limit=args.photos,
        guidance=args.guidance,
        eta=args.eta,
        batch=128,
    )
    embedder = make_embedder(base, args.embedder, CPU)
    bench = load_bench(base, args.train, args.val, args.judge, embedder, settings, args.keep)
    return base, Stage.of(bench, base)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="one size for all systems, such as configs/butterflies-small.toml")
    parser.add_argument("--question", choices=list(QUESTIONS), required=True)
    add_arguments(parser)
    parser.add_argument("--plot", type=Path, help="PNG to draw, of figures by the number of images")
    parser.add_argument("--judge", required=True, help="folder of an independent judge")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--systems", nargs="+", metavar="SYSTEM", help="only these of the question's")
    parser.add_argument("--images", type=int, nargs="+", default=[40_000], help="budgets (%(default)s)")
    parser.add_argument("--tune", action="store_true", help="choose rate and loss weights of every system")
    parser.add_argument("--samples", type=int, default=2000, help="photos to generate (%(default)s)")
    parser.add_argument("--photos", type=int, default=384, help="photos to fill and to read (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (%(default)s)")
    parser.add_argument("--filling-steps", type=int, default=10, help="steps in holes (%(default)s)")
    parser.add_argument("--guidance", type=float, default=2.0, help="by a label, where guided (%(default)s)")
    # As much as RePaint, whose jumps are random; without fresh noise errors of early steps stay.
    parser.add_argument("--eta", type=float, default=1.0, help="fresh noise in each step, 0 to 1")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
