"""Training: `python -m mmdiff.train CONFIG --out RUN`.

Everything random in step k is drawn from a generator seeded by (seed, k), so a run that is stopped and
resumed equals one that was not, and the state to save is weights, averages, optimiser moments and k.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import math
import signal as signals
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm

from mmdiff.checkpoint import load_checkpoint, save_checkpoint, write_tensors
from mmdiff.config import ModelConfig, TrainConfig, from_dict, load_train_config
from mmdiff.data import Examples, add_embeddings, batch_rows, draw_batch, read_parquet
from mmdiff.device import choose_device
from mmdiff.ema import EMA
from mmdiff.forward_process import q_sample
from mmdiff.losses import total_loss, training_losses
from mmdiff.model import ABSENT, KNOWN, UNKNOWN, Conditioning, MultiModalDiffusion
from mmdiff.samplers import SampleNoise, sample_ddim
from mmdiff.schedule import log_snr
from mmdiff.tasks import draw_flags, draw_known_pixels

STATE_FILE = "training_state.safetensors"
METRICS_FILE = "metrics.csv"
VAL_SEED = 2**31  # apart from the seeds of the training steps


class Trainer:
    """One training run: model, average, optimiser and the step counter."""

    def __init__(
        self, config: TrainConfig, train: Examples, device: torch.device, compile_model: bool = False
    ) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.optim.seed)
        self.model = MultiModalDiffusion(config.model).to(device)
        self.ema = EMA(self.model, config.optim.ema_decay)
        self.examples = train.to(device)
        schedule = self.model.make_schedule()
        self.schedule = schedule.to(device)
        self.log_snr = log_snr(schedule.log_abar).clamp(-30, 30).float().to(device)
        self.optimizer = self._make_optimizer()
        self.forward = torch.compile(self.model) if compile_model else self.model
        self.step = 0

    def _make_optimizer(self) -> torch.optim.AdamW:
        optim = self.config.optim
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)

    @property
    def images(self) -> int:
        """Training examples seen so far."""
        return self.step * self.config.optim.batch_size

    def learning_rate(self) -> float:
        """Linear warm-up, then linear decay to zero at the end of the budget."""
        optim = self.config.optim
        warm = min(1.0, (self.images + optim.batch_size) / max(1, optim.warmup_images))
        return optim.lr * warm * max(0.0, 1 - self.images / optim.images)

    def generator(self, seed: int) -> torch.Generator:
        """The generator of one step's random numbers, on the training device."""
        return torch.Generator(self.device).manual_seed(self.config.optim.seed * 1_000_003 + seed)

    def losses(
        self, model: nn.Module, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool
    ) -> dict[str, Tensor]:
        """The terms of the objective on the examples ``rows``, noised and masked by ``generator``."""
        net = self.model
        x, present = draw_batch(
            examples, net.modalities, rows, generator if augment else None, self.config.data.flip
        )
        holes = torch.rand(len(rows), generator=generator, device=self.device) < self.config.tasks.holes
        flags = draw_flags(present, self.config.tasks, generator, holes)
        given = torch.rand(len(rows), generator=generator, device=self.device) < self.config.tasks.given
        known = draw_known_pixels(len(rows), self.config.model.image_size, generator, self.device)
        known = known * (holes & given & (flags[:, 0] == UNKNOWN))[:, None, None, None]
        known = torch.where((flags[:, 0] == KNOWN)[:, None, None, None], 1.0, known)

        e = net.encode(x)
        condition = net.condition(e, flags, known)
        last = self.schedule.num_steps
        t = torch.randint(1, last + 1, (len(rows),), generator=generator, device=self.device)
        noise = torch.randn(len(rows), *net.z_shape, generator=generator, device=self.device)
        z0 = e.pop(net.anchor)
        entering = {
            n: v * (flags[:, net.names.index(n)] != ABSENT)[:, None, None, None] for n, v in e.items()
        }
        z_t = q_sample(self.schedule, z0, t, entering, noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if net.config.self_conditioning:
                condition = self._after_first_pass(model, z_t, t, condition, generator)
            raw = model(z_t, self.log_snr[t], condition)
        return training_losses(net, raw, x, condition, self.log_snr[t], self.config.optim.snr_cap)

    @torch.no_grad()
    def _after_first_pass(
        self, model: nn.Module, z_t: Tensor, t: Tensor, condition: Conditioning, generator: torch.Generator
    ) -> Conditioning:
        """Half of the examples with a clean prediction to start from, as in sampling (Chen et al. 2022)."""
        raw = model(z_t, self.log_snr[t], condition)
        shown = torch.rand(len(z_t), generator=generator, device=self.device) < 0.5
        previous = self.model.interpret(raw, condition).clean * shown[:, None, None, None]
        return dataclasses.replace(condition, previous=previous)

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the loss terms and their weighted total, on the device."""
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        torch.manual_seed(optim.seed * 1_000_003 + self.step)  # dropout
        rows = batch_rows(len(self.examples), self.step, optim.batch_size, optim.seed).to(self.device)
        self.model.train()
        terms = self.losses(self.forward, self.examples, rows, self.generator(self.step), augment=True)
        total = total_loss(self.model, terms)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm)
        self.optimizer.step()
        self.ema.update(self.model, self.step)
        self.step += 1
        return {n: v.detach() for n, v in terms.items()} | {"total": total.detach()}

    @torch.no_grad()
    def validate(self, examples: Examples, limit: int = 1024) -> dict[str, float]:
        """The objective of the averaged model on fixed examples, times and noise."""
        sums: dict[str, float] = {}
        generator = self.generator(VAL_SEED)
        chunks = torch.arange(min(limit, len(examples)), device=self.device).split(256)
        for rows in chunks:
            terms = self.losses(self.ema.model, examples, rows, generator, augment=False)
            terms["total"] = total_loss(self.model, terms)
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value.item() / len(chunks)
        return sums

    def save_state(self, path: Path) -> None:
        """Write everything that a resumed run needs; the file is replaced in one move."""
        tensors = {f"model/{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"ema/{n}": t for n, t in self.ema.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{n}": t for n, t in state.items()}
        write_tensors(tensors, path, {"step": str(self.step), "config": json.dumps(self._identity())})

    def _identity(self) -> dict:
        return dataclasses.asdict(self.config.model)

    def load_state(self, path: Path) -> None:
        """Continue from `save_state`. Raises ValueError if the state is damaged or of another model."""
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {n: file.get_tensor(n) for n in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); use a new --out folder.") from error
        if "config" not in metadata:
            raise ValueError(f"{path} is no training state; use a new --out folder.")
        # through `from_dict`, so that options that came later count with their defaults
        saved = from_dict(ModelConfig, json.loads(metadata["config"]))
        if json.dumps(dataclasses.asdict(saved)) != json.dumps(self._identity()):
            raise ValueError(f"{path} belongs to another model configuration; use a new --out folder.")

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.model.load_state_dict(part("model/"))
        self.ema.model.load_state_dict(part("ema/"))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer/").items():
            index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step = int(metadata["step"])

    def start_from(self, folder: str) -> None:
        """Take the weights of a checkpoint folder. Raises ValueError if they are of another architecture."""
        weights = load_checkpoint(folder).state_dict()
        try:
            self.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"{folder} is of another architecture than the configuration: {error}") from None
        self.ema.model.load_state_dict(weights)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights are numbers; one infinite gradient makes all of them NaN for good."""
        return all(bool(p.isfinite().all()) for p in self.model.parameters())

    @torch.no_grad()
    def sample_grid(self, count: int = 16, steps: int = 30) -> Image.Image:
        """Samples with nothing given, a row for each modality that can be previewed."""
        model = self.ema.model
        size = model.config.image_size
        noise = SampleNoise(list(range(count)), self.device)
        flags = torch.full((count, len(model.names)), UNKNOWN, device=self.device)
        condition = model.condition({}, flags, torch.zeros(count, 1, size, size, device=self.device))
        *_, last = sample_ddim(
            self.schedule, model.denoiser(self.schedule, condition), noise(model.z_shape), steps
        )
        rows = []
        for name, modality in model.modalities.items():
            pictures = [modality.preview(p) for p in last.x_hat[name].float().cpu().numpy()]
            if pictures[0] is not None:
                rows.append(pictures)
        grid = Image.new("RGB", (count * size, len(rows) * size))
        for r, pictures in enumerate(rows):
            for c, picture in enumerate(pictures):
                grid.paste(picture, (c * size, r * size))
        return grid


class MetricsLog:
    """A CSV file that is appended to; its columns are those of the first row.

    Rows after ``step`` are dropped: they are of a run that was cut off after its last saved state.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [row for row in lines[1:] if row.endswith("\n") and float(row.split(",")[0]) <= step]
        path.write_text("".join(lines[:1] + kept), encoding="utf-8")

    def write(self, row: dict[str, float]) -> None:
        """Append one row, the first number of which is the step, after a header if the file is new."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, row.keys(), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def run(trainer: Trainer, val: Examples | None, out: Path, max_minutes: float, log_every: int) -> str:
    """Train until the budget, the time limit or a signal ends it; returns which of them it was.

    Raises FloatingPointError when the loss or a weight is no longer finite, before it is saved.
    """
    optim = trainer.config.optim
    out.mkdir(parents=True, exist_ok=True)
    (out / "samples").mkdir(exist_ok=True)
    val = val.to(trainer.device) if val else None
    log, start, stopped = MetricsLog(out / METRICS_FILE, trainer.step), time.monotonic(), []
    best = _best_so_far(out)
    total_steps = -(-optim.images // optim.batch_size)
    bar = tqdm(total=total_steps, initial=trainer.step, unit="step", dynamic_ncols=True, mininterval=2)
    since, last_time = trainer.step, start
    with bar, _signals_stop(stopped):
        while trainer.step < total_steps and not stopped:
            terms = trainer.train_step()
            bar.update()
            if trainer.step % log_every == 0 or trainer.step == total_steps:
                values = {n: v.item() for n, v in terms.items()}
                if not all(map(math.isfinite, values.values())):
                    raise _diverged(trainer, f"the loss is {values}")
                now = time.monotonic()
                speed = (trainer.step - since) * optim.batch_size / (now - last_time)
                since, last_time = trainer.step, now
                log.write(_row(trainer, speed, values, val=False))
                bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()} | {"img/s": f"{speed:.0f}"})
            if now_due(trainer, optim.sample_every_images):
                trainer.sample_grid().save(out / "samples" / f"{trainer.images:010d}.png")
            if now_due(trainer, optim.save_every_images) and trainer.step < total_steps:
                best = _save(trainer, val, out, log, best)
            if (time.monotonic() - start) / 60 > max_minutes:
                stopped.append("--max-minutes")
        _save(trainer, val, out, log, best)
        trainer.sample_grid().save(out / "samples" / f"{trainer.images:010d}.png")
    return stopped[0] if stopped else "the budget of images"


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


