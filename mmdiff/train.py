"""Training: `python -m mmdiff.train CONFIG --out RUN`.

Writes the state, checkpoints, a log and samples to the folder of the run, and continues what it finds there.
`accelerate launch -m mmdiff.train CONFIG` does the same on several GPUs or machines, see docs/training.md.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import math
import os
import signal as signals
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff.checkpoint import write_checkpoint
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import Batches, make_embedder, training_data, validation_data
from mmdiff.data.examples import Examples
from mmdiff.files import write_tensors, write_text
from mmdiff.model import MultiModalDiffusion
from mmdiff.training.processes import join_processes
from mmdiff.training.trainer import REMEDY, SKIPPED_AT_MOST, DamagedState, Trainer, backup_of

STATE_FILE = "training_state.safetensors"
METRICS_FILE = "metrics.csv"
AGREE_EVERY = 10  # steps; launchers kill a process some 30 s after they asked it to stop


class MetricsLog:
    """A CSV file that is appended to; its columns are those of the first row.

    Rows after ``step`` are dropped: they are of a run that was cut off after its last saved state.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.columns: list[str] = []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines:
            self.columns = lines[0].strip().split(",")
        kept = [row for row in lines[1:] if row.endswith("\n") and float(row.split(",")[0]) <= step]
        write_text(path, "".join(lines[:1] + kept))

    def write(self, row: dict[str, float]) -> None:
        """Append one row, the first number of which is the step, after a header if the file is new.

        Raises OSError if it cannot be written; nothing of it is in the file then.
        """
        text = io.StringIO()
        # A log that was begun before a column existed goes on without it.
        columns = self.columns or list(row)
        writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
        if not self.columns:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        size = self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write(text.getvalue().encode())
        except OSError:
            os.truncate(self.path, size)
            raise
        self.columns = columns


