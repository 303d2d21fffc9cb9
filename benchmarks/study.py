"""A study: variants of one training run, each repeated with several seeds, kept in one JSON file.

`benchmarks/ablations.py` and `benchmarks/evidence.py` share it. Every finished run is stored immediately, so
that a study that was cut off continues when it is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmdiff.checkpoint import build_model
from mmdiff.config import ModelConfig, TrainConfig, to_dict
from mmdiff.data.batches import load_examples
from mmdiff.data.examples import Examples
from mmdiff.evaluate import evaluate
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.files import write_tensors
from mmdiff.pipeline import Pipeline
from mmdiff.training.dry_run import count
from mmdiff.training.state import load_state, state_of
from mmdiff.training.trainer import Trainer

Change = Callable[[TrainConfig], TrainConfig]
CPU = torch.device("cpu")
SAME = ("data", "config", "evaluation", "tuning")  # what all runs in a file have in common
NUMBERS = re.compile(r"\[\s+(-?\d[-\d.,\s]*)\]")
FLAT = re.compile(r"\{\n[^{}\[\]]+\}")  # an object without lists and objects in it
BREAK = re.compile(r"\n\s*")  # strings have none


@dataclass(frozen=True)
class Variant:
    """A configuration that differs from the baseline's by ``change``, how it is trained and measured.

    Attributes:
        annotated: name of the modality that every training example must have, if any.
        settings: of the evaluation, where they differ from the baseline's.
        trainer: class that trains it.
    """

    change: Change = lambda config: config
    annotated: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    trainer: type[Trainer] = Trainer

    def train(
        self, config: TrainConfig, examples: Examples, kept: Path | None = None
    ) -> tuple[Trainer, float]:
        """The trained model of ``config``, which `change` has made, and the CPU seconds of its training.

        Args:
            kept: folder of trained models. A model that is there is not trained again.
        """
        if self.annotated:
            examples = examples.take(examples.present[self.annotated].nonzero()[:, 0])
        trainer = self.trainer(config, examples, CPU)
        trainer.load_pretrained("checkpoints")
        state = kept and kept / f"{fingerprint(self.trainer, config, examples)}.safetensors"
        if state and state.exists():
            load_state(trainer, state)
            return trainer, json.loads(state.with_suffix(".json").read_text(encoding="utf-8"))["cpu_seconds"]
        start = time.process_time()
        while trainer.images < config.optim.images:
            trainer.train_step()
        seconds = round(time.process_time() - start, 1)
        if state:
            write({"cpu_seconds": seconds, "config": to_dict(config)}, state.with_suffix(".json"))
            tensors, metadata = state_of(trainer)
            write_tensors(tensors, state, metadata)
        return trainer, seconds


@dataclass(frozen=True)
class Bench:
    """What all runs share: data, judge, embedder, how to measure, and the folder that keeps models."""

    train: Examples
    val: Examples
    judge: Classifier | None
    embedder: Any
    settings: EvaluationSettings
    kept: Path | None = None

    def evaluation(self, trainer: Trainer, variant: Variant) -> Evaluation:
        """The evaluation of the averaged model, with the variant's settings."""
        pipe = Pipeline(trainer.ema.model, CPU, self.embedder)
        settings = dataclasses.replace(self.settings, **variant.settings)
        photos = self.train.stored["image"]
        return Evaluation(pipe, self.val, settings, self.judge, train_photos=photos)


def load_bench(
    base: TrainConfig,
    train: str,
    val: str,
    judge: str | None,
    embedder: Any,
    settings: EvaluationSettings,
    kept: Path | None = None,
) -> Bench:
    """Bench of Parquet files, with the modalities of ``base``. Raises ValueError where something lacks.

    judge: its folder, None where nothing is judged.
    """
    blueprint = build_model(base.model)
    examples = (load_examples(path, blueprint, base, embedder) for path in (train, val))
    classifier = None if judge is None else Classifier.from_pretrained(judge)
    return Bench(*examples, classifier, embedder, settings, kept)


def command(script: str, arguments: Sequence[str] | None) -> str:
    """What makes the results again: a script of this folder with its arguments, None those of the process."""
    given = sys.argv[1:] if arguments is None else arguments
    return shlex.join(["python", f"benchmarks/{script}.py", *given])


def add_arguments(parser: argparse.ArgumentParser, threads: int = 1) -> None:
    """What every study of systems reads: data, file, kept models, seeds and threads."""
    parser.add_argument("--train", required=True, help="Parquet file to train on")
    parser.add_argument("--val", required=True, help="Parquet file to measure on")
    parser.add_argument("--out", required=True, help="JSON file to write, continued if it is there")
    parser.add_argument("--keep", type=Path, help="folder for trained models, to measure them again")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each system (%(default)s)")
    parser.add_argument("--threads", type=int, default=threads, help="CPU threads (%(default)s)")


def fingerprint(trainer: type[Trainer], config: TrainConfig, examples: Examples) -> str:
    """Name of a trained model: it differs where trainer, configuration, seed or data do."""
    digest = hashlib.sha256(trainer.__name__.encode())
    digest.update(json.dumps(to_dict(config), sort_keys=True).encode())
    for name in sorted(examples.stored):
        digest.update(name.encode())
        digest.update(examples.stored[name].contiguous().numpy().data)
        digest.update(examples.present[name].numpy().data)
    return digest.hexdigest()[:16]


