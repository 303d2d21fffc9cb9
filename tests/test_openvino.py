"""The network by OpenVINO gives what PyTorch gives, for any rows and requests, and sends nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import CLASSES, draw_shape, lively_model, tiny_config

from mmdiff.pipeline import Pipeline
from mmdiff.serving import openvino

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
EVERYTHING = ("image", "mask", "label", "embedding")
# A child that goes on after the parent has compiled; OpenVINO's threads do not come along.
FORKED = """
import os, sys, torch
sys.path.insert(0, "tests")
from synthetic import lively_model, tiny_config
from mmdiff.pipeline import Pipeline
pipe = Pipeline(lively_model(tiny_config(core="levels", stem_depth=1)), torch.device("cpu"))
assert pipe.compile()
pipe(wanted=("image",), steps=2)
child = os.fork()
if not child:
    os._exit(7 if pipe(wanted=("image",), steps=2).image else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
QUIET = """
import sys, torch
sys.path.insert(0, "tests")
from synthetic import lively_model, tiny_config
from mmdiff.serving.openvino import Compiled
Compiled(lively_model(tiny_config(core="levels", stem_depth=1)), torch.float32)
sent = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
print("openvino" in sys.modules, sent)
"""


@pytest.fixture(scope="module", params=[0, 8])
def model(request):
    return lively_model(tiny_config(core="levels", stem_depth=1, shape_width=request.param))


@pytest.fixture(scope="module")
def pair(model, embedder):
    """The same model by PyTorch and by OpenVINO, in float32."""
    plain, fast = Pipeline(model, CPU, embedder), Pipeline(model, CPU, embedder)
    assert fast.compile() and plain.network is model and fast.network is not model
    return plain, fast


@pytest.mark.parametrize("rows", [1, 2, 5, 33])
def test_outputs_are_those_of_the_model(model, pair, rows):
    generator = torch.Generator().manual_seed(rows)
    z = torch.randn(rows, *model.z_shape, generator=generator)
    levels = 4 * torch.randn(rows, len(model.names), generator=generator)
    nothing = model.nothing_given(rows, CPU)
    raw, fast = (pipe.answer([(z, levels, nothing)])[0] for pipe in pair)
    for name in model.names:
        assert fast[name].dtype == torch.float32 and fast[name].shape == raw[name].shape
        scale = raw[name].abs().max()
        assert (fast[name] - raw[name]).abs().max() < 2e-3 * scale, name


@pytest.mark.parametrize(
    "request_of",
    [
        {"given": {"label": CLASSES[1]}, "guidance_scale": 2.0},
        {"given": {"image": draw_shape(1, 3)}, "wanted": ("mask", "label", "embedding")},
        {
            "given": {"image": draw_shape(1, 3)},
            "wanted": EVERYTHING,
            "known_pixels": np.arange(256).reshape(16, 16) % 16 < 9,
        },
        {"leads": {"label": 0.5}, "num_samples": 3},
    ],
    ids=["guided", "read", "hole", "leads"],
)
def test_requests_come_out_alike(pair, request_of):
    request_of = {"wanted": tuple(set(EVERYTHING) - set(request_of.get("given", ()))), **request_of}
    plain, fast = (pipe(steps=5, seed=2, **request_of) for pipe in pair)
    for name, value in plain.values.items():
        other = fast.values[name]
        if name == "image":
            value, other = (np.stack([np.asarray(p, float) for p in pictures]) for pictures in (value, other))
            assert np.abs(value - other).mean() < 1
        elif name == "mask":
            assert (value != other).mean() < 0.01
        else:
            assert np.abs(value - other).max() < 0.02, name


def test_in_bfloat16_it_is_as_near_as_pytorch(model):
    exact, half = Pipeline(model, CPU), Pipeline(model, CPU, precision="bfloat16")
    assert half.compile()
    z, levels = torch.randn(2, *model.z_shape), torch.zeros(2, len(model.names))
    nothing = model.nothing_given(2, CPU)
    raw, fast = (pipe.answer([(z, levels, nothing)])[0] for pipe in (exact, half))
    assert all((fast[n] - raw[n]).abs().max() < 0.1 * raw[n].abs().max() for n in model.names)


def test_what_cannot_be_compiled_stays_as_it_is(pipe, model, monkeypatch):
    assert not pipe.compile() and pipe.network is pipe.model, "of the first edition"
    monkeypatch.setattr(openvino, "find_spec", lambda name: None)
    other = Pipeline(model, CPU)
    assert not other.compile() and other.network is model


def test_the_model_itself_is_left_alone(model, pair):
    assert "outputs" not in vars(model)
    assert pair[1].network.modalities is model.modalities


@pytest.mark.parametrize("code, printed", [(FORKED, "7"), (QUIET, "True []")], ids=["forked", "quiet"])
def test_in_a_process_of_its_own(code, printed):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == printed, done.stderr
