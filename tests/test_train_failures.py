"""Training survives what goes wrong: a kill in the middle of a write, a full disk, damage, a loss of NaN."""

import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from synthetic import read_shapes, tiny_train_config

from mmdiff import files
from mmdiff.checkpoint import load_checkpoint
from mmdiff.config import to_dict
from mmdiff.files import write_tensors, write_text
from mmdiff.first_edition import objective as training
from mmdiff.training.loop import MetricsLog, resume, run
from mmdiff.training.state import STATE_FILE as STATE
from mmdiff.training.state import backup_of, state_of
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")
BACKUP = backup_of(Path(STATE)).name


@pytest.fixture(scope="module")
def examples(shapes, embedder):
    return read_shapes(shapes, tiny_train_config(), embedder)


def make_trainer(examples, **optim) -> Trainer:
    """Of 8 steps, with a save after every second one."""
    return Trainer(tiny_train_config(**({"save_every_images": 16} | optim)), examples, CPU)


@pytest.fixture(scope="module")
def whole(examples, tmp_path_factory) -> Path:
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(make_trainer(examples), examples, folder, math.inf, 1)
    return folder


FILES = (STATE, "model.safetensors", "best/model.safetensors")


def assert_same_end(one: Path, two: Path, names: tuple[str, ...] = FILES) -> None:
    for name in names:
        first, second = load_file(one / name), load_file(two / name)
        assert set(first) == set(second)
        assert [n for n in first if not torch.equal(first[n], second[n])] == []
    assert list(two.rglob("*.part")) == []


def go_on(examples, folder: Path) -> int:
    """Resume the run and finish it; returns the step it went on from."""
    trainer = make_trainer(examples)
    assert resume(trainer, folder)
    step = trainer.step
    run(trainer, examples, folder, math.inf, 1)
    return step


# -- killed --------------------------------------------------------------------------------------------


