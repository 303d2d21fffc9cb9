"""Saving and loading the state of a training run: weights, averages, optimiser moments and the step."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmdiff.checkpoint import load_checkpoint
from mmdiff.config import ModelConfig, saved_model, to_dict
from mmdiff.training.processes import like, whole
from mmdiff.training.trainer import Trainer

STATE_FILE = "training_state.safetensors"
REMEDY = "; use a new --out folder."
# parts of the network whose initial weights add nothing, so that `start_from` may leave them as they are
INITIALLY_ZERO = re.compile(r"(backbone\.stem|backbone\.readings|reader|details|heads\.\w+\.shapes)\.")


class DamagedState(ValueError):
    """A saved state that cannot be read."""


def state_of(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Whole tensors on the CPU and the metadata that a resumed run needs.

    All processes call it; only the main one gets the tensors.
    """
    tensors = {f"model/{n}": t for n, t in trainer.model.state_dict().items()}
    tensors |= {f"ema/{n}": t for n, t in trainer.ema.model.state_dict().items()}
    for name, optimizer in trainer.optimizers.items():
        tensors |= {f"{name}/{n}": t for n, t in moments_of(optimizer).items()}
    tensors["skipped"] = trainer.skipped
    gathered = {}
    for name, tensor in tensors.items():  # one by one: a sharded model may not fit on one device
        full = whole(tensor)
        if trainer.processes.main:
            gathered[name] = full.detach().cpu()
    metadata = {
        "step": str(trainer.step),
        "config": json.dumps(to_dict(trainer.config.model)),
        "batches": json.dumps(trainer.processes.gather(trainer.batches.state_dict())),
    }
    return gathered, metadata


def load_state(trainer: Trainer, path: Path) -> None:
    """Continue from a file of what `state_of` gave.

    Raises:
        DamagedState: it cannot be read.
        ValueError: it is not a training state, belongs to another model, or its batches cannot be continued.
    """
    tensors, metadata = _read(path)
    _check_model(path, json.loads(metadata["config"]), trainer.config.model)
    _load_weights(trainer.model, part_of(tensors, "model/"))
    _load_weights(trainer.ema.model, part_of(tensors, "ema/"))
    for name, optimizer in trainer.optimizers.items():
        load_moments(optimizer, part_of(tensors, f"{name}/"))
    trainer.step = int(metadata["step"])
    trainer.skipped = tensors.get("skipped", torch.zeros(2, dtype=torch.long)).to(trainer.device)
    older = json.dumps([{"step": trainer.step}])  # of states that were written without it
    batches = json.loads(metadata.get("batches", older))
    rank = trainer.processes.rank if len(batches) == trainer.processes.count else 0
    trainer.batches.load_state_dict(batches[rank])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {n: file.get_tensor(n) for n in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DamagedState(f"{path} is damaged ({error}){REMEDY}") from error
    if "config" not in metadata:
        raise ValueError(f"{path} is no training state{REMEDY}")
    return tensors, metadata


def _check_model(path: Path, saved: dict[str, Any], config: ModelConfig) -> None:
    try:  # `saved_model` fills in options that came later and checks those that were retired
        same = json.dumps(to_dict(saved_model(saved))) == json.dumps(to_dict(config))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not same:
        raise ValueError(f"{path} belongs to another model configuration{REMEDY}")


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with the prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as "0/exp_avg" and so on, by the number of the parameter."""
    state = optimizer.state_dict()["state"].items()
    return {f"{i}/{name}": tensor for i, moments in state for name, tensor in moments.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore `moments_of`.

    Moments get the memory layout of their parameter, because the fused kernel pairs them by position in
    memory: contiguous moments of a channels-last parameter would belong to other weights.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split("/")
        moments.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def _load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load whole tensors into a model that may be sharded. Raises KeyError or RuntimeError if they differ."""
    targets = model.state_dict()
    model.load_state_dict({name: like(value, targets[name]) for name, value in weights.items()})


def start_from(trainer: Trainer, folder: str) -> None:
    """Load the weights of a checkpoint folder into a new run; it may lack the parts of `INITIALLY_ZERO`.

    Raises ValueError if it is of another architecture, or its classes are in another order.
    """
    model = load_checkpoint(folder)
    for name, modality in trainer.model.modalities.items():
        if name in model.modalities:
            _check_classes(folder, name, model.modalities[name].classes, modality.classes)
    weights = model.state_dict()
    mine = trainer.model.state_dict().items()
    weights |= {n: whole(t) for n, t in mine if INITIALLY_ZERO.match(n) and n not in weights}
    try:
        _load_weights(trainer.model, weights)
    except (RuntimeError, KeyError) as error:
        raise ValueError(f"{folder} is of another architecture than the configuration: {error}") from None
    _load_weights(trainer.ema.model, weights)


def _check_classes(folder: str, name: str, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises ValueError if a class has another number than in the checkpoint; warns of other names."""
    moved = [one for number, one in enumerate(ours) if one in theirs and theirs.index(one) != number]
    if moved:
        raise ValueError(
            f"{folder} has the classes of {name!r} in another order: {moved[0]!r} is number "
            f"{theirs.index(moved[0])} there and {ours.index(moved[0])} in the configuration. List them as "
            f"the checkpoint does: {', '.join(theirs)}."
        )
    other = [f"{old!r} as {new!r}" for old, new in zip(theirs, ours, strict=False) if old != new]
    if other:
        shown = ", ".join(other[:3])
        warnings.warn(f"{folder}: of {name!r}, the weights of {shown} are taken.", stacklevel=3)


def backup_of(path: Path) -> Path:
    """Where the state before the newest is: training_state.previous.safetensors."""
    return path.with_suffix(".previous" + path.suffix)
