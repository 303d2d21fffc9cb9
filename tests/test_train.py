"""Training: it learns, it resumes bit for bit, it stops cleanly, and it never saves a broken state."""

import csv
import json
import math
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import (
    CLASSES,
    DIM,
    SIZE,
    WordEmbedder,
    make_rows,
    read_shapes,
    tiny_config,
    tiny_train_config,
    write_parquet,
)

from mmdiff import train
from mmdiff.checkpoint import build_model, load_checkpoint, save_checkpoint
from mmdiff.config import DataConfig, OptimConfig, TaskConfig, TrainConfig, load_train_config
from mmdiff.data import batches
from mmdiff.data.augment import draw_batch
from mmdiff.files import write_tensors
from mmdiff.first_edition import objective as training
from mmdiff.first_edition.losses import training_losses, z0_weight
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.forward_process import q_sample
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.training.loop import MetricsLog, run
from mmdiff.training.processes import Processes
from mmdiff.training.state import STATE_FILE, load_state, state_of
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")
NAMES = ("image", "mask", "label", "embedding")


@pytest.fixture(scope="module")
def examples(shapes, embedder):
    return read_shapes(shapes, tiny_train_config(), embedder)


def make_trainer(examples, **optim) -> Trainer:
    return Trainer(tiny_train_config(**optim), examples, CPU)


def tensors_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Everything that a run carries from step to step."""
    state = {f"model/{n}": t.clone() for n, t in trainer.model.state_dict().items()}
    state |= {f"ema/{n}": t.clone() for n, t in trainer.ema.model.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        for i, moments in optimizer.state_dict()["state"].items():
            state |= {f"{name}/{i}/{n}": t.clone() for n, t in moments.items()}
    return state


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def metrics_of(folder, val: bool = False) -> list[dict[str, str]]:
    """Rows of the log without the timing."""
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split_val"] == str(int(val))]
    return [{k: v for k, v in row.items() if k != "images_per_s"} for row in rows]


# -- it learns -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_overfitting_one_batch_drives_every_l2_to_zero(tmp_path, embedder):
    rows = [row for row in make_rows(24) if row["mask"] and row["label"] >= 0 and row["caption"]][:4]
    steps, batch_size = 200, 16
    config = TrainConfig(
        tiny_config(width=64, depth=2, refiner_width=16),
        DataConfig(flip=False),
        TaskConfig(joint=1.0, absent=0.0, holes=0.0),
        OptimConfig(steps * batch_size, batch_size, lr=3e-3, warmup_images=160, weight_decay=0.0),
    )
    examples = read_shapes(write_parquet(tmp_path / "four.parquet", rows), config, embedder)
    examples.stored["embedding"] = examples.stored["embedding"][:, 1:]  # of the caption, which tells more
    trainer = Trainer(config, examples, CPU)

    def errors(time: int) -> dict[str, float]:
        """The L2 terms of the four examples with nothing given."""
        model, t = trainer.model.eval(), torch.full((4,), time)
        x, _ = draw_batch(examples, model.modalities, torch.arange(4), None, False)
        e = model.encode(x)
        noise = torch.randn(4, *model.z_shape, generator=torch.Generator().manual_seed(time))
        z0 = e.pop("image")
        z_t = q_sample(trainer.schedule, z0, t, e, noise)
        condition = model.condition({}, torch.full((4, 4), UNKNOWN), torch.zeros(4, 1, SIZE, SIZE))
        with torch.no_grad():
            raw = model(z_t, trainer.objective.log_snr[t], condition)
        terms = training_losses(model, raw, x, z0, condition, z0_weight(trainer.objective.log_snr[t], 5.0))
        return {name: terms[f"L2/{name}"].item() for name in NAMES}

    before = errors(300)
    assert min(before.values()) > 0.2
    for _ in range(steps):
        trainer.train_step()
    for time in (1, 100, 300):
        after = errors(time)
        assert max(after.values()) < 0.02, after


def test_muon_moves_the_matrices_of_the_blocks_by_orthogonal_steps(examples):
    """In units of AdamW's usual step, against the singular values of what each matrix has moved by."""
    trainer = make_trainer(examples, muon=True, lr=1e-2, weight_decay=0.0, warmup_images=8, images=10**6)
    matrices = trainer.muon.param_groups[0]["params"]
    by_adamw = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert matrices and not by_adamw & {id(p) for p in matrices}
    assert len(by_adamw) + len(matrices) == len(list(trainer.model.parameters()))
    for _ in range(3):  # gates begin at zero, and so do the blocks' gradients
        trainer.train_step()
    before, rate = [p.detach().clone() for p in matrices], trainer.learning_rate()
    trainer.train_step()
    for old, new in zip(before, matrices, strict=True):
        moved = torch.linalg.svdvals(new.detach() - old) / (0.2 * rate * max(old.shape) ** 0.5)
        assert 0.5 < moved.median() and moved.max() < 1.3, moved