def photos_judged(base: TrainConfig, bench: Bench) -> float:
    """Share of the real photos, at the models' size, that the judge names correctly."""
    pipe = Pipeline(build_model(base.model), CPU, bench.embedder)
    ev = Evaluation(pipe, bench.val, bench.settings, bench.judge)
    real = ev.read(ev.rows_with("image", "label"))
    return round(mean(ev.classify(real["image"]) == real["label"]), 4)


# -- changes ---------------------------------------------------------------------------------------------


def model_with(**options: Any) -> Change:
    """Other options of the model."""
    return lambda config: dataclasses.replace(config, model=dataclasses.replace(config.model, **options))


def tasks_with(**options: Any) -> Change:
    """Other shares of the tasks."""
    return lambda config: dataclasses.replace(config, tasks=dataclasses.replace(config.tasks, **options))


def optim_with(**options: Any) -> Change:
    """Another optimisation."""
    return lambda config: dataclasses.replace(config, optim=dataclasses.replace(config.optim, **options))


def only(model: ModelConfig, name: str = "") -> ModelConfig:
    """The same network for the anchor and, if it is named, one other modality."""
    anchor, *others = model.modalities
    return dataclasses.replace(model, modalities=(anchor, *(m for m in others if m.name == name)))


def pair(name: str) -> Change:
    """The anchor and one other modality alone."""
    return lambda config: dataclasses.replace(config, model=only(config.model, name))


# -- the file --------------------------------------------------------------------------------------------


def study(
    variants: Mapping[str, Variant],
    base: TrainConfig,
    bench: Bench,
    seeds: int,
    out: Path,
    facts: Mapping[str, Any],
    run: Callable[[Variant, TrainConfig, Bench], dict[str, Any]],
) -> dict[str, Any]:
    """Make the runs that the file ``out`` lacks, seed by seed, and return all of it.

    Args:
        run: trains one model and measures it; "figures" of its result are summed up over seeds.

    Raises ValueError if the file holds runs that were made otherwise.
    """
    report = opened(base, bench, out, facts)
    for seed in range(seeds):
        for name, variant in variants.items():
            entry = report["variants"].setdefault(name, {"runs": {}})
            if str(seed) in entry["runs"]:
                continue
            config = optim_with(seed=seed)(variant.change(base))
            entry["runs"][str(seed)] = found = run(variant, config, bench)
            runs = list(entry["runs"].values())
            entry |= {part: summary(runs, part) for part in ("figures", "validation")}
            write(report, out)
            shown = ", ".join(f"{n} {v:.4g}" for n, v in found["figures"].items())
            print(f"{name}, seed {seed}, {found['cpu_seconds']:.0f} s of CPU: {shown}", flush=True)
    made = report["variants"]
    report["variants"] = {name: made[name] for name in variants} | made  # in the order of `variants`
    return report


def opened(base: TrainConfig, bench: Bench, out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the file ``out`` has so far. Raises ValueError if it holds runs that were made otherwise."""
    fixed = {"config": to_dict(base), "evaluation": dataclasses.asdict(bench.settings)}
    fixed = json.loads(json.dumps({**facts, **fixed}))
    report = json.loads(out.read_text(encoding="utf-8")) if out.exists() else fixed | {"variants": {}}
    changed = ", ".join(name for name in SAME if report.get(name) != fixed.get(name))
    if changed:
        raise ValueError(f"{out} was made with another {changed}; remove it or give another --out.")
    return report | fixed


def summary(runs: Sequence[dict[str, Any]], part: str) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of every number in a part of the runs."""
    found = {}
    for name in runs[0][part]:
        values = [one[part][name] for one in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        found[name] = {"mean": round(statistics.fmean(values), 5), "std": round(spread, 5)}
    return found


def write(report: Mapping[str, Any], out: Path) -> None:
    """Replace the file in one move, so that an interruption leaves the old or the new one."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, allow_nan=False)
    text = NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)  # lists of numbers in one line
    text = FLAT.sub(lambda found: BREAK.sub(" ", found[0]), text)  # and so do objects of numbers
    part = out.with_suffix(out.suffix + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(out)


# -- a run -----------------------------------------------------------------------------------------------


def trained_and_measured(
    variant: Variant,
    config: TrainConfig,
    bench: Bench,
    tasks: Sequence[str],
    describe: Callable[[dict[str, Any]], dict[str, float]],
) -> dict[str, Any]:
    """A run as a study keeps it; seconds are CPU time, as other work may share the machine.

    Args:
        tasks: what to measure.
        describe: results of `evaluate` -> figures.
    """
    trainer, seconds = variant.train(config, bench.train, bench.kept)
    start = time.process_time()
    results = evaluate(bench.evaluation(trainer, variant), tasks)
    return {
        "figures": describe(results),
        "validation": {name: round(value, 5) for name, value in trainer.validate(bench.val).items()},
        "images": trainer.images,
        "parameters": count(trainer.model),
        "train_cpu_seconds": seconds,
        "cpu_seconds": round(seconds + time.process_time() - start, 1),
    }