class Run:
    """A trainer's folder and its logs: what `run` writes there, which only the main process does.

    A file that cannot be written, as on a full disk, is reported and left for the next time.
    """

    def __init__(self, trainer: Trainer, val: Examples | None, out: Path) -> None:
        self.trainer, self.out = trainer, out
        self.main = trainer.processes.main
        self.val = val.to(trainer.device) if val else None
        self.skipped = int(trainer.skipped[0])
        if self.main:
            (out / "samples").mkdir(parents=True, exist_ok=True)
            self.log = MetricsLog(out / METRICS_FILE, trainer.step)
            self.best = _best_so_far(out)

    def write_row(self, speed: float, values: dict[str, float], val: bool) -> None:
        """A line of the metrics log."""
        trainer = self.trainer
        position = {"step": trainer.step, "images": trainer.images, "lr": trainer.learning_rate()}
        row = position | {"images_per_s": speed, "split_val": int(val)} | values | {"skipped": self.skipped}
        if self.main:
            with _unless_impossible("a line of the log"):
                self.log.write(row)

    def check(self) -> None:
        """Say which steps were skipped. Raises FloatingPointError if there were too many in a row."""
        total, in_a_row = self.trainer.skipped.tolist()
        if self.main and total > self.skipped:
            _say(
                f"{total - self.skipped} step(s) up to step {self.trainer.step} skipped, as the loss or the "
                f"gradient was not finite; {total} so far."
            )
        self.skipped = total
        if in_a_row >= SKIPPED_AT_MOST:
            raise _diverged(
                self.trainer, f"the loss or its gradient was not finite {in_a_row} times in a row"
            )

    def sample(self) -> None:
        """Write a picture of samples; all processes call it."""
        grid = self.trainer.sample_grid()
        if self.main:
            with _unless_impossible("the samples"):
                grid.save(self.out / "samples" / f"{self.trainer.images:010d}.png")

    def save(self, final: bool = False) -> None:
        """Write state and checkpoint; keep the checkpoint of the lowest validation loss beside it.

        All processes call it.

        Raises:
            FloatingPointError: the run has diverged; the last state stays.
            OSError: state or checkpoint could not be written and it is the ``final`` time.
        """
        trainer = self.trainer
        self.check()
        if not trainer.is_finite():
            raise _diverged(trainer, "a weight is not finite")
        tensors, metadata = trainer.state()
        average = {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
        failed: list[OSError] = []
        if self.main:
            with _unless_impossible("the state", failed):
                path = self.out / STATE_FILE
                write_tensors(tensors, path, metadata, backup=backup_of(path))
                write_checkpoint(trainer.config.model, average, self.out)
            if trainer.config.optim.keep_checkpoints:
                with _unless_impossible("a checkpoint of the history"):
                    folder = self.out / "history" / f"{trainer.images:010d}"
                    write_checkpoint(trainer.config.model, average, folder)
        if self.val is not None:
            self._validate(average)
        if failed and final:
            raise failed[0]
        if failed:
            _say("Training goes on; the next save tries again.")

    def _validate(self, average: dict[str, Tensor]) -> None:
        terms = self.trainer.validate(self.val)
        self.write_row(0.0, terms, val=True)
        if not self.main or terms["total"] >= self.best:
            return
        with _unless_impossible("the best checkpoint"):
            write_checkpoint(self.trainer.config.model, average, self.out / "best")
            text = json.dumps(terms | {"images": self.trainer.images})
            write_text(self.out / "best" / "val.json", text)
            self.best = terms["total"]


def run(trainer: Trainer, val: Examples | None, out: Path, max_minutes: float, log_every: int) -> str:
    """Train until the budget, the time limit or a signal ends it; returns which of them it was.

    All processes call it.

    Raises:
        FloatingPointError: the loss or a weight is no longer finite; it is not saved.
        OSError: the last state could not be written.
    """
    optim, processes, files = trainer.config.optim, trainer.processes, Run(trainer, val, out)
    start, stopped = time.monotonic(), []
    total_steps = -(-optim.images // optim.batch_size)
    bar = tqdm(
        total=total_steps,
        initial=trainer.step,
        unit="step",
        dynamic_ncols=True,
        mininterval=2,
        disable=not processes.main,
    )
    since, last_time, ended = trainer.step, start, False
    with bar, _signals_stop(stopped):
        while trainer.step < total_steps and not ended:
            terms = trainer.train_step()
            bar.update()
            if trainer.step % log_every == 0 or trainer.step == total_steps:
                values = {n: v.item() for n, v in terms.items()}
                files.check()
                now = time.monotonic()
                speed = (trainer.step - since) * optim.batch_size / (now - last_time)
                since, last_time = trainer.step, now
                files.write_row(speed, values, val=False)
                bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()} | {"img/s": f"{speed:.0f}"})
            if now_due(trainer, optim.sample_every_images):
                files.sample()
            if now_due(trainer, optim.save_every_images) and trainer.step < total_steps:
                files.save()
            if (time.monotonic() - start) / 60 > max_minutes:
                stopped.append("--max-minutes")
            # Several processes have to stop together, and asking each other makes them wait.
            if processes.count == 1 or trainer.step % AGREE_EVERY == 0:
                ended = processes.any(bool(stopped), trainer.device)
        files.save(final=True)
        files.sample()
    if not ended:
        return "the budget of images"
    return stopped[0] if stopped else "another process"