def _diverged(trainer: Trainer, what: str) -> FloatingPointError:
    return FloatingPointError(
        f"{what} at step {trainer.step}. The state saved before it is kept: run the same command with a "
        "lower --lr to continue from there."
    )


def _row(trainer: Trainer, speed: float, values: dict[str, float], val: bool) -> dict[str, float]:
    """A line of the metrics log."""
    position = {"step": trainer.step, "images": trainer.images, "lr": trainer.learning_rate()}
    return position | {"images_per_s": speed, "split_val": int(val)} | values


def now_due(trainer: Trainer, every_images: int) -> bool:
    """Whether this step crossed a multiple of ``every_images``."""
    before = trainer.images - trainer.config.optim.batch_size
    return trainer.images // every_images != before // every_images


def _best_so_far(out: Path) -> float:
    path = out / "best" / "val.json"
    return json.loads(path.read_text())["total"] if path.exists() else float("inf")


def _save(trainer: Trainer, val: Examples | None, out: Path, log: MetricsLog, best: float) -> float:
    """Write state and checkpoint; keep the checkpoint of the lowest validation loss beside it."""
    if not trainer.is_finite():
        raise _diverged(trainer, "a weight is not finite")
    trainer.save_state(out / STATE_FILE)
    save_checkpoint(trainer.ema.model, out)
    if val is None:
        return best
    terms = trainer.validate(val)
    log.write(_row(trainer, 0.0, terms, val=True))
    if terms["total"] >= best:
        return best
    save_checkpoint(trainer.ema.model, out / "best")
    (out / "best" / "val.json").write_text(json.dumps(terms | {"images": trainer.images}))
    return terms["total"]


