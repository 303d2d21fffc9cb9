"""Training batches from sets of any size: read, shuffled and decoded ahead of the training loop.

The order is a function of the seed: the shards of an epoch are permuted, and so are the rows of each block of
`data.shuffle_rows`. The state of a stream is therefore a handful of numbers, and a resumed stream equals an
uninterrupted one: it reads the current block again and continues in the middle of it.
"""

from __future__ import annotations

import atexit
import dataclasses
import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from mmdiff.config import DataConfig
from mmdiff.data.examples import Examples, add_embeddings, collate
from mmdiff.data.parquet import BrokenRows, decode_row, text_of
from mmdiff.data.sources import Source
from mmdiff.modalities import Modality

T = TypeVar("T")
Cells = tuple[str, dict[str, Any]]  # file and row, for messages; undecoded cells by name
Raw = Generator[tuple[T, str, dict[str, Any]], None, None]  # the same after a key of any type

READY_BATCHES = 3  # decoded ahead
MANY_SHARDS = 16  # for each process; one more or less then hardly matters
CAPTION = "caption"


@dataclass(frozen=True)
class Position:
    """A position in a stream: a block of rows and how many of its rows, in their random order, are used."""

    epoch: int = 0
    shard: int = 0  # place in the epoch's order of shards of the block's first row
    row: int = 0  # rows of that shard before the block
    block: int = 0  # blocks of this epoch before this one
    used: int = 0


@dataclass(frozen=True)
class Decoded:
    """A row: its modalities in the compact form of `decode_row`, and its caption."""

    stored: dict[str, np.ndarray]
    caption: str


class StreamedBatches:
    """Endless `Batches` from `data.train`, or `data.prepared` if it is set, for one of ``world`` processes.

    All processes together see every row once an epoch, shuffled anew in each. If the shards divide evenly (a
    multiple of ``world``, or many), every process reads its own; otherwise each reads all of them and keeps
    its share of the rows. Processes do not wait for each other at the end of an epoch.

    Args:
        modalities: name -> modality, the anchor first, as `MultiModalDiffusion.modalities`.
        batch: rows of one step of this process.
        embedder: a `mmdiff.clip.ClipEmbedder`, for embedding modalities without a column.

    Raises:
        ValueError: no such source, a missing column, or a missing embedder.
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

        Raises:
            ValueError: too many rows cannot be decoded, or there are none.
        """
        if self._batches is None:
            self._batches = Ahead(self._make_batches(self._position), READY_BATCHES)
            atexit.register(self.close)  # its threads must end before the interpreter does
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
            atexit.unregister(self.close)

    def _make_batches(self, start: Position) -> Generator[tuple[Position, Examples], None, None]:
        rows: list[Decoded] = []
        shuffled = self._shuffled(start)
        with closing(good_rows(shuffled, self.modalities, self.config, self._broken)) as decoded:
            for position, row in decoded:
                rows.append(row)
                if len(rows) == self.batch:
                    yield position, examples_of(rows, self.config)
                    rows = []

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
            block: list[Cells] = []
            shards = self._shards(first.epoch)
            row = first.row
            for place in range(first.shard, len(shards)):
                for item in self._rows(shards[place], row):
                    block.append(item)
                    row += 1
                    if len(block) == self.config.shuffle_rows:
                        yield first, block
                        first = Position(first.epoch, place, row, first.block + 1)
                        block = []
                row = 0
            if block:
                yield first, block
            elif first.block == 0:
                raise ValueError(f"{self.source.where} has no rows for process {self.rank} of {self.world}.")
            first = Position(first.epoch + 1)

    def _shards(self, epoch: int) -> list[int]:
        """The shards that this process reads in an epoch, in order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.source.num_shards).tolist()
        return order[self.rank :: self.world] if self._own_shards else order

    @property
    def _own_shards(self) -> bool:
        shards = self.source.num_shards
        return shards % self.world == 0 or shards >= MANY_SHARDS * self.world

    def _rows(self, shard: int, start: int) -> Iterator[Cells]:
        if self._own_shards:
            return self.source.rows(shard, start)
        return self.source.rows(shard, start, self.rank, self.world)


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
    names = embeddings_to_make(source, modalities, embedder)
    with closing(good_rows(rows_in_order(source), modalities, ready, BrokenRows())) as decoded:
        examples = examples_of([row for _, row in itertools.islice(decoded, limit)], ready)
    for name in names:
        add_embeddings(examples, name, next(iter(modalities)), embedder, modalities[name].image_size)
    return examples


def rows_in_order(source: Source, shard: int = 0, row: int = 0) -> Raw[tuple[int, int]]:
    """Undecoded rows from a place on: (shard, row) of the next row, file and row as text, cells."""
    for k in range(shard, source.num_shards):
        for place, cells in source.rows(k, row):
            row += 1
            yield (k, row), place, cells
        row = 0


def good_rows(
    rows: Raw[T], modalities: Mapping[str, Modality], config: DataConfig, broken: BrokenRows
) -> Generator[tuple[T, Decoded], None, None]:
    """The rows that can be decoded, in the same order, decoded by `data.workers` threads a few rows ahead.

    The others are added to ``broken``. Raises ValueError if they are too many.
    """
    with closing(_decode_ahead(rows, modalities, config)) as decoded:
        for seen, (key, row) in enumerate(decoded, start=1):
            if isinstance(row, ValueError):
                broken.add(row)
                broken.check(seen)
            else:
                yield key, row


def _decode_ahead(
    rows: Raw[T], modalities: Mapping[str, Modality], config: DataConfig
) -> Generator[tuple[T, Decoded | ValueError], None, None]:
    anchor = next(iter(modalities))

    def decode(place: str, cells: dict[str, Any]) -> Decoded | ValueError:
        try:
            stored = decode_row(cells, modalities.values(), config, place, anchor)
            return Decoded(stored, text_of(cells.get(CAPTION), f"{place}: the caption"))
        except ValueError as error:
            return error

    waiting: deque[tuple[T, Future[Decoded | ValueError]]] = deque()
    with closing(rows), ThreadPoolExecutor(config.workers) as pool:
        for key, place, cells in rows:
            waiting.append((key, pool.submit(decode, place, cells)))
            if len(waiting) > 4 * config.workers:
                key, future = waiting.popleft()
                yield key, future.result()
        for key, future in waiting:
            yield key, future.result()


def examples_of(rows: list[Decoded], config: DataConfig) -> Examples:
    """Decoded rows as one set of examples."""
    return collate([row.stored for row in rows], [row.caption for row in rows], config.margin)


class Ahead(Iterator[T]):
    """The same items, made by a thread up to ``size`` items ahead; its error follows the last item."""

    def __init__(self, items: Generator[T, None, None], size: int) -> None:
        self._items = items
        self._end: Exception | None = None
        self._queue: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue(size)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        if self._end is None:
            item, self._end = self._queue.get()
        if self._end is not None:
            raise self._end
        return item

    def close(self) -> None:
        """Stop the thread and wait for it; finished items are dropped."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(self._items):
            try:
                for item in self._items:
                    if not self._put((item, None)):
                        return
                self._put((None, StopIteration()))
            except Exception as error:
                self._put((None, error))

    def _put(self, result: tuple[T | None, Exception | None]) -> bool:
        """Put into the queue once it has room; False if `close` came first."""
        while not self._stopped.is_set():
            try:
                self._queue.put(result, timeout=0.05)
                return True
            except queue.Full:
                continue
        return False
