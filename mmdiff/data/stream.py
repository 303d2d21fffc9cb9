"""Training batches from sets of any size: read, shuffled and decoded ahead of the training loop.

The order is a function of the seed: the shards of an epoch are permuted, and so are the rows of each block of
`data.shuffle_rows`. The state of a stream is therefore a handful of numbers, and a resumed stream equals an
uninterrupted one: it reads the current block again and continues in the middle of it.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, add_embeddings
from mmdiff.data.parquet import CAPTION, BrokenRows, Row, by_names, decode_ahead, examples_of
from mmdiff.data.sources import Cells, Raw, Source, T
from mmdiff.modalities import Modality

READY_BATCHES = 3  # decoded ahead
MANY_SHARDS = 16  # for each process; one more or less then hardly matters


@dataclass(frozen=True)
class Position:
    """A position in a stream: a block of rows and how many of its rows, in their random order, are used."""

    epoch: int = 0
    shard: int = 0  # place in the epoch's order of shards of the block's first row
    row: int = 0  # rows of that shard before the block
    block: int = 0  # blocks of this epoch before this one
    used: int = 0


class StreamedBatches:
    """Endless `Batches` from `data.train`, or `data.prepared` if it is set, for one of ``world`` processes.

    All processes together see every row once an epoch, shuffled anew in each. If the shards divide evenly (a
    multiple of ``world``, or many), every process reads its own; otherwise each reads all of them and keeps
    its share of the rows. Processes do not wait for each other at the end of an epoch.

    Args:
        modalities: name -> modality, the anchor first, as `MultiModalDiffusion.modalities`.
        batch: rows of one step of this process.
        embedder: a `mmdiff.clip.ClipEmbedder`, for embedding modalities without a column.

    Raises ValueError for a source, a column or an embedder that is missing.
    """

    def __init__(
        self,
        config: DataConfig,
        modalities: Mapping[str, Modality],
        batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        embedder: Any = None,
    ) -> None:
        if batch < 1 or not 0 <= rank < world:
            raise ValueError(
                f"batch {batch}, rank {rank}, world {world}: expected batch >= 1 and 0 <= rank < world."
            )
        self.config, self.modalities, self.batch = config.ready(), modalities, batch
        self.rank, self.world, self.seed, self.embedder = rank, world, seed, embedder
        self.source = Source(self.config.train, self.config, [*modalities, CAPTION])
        self.config = by_names(self.source, modalities, self.config)
        self._to_embed = embeddings_to_make(self.source, modalities, embedder)
        self._identity = {"rank": rank, "world": world, "seed": seed}
        self._broken = BrokenRows()
        self._position = Position()
        self._batches: Ahead | None = None

    @property
    def broken(self) -> int:
        """Rows left out so far, including those read ahead."""
        return self._broken.count

    @property
    def epoch(self) -> int:
        """Epoch of the last row of the last batch, from 0."""
        return self._position.epoch

    def next_batch(self) -> Examples:
        """The next ``batch`` rows in compact form, on the CPU.

        Raises ValueError if too many rows cannot be decoded, or there are none.
        """
        if self._batches is None:
            self._batches = Ahead(self._make_batches(self._position), READY_BATCHES)
        self._position, examples = next(self._batches)
        for name in self._to_embed:
            # not in the reading thread: two thread pools that compute at once slow each other down
            size = self.modalities[name].image_size
            add_embeddings(examples, name, next(iter(self.modalities)), self.embedder, size)
        return examples

    def state_dict(self) -> dict[str, int]:
        """The position of the next batch, as numbers for JSON."""
        return dataclasses.asdict(self._position) | self._identity

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where `state_dict` was taken. Raises ValueError if its order of rows is another."""
        theirs = {name: state.get(name) for name in self._identity}
        if theirs != self._identity:
            raise ValueError(
                f"the state is of a stream with {theirs}, but this one has {self._identity}; resume with "
                "as many processes and the same seed."
            )
        self.close()
        self._position = Position(**{f.name: state[f.name] for f in dataclasses.fields(Position)})

    def close(self) -> None:
        """Stop the threads; `next_batch` starts them again."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def _make_batches(self, start: Position) -> Generator[tuple[Position, Examples], None, None]:
        shuffled = self._shuffled(start)
        with closing(good_rows(shuffled, self.modalities, self.config, self._broken)) as decoded:
            while batch := list(itertools.islice(decoded, self.batch)):
                yield batch[-1][0], examples_of([row for _, row in batch], self.config)

    def _shuffled(self, start: Position) -> Raw[Position]:
        used = start.used
        with closing(Ahead(self._blocks(dataclasses.replace(start, used=0)), 1)) as blocks:
            for position, block in blocks:
                rng = np.random.default_rng([self.seed, self.rank, position.epoch, position.block])
                order = rng.permutation(len(block))
                for k in range(used, len(block)):
                    yield dataclasses.replace(position, used=k + 1), *block[order[k]]
                used = 0

    def _blocks(self, first: Position) -> Generator[tuple[Position, list[Cells]], None, None]:
        """Rows in the order of the files, a block at a time, epoch after epoch."""
        while True:
            rows = self._rows(first)
            while block := list(itertools.islice(rows, self.config.shuffle_rows)):
                yield first, [cells for *_, cells in block]
                shard, row, _ = block[-1]
                first = Position(first.epoch, shard, row + 1, first.block + 1)
            if first.block == 0:
                raise ValueError(f"{self.source.where} has no rows for process {self.rank} of {self.world}.")
            first = Position(first.epoch + 1)

    def _rows(self, first: Position) -> Iterator[tuple[int, int, Cells]]:
        """The rest of an epoch: place in its order of shards, row of that shard, cells."""
        count = self.source.num_shards
        shards = np.random.default_rng([self.seed, first.epoch]).permutation(count).tolist()
        share = (self.rank, self.world)
        if count % self.world == 0 or count >= MANY_SHARDS * self.world:
            shards, share = shards[self.rank :: self.world], ()
        row = first.row
        for shard in range(first.shard, len(shards)):
            for number, cells in enumerate(self.source.rows(shards[shard], row, *share), row):
                yield shard, number, cells
            row = 0


def embeddings_to_make(source: Source, modalities: Mapping[str, Modality], embedder: Any) -> list[str]:
    """Embedding modalities without a column. Raises ValueError if an embedder for them is missing."""
    names = [n for n, m in modalities.items() if m.takes_text and n not in source.columns]
    if names and embedder is None:
        raise ValueError(
            f"modality {names[0]!r} needs model.embedder, or a column {names[0]!r} in {source.where}, which "
            "`python -m mmdiff.data.precompute` writes."
        )
    return names


def first_examples(
    config: DataConfig, modalities: Mapping[str, Modality], limit: int, embedder: Any = None
) -> Examples:
    """The first ``limit`` rows of `data.val`, of any kind of source, in memory and in order.

    Rows that cannot be decoded are left out. Raises ValueError as `StreamedBatches` does.
    """
    ready = config.ready()
    source = Source(ready.val, ready, [*modalities, CAPTION])
    ready = by_names(source, modalities, ready)
    names = embeddings_to_make(source, modalities, embedder)
    with closing(good_rows(source.rows_in_order(), modalities, ready, BrokenRows())) as decoded:
        examples = examples_of([row for _, row in itertools.islice(decoded, limit)], ready)
    for name in names:
        add_embeddings(examples, name, next(iter(modalities)), embedder, modalities[name].image_size)
    return examples


def good_rows(
    rows: Raw[T], modalities: Mapping[str, Modality], config: DataConfig, broken: BrokenRows
) -> Generator[tuple[T, Row], None, None]:
    """The rows that can be decoded, in the same order, decoded by `data.workers` threads a few rows ahead.

    The others are added to ``broken``. Raises ValueError if they are too many.
    """
    with closing(decode_ahead(rows, modalities, config, next(iter(modalities)))) as decoded:
        for seen, (key, row) in enumerate(decoded, start=1):
            if isinstance(row, ValueError):
                broken.add(row)
                broken.check(seen)
            else:
                yield key, row


class Ahead(Iterator[T]):
    """The same items, made by a thread up to ``size`` items ahead; its error follows the last item."""

    def __init__(self, items: Generator[T, None, None], size: int) -> None:
        self._items, self._thread = items, ThreadPoolExecutor(1)
        self._waiting = deque(self._thread.submit(next, items) for _ in range(size))

    def __next__(self) -> T:
        item = self._waiting[0].result()  # an error stays the first, so that it is raised again
        self._waiting.popleft()
        self._waiting.append(self._thread.submit(next, self._items))
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; finished items are dropped."""
        self._thread.shutdown(cancel_futures=True)
        self._items.close()