@contextmanager
def _signals_stop(stopped: list[str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM append to ``stopped``, so that the run ends cleanly, with its state saved."""
    names = (signals.SIGINT, signals.SIGTERM)
    before = {name: signals.signal(name, lambda *_: stopped.append("a signal")) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signals.signal(name, handler)


@contextmanager
def _unless_impossible(what: str, failed: list[OSError] | None = None) -> Iterator[None]:
    """Write something; say so and go on if that cannot be done. The error is added to ``failed``."""
    try:
        yield
    except OSError as error:
        _say(f"{what} could not be written ({error}). What was written before is kept.")
        if failed is not None:
            failed.append(error)


def _say(text: str) -> None:
    """A line on the standard error, above the progress bar."""
    tqdm.write(f"mmdiff.train: {text}", file=sys.stderr)


def _diverged(trainer: Trainer, what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {trainer.step}. The state saved before it is kept: run the same command with a "
        "lower --lr to continue from there."
    )


def now_due(trainer: Trainer, every_images: int) -> bool:
    """Whether this step crossed a multiple of ``every_images``."""
    before = trainer.images - trainer.config.optim.batch_size
    return trainer.images // every_images != before // every_images


def _best_so_far(out: Path) -> float:
    path = out / "best" / "val.json"
    return json.loads(path.read_text())["total"] if path.exists() else float("inf")


def resume(trainer: Trainer, out: Path) -> bool:
    """Continue from the newest state in the folder; False if it has none.

    If that one is damaged, the one before it takes its place. All processes call it.

    Raises:
        ValueError: both are damaged, the state is of another model, or the processes see different ones.
    """
    newest, backup = out / STATE_FILE, backup_of(out / STATE_FILE)
    found = [path for path in (newest, backup) if path.exists()]
    damage = ""
    for path in found:
        try:
            trainer.load_state(path)
            break
        except DamagedState as error:
            if path == found[-1]:
                raise
            damage = str(error).removesuffix(REMEDY)
    _same_step(trainer, out)
    if damage and trainer.processes.main:
        _say(f"{damage}; going on from {backup}, the state before it, at step {trainer.step}.")
        os.replace(backup, newest)  # or the next save would keep the damaged one as the backup
    return bool(found)


def _same_step(trainer: Trainer, out: Path) -> None:
    total = trainer.processes.sum(torch.tensor(trainer.step, device=trainer.device))
    if total != trainer.step * trainer.processes.count:
        raise ValueError(
            f"the processes find different states in {out}; it must be on a disk that all machines share."
        )


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="TOML file, see configs/")
    parser.add_argument(
        "--out", help="folder of the run, resumed if it holds one already (default: runs/<name of CONFIG>)"
    )
    parser.add_argument("--train", help="Parquet file (default: data.train of the configuration)")
    parser.add_argument("--val", help="Parquet file (default: data.val of the configuration)")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--images", type=int, help="budget (default: optim.images of the configuration)")
    parser.add_argument("--batch-size", type=int, help="default: optim.batch_size of the configuration")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts that each process works on a batch in, one after the other, for less memory (default: 1)",
    )
    parser.add_argument(
        "--shard", action="store_true", help="divide the weights themselves among the processes (FSDP2)"
    )
    parser.add_argument("--lr", type=float, help="default: optim.lr of the configuration")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop cleanly after this long")
    parser.add_argument("--init", help="checkpoint folder whose weights a new run starts from")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU only")
    parser.add_argument("--log-every", type=int, default=50, help="steps between lines of the metrics log")
    return parser.parse_args(arguments)


def apply_overrides(config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    """The configuration with what the command line says put in place."""
    said = {name: value for name, value in vars(arguments).items() if value is not None}
    optim = {name: said[name] for name in ("images", "batch_size", "lr") if name in said}
    data = {name: said[name] for name in ("train", "val") if name in said}
    if data:
        data["prepared"] = ""  # otherwise what was prepared would be read all the same
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, **optim),
        data=dataclasses.replace(config.data, **data),
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        for option in ("log_every", "accumulate"):
            if getattr(args, option) < 1:
                name = option.replace("_", "-")
                raise ValueError(f"--{name} is {getattr(args, option)}; give a number of at least 1.")
        config = apply_overrides(load_train_config(args.config), args)
        processes, device = join_processes(args.device, args.shard)
        embedder = make_embedder(config, args.embedder, device)
        blueprint = MultiModalDiffusion(config.model)
        train = training_data(config, blueprint, embedder, processes, args.accumulate)
        val = validation_data(config, blueprint, embedder)
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high")
        compiled = on_gpu if args.compile is None else args.compile
        trainer = Trainer(config, train, device, compiled, processes, args.accumulate)
        trainer.load_pretrained("checkpoints")
        out = Path(args.out or Path("runs", Path(args.config).stem))
        if not resume(trainer, out) and args.init:
            trainer.start_from(args.init)
    except ValueError as error:
        sys.exit(f"mmdiff.train: {error}")
    if processes.main:
        print(_summary(trainer, train), flush=True)
    try:
        reason = run(trainer, val, out, args.max_minutes, args.log_every)
    except (FloatingPointError, OSError) as error:
        sys.exit(f"mmdiff.train: {error}")
    if processes.main:
        print(f"stopped by {reason} after {trainer.images} images; checkpoint in {out}")
    processes.close()


def _summary(trainer: Trainer, train: Examples | Batches) -> str:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    examples = f"streamed from {trainer.config.data.ready().train}"
    if isinstance(train, Examples):
        counts = ", ".join(f"{int(has.sum())} {name}" for name, has in train.present.items())
        examples = f"{len(train)} examples ({counts})"
    together = f"{trainer.processes.count} processes, " if trainer.processes.count > 1 else ""
    return f"{parameters / 1e6:.2f} M parameters, {examples}, {together}{trainer.device}, step {trainer.step}"


if __name__ == "__main__":
    main()
