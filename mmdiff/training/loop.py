"""The loop of a training run: steps, log, samples, saves and the best checkpoint, until it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff.checkpoint import write_checkpoint
from mmdiff.data.examples import Examples
from mmdiff.files import write_tensors, write_text
from mmdiff.training.signals import signals_stop
from mmdiff.training.state import REMEDY, STATE_FILE, DamagedState, backup_of, load_state, state_of
from mmdiff.training.trainer import SKIPPED_AT_MOST, Trainer

METRICS_FILE = "metrics.csv"
AGREE_EVERY = 10  # steps; launchers kill a process some 30 s after they asked it to stop


def run(trainer: Trainer, val: Examples | None, out: Path, max_minutes: float, log_every: int) -> str:
    """Train until the budget, the time limit or a signal ends it; returns which of them it was.

    All processes call it.

    Raises:
        FloatingPointError: loss or weights are no longer finite; they are not saved.
        OSError: the last state could not be written.
    """
    optim, processes = trainer.config.optim, trainer.processes
    total_steps = -(-optim.images // optim.batch_size)
    deadline, stopped, ended = time.monotonic() + 60 * max_minutes, [], False
    with Run(trainer, val, out, total_steps) as files, signals_stop(stopped):
        while trainer.step < total_steps and not ended:
            terms = trainer.train_step()
            files.bar.update()
            if trainer.step % log_every == 0 or trainer.step == total_steps:
                files.log_training(terms)
            if trainer.step < total_steps:  # the end is saved and sampled below
                if passed(trainer, optim.sample_every_images):
                    files.sample()
                if passed(trainer, optim.save_every_images):
                    files.save()
            if time.monotonic() > deadline:
                stopped.append("--max-minutes")
            # Several processes have to stop together, and asking each other makes them wait.
            if processes.count == 1 or trainer.step % AGREE_EVERY == 0:
                ended = processes.any(bool(stopped), trainer.device)
        files.save(final=True)
        files.sample()
    if not ended:
        return "the budget of images"
    return stopped[0] if stopped else "another process"


def passed(trainer: Trainer, every_images: int) -> bool:
    """Whether the last step reached or crossed a multiple of ``every_images``."""
    before = trainer.images - trainer.config.optim.batch_size
    return trainer.images // every_images != before // every_images


class Run:
    """The folder and the progress bar of a run. Only the main process writes and prints.

    If a file cannot be written, as on a full disk, it says so; the next save tries again.
    """

    def __init__(self, trainer: Trainer, val: Examples | None, out: Path, total_steps: int) -> None:
        self.trainer, self.config, self.out = trainer, trainer.config.model, out
        self.main = trainer.processes.main
        self.val = val.to(trainer.device) if val else None
        self.skipped = int(trainer.skipped[0])
        self.last_log = trainer.images, time.monotonic()
        if self.main:
            (out / "samples").mkdir(parents=True, exist_ok=True)
            self.log = MetricsLog(out / METRICS_FILE, trainer.step)
            best = out / "best" / "val.json"
            self.best = json.loads(best.read_text())["total"] if best.exists() else float("inf")
        self.bar = tqdm(
            total=total_steps,
            initial=trainer.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=2,
            disable=not self.main,
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def log_training(self, terms: dict[str, Tensor]) -> None:
        """Log the loss terms of the last step, and images a second since the last call."""
        values = {name: value.item() for name, value in terms.items()}
        self.check()
        (images, then), self.last_log = self.last_log, (self.trainer.images, time.monotonic())
        speed = (self.last_log[0] - images) / (self.last_log[1] - then)
        self._write_row(speed, values, val=False)
        self.bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()} | {"img/s": f"{speed:.0f}"})

    def _write_row(self, speed: float, values: dict[str, float], val: bool) -> None:
        trainer = self.trainer
        position = {"step": trainer.step, "images": trainer.images, "lr": trainer.learning_rate()}
        row = position | {"images_per_s": speed, "split_val": int(val)} | values | {"skipped": self.skipped}
        if self.main:
            with _errors_reported("a line of the log"):
                self.log.write(row)

    def check(self) -> None:
        """Report skipped steps. Raises FloatingPointError if there were too many in a row."""
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
            with _errors_reported("the samples"):
                grid.save(self.out / "samples" / f"{self.trainer.images:010d}.png")

    def save(self, final: bool = False) -> None:
        """Write state and checkpoint, validate, and keep the best checkpoint; all processes call it.

        Raises:
            FloatingPointError: the run has diverged; the last state stays.
            OSError: state or checkpoint could not be written and it is the ``final`` time.
        """
        trainer = self.trainer
        self.check()
        if not trainer.is_finite():
            raise _diverged(trainer, "a weight is not finite")
        tensors, metadata = state_of(trainer)
        average = {n.removeprefix("ema/"): t for n, t in tensors.items() if n.startswith("ema/")}
        failed: list[OSError] = []
        if self.main:
            with _errors_reported("the state", failed):
                path = self.out / STATE_FILE
                write_tensors(tensors, path, metadata, backup=backup_of(path))
                write_checkpoint(self.config, average, self.out)
            if trainer.config.optim.keep_checkpoints:
                with _errors_reported("a checkpoint of the history"):
                    folder = self.out / "history" / f"{trainer.images:010d}"
                    write_checkpoint(self.config, average, folder)
        if self.val is not None:
            self._validate(average)
        if failed and final:
            raise failed[0]
        if failed:
            _say("Training goes on; the next save tries again.")

    def _validate(self, average: dict[str, Tensor]) -> None:
        """Log the validation loss and keep the checkpoint of the lowest one in best/."""
        terms = self.trainer.validate(self.val)
        self._write_row(0.0, terms, val=True)
        if not self.main or terms["total"] >= self.best:
            return
        with _errors_reported("the best checkpoint"):
            write_checkpoint(self.config, average, self.out / "best")
            text = json.dumps(terms | {"images": self.trainer.images})
            write_text(self.out / "best" / "val.json", text)
            self.best = terms["total"]


class MetricsLog:
    """A CSV file that is appended to; its columns are those of the first row.

    Rows after ``step`` are dropped: they come from a run that was cut off after its last saved state.
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
        """Append one row, whose first number is the step, after a header if the file is new.

        Raises OSError if it cannot be written; the file then stays as it was.
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


def resume(trainer: Trainer, out: Path) -> bool:
    """Continue from the newest state in the folder, from its backup if it is damaged; False if there is none.

    All processes call it.

    Raises:
        ValueError: both are damaged, the state is of another model, or the processes see different ones.
    """
    newest, backup = out / STATE_FILE, backup_of(out / STATE_FILE)
    found = [path for path in (newest, backup) if path.exists()]
    damage = ""
    for path in found:
        try:
            load_state(trainer, path)
            break
        except DamagedState as error:
            if path == found[-1]:
                raise
            damage = str(error).removesuffix(REMEDY)
    _check_same_step(trainer, out)
    if damage and trainer.processes.main:
        _say(f"{damage}; going on from {backup}, the state before it, at step {trainer.step}.")
        os.replace(backup, newest)  # or the next save would keep the damaged one as the backup
    return bool(found)


def _check_same_step(trainer: Trainer, out: Path) -> None:
    total = trainer.processes.sum(torch.tensor(trainer.step, device=trainer.device))
    if total != trainer.step * trainer.processes.count:
        raise ValueError(
            f"the processes find different states in {out}; it must be on a disk that all machines share."
        )


@contextmanager
def _errors_reported(what: str, failed: list[OSError] | None = None) -> Iterator[None]:
    """Report an OSError inside and continue after it; the error is added to ``failed``."""
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