def killed_at(examples, folder: Path, name: str, count: int, moment: str) -> None:
    """Run until the file ``name`` is written for the ``count``-th time, and die with half of it written.

    The run is a fork of this process, so that the kill is a real one. ``moment`` is "half" for the middle of
    the write, or "moves" between the move to the backup and the move into place.
    """
    # before the fork: a child that raises would go on with the rest of the tests
    left, save_file, replace = count, files.save_file, os.replace
    child = os.fork()
    if child:
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def save(tensors, path, metadata):
        nonlocal left
        save_file(tensors, path, metadata)
        if path == folder / f"{name}.part":
            left -= 1
            if not left and moment == "half":
                os.truncate(path, path.stat().st_size // 2)
                die()

    def move(source, target):
        if moment == "moves" and not left and target == folder / name:
            die()
        replace(source, target)

    files.save_file, os.replace = save, move
    try:
        run(make_trainer(examples), examples, folder, math.inf, 1)
    finally:
        os._exit(1)  # not reached


@pytest.mark.parametrize(
    "name, moment, step",
    [
        (STATE, "half", 2),
        (STATE, "moves", 2),
        ("model.safetensors", "half", 4),  # the state is newer than the checkpoint
        ("best/model.safetensors", "half", 4),
    ],
)
def test_a_run_killed_while_it_writes_goes_on(examples, whole, tmp_path, name, moment, step):
    killed_at(examples, tmp_path, name, 2, moment)
    assert (tmp_path / f"{name}.part").exists()
    if name != STATE:
        load_checkpoint((tmp_path / name).parent)
    assert go_on(examples, tmp_path) == step
    assert_same_end(whole, tmp_path)


# -- damaged -------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(whole, tmp_path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(whole, folder)
    os.truncate(folder / STATE, 5000)
    return folder


def test_a_damaged_state_is_replaced_by_the_one_before(examples, whole, damaged, capsys):
    assert go_on(examples, damaged) == 6
    said = capsys.readouterr().err
    assert f"{damaged / STATE} is damaged (" in said
    assert f"); going on from {damaged / BACKUP}, the state before it, at step 6." in said
    assert_same_end(whole, damaged)
    os.truncate(damaged / STATE, 0)
    trainer = make_trainer(examples)
    assert resume(trainer, damaged) and trainer.step == 6, "the backup is not the damaged one"


def test_two_damaged_states(examples, damaged):
    (damaged / BACKUP).write_bytes(b"")
    with pytest.raises(ValueError, match=f"{BACKUP} is damaged .*; use a new --out folder"):
        resume(make_trainer(examples), damaged)


def test_an_empty_folder_is_a_new_run(examples, tmp_path):
    assert not resume(make_trainer(examples), tmp_path)


def test_a_state_written_before_there_were_counters_and_batches(examples, whole, tmp_path):
    tensors = load_file(whole / STATE)
    del tensors["skipped"]
    config = json.dumps(to_dict(tiny_train_config().model))
    write_tensors(tensors, tmp_path / STATE, {"step": "8", "config": config})
    trainer = make_trainer(examples)
    assert resume(trainer, tmp_path)
    assert (trainer.step, trainer.batches.step, trainer.skipped.tolist()) == (8, 8, [0, 0])


# -- a full disk ---------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Switch a limit on the size of files on and off: writing beyond it fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


def test_a_periodic_save_that_fails_is_tried_again(examples, whole, tmp_path, full_disk, monkeypatch, capfd):
    trainer = make_trainer(examples)
    train_step, kept = trainer.train_step, {}

    def stepping():
        full_disk(50_000 if trainer.step == 3 else None)  # step 4 saves
        if trainer.step == 4:
            kept.update(load_file(tmp_path / STATE))
            assert list(tmp_path.rglob("*.part")) == []
        return train_step()

    monkeypatch.setattr(trainer, "train_step", stepping)
    run(trainer, examples, tmp_path, math.inf, 1)
    said = capfd.readouterr().err
    assert f"the state could not be written ({tmp_path / STATE}: " in said and "too large" in said
    assert "Training goes on; the next save tries again." in said
    assert kept["optimizer/0/step"] == 2
    assert_same_end(whole, tmp_path, (STATE, "model.safetensors"))


def test_a_last_save_that_fails_ends_the_run_with_an_error(examples, tmp_path, full_disk, monkeypatch):
    trainer = make_trainer(examples)
    train_step = trainer.train_step

    def stepping():
        if trainer.step == 7:
            full_disk(50_000)
        return train_step()

    monkeypatch.setattr(trainer, "train_step", stepping)
    with pytest.raises(OSError, match=f"{STATE}.* too large"):
        run(trainer, examples, tmp_path, math.inf, 1)
    full_disk(None)
    assert list(tmp_path.rglob("*.part")) == []
    assert load_file(tmp_path / STATE)["optimizer/0/step"] == 6
    assert go_on(examples, tmp_path) == 6


def test_a_log_line_is_written_completely_or_not_at_all(tmp_path, full_disk):
    log = MetricsLog(tmp_path / "metrics.csv", 0)
    log.write({"step": 1, "loss": 0.5})
    full_disk(14)
    with pytest.raises(OSError, match="too large"):
        log.write({"step": 2, "loss": 0.25})
    full_disk(None)
    log.write({"step": 3, "loss": 0.125})
    assert log.path.read_text() == "step,loss\n1,0.5\n3,0.125\n"


def test_a_log_begun_before_a_column_existed(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n")
    MetricsLog(path, 1).write({"step": 2, "loss": 0.25, "skipped": 0})
    assert path.read_text() == "step,loss\n1,0.5\n2,0.25\n"


def test_texts_are_written_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "config.json"
    write_text(path, "old")
    full_disk(10)
    with pytest.raises(OSError, match="too large"):
        write_text(path, "x" * 20)
    full_disk(None)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


# -- a loss that is not finite -------------------------------------------------------------------------


def spoil(trainer: Trainer, monkeypatch, steps, factor: float = math.nan) -> None:
    """The loss of these steps is not finite."""
    losses = training.training_losses

    def spoilt(*inputs):
        times = factor if trainer.step in steps else 1
        return {name: value * times for name, value in losses(*inputs).items()}

    monkeypatch.setattr(training, "training_losses", spoilt)


def copies(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state_of(trainer)[0].items()}


def test_every_part_of_a_batch_has_dropout_of_its_own(examples):
    trainer = Trainer(tiny_train_config(), examples, CPU, accumulate=2)
    drawn = []
    for part in (0, 1):
        trainer.seed_dropout(part)
        drawn.append(torch.rand(1000) < 0.5)
    assert 0.4 < (drawn[0] == drawn[1]).float().mean() < 0.6


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(examples, monkeypatch, factor, parts):
    trainer = Trainer(tiny_train_config(), examples, CPU, accumulate=parts)
    spoil(trainer, monkeypatch, (1,), factor)
    trainer.train_step()
    before = copies(trainer)
    assert not trainer.train_step()["total"].isfinite()
    after = copies(trainer)
    for name in before:
        if name.startswith(("model/", "optimizer/")):
            assert torch.equal(before[name], after[name]), name
    assert trainer.step == 2 and trainer.skipped.tolist() == [1, 1] and trainer.is_finite()
    assert trainer.train_step()["total"].isfinite()
    assert trainer.skipped.tolist() == [1, 0]
    later = copies(trainer)
    assert not torch.equal(later["optimizer/0/exp_avg"], after["optimizer/0/exp_avg"])


def test_skipped_steps_are_counted_reported_and_saved(examples, tmp_path, monkeypatch, capfd):
    trainer = make_trainer(examples)
    spoil(trainer, monkeypatch, (1, 2, 5))
    run(trainer, None, tmp_path, math.inf, 1)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0].endswith(",skipped") and [line[-1] for line in lines[1:]] == list("01222333")
    assert ",nan," in lines[2] and ",nan," not in lines[4]
    assert "1 step(s) up to step 6 skipped, as the loss or the gradient was not finite; 3 so far" in (
        capfd.readouterr().err
    )
    resumed = make_trainer(examples)
    assert resume(resumed, tmp_path) and resumed.skipped.tolist() == [3, 0]


@pytest.mark.parametrize("log_every", [1, 100])
def test_ten_steps_in_a_row_that_are_not_finite_end_the_run(examples, tmp_path, monkeypatch, log_every):
    """Also if it recovers before anybody looks."""
    trainer = make_trainer(examples, images=320, save_every_images=24)
    spoil(trainer, monkeypatch, range(4, 14))
    with pytest.raises(FloatingPointError, match="not finite 10 times in a row at step 1[45].*lower --lr"):
        run(trainer, None, tmp_path, math.inf, log_every)
    resumed = make_trainer(examples)
    assert resume(resumed, tmp_path) and resumed.is_finite() and resumed.step == 12


def test_nine_steps_in_a_row_do_not(examples, monkeypatch):
    trainer = make_trainer(examples)
    spoil(trainer, monkeypatch, range(9))
    for _ in range(10):
        trainer.train_step()
    assert trainer.skipped.tolist() == [9, 0]
