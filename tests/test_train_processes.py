"""Several processes, parts of a batch and sharded weights: the result is that of one process."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from synthetic import CLASSES, SIZE, make_rows, write_parquet

from mmdiff import train
from mmdiff.checkpoint import load_checkpoint
from mmdiff.config import load_train_config
from mmdiff.data import batches
from mmdiff.model import MultiModalDiffusion
from mmdiff.training import objective
from mmdiff.training.loop import resume, run
from mmdiff.training.processes import Processes, join_processes
from mmdiff.training.state import STATE_FILE, backup_of
from mmdiff.training.trainer import ALONE, Trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
STEPS, BATCH = 6, 8

TOML = f"""
[model]
image_size = {SIZE}
patch_size = 4
width = 32
depth = 2
heads = 2
refiner_width = 8
stem_depth = 1

[[model.modalities]]
name = "image"
kind = "image"

[[model.modalities]]
name = "mask"
kind = "mask"
options = {{ classes = ["background", "shape"] }}

[[model.modalities]]
name = "label"
kind = "label"
options = {{ classes = {json.dumps(list(CLASSES))} }}

[data]
margin = 2

[optim]
images = {STEPS * BATCH}
batch_size = {BATCH}
warmup_images = 16
save_every_images = {3 * BATCH}
sample_every_images = 1000000
"""


def compute_in_float32(patch: pytest.MonkeyPatch) -> None:
    """Sums in another order differ too much in bfloat16, which processors that are fast at it train in."""
    patch.setattr("mmdiff.training.trainer.fast_bfloat16", lambda device: False)


@pytest.fixture(scope="module", autouse=True)
def in_float32() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        compute_in_float32(patch)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a configuration and data; its rows lack masks and labels unevenly."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.toml").write_text(TOML)
    write_parquet(folder / "shapes.parquet", make_rows(22))
    return folder


def arguments(place: Path, out: str, *more: object) -> list[str]:
    data = [f"--{part}={place / 'shapes.parquet'}" for part in ("train", "val")]
    common = [str(place / "tiny.toml"), *data, "--out", str(place / out), "--log-every", "1"]
    common += ["--device", "cpu"]
    return common + [str(argument) for argument in more]


def make_trainer(place: Path, processes: Processes = ALONE, **optim) -> Trainer:
    config = load_train_config(place / "tiny.toml")
    config = replace(config, optim=replace(config.optim, **optim))
    model = MultiModalDiffusion(config.model)
    examples = batches.load_examples(str(place / "shapes.parquet"), model, config, None)
    return Trainer(config, examples, CPU, processes=processes)


def losses_of(folder: Path) -> list[list[float]]:
    """Step, validation or not, and the losses of every line of the log."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    timing = ("images_per_s",)
    return [[float(v) for n, v in row.items() if n not in timing] for row in rows]


def assert_close_states(one: Path, two: Path) -> None:
    first, second = (load_file(folder / STATE_FILE) for folder in (one, two))
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-5, rtol=1e-5)


def assert_same_end(whole: Path, resumed: Path) -> None:
    """Of a run that was resumed after step 3."""
    one, two = losses_of(whole)[-4:], losses_of(resumed)
    assert [row[0] for row in two] == [4, 5, 6, 6]
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert_close_states(whole, resumed)


