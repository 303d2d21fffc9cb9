"""What training reads: batches for one of its processes, from memory or a stream, and validation examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from mmdiff.config import TrainConfig
from mmdiff.data.examples import Examples, add_embeddings, balanced, batch_rows, read_parquet
from mmdiff.data.stream import Stream, first_examples
from mmdiff.model import MultiModalDiffusion
from mmdiff.training.processes import Processes

VAL_EXAMPLES = 1024  # that a validation looks at


class Batches(Protocol):
    """Where a `Trainer` takes its batches from."""

    def next_batch(self) -> Examples:
        """This process's rows of the next step's batch, in order (`Processes.share`)."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as JSON can hold it; that of every process is saved with the weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there: from this process's state, or the first one's if there were more or fewer.

        Raises ValueError if that cannot be done.
        """


class MemoryBatches:
    """Batches of examples in memory: shuffled epochs laid end to end. It is one of `Batches`.

    balance: power of the number of a source's examples that its share in the epochs is proportional to.
    """

    def __init__(
        self, examples: Examples, batch_size: int, seed: int, share: slice, balance: float = 1.0
    ) -> None:
        self.examples, self.batch_size, self.seed, self.share = examples, batch_size, seed, share
        self.weights = balanced(examples.sources, balance) if balance != 1 and examples.sources else None
        self.step = 0

    def next_batch(self) -> Examples:
        rows = batch_rows(len(self.examples), self.step, self.batch_size, self.seed, self.weights)[self.share]
        self.step += 1
        return self.examples.take(rows)

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def training_data(
    config: TrainConfig, model: MultiModalDiffusion, embedder: Any, processes: Processes, accumulate: int
) -> Examples | Stream:
    """What `data.train` names: all of it in memory, or with `data.stream` read as it is needed.

    Raises ValueError if it cannot be read, or the batch cannot be divided evenly.
    """
    if not config.data.stream:
        return load_examples(config.data.ready().train, model, config, embedder, strict=False)
    share = processes.share(config.optim.batch_size, accumulate)
    return Stream(
        config.data,
        model.modalities,
        share.stop - share.start,
        processes.rank,
        processes.count,
        config.optim.seed,
        embedder,
    )


def validation_data(config: TrainConfig, model: MultiModalDiffusion, embedder: Any) -> Examples | None:
    """What `data.val` names, None if it names nothing. Raises ValueError if it cannot be read."""
    if not config.data.val:
        return None
    if config.data.stream:
        return first_examples(config.data, model.modalities, VAL_EXAMPLES, embedder)
    return load_examples(config.data.ready().val, model, config, embedder)


def load_examples(
    path: str, model: MultiModalDiffusion, config: TrainConfig, embedder: Any, strict: bool = True
) -> Examples:
    """A Parquet file as training examples, with embeddings if the model has such a modality.

    Rows that cannot be decoded raise ValueError, or unless ``strict`` are left out if they are few.
    """
    examples = read_parquet(path, model.modalities.values(), config.data.ready(), strict)
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


def make_embedder(config: TrainConfig, folder: str | None, device: torch.device) -> Any:
    """The embedder that the configuration names, from ``folder`` if given; None if it names none."""
    if not config.model.embedder:
        return None
    from mmdiff.clip.embedder import ClipEmbedder

    beside = Path("checkpoints") / config.model.embedder
    try:
        return ClipEmbedder(folder or (beside if beside.is_dir() else config.model.embedder), device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
