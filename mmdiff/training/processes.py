"""The processes that train one model together, on one machine or on several.

`accelerate launch` (or torchrun) starts them and sets their ranks in the environment. Each holds the whole
model, or with ``shard`` a part of every weight (FSDP2), and works on its share of every batch.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mmdiff.device import choose_device
from mmdiff.first_edition.transformer import Block as FirstBlock
from mmdiff.network.transformer import Block

# The other processes wait in the next step while the main one writes a large state.
PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Processes:
    """This process's rank among ``count``, and their collective operations; one process alone sends nothing.

    Methods with the remark "all call it" wait for the others: every process must call them, or none.
    """

    rank: int = 0
    count: int = 1
    shard: bool = False

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, batch_size: int, parts: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ValueError: the batch cannot be divided evenly among the processes and their ``parts``.
        """
        if batch_size % (self.count * parts):
            raise ValueError(
                f"a batch of {batch_size} cannot be divided evenly among {self.count} process(es) that work "
                f"on it in {parts} part(s); make --batch-size a multiple of {self.count * parts}, or change "
                "--accumulate or the number of processes."
            )
        rows = batch_size // self.count
        return slice(self.rank * rows, (self.rank + 1) * rows)

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over the processes; all call it, with tensors of one shape."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set on one of the processes; all call it."""
        return flag if self.count == 1 else bool(self.sum(torch.tensor(int(flag), device=device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in order of rank; all call it."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def split(self, model: nn.Module, compiled: bool) -> None:
        """With ``shard``: keep only this process's part of every weight of the model, in place."""
        if not (self.shard and self.count > 1):
            return
        for block in [m for m in model.modules() if isinstance(m, (Block, FirstBlock))]:
            if compiled:
                block.compile()
            fully_shard(block)
        # True: otherwise the weights outside the blocks would stay gathered, and stale, after a validation
        fully_shard(model, reshard_after_forward=True)

    def joined(self, model: nn.Module, compiled: bool) -> Callable[..., dict[str, Tensor]]:
        """The model's forward for training; its backward averages the gradients over the processes."""
        if self.shard and self.count > 1:
            return model
        forward = torch.compile(model) if compiled else model
        if self.count == 1:
            return forward
        with warnings.catch_warnings():
            # Newer releases of PyTorch call the option by a name that older ones do not know.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            # The buffers are constants, the same everywhere.
            return DistributedDataParallel(forward, broadcast_buffers=False, gradient_as_bucket_view=True)

    def close(self) -> None:
        """Leave the process group, at the end."""
        if self.count > 1:
            distributed.destroy_process_group()


@contextmanager
def gradients_averaged(forward: Callable[..., dict[str, Tensor]], now: bool) -> Iterator[None]:
    """Whether forward and backward inside average the gradients over the processes, or only add them up."""
    if isinstance(forward, FSDPModule):
        forward.set_requires_gradient_sync(now)
    if isinstance(forward, DistributedDataParallel) and not now:
        with forward.no_sync():
            yield
    else:
        yield


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, all of it if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor gathered from its parts; all processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """The whole ``tensor``, which every process has, in the memory layout of ``model`` and sharded like it.

    A tensor of another shape is returned unchanged.
    """
    if tensor.shape != model.shape:
        return tensor
    if not isinstance(model, DTensor):
        return torch.empty_like(model).copy_(tensor)
    tensor = tensor.to(model.device)
    # None: no communication, each process takes its part of its own copy
    return distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)


def join_processes(device: str = "auto", shard: bool = False) -> tuple[Processes, torch.device]:
    """This process among those that were launched, and its device.

    `accelerate launch --use_fsdp` also sets ``shard``.

    Raises:
        ValueError: the device does not exist, or is a single one for several processes.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count == 1:
        return Processes(), choose_device(device)
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {device} is one device for {count} processes; leave it out.")
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    on_cpu = device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU")
    shard = shard or parse_flag_from_env("ACCELERATE_USE_FSDP")
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    return Processes(state.process_index, state.num_processes, shard), state.device