class Sharded(Processes):
    """Processes that leave the model whole."""

    def split(self, model, compile_model):
        pass


def test_muon_needs_whole_matrices(examples):
    with pytest.raises(ValueError, match="optim.muon needs whole matrices"):
        Trainer(tiny_train_config(muon=True), examples, CPU, processes=Sharded(shard=True))


def test_the_learning_rate_warms_up_and_decays_to_zero(examples):
    trainer = make_trainer(examples, images=800, batch_size=8, warmup_images=80, lr=1e-3)
    rates = []
    for trainer.step in range(101):
        rates.append(trainer.learning_rate())
    decay = [1 - k / 100 for k in range(101)]
    warm = [min(1, (k + 1) / 10) for k in range(101)]
    assert rates == pytest.approx([1e-3 * d * w for d, w in zip(decay, warm, strict=True)])
    assert rates[0] > 0 and rates[100] == 0 and max(rates) == rates[9]


# -- what a step shows the network -------------------------------------------------------------------


def spied_batch(trainer: Trainer, rows: torch.Tensor, monkeypatch) -> tuple[torch.Tensor, ...]:
    """z_t, log SNR and the conditioning of one training batch."""
    seen = []

    def spy(z_t, log_snr_t, condition):
        seen.append((z_t, log_snr_t, condition))
        return MultiModalDiffusion.forward(trainer.model, z_t, log_snr_t, condition)

    monkeypatch.setattr(trainer.model, "forward", spy)
    draw = trainer.draw(trainer.batches.examples, rows, trainer.generator(0), augment=False)
    trainer.losses(trainer.model, draw)
    return seen[0]


def test_a_batch_shows_what_its_flags_say(examples, monkeypatch):
    trainer = make_trainer(examples)
    rows = torch.arange(24).repeat(40)
    z_t, log_snr_t, condition = spied_batch(trainer, rows, monkeypatch)
    model, flags, known = trainer.model, condition.flags, condition.known_pixels
    x, present = draw_batch(examples, model.modalities, rows, None, False)
    e = model.encode(x)

    assert torch.equal(flags == ABSENT, (flags == ABSENT) | ~present)
    assert (flags[:, 0] != ABSENT).all()
    for i, name in enumerate(NAMES[1:], start=1):
        shown = condition.e[name].flatten(1).any(1)
        assert torch.equal(shown, flags[:, i] == KNOWN)
        assert torch.equal(condition.e[name][shown], e[name][shown])
    complete, empty = known.flatten(1).all(1), ~known.flatten(1).any(1)
    assert complete[flags[:, 0] == KNOWN].all()
    partial = ~complete & ~empty
    assert (flags[:, 0][partial] == UNKNOWN).all() and 0.05 < partial.float().mean() < 0.4
    assert empty.float().mean() > 0.3
    photo = torch.nn.functional.pixel_shuffle(condition.e["image"][:, : 3 * 16], 4)
    assert torch.equal(photo, x["image"] * known)

    # an absent modality's channels of z_t are noise alone, whatever its value would have been
    clear = log_snr_t > 6
    own, true = (model.channels.take("label", z) for z in (z_t, e["label"]))
    correlation = (own * true).mean((1, 2, 3))
    absent = flags[:, 2] == ABSENT
    assert (correlation[clear & ~absent] > 0.9).all() and (correlation[clear & absent].abs() < 0.5).all()
    assert log_snr_t.unique().numel() > 300


