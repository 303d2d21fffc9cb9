"""The network compiled by OpenVINO: on CPUs a step of one sample takes a third of PyTorch's time."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def installed() -> bool:
    """Whether the package is there."""
    return find_spec("openvino") is not None


def imported() -> Any:
    """The package, which otherwise tells its makers over the network that it is used."""
    sys.modules.setdefault("openvino_telemetry", None)  # as if that were not installed
    import openvino

    return openvino


class Compiled:
    """`MultiModalDiffusion.outputs` of a model with levels, for any number of rows on the CPU.

    Compiling takes some seconds. A forked child, in which OpenVINO's threads are missing, asks the model
    itself.

    Args:
        model: with weights in float32; not changed. dtype: that it computes in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        openvino = imported()
        self._model, self._process = model, os.getpid()
        example = _example(model)
        self._no_read = example[2][:1]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # OpenVINO traces, which PyTorch discourages
            graph = openvino.convert_model(_Traced(model).eval(), example_input=example)
        graph.reshape({i: [-1, *tensor.shape[1:]] for i, tensor in enumerate(example)})
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # others compute here, too
        }
        self._request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()

    def __call__(
        self, cells: Tensor, codes: Sequence[Tensor | None], levels: Tensor, read: Tensor | None
    ) -> dict[str, Tensor]:
        """As `MultiModalDiffusion.outputs`."""
        if os.getpid() != self._process:
            return self._model.outputs(cells, codes, levels, read)
        if read is None:  # zeros mean the same
            read = self._no_read.expand(len(cells), -1, -1, -1)
        inputs = [cells, levels, read, *(code for code in codes if code is not None)]
        found = self._request.infer([tensor.float().contiguous().numpy() for tensor in inputs])
        return {name: torch.from_numpy(found[i].copy()) for i, name in enumerate(self._model.names)}


class _Traced(nn.Module):
    """The model's `outputs` from tensors alone, to tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._dense = [modality.dense for modality in model.modalities.values()]

    def forward(self, cells: Tensor, levels: Tensor, read: Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
        given = iter(codes)
        raw = self._model.outputs(cells, [None if d else next(given) for d in self._dense], levels, read)
        return tuple(raw.values())


def _example(model: nn.Module) -> tuple[Tensor, ...]:
    """What it is traced with: two rows with nothing given, and features of pixels that are not there."""
    nothing = model.nothing_given(2, torch.device("cpu"))
    z, levels = torch.randn(2, *model.z_shape), torch.zeros(2, len(model.names))
    (cells, codes, levels, _), _ = model.seen(z, levels, nothing)
    read = torch.zeros(2, model.config.refiner_width, *cells.shape[2:])
    return cells, levels, read, *(code for code in codes if code is not None)