def assert_same_run(one: Path, two: Path) -> None:
    for mine, theirs in zip(losses_of(one), losses_of(two), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    assert_close_states(one, two)
    assert sorted(p.name for p in one.rglob("*")) == sorted(p.name for p in two.rglob("*"))
    assert load_checkpoint(two).config == load_checkpoint(one).config


@pytest.fixture(scope="module")
def alone(place) -> Path:
    """The run of one process."""
    train.main(arguments(place, "alone"))
    return place / "alone"


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_whole_batch(place, alone, parts):
    train.main(arguments(place, f"parts{parts}", "--accumulate", parts))
    assert_same_run(alone, place / f"parts{parts}")


# -- two processes -------------------------------------------------------------------------------------


def cut_off(run: Path, folder: Path) -> None:
    """A folder with the state that the run had after step 3: the backup of its last one."""
    folder.mkdir()
    shutil.copy(backup_of(run / STATE_FILE), folder / STATE_FILE)


def what_two_do(place: Path) -> None:
    """All that is tested with two processes, in one launch: most of its time is that of the imports."""
    processes, _ = join_processes("cpu")
    torch.set_num_threads(1)
    compute_in_float32(pytest.MonkeyPatch())
    Processes.close = lambda self: None  # to go on with the same two
    train.main(arguments(place, "together", "--accumulate", 2))
    train.main(arguments(place, "all-sharded", "--shard"))
    if processes.main:
        cut_off(place / "together", place / "again")
        cut_off(place / "alone", place / "sharded")
    processes.any(False, CPU)  # wait for the files
    train.main(arguments(place, "again", "--accumulate", 2))
    train.main(arguments(place, "sharded", "--shard", "--accumulate", 2))
    meet_trouble(place, replace(processes, shard=True))


def meet_trouble(place: Path, processes: Processes) -> None:
    """A loss that is not finite and a signal, each on the second process only."""
    trainer, losses = (
        make_trainer(place, processes, images=800, save_every_images=800),
        objective.training_losses,
    )

    def spoilt(*inputs):
        factor = math.nan if processes.rank == 1 and trainer.step == 1 else 1
        if processes.rank == 1 and trainer.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return {name: value * factor for name, value in losses(*inputs).items()}

    objective.training_losses = spoilt
    reason = run(trainer, None, place / "trouble", math.inf, log_every=100)
    (place / f"trouble{processes.rank}.txt").write_text(f"{reason} {trainer.step} {trainer.skipped.tolist()}")


@pytest.fixture(scope="module")
def two(place, alone) -> subprocess.CompletedProcess:
    """`what_two_do`, done. Told of GPUs, the launcher starts as many processes also where there are none."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", "0", __file__, str(place)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr
    return result


def test_two_processes_make_the_run_of_one(place, alone, two):
    assert_same_run(alone, place / "together")


def test_two_processes_with_sharded_weights_make_the_run_of_one(place, alone, two):
    assert_same_run(alone, place / "all-sharded")


def test_only_the_main_process_prints(two):
    assert two.stdout.count("2 processes, cpu") == two.stdout.count("M parameters") == 4
    assert two.stdout.count("stopped by the budget of images") == 4


def test_two_processes_resume_exactly(place, two):
    whole, resumed = (load_file(place / run / STATE_FILE) for run in ("together", "again"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    assert losses_of(place / "again") == losses_of(place / "together")[-4:]


def test_one_process_resumes_what_two_began(place, alone, two):
    cut_off(place / "together", place / "two-one")
    train.main(arguments(place, "two-one"))
    assert_same_end(alone, place / "two-one")


def test_two_with_sharded_weights_resume_what_one_began(place, alone, two):
    """What they read and what they write are whole tensors."""
    assert_same_end(alone, place / "sharded")
    one, two = (load_checkpoint(place / run).state_dict() for run in ("alone", "sharded"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-3, rtol=1e-3)


def test_a_bad_loss_or_a_signal_in_one_process_affects_both(place, two):
    assert (place / "trouble0.txt").read_text() == "another process 10 [1, 0]"
    assert (place / "trouble1.txt").read_text() == "a signal 10 [1, 0]"
    assert two.stderr.count("1 step(s) up to step 10 skipped, as the loss") == 1


# -- dividing a batch ----------------------------------------------------------------------------------


def test_shares_cover_a_batch():
    shares = [Processes(rank, 3).share(12, 2) for rank in range(3)]
    assert shares == [slice(0, 4), slice(4, 8), slice(8, 12)]


def test_a_batch_that_cannot_be_divided():
    with pytest.raises(ValueError, match=r"batch of 8 cannot .* 3 process.* 2 part.* a multiple of 6, or"):
        Processes(0, 3).share(8, 2)


def test_one_device_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--device cuda:1 is one device for 2 processes; leave it out"):
        join_processes("cuda:1")


@pytest.mark.parametrize("asked", ["true", "false"])
def test_the_launcher_can_ask_for_sharding(monkeypatch, asked):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", asked)
    state = SimpleNamespace(process_index=1, num_processes=2, device=CPU)
    monkeypatch.setattr("accelerate.PartialState", lambda **_: state)
    assert join_processes() == (Processes(1, 2, shard=asked == "true"), CPU)


def test_processes_that_see_different_states(place, tmp_path, monkeypatch):
    trainer = make_trainer(place)
    monkeypatch.setattr(Processes, "sum", lambda self, step: step + 3)
    with pytest.raises(ValueError, match="different states in .*; it must be on a disk that all machines"):
        resume(trainer, tmp_path)


if __name__ == "__main__":
    what_two_do(Path(sys.argv[1]))