@pytest.mark.parametrize("asked", [False, True])
def test_values_that_an_example_lacks_do_not_matter(examples, asked):
    """Bit for bit: neither the terms nor the gradients see what is stored where nothing is present."""
    results = []
    config = replace(tiny_train_config(), tasks=TaskConfig(ask_for_lacking=asked))
    for filler in (0, 1):
        changed = examples.to(CPU)
        for name in ("mask", "label"):
            absent = ~changed.present[name]
            changed.stored[name] = changed.stored[name].clone()
            changed.stored[name][absent] = filler
        trainer = Trainer(config, changed, CPU)
        results.append((trainer.train_step(), tensors_of(trainer)))
    assert_equal(results[0][0], results[1][0])
    assert_equal(results[0][1], results[1][1])


@pytest.mark.parametrize(("reading", "share"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_share_of_complete_photos_is_at_the_last_time(examples, reading, share):
    trainer = Trainer(replace(tiny_train_config(), tasks=TaskConfig(reading=reading)), examples, CPU)
    rows = torch.arange(24).repeat(60)
    draw = trainer.draw(trainer.batches.examples, rows, trainer.generator(0), augment=True)
    last, given = trainer.schedule.num_steps, draw.flags[:, 0] == KNOWN
    assert (draw.t[given] == last).double().mean() == pytest.approx(share, abs=0.12)
    assert (draw.t[~given] == last).double().mean() < 0.02 and given.sum() > 100


def test_heads_of_modalities_that_nobody_has_get_no_gradient(examples):
    partial = examples.to(CPU)
    partial.present["label"] = torch.zeros_like(partial.present["label"])
    trainer = make_trainer(partial)
    terms = trainer.train_step()
    assert terms["L2/label"] == 0 and terms["L2/mask"] > 0
    assert all((p.grad == 0).all() for p in trainer.model.heads["label"].parameters())
    assert all((p.grad != 0).any() for p in trainer.model.heads["mask"].parameters())


def test_validation_is_repeatable_and_changes_nothing(examples):
    trainer = make_trainer(examples)
    before = tensors_of(trainer)
    one, two = trainer.validate(examples), trainer.validate(examples)
    assert one == two and set(one) == {"L1", "total"} | {f"L2/{name}" for name in NAMES}
    assert all(math.isfinite(value) for value in one.values())
    assert_equal(before, tensors_of(trainer))


def test_validation_in_parts_is_that_of_the_whole(examples, monkeypatch):
    """Every example counts the same, and every annotation of a rare modality, whatever the parts are."""
    trainer, rare = make_trainer(examples), replace(examples, present=dict(examples.present))
    rare.present["label"] = torch.arange(len(examples)) < 3
    whole = trainer.draw(rare, torch.arange(len(rare)), trainer.generator(0), False)
    monkeypatch.setattr(trainer, "draw", lambda _, rows, *__, **___: whole.take(slice(rows[0], rows[-1] + 1)))
    found = []
    for size in (len(examples), 5):
        monkeypatch.setattr("mmdiff.training.trainer.VAL_BATCH", size)
        found.append(trainer.validate(rare))
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[0]["L2/label"] > 0


# -- it resumes ----------------------------------------------------------------------------------------


def test_equal_seeds_make_equal_runs(examples):
    trainers = [make_trainer(examples), make_trainer(examples), make_trainer(examples, seed=1)]
    for trainer in trainers:
        for _ in range(3):
            trainer.train_step()
    one, two, three = map(tensors_of, trainers)
    assert_equal(one, two)
    assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("muon", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(examples, tmp_path, muon):
    whole, first, second = (make_trainer(examples, muon=muon) for _ in range(3))
    terms = [whole.train_step() for _ in range(8)]
    for _ in range(5):
        first.train_step()
    tensors, metadata = state_of(first)
    write_tensors(tensors, tmp_path / "state.safetensors", metadata)
    torch.manual_seed(12345)  # whatever happened in between
    load_state(second, tmp_path / "state.safetensors")
    assert second.step == 5
    for k in range(5, 8):
        assert_equal(second.train_step(), terms[k])
    assert_equal(tensors_of(second), tensors_of(whole))


def test_a_run_stopped_after_every_step_equals_an_uninterrupted_one(examples, tmp_path):
    """Through the files of `run`, with its samples, validation and log in between."""
    whole = make_trainer(examples)
    assert run(whole, examples, tmp_path / "a", math.inf, log_every=1) == "the budget of images"
    reasons = []
    for _ in range(8):
        part = make_trainer(examples)
        if reasons:
            load_state(part, tmp_path / "b" / STATE_FILE)
        reasons.append(run(part, examples, tmp_path / "b", 0.0, log_every=1))
    assert reasons == ["--max-minutes"] * 8 and part.step == whole.step == 8
    assert_equal(tensors_of(part), tensors_of(whole))
    assert metrics_of(tmp_path / "a") == metrics_of(tmp_path / "b")
    assert [row["step"] for row in metrics_of(tmp_path / "a")] == [str(k) for k in range(1, 9)]
    for name in (STATE_FILE, "model.safetensors"):
        assert_equal(load_file(tmp_path / "a" / name), load_file(tmp_path / "b" / name))
    last = [metrics_of(tmp_path / name, val=True)[-1] for name in ("a", "b")]
    assert last[0] == last[1]


def test_a_run_leaves_everything_behind(examples, tmp_path):
    trainer = make_trainer(examples, sample_every_images=24)
    run(trainer, examples, tmp_path, math.inf, log_every=3)
    loaded = load_checkpoint(tmp_path)
    average = trainer.ema.model.state_dict()
    assert all(torch.equal(t, average[n].half().float()) for n, t in loaded.state_dict().items())
    assert [row["step"] for row in metrics_of(tmp_path)] == ["3", "6", "8"]
    assert [row["step"] for row in metrics_of(tmp_path, val=True)] == ["4", "8"]
    assert [int(p.stem) for p in sorted((tmp_path / "samples").iterdir())] == [24, 48, 64]
    best = json.loads((tmp_path / "best" / "val.json").read_text())
    totals = [float(row["total"]) for row in metrics_of(tmp_path, val=True)]
    assert best["total"] == pytest.approx(min(totals), rel=1e-5)
    assert load_checkpoint(tmp_path / "best").config == trainer.config.model


def test_the_best_checkpoint_is_kept(examples, tmp_path, monkeypatch):
    trainer = make_trainer(examples, save_every_images=8, images=32)
    totals = iter([3.0, 1.0, 2.0, 1.5])
    averages = {}

    def validate(_):
        averages[trainer.step] = {n: t.clone() for n, t in trainer.ema.model.state_dict().items()}
        return {"total": next(totals)}

    monkeypatch.setattr(trainer, "validate", validate)
    monkeypatch.setattr(MetricsLog, "write", lambda *_: None)
    run(trainer, examples, tmp_path, math.inf, log_every=100)
    assert json.loads((tmp_path / "best" / "val.json").read_text()) == {"total": 1.0, "images": 16}
    kept = load_checkpoint(tmp_path / "best").state_dict()
    assert all(torch.equal(t, averages[2][n].half().float()) for n, t in kept.items())


def test_the_log_forgets_what_was_not_saved(tmp_path):
    """A run that was killed goes on from its last state: later lines, and half a line, would come twice."""
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path, 0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": step / 3})
    with path.open("a") as file:
        file.write("4,0.1")
    log = MetricsLog(path, 2)
    log.write({"step": 3, "loss": 0.5})
    assert path.read_text() == "step,loss\n1,0.333333\n2,0.666667\n3,0.5\n"


def test_states_that_cannot_be_resumed(examples, tmp_path):
    path = tmp_path / "state.safetensors"
    trainer = make_trainer(examples)
    trainer.train_step()
    tensors, metadata = state_of(trainer)
    write_tensors(tensors, path, metadata)
    other = Trainer(replace(trainer.config, model=tiny_config(width=64)), examples, CPU)
    with pytest.raises(ValueError, match="belongs to another model configuration; use a new --out folder"):
        load_state(other, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"state.safetensors is damaged \(.+\); use a new --out folder"):
        load_state(trainer, path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="state.safetensors is no training state; use a new --out folder"):
        load_state(trainer, path)


@pytest.mark.parametrize("self_conditioning", [False, True])
def test_a_state_from_before_options_were_retired_or_added(examples, tmp_path, self_conditioning):
    path, trainer = tmp_path / "state.safetensors", make_trainer(examples)
    trainer.train_step()
    tensors, metadata = state_of(trainer)
    config = json.loads(metadata["config"]) | {"flags": True, "self_conditioning": self_conditioning}
    del config["channels"]
    write_tensors(tensors, path, metadata | {"config": json.dumps(config)})
    resumed = make_trainer(examples)
    if self_conditioning:
        with pytest.raises(ValueError, match="state.safetensors: .*self_conditioning is True.* retired"):
            load_state(resumed, path)
    else:
        load_state(resumed, path)
        assert_equal(tensors_of(resumed), tensors_of(trainer))


# -- it stops ------------------------------------------------------------------------------------------


def after_step(trainer: Trainer, step: int, action, monkeypatch) -> None:
    """Do something once ``step`` is done."""
    train_step = trainer.train_step

    def stepping():
        terms = train_step()
        if trainer.step == step:
            action(terms)
        return terms

    monkeypatch.setattr(trainer, "train_step", stepping)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_broken_state_is_never_saved(examples, tmp_path, monkeypatch, log_every):
    """With the log far apart it is the save, not the log, that has to notice."""
    trainer = make_trainer(examples, save_every_images=16)
    good = {}

    def poison(terms):
        good.update(load_file(tmp_path / STATE_FILE))
        with torch.no_grad():
            next(trainer.model.parameters()).view(-1)[0] = math.nan
        for value in terms.values():
            value.fill_(math.nan)

    after_step(trainer, 3, poison, monkeypatch)
    with pytest.raises(FloatingPointError, match="at step [34].*lower --lr"):
        run(trainer, examples, tmp_path, math.inf, log_every)
    assert_equal(load_file(tmp_path / STATE_FILE), good)
    resumed = make_trainer(examples)
    load_state(resumed, tmp_path / STATE_FILE)
    assert resumed.step == 2 and resumed.is_finite()
    assert all(t.isfinite().all() for t in load_file(tmp_path / "model.safetensors").values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly(examples, tmp_path, monkeypatch, number):
    trainer = make_trainer(examples)
    handler = signal.getsignal(number)
    after_step(trainer, 3, lambda _: signal.raise_signal(number), monkeypatch)
    assert run(trainer, None, tmp_path, math.inf, 100) == "a signal"
    assert signal.getsignal(number) is handler
    resumed = make_trainer(examples)
    load_state(resumed, tmp_path / STATE_FILE)
    assert resumed.step == 3
    assert_equal(tensors_of(resumed), tensors_of(trainer))


# -- the command ---------------------------------------------------------------------------------------

TOML = f"""
[model]
core = "flags"
image_size = {SIZE}
patch_size = 4
width = 32
depth = 2
heads = 2
refiner_width = 8

[[model.modalities]]
name = "image"
kind = "image"

[[model.modalities]]
name = "label"
kind = "label"
options = {{ classes = {json.dumps(list(CLASSES))} }}

[optim]
images = 24
batch_size = 8
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "shapes.toml"
    path.write_text(TOML)
    return path


def run_main(*arguments) -> None:
    train.main([str(a) for a in (*arguments, "--device", "cpu")])


def test_the_command_trains_and_resumes(config_file, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = (config_file, "--train", shapes, "--val", shapes)
    run_main(*arguments, "--max-minutes", 0)
    printed = capsys.readouterr().out
    assert "24 examples (24 image, 18 label), cpu, step 0" in printed
    assert "stopped by --max-minutes after 8 images; checkpoint in runs/shapes" in printed
    run_main(*arguments)
    printed = capsys.readouterr().out
    assert "step 1" in printed and "stopped by the budget of images after 24 images" in printed
    assert load_checkpoint(tmp_path / "runs" / "shapes").names == ("image", "label")


def test_the_command_starts_from_a_checkpoint(config_file, shapes, tmp_path, capsys):
    torch.manual_seed(5)
    config = load_train_config(config_file).model
    save_checkpoint(MultiModalDiffusion(config), tmp_path / "init")
    arguments = (config_file, "--train", shapes, "--images", 1)
    run_main(*arguments, "--out", tmp_path / "out", "--init", tmp_path / "init", "--lr", 0)
    start, end = load_checkpoint(tmp_path / "init"), load_checkpoint(tmp_path / "out")
    assert_equal(start.state_dict(), end.state_dict())
    parts = "[model]\nstem_depth = 1\nreader_depth = 1"
    config_file.write_text(config_file.read_text().replace("[model]", parts))
    run_main(*arguments, "--out", tmp_path / "more", "--init", tmp_path / "init", "--lr", 0)
    more = load_checkpoint(tmp_path / "more").state_dict()
    new = {name: more.pop(name) for name in set(more) - set(start.state_dict())}
    last = [name for name in new if name.startswith(("backbone.stem.leave", "backbone.readings"))]
    assert len(last) == 5 and not any(new[name].any() for name in last)
    assert_equal(start.state_dict(), more)
    save_checkpoint(MultiModalDiffusion(replace(config, width=64)), tmp_path / "wide")
    with pytest.raises(SystemExit, match="wide is of another architecture than the configuration"):
        run_main(*arguments, "--out", tmp_path / "other", "--init", tmp_path / "wide")


def test_the_command_trains_a_head_alone(config_file, shapes, tmp_path, capsys):
    config_file.write_text(config_file.read_text().replace('"flags"', '"levels"'))
    save_checkpoint(build_model(load_train_config(config_file).model), tmp_path / "init")
    places = ("--out", tmp_path / "out", "--init", tmp_path / "init")
    run_main(config_file, "--train", shapes, *places, "--head", "label", "--lr", 10)  # in the warm-up
    assert "18 examples (18 image, 18 label)" in capsys.readouterr().out, "others teach it nothing"
    start, end = (load_checkpoint(tmp_path / name).state_dict() for name in ("init", "out"))
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved and moved == {name for name in start if name.startswith("heads.label.")}


def test_what_is_not_trained_answers_as_in_sampling(examples):
    """Dropout and routing would show a head other features than it will meet."""
    config = tiny_config(core="levels", depth=4, dropout=0.5, route=0.5)
    optim, data = OptimConfig(images=64, batch_size=8, head="mask"), DataConfig(margin=2)
    trainer = Trainer(TrainConfig(config, data, optim=optim), examples, torch.device("cpu"))
    trainer.train_step()
    training = {name for name, module in trainer.model.named_modules() if module.training}
    assert training == {name for name, _ in trainer.model.named_modules() if name.startswith("heads.mask")}
    everything = TrainConfig(config, data, optim=replace(optim, head=""))
    whole = Trainer(everything, examples, torch.device("cpu"))
    whole.train_step()
    assert all(module.training for module in whole.model.modules())


def test_the_command_reports_divergence(config_file, shapes, tmp_path, monkeypatch):
    losses = training.training_losses
    monkeypatch.setattr(
        training, "training_losses", lambda *a: {n: v * math.nan for n, v in losses(*a).items()}
    )
    with pytest.raises(SystemExit, match="mmdiff.train: the loss .* not finite 10 times in a row at step 10"):
        run_main(config_file, "--train", shapes, "--out", tmp_path / "out", "--images", 96, "--log-every", 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere.toml",), "no configuration file at nowhere.toml"),
        (("CONFIG",), "no data at .*; set data.train"),
        (("CONFIG", "--train", "nowhere.parquet"), "no data at nowhere.parquet"),
        (("CONFIG", "--train", "DATA", "--val", "nowhere.parquet"), "no data at nowhere.parquet"),
        (("CONFIG", "--train", "DATA", "--batch-size", "0"), "batch_size is 0; it must be at least 1"),
        (("CONFIG", "--train", "DATA", "--log-every", "0"), "--log-every is 0"),
        (("CONFIG", "--train", "DATA", "--accumulate", "0"), "--accumulate is 0"),
        (("CONFIG", "--train", "DATA", "--accumulate", "3"), "a batch of 8 cannot .* a multiple of 3, or"),
        (("CONFIG", "--train", "DATA", "--head", "mask"), "optim.head is 'mask'; name one of image, label"),
        (("CONFIG", "--train", "DATA", "--init", "/nowhere"), "no checkpoint folder at /nowhere"),
        (("CONFIG", "--train", "DATA", "--device", "abacus"), "device 'abacus' cannot be used .* try 'auto'"),
    ],
)
def test_the_command_explains_mistakes(config_file, shapes, tmp_path, arguments, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"CONFIG": str(config_file), "DATA": str(shapes)}
    with pytest.raises(SystemExit, match=f"mmdiff.train: .*{message}") as stop:
        train.main([places.get(a, a) for a in arguments])
    assert stop.value.code != 0 and not (tmp_path / "runs").exists()


def test_rows_without_a_photo_are_left_out_of_training_and_refused_for_validation(
    config_file, shapes, tmp_path, capsys
):
    rows = [{"label": row["label"], "image": row["image"]} for row in make_rows(12)]
    rows[4]["image"] = None
    write_parquet(tmp_path / "hole.parquet", rows)
    with pytest.warns(UserWarning, match="hole.parquet, row 4, column 'image': there is none"):
        run_main(config_file, "--train", tmp_path / "hole.parquet", "--out", tmp_path / "out")
    assert "11 examples (11 image" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="hole.parquet, row 4: there is no image; remove the row"):
        run_main(config_file, "--train", shapes, "--val", tmp_path / "hole.parquet")
    write_parquet(tmp_path / "labels.parquet", [{"label": 1}, {"label": 2}])
    with pytest.raises(SystemExit, match="labels.parquet has no image: a column of this name"):
        run_main(config_file, "--train", tmp_path / "labels.parquet")


def test_the_command_trains_from_a_stream_and_resumes(config_file, tmp_path, capsys):
    for k in range(2):
        write_parquet(tmp_path / f"part-{k}.parquet", make_rows(24)[12 * k : 12 * (k + 1)])
    source = (
        f'[data]\nstream = true\ntrain = "{tmp_path}/part-*.parquet"\nval = "{tmp_path}/part-0.parquet"\n'
    )
    config_file.write_text(TOML + source)
    run_main(config_file, "--out", tmp_path / "whole")
    assert "streamed from" in (printed := capsys.readouterr().out) and "after 24 images" in printed
    run_main(config_file, "--out", tmp_path / "parts", "--max-minutes", 0)
    run_main(config_file, "--out", tmp_path / "parts")
    assert "step 1" in capsys.readouterr().out
    whole, parts = (load_checkpoint(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert_equal(whole, parts)


def test_an_embedding_needs_an_embedder_or_a_column(shapes):
    config = tiny_train_config()
    model = MultiModalDiffusion(config.model)
    with pytest.raises(ValueError, match="'embedding' needs model.embedder, or a column 'embedding' in"):
        batches.load_examples(str(shapes), model, config, None)
    examples = batches.load_examples(str(shapes), model, config, WordEmbedder())
    assert examples.stored["embedding"].shape == (24, 2, DIM)
    assert batches.make_embedder(config, None, CPU) is None


def test_help():
    result = subprocess.run(
        [sys.executable, "-m", "mmdiff.train", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: python -m mmdiff.train" in result.stdout
    for option in ("--out", "--train", "--val", "--max-minutes", "--init", "--device"):
        assert option in result.stdout
