"""One training run: model, average, optimiser, and the step that is the same on any number of processes.

Everything random in step k is drawn from a generator seeded by (seed, k), so a run that is stopped and
resumed equals one that was not, and the state to save is weights, averages, optimiser moments and k.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmdiff.checkpoint import load_checkpoint
from mmdiff.config import ModelConfig, TrainConfig, from_dict
from mmdiff.data.batches import VAL_EXAMPLES, Batches, MemoryBatches
from mmdiff.data.examples import Examples, draw_batch
from mmdiff.files import write_tensors
from mmdiff.forward_process import q_sample
from mmdiff.losses import total_loss, training_losses
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Conditioning
from mmdiff.samplers import SampleNoise, sample_ddim, timesteps
from mmdiff.schedule import log_snr
from mmdiff.seeds import folded
from mmdiff.training.ema import EMA
from mmdiff.training.masking import draw_flags, draw_known_patches, draw_known_pixels
from mmdiff.training.processes import Processes, gradients_averaged, like, local, whole

VAL_SEED = 2**31  # apart from the seeds of the training steps
SKIPPED_AT_MOST = 10  # steps in a row that are not finite; then a run ends
# parts of the network that add nothing before they are trained
BEGIN_AS_NOTHING = ("backbone.stem.", "backbone.readings.", "reader.", "details.")
ALONE = Processes()
REMEDY = "; use a new --out folder."


class DamagedState(ValueError):
    """A saved state that cannot be read."""


@dataclass(frozen=True)
class Draw:
    """Examples with everything that is random about a step.

    Attributes:
        x: name -> (B, *shape); present: (B, N) bool, what the examples have.
        flags: (B, N) long; known: (B, 1, H, W) float, as in `Conditioning`.
        t: (B,) long, with `ModelConfig.separate_times` (B, N); noise: (B, *Z).
        second: (B,) bool, has a first pass (self-conditioning).
    """

    x: dict[str, Tensor]
    present: Tensor
    flags: Tensor
    known: Tensor
    t: Tensor
    noise: Tensor
    second: Tensor

    @property
    def asked(self) -> Tensor:
        """(B, N) bool, what has a loss: unknown, and there to compare with."""
        return (self.flags == UNKNOWN) & self.present

    def take(self, rows: slice) -> Draw:
        x = {name: values[rows] for name, values in self.x.items()}
        others = (self.present, self.flags, self.known, self.t, self.noise, self.second)
        return Draw(x, *(values[rows] for values in others))

    def split(self, parts: int) -> list[Draw]:
        """In ``parts`` of the same size."""
        size = len(self.t) // parts
        return [self.take(slice(k * size, (k + 1) * size)) for k in range(parts)]


class Trainer:
    """One training run: model, average, optimiser and the step counter.

    `optim.batch_size` is divided among the processes and by each of them into ``accumulate`` parts, which it
    works on one after the other. Every process draws what is random for the whole batch and takes its rows,
    so neither number changes the result, up to rounding. Only dropout differs: each part has masks of its
    own, seeded by seed, step, process and part.

    Args:
        train: all examples, or what gives the batches.
        compile_model: compile the network with torch.compile.

    Raises:
        ValueError: the batch cannot be divided evenly.
    """

    def __init__(
        self,
        config: TrainConfig,
        train: Examples | Batches,
        device: torch.device,
        compile_model: bool = False,
        processes: Processes = ALONE,
        accumulate: int = 1,
    ) -> None:
        self.config, self.device, self.processes = config, device, processes
        self.accumulate = accumulate
        self.share = processes.share(config.optim.batch_size, accumulate)
        torch.manual_seed(config.optim.seed)
        self.model = MultiModalDiffusion(config.model).to(device)
        self.ema = EMA(self.model, config.optim.ema_decay)
        for model in (self.model, self.ema.model):
            processes.split(model, compile_model)
        if isinstance(train, Examples):
            train = MemoryBatches(
                train.to(device), config.optim.batch_size, config.optim.seed, self.share, config.data.balance
            )
        self.batches = train
        schedule = self.model.make_schedule()
        self.schedule = schedule.to(device)
        self.log_snr = log_snr(schedule.log_abar).clamp(-30, 30).float().to(device)
        self.optimizer = self._make_optimizer()
        self.forward = processes.joined(self.model, compile_model)
        self.step = 0
        # steps skipped, and how many of them lately in a row; on the device, which is not waited for
        self.skipped = torch.zeros(2, dtype=torch.long, device=device)

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
        return self._terms(model, self.draw(examples, rows, generator, augment))

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> Draw:
        """Everything random about the examples ``rows`` (B,) in a step, cut and flipped if ``augment``."""
        net, size, data = self.model, self.config.model.image_size, self.config.data
        x, present = draw_batch(
            examples, net.modalities, rows, generator if augment else None, data.flip, data.light, data.zoom
        )

        def chance(probability: float) -> Tensor:
            return torch.rand(len(rows), generator=generator, device=self.device) < probability

        holes = chance(self.config.tasks.holes)
        tasks = self.config.tasks
        flags = draw_flags(present, tasks, generator, holes, net.names)
        read = chance(tasks.only_reading) if tasks.only_reading else torch.zeros_like(holes)
        flags[:, 0] = torch.where(read, KNOWN, flags[:, 0])
        flags[:, 1:] = torch.where(read[:, None] & (flags[:, 1:] == KNOWN), UNKNOWN, flags[:, 1:])
        given = (chance(tasks.given) | (net.anchor in tasks.always)) & (net.anchor not in tasks.never)
        if tasks.masking == "patches":
            patch = self.config.model.patch_size
            known = draw_known_patches(len(rows), size, patch, generator, self.device)
        else:
            known = draw_known_pixels(len(rows), size, generator, self.device)
        known = known * (holes & given & (flags[:, 0] == UNKNOWN))[:, None, None, None]
        known = torch.where((flags[:, 0] == KNOWN)[:, None, None, None], 1.0, known)
        t = self._draw_times(flags, read, chance, generator)
        noise = torch.randn(len(rows), *net.z_shape, generator=generator, device=self.device)
        # drawn only where it is used, so that the numbers after it stay what they were without
        second = chance(0.5) if net.config.self_conditioning else torch.zeros_like(t, dtype=torch.bool)
        return Draw(x, present, flags, known, t, noise, second)

    def _draw_times(
        self, flags: Tensor, read: Tensor, chance: Callable[[float], Tensor], generator: torch.Generator
    ) -> Tensor:
        """Uniform times, (B,) or (B, N); those of photos that are only ``read`` (B,) are T."""
        tasks, last = self.config.tasks, self.schedule.num_steps
        shape = flags.shape if self.config.model.separate_times else flags.shape[:1]
        t = torch.randint(1, last + 1, shape, generator=generator, device=self.device)
        if tasks.reading:
            read = read | ((flags[:, 0] == KNOWN) & chance(tasks.reading))
        t = torch.where(read[:, None] if t.dim() == 2 else read, last, t)
        return torch.full_like(t, last) if tasks.one_call else t

    def _terms(self, model: nn.Module, draw: Draw, counts: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the objective; ``counts`` as in `training_losses`."""
        net, t, flags = self.model, draw.t, draw.flags
        e = net.encode(draw.x)
        given = net.encode_given(draw.x, e, draw.known)
        condition = net.condition(given, flags, draw.known, draw.x[net.anchor])
        z0 = e.pop(net.anchor)
        diffused = (flags != ABSENT) & draw.present
        entering = {n: v * diffused[:, net.names.index(n), None, None, None] for n, v in e.items()}
        z_t = self._diffused(z0, t, entering, draw.noise)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if net.config.self_conditioning:
                condition = self._after_first_pass(model, z_t, t, condition, draw.second)
            raw = model(z_t, self.log_snr[t], condition)
        log_snr_t, snr_cap = self.log_snr[t if t.dim() == 1 else t[:, 0]], self.config.optim.snr_cap
        return training_losses(net, raw, draw.x, z0, condition, log_snr_t, snr_cap, draw.asked, counts)

    def _diffused(self, z0: Tensor, t: Tensor, e: dict[str, Tensor], noise: Tensor) -> Tensor:
        """z_t at the examples' times (B,), or (B, N) with each modality's channels at its own: (B, *Z)."""
        if t.dim() == 1:
            return q_sample(self.schedule, z0, t, e, noise)
        take = self.model.channels.take
        each = [
            take(n, q_sample(self.schedule, z0, t[:, i], e, noise)) for i, n in enumerate(self.model.names)
        ]
        return torch.cat(each, dim=1)

    @torch.no_grad()
    def _after_first_pass(
        self, model: nn.Module, z_t: Tensor, t: Tensor, condition: Conditioning, second: Tensor
    ) -> Conditioning:
        """Half of the examples with a clean prediction to start from, as in sampling (Chen et al. 2022)."""
        raw = model(z_t, self.log_snr[t], condition)
        previous = self.model.interpret(raw, condition).clean * second[:, None, None, None]
        return dataclasses.replace(condition, previous=previous)

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the whole batch's loss terms and weighted total, on the device.

        If the loss or the gradient is not finite, weights and optimiser stay as they are and the step counts
        as skipped.
        """
        optim = self.config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        terms = self._backward(self._draw_share())
        norm = whole(torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_norm))
        bad = ~(norm + terms["total"]).isfinite()  # both are the same on every process
        # What gradient scalers use: the fused optimiser looks at it on the device, so nothing waits for it.
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        self._count_skipped(bad)
        self.ema.update(self.model, self.step)
        self.step += 1
        return terms

    def _draw_share(self) -> Draw:
        """This process's rows of the next batch; what is random is drawn as for the whole batch."""
        examples = self.batches.next_batch().to(self.device)
        # The others' rows are not here; row 0 stands for them in draws that nobody looks at.
        rows = torch.zeros(self.config.optim.batch_size, dtype=torch.long, device=self.device)
        rows[self.share] = torch.arange(len(examples), device=self.device)
        return self.draw(examples, rows, self.generator(self.step), augment=True).take(self.share)

    def _backward(self, draw: Draw) -> dict[str, Tensor]:
        """Gradients of the mean loss of the whole batch, part by part; returns its terms and their total."""
        counts = self.processes.sum(draw.asked.sum(0))
        shares: list[dict[str, Tensor]] = []
        for k, part in enumerate(draw.split(self.accumulate)):
            with gradients_averaged(self.forward, now=k == self.accumulate - 1):
                self._seed_dropout(k)
                terms = self._terms(self.forward, part, counts)
                # The mean over the processes is to be the sum: the terms are divided by `counts` already.
                (total_loss(self.model, terms) * self.processes.count).backward()
            shares.append({name: value.detach() for name, value in terms.items()})
        values = self.processes.sum(torch.stack([torch.stack(list(s.values())) for s in shares]).sum(0))
        terms = dict(zip(shares[0], values, strict=True))
        return terms | {"total": total_loss(self.model, terms)}

    def _seed_dropout(self, part: int) -> None:
        number = self.processes.rank * self.accumulate + part
        torch.manual_seed(folded(self.config.optim.seed * 1_000_003 + self.step + (number << 40)))

    def terms_of_next_batch(self) -> dict[str, Tensor]:
        """The loss terms of the next batch in training mode, with their graph; nothing is stepped."""
        self.model.train()
        self._seed_dropout(0)
        return self._terms(self.model, self._draw_share())

    def _count_skipped(self, bad: Tensor) -> None:
        total, in_a_row = self.skipped
        # Once the limit is reached it stands, as it may be looked at some steps later.
        going_on = torch.where(in_a_row < SKIPPED_AT_MOST, torch.zeros_like(in_a_row), in_a_row)
        self.skipped = torch.stack([total + bad, torch.where(bad, in_a_row + 1, going_on)])

    @torch.no_grad()
    def validate(self, examples: Examples, limit: int = VAL_EXAMPLES) -> dict[str, float]:
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

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Everything that a resumed run needs: whole tensors on the CPU, and what is to stand beside them.

        All processes call it; only the main one gets the tensors.
        """
        tensors = {f"model/{n}": t for n, t in self.model.state_dict().items()}
        tensors |= {f"ema/{n}": t for n, t in self.ema.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{n}": t for n, t in state.items()}
        tensors["skipped"] = self.skipped
        gathered = {}
        for name, tensor in tensors.items():  # one by one: a sharded model may not fit on one device
            full = whole(tensor)
            if self.processes.main:
                gathered[name] = full.detach().cpu()
        metadata = {
            "step": str(self.step),
            "config": json.dumps(self._identity()),
            "batches": json.dumps(self.processes.gather(self.batches.state_dict())),
        }
        return gathered, metadata

    def save_state(self, path: Path) -> None:
        """Write `state` and keep the file that was there as the backup; all processes call it.

        Raises OSError if it cannot be written.
        """
        tensors, metadata = self.state()
        if self.processes.main:
            write_tensors(tensors, path, metadata, backup=backup_of(path))

    def _identity(self) -> dict:
        return dataclasses.asdict(self.config.model)

    def load_state(self, path: Path) -> None:
        """Continue from `save_state`.

        Raises:
            DamagedState: it cannot be read.
            ValueError: it is of another model, or no state, or its batches cannot be gone on with.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {n: file.get_tensor(n) for n in file.keys()}
        except (SafetensorError, OSError) as error:
            raise DamagedState(f"{path} is damaged ({error}){REMEDY}") from error
        if "config" not in metadata:
            raise ValueError(f"{path} is no training state{REMEDY}")
        # through `from_dict`, so that options that came later count with their defaults
        saved = from_dict(ModelConfig, json.loads(metadata["config"]))
        if json.dumps(dataclasses.asdict(saved)) != json.dumps(self._identity()):
            raise ValueError(f"{path} belongs to another model configuration{REMEDY}")

        def part(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        _load_weights(self.model, part("model/"))
        _load_weights(self.ema.model, part("ema/"))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer/").items():
            index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.step = int(metadata["step"])
        self.skipped = tensors.get("skipped", torch.zeros(2, dtype=torch.long)).to(self.device)
        before = json.dumps([{"step": self.step}])  # of states written before batches had one of their own
        batches = json.loads(metadata.get("batches", before))
        rank = self.processes.rank if len(batches) == self.processes.count else 0
        self.batches.load_state_dict(batches[rank])

    def load_pretrained(self, folder: str | Path) -> None:
        """Frozen parts of the modalities from the folder of all checkpoints; ValueError if they lack."""
        for model in (self.model, self.ema.model):
            model.load_pretrained(folder)

    def start_from(self, folder: str) -> None:
        """Take the weights of a checkpoint folder; a stem or reader that it lacks begins by adding nothing.

        Raises ValueError if they are of another architecture.
        """
        weights = load_checkpoint(folder).state_dict()
        mine = self.model.state_dict().items()
        weights |= {n: whole(t) for n, t in mine if n.startswith(BEGIN_AS_NOTHING) and n not in weights}
        try:
            _load_weights(self.model, weights)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{folder} is of another architecture than the configuration: {error}") from None
        _load_weights(self.ema.model, weights)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights are numbers, on all processes; all call it."""
        mine = all(bool(local(p).isfinite().all()) for p in self.model.parameters())
        return not self.processes.any(not mine, self.device)

    @torch.no_grad()
    def sample_grid(self, count: int = 16, steps: int = 30) -> Image.Image:
        """Samples with nothing given, a row for each modality that can be previewed."""
        model = self.ema.model
        size = model.config.image_size
        denoise = model.denoiser(self.schedule, model.nothing_given(count, self.device))
        z_T = SampleNoise(list(range(count)), self.device)(model.z_shape)
        sampler = sample_ddim(self.schedule, z_T, timesteps(self.schedule.num_steps, steps))
        z, t, _ = next(sampler)
        while t > 0:
            clean, x_hat = denoise(z, t)
            z, t, _ = sampler.send(clean)
        rows = []
        for name, modality in model.modalities.items():
            pictures = [modality.preview(p) for p in x_hat[name].float().cpu().numpy()]
            if pictures[0] is not None:
                rows.append(pictures)
        grid = Image.new("RGB", (count * size, len(rows) * size))
        for r, pictures in enumerate(rows):
            for c, picture in enumerate(pictures):
                grid.paste(picture, (c * size, r * size))
        return grid


def _load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole tensors into a model that may be sharded. Raises KeyError or RuntimeError if they differ."""
    targets = model.state_dict()
    model.load_state_dict({name: like(value, targets[name]) for name, value in weights.items()})


def backup_of(path: Path) -> Path:
    """Where the state before the newest is: training_state.previous.safetensors."""
    return path.with_suffix(".previous" + path.suffix)
