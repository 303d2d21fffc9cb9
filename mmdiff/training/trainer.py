"""The training step: loss, backward pass, optimiser and average, equal on any number of processes.

Everything random in step k is drawn from a generator seeded by (seed, k), so that a run that was stopped and
resumed equals one that was not (`mmdiff.training.state`).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmdiff.checkpoint import build_model
from mmdiff.config import TrainConfig
from mmdiff.data.batches import VAL_EXAMPLES, Batches, MemoryBatches
from mmdiff.data.examples import Examples
from mmdiff.device import fast_bfloat16
from mmdiff.first_edition.objective import FlagObjective
from mmdiff.samplers import SampleNoise, sample_ddim, timesteps
from mmdiff.seeds import folded
from mmdiff.training.ema import EMA
from mmdiff.training.masking import Draw
from mmdiff.training.objective import LevelObjective
from mmdiff.training.processes import Processes, gradients_averaged, local, whole

VAL_SEED = 2**31  # apart from the seeds of the training steps
VAL_BATCH = 256
SKIPPED_AT_MOST = 10  # steps in a row that are not finite; then a run ends
ALONE = Processes()
OBJECTIVES = {"levels": LevelObjective, "flags": FlagObjective}


class Trainer:
    """Model, average, optimiser and step counter of one training run.

    Each process works on an equal share of `optim.batch_size`, in ``accumulate`` parts one after the other.
    Every process draws the random numbers of the whole batch and takes its rows, so neither number changes
    the result, up to rounding. Only dropout differs: its seed depends on seed, step, process and part.

    Args:
        train: all examples, or an object that yields the batches.
        compile_model: compile the network with torch.compile.
        bfloat16: compute in bfloat16 where that is safe; None: where the device is faster then.

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
        bfloat16: bool | None = None,
    ) -> None:
        self.config, self.device, self.processes = config, device, processes
        self.accumulate = accumulate
        fast = device.type == "cuda" or (config.model.core == "levels" and fast_bfloat16(device))
        self.bfloat16 = fast if bfloat16 is None else bfloat16
        self.share = processes.share(config.optim.batch_size, accumulate)
        torch.manual_seed(config.optim.seed)
        self.model = build_model(config.model).to(device)
        self.head = self.model.heads[config.optim.head] if config.optim.head else None
        if self.head is not None:  # nothing else is trained
            self.model.requires_grad_(False)
            self.head.requires_grad_(True)
        self.ema = EMA(self.model, config.optim.ema_decay)
        for model in (self.model, self.ema.model):
            processes.split(model, compile_model)
        if isinstance(train, Examples):
            train = MemoryBatches(
                train.to(device), config.optim.batch_size, config.optim.seed, self.share, config.data.balance
            )
        self.batches = train
        self.objective = OBJECTIVES[config.model.core](self.model, config, device)
        self.schedule = self.objective.schedule
        self.muon = self._make_muon() if config.optim.muon else None
        self.optimizer = self._make_optimizer()
        self.forward = processes.joined(self.model, compile_model)
        self.step = 0
        # Skipped steps, in total and in a row at the end; on the device, so that a step never waits for it.
        self.skipped = torch.zeros(2, dtype=torch.long, device=device)

    def _train_mode(self) -> None:
        """Dropout and the like where weights are trained; what is frozen answers as in sampling."""
        self.model.train(self.head is None)
        if self.head is not None:
            self.head.train()

    def _make_muon(self) -> torch.optim.Muon:
        """Muon (Jordan et al. 2024) for the matrices of the blocks; its updates have the size of AdamW's."""
        if self.processes.shard:
            raise ValueError("optim.muon needs whole matrices; leave --shard out, or set it to false.")
        optim, backbone = self.config.optim, self.model.backbone
        layers = [
            m for m in [*backbone.early.modules(), *backbone.late.modules()] if isinstance(m, nn.Linear)
        ]
        return torch.optim.Muon(
            [layer.weight for layer in layers],
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def _make_optimizer(self) -> torch.optim.AdamW:
        optim = self.config.optim
        elsewhere = {id(p) for p in self.muon.param_groups[0]["params"]} if self.muon else ()
        trained = self.model if self.head is None else self.head
        parameters = [p for p in trained.parameters() if id(p) not in elsewhere]
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """All of them, by the names of their moments in a state."""
        return {"optimizer": self.optimizer} | ({"muon": self.muon} if self.muon else {})

    @property
    def images(self) -> int:
        """Training examples seen so far."""
        return self.step * self.config.optim.batch_size

    # -- one step ----------------------------------------------------------------------------------------

    def losses(self, model: nn.Module, draw: Draw, counts: Tensor | None = None) -> dict[str, Tensor]:
        """Terms of the objective, each a scalar.

        counts: (N,), supervised examples of each modality in the whole batch that these are part of, so that
            terms of all parts add up to those of the whole. None: these are the whole batch.
        """

        def net(*inputs: Any) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                return model(*inputs)

        return self.objective.losses(net, draw, counts)

    def train_step(self) -> dict[str, Tensor]:
        """One optimiser step; returns loss terms and weighted total of the whole batch, on the device."""
        draw = self.next_draw()
        counts = self.processes.sum(draw.supervised.sum(0))
        self._train_mode()
        self.model.zero_grad(set_to_none=True)
        parts = []
        for k, part in enumerate(draw.split(self.accumulate)):
            with gradients_averaged(self.forward, now=k == self.accumulate - 1):
                self.seed_dropout(k)
                terms = self.losses(self.forward, part, counts)
                # `counts` is of the whole batch, so gradients are to be summed, but processes average them.
                (self.objective.total(terms) * self.processes.count).backward()
            parts.append(torch.stack([value.detach() for value in terms.values()]))
        terms = dict(zip(terms, self.processes.sum(torch.stack(parts).sum(0)), strict=True))
        terms["total"] = self.objective.total(terms)
        self._update(terms["total"])
        return terms

    def _update(self, loss: Tensor) -> None:
        """Step optimiser and average. If loss or gradient is not finite, only the average moves."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate()
        clip = self.config.optim.clip_norm
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        bad = ~(norm + loss).isfinite()  # both are the same on every process
        # As gradient scalers do: the fused optimiser checks it on the device, so that nothing waits for it.
        self.optimizer.found_inf = bad.float()
        self.optimizer.step()
        if self.muon and not bad:
            self.muon.step()
        self._count_skipped(bad)
        self.ema.update(self.model, self.step)
        self.step += 1

    def learning_rate(self) -> float:
        """Linear warm-up, then linear decay to zero at the end of the budget."""
        optim = self.config.optim
        warm = min(1.0, (self.images + optim.batch_size) / max(1, optim.warmup_images))
        return optim.lr * warm * max(0.0, 1 - self.images / optim.images)

    def _count_skipped(self, bad: Tensor) -> None:
        total, in_a_row = self.skipped
        # The count stays once it reaches the limit, as the run may look at it some steps later.
        kept = torch.where(in_a_row < SKIPPED_AT_MOST, torch.zeros_like(in_a_row), in_a_row)
        self.skipped = torch.stack([total + bad, torch.where(bad, in_a_row + 1, kept)])

    # -- random numbers ----------------------------------------------------------------------------------

    def generator(self, seed: int) -> torch.Generator:
        """The generator of one step's random numbers, on the training device."""
        return torch.Generator(self.device).manual_seed(self.config.optim.seed * 1_000_003 + seed)

    def draw(self, examples: Examples, rows: Tensor, generator: torch.Generator, augment: bool) -> Draw:
        """What the examples ``rows`` (B,) show in a step, see `mmdiff.training.objective`; subclasses change
        it.
        """
        return self.objective.draw(examples, rows, generator, augment)

    def next_draw(self) -> Draw:
        """This process's rows of the next batch; random numbers are drawn for the whole batch."""
        examples = self.batches.next_batch().to(self.device)
        # The rows of other processes are not here; row 0 stands in for them, and is cut off below.
        rows = torch.zeros(self.config.optim.batch_size, dtype=torch.long, device=self.device)
        rows[self.share] = torch.arange(len(examples), device=self.device)
        return self.draw(examples, rows, self.generator(self.step), augment=True).take(self.share)

    def seed_dropout(self, part: int) -> None:
        """Seed the global generator for one part of this process's share of the step."""
        number = self.processes.rank * self.accumulate + part
        torch.manual_seed(folded(self.config.optim.seed * 1_000_003 + self.step + (number << 40)))

    # -- between steps -----------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, examples: Examples) -> dict[str, float]:
        """The objective of the averaged model on fixed examples, times and noise."""
        generator = self.generator(VAL_SEED)
        chunks = torch.arange(min(VAL_EXAMPLES, len(examples)), device=self.device).split(VAL_BATCH)
        draws = [self.draw(examples, rows, generator, augment=False) for rows in chunks]
        counts = sum(draw.supervised.sum(0) for draw in draws)
        sums: Counter[str] = Counter()
        for draw in draws:
            terms = self.losses(self.ema.model, draw, counts)
            sums.update({name: value.item() for name, value in terms.items()})
            sums["total"] += self.objective.total(terms).item()
        return dict(sums)

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Whether all weights are finite on all processes; all call it."""
        mine = all(bool(local(p).isfinite().all()) for p in self.model.parameters())
        return not self.processes.any(not mine, self.device)

    @torch.no_grad()
    def sample_grid(self, count: int = 16, steps: int = 30) -> Image.Image:
        """Samples with nothing given, a row for each modality that has a preview."""
        model = self.ema.model
        size = model.config.image_size
        denoise = model.denoiser(self.schedule, model.nothing_given(count, self.device))
        z_T = SampleNoise(list(range(count)), self.device)(model.z_shape)
        times = timesteps(self.schedule.num_steps, steps, self.schedule.spacing)
        sampler = sample_ddim(self.schedule, z_T, times)
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

    def load_pretrained(self, folder: str | Path) -> None:
        """Load frozen parts of the modalities from the folder of all checkpoints, into both models.

        Raises ValueError if they are missing.
        """
        for model in (self.model, self.ema.model):
            model.load_pretrained(folder)
