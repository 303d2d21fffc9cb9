"""Training batches for one process, from memory or from a stream, and validation examples."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch

from mmdiff.config import TrainConfig
from mmdiff.data.examples import Examples, add_embeddings, balanced, batch_rows
from mmdiff.data.parquet import read_parquet
from mmdiff.data.stream import StreamedBatches, first_examples
from mmdiff.data.views import cut_views
from mmdiff.model import MultiModalDiffusion
from mmdiff.training.processes import Processes

VAL_EXAMPLES = 1024  # read from a stream for validation


class Batches(Protocol):
    """A source of batches for a `Trainer`."""

    def next_batch(self) -> Examples:
        """This process's rows of the next step's batch, in order (`Processes.share`)."""

    def state_dict(self) -> dict[str, Any]:
        """The position, for JSON; that of every process is saved with the weights."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a position: this process's own, or the first one's if their number has changed.

        Raises ValueError if that is impossible.
        """


class MemoryBatches:
    """`Batches` of examples in memory: shuffled epochs laid end to end.

    Args:
        share: the rows of each batch that belong to this process.
        balance: a source of m examples has a share of each epoch proportional to m^balance.
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
) -> Examples | StreamedBatches:
    """The examples of `data.train` in memory or, with `data.stream`, as a stream.

    Raises ValueError if it cannot be read, or the batch cannot be divided evenly.
    """
    if not config.data.stream:
        examples = load_examples(config.data.ready().train, model, config, embedder, strict=False)
        if head := config.optim.head:  # others would teach it nothing
            if head not in examples.present:
                raise ValueError(f"optim.head is {head!r}, which no example of {config.data.train} has.")
            examples = examples.take(examples.present[head].nonzero()[:, 0])
        if not config.data.views:
            return examples
        return cut_views(examples, model.modalities, config.data, config.optim.seed, torch.device("cpu"))
    share = processes.share(config.optim.batch_size, accumulate)
    rows, seed = share.stop - share.start, config.optim.seed
    return StreamedBatches(
        config.data, model.modalities, rows, processes.rank, processes.count, seed, embedder
    )


def validation_data(config: TrainConfig, model: MultiModalDiffusion, embedder: Any) -> Examples | None:
    """The examples of `data.val`, None if it is empty. Raises ValueError if they cannot be read."""
    if not config.data.val:
        return None
    if config.data.views:  # whole photos, as they are seen by everybody who uses the model
        config = replace(config, data=replace(config.data, margin=0))
    if config.data.stream:
        return first_examples(config.data, model.modalities, VAL_EXAMPLES, embedder)
    return load_examples(config.data.ready().val, model, config, embedder)


def load_examples(
    path: str, model: MultiModalDiffusion, config: TrainConfig, embedder: Any, strict: bool = True
) -> Examples:
    """A Parquet file as training examples, with embeddings if the model has such a modality.

    Rows that cannot be decoded raise ValueError; unless ``strict``, a few of them are left out.
    """
    examples = read_parquet(path, model.modalities.values(), config.data.ready(), strict)
    if model.anchor not in examples.present:
        raise ValueError(f"{path} has no {model.anchor}: a column of this name with a picture in every row.")
    if not examples.present[model.anchor].all():
        row = int(examples.present[model.anchor].int().argmin())
        raise ValueError(f"{path}, row {row}: there is no {model.anchor}; remove the row.")
    for name, modality in model.modalities.items():
        modality.attach(embedder)
        if modality.takes_text and name not in examples.stored:
            if embedder is None:
                raise ValueError(f"modality {name!r} needs model.embedder, or a column {name!r} in {path}.")
            whole = config.data.margin if config.data.views else 0
            size = config.model.image_size + whole
            add_embeddings(examples, name, model.anchor, embedder, size)
    return examples


def make_embedder(config: TrainConfig, folder: str | None, device: torch.device) -> Any:
    """The embedder of the configuration, from ``folder`` if given; None if it has none."""
    if not config.model.embedder:
        return None
    from mmdiff.clip.embedder import ClipEmbedder

    beside = Path("checkpoints") / config.model.embedder
    try:
        return ClipEmbedder(folder or (beside if beside.is_dir() else config.model.embedder), device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