def load_examples(path: str, model: MultiModalDiffusion, config: TrainConfig, embedder) -> Examples:
    """A Parquet file as training examples, with embeddings if the model has such a modality."""
    examples = read_parquet(path, model.modalities.values(), config.data)
    if model.anchor not in examples.present:
        raise ValueError(f"{path} has no {model.anchor}: a column of this name with a picture in every row.")
    if not examples.present[model.anchor].all():
        row = int(examples.present[model.anchor].int().argmin())
        raise ValueError(f"{path}, row {row}: there is no {model.anchor}; remove the row.")
    for name, modality in model.modalities.items():
        modality.attach(embedder)
        if modality.kind == "embedding" and name not in examples.stored:
            if embedder is None:
                raise ValueError(f"modality {name!r} needs model.embedder, or a column {name!r} in {path}.")
            add_embeddings(examples, name, model.anchor, embedder, config.model.image_size)
    return examples


def make_embedder(config: TrainConfig, folder: str | None, device: torch.device):
    """The embedder that the configuration names, from ``folder`` if given; None if it names none."""
    if not config.model.embedder:
        return None
    from mmdiff.clip.embedder import ClipEmbedder

    beside = Path("checkpoints") / config.model.embedder
    try:
        return ClipEmbedder(folder or (beside if beside.is_dir() else config.model.embedder), device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


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
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, **optim),
        data=dataclasses.replace(config.data, **data),
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        if args.log_every < 1:
            raise ValueError(f"--log-every is {args.log_every}; give a number of steps, at least 1.")
        config = apply_overrides(load_train_config(args.config), args)
        device = choose_device(args.device)
        embedder = make_embedder(config, args.embedder, device)
        blueprint = MultiModalDiffusion(config.model)
        train = load_examples(config.data.train, blueprint, config, embedder)
        val = load_examples(config.data.val, blueprint, config, embedder) if config.data.val else None
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.set_float32_matmul_precision("high")
        trainer = Trainer(config, train, device, on_gpu if args.compile is None else args.compile)
        out = Path(args.out or Path("runs", Path(args.config).stem))
        if (out / STATE_FILE).exists():
            trainer.load_state(out / STATE_FILE)
        elif args.init:
            trainer.start_from(args.init)
    except ValueError as error:
        sys.exit(f"mmdiff.train: {error}")
    parameters = sum(p.numel() for p in trainer.model.parameters())
    counts = ", ".join(f"{int(has.sum())} {name}" for name, has in train.present.items())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(train)} examples ({counts}), {device}, "
        f"step {trainer.step}",
        flush=True,
    )
    try:
        reason = run(trainer, val, out, args.max_minutes, args.log_every)
    except FloatingPointError as error:
        sys.exit(f"mmdiff.train: {error}")
    print(f"stopped by {reason} after {trainer.images} images; checkpoint in {out}")


if __name__ == "__main__":
    main()
