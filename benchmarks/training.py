"""The speed of training, compared with matrix products on the same machine and with the loading of data.

    python benchmarks/training.py configs/orchard.toml --out docs/results/training-speed.json

Measures the whole step of `python -m mmdiff.train` on random examples of the configuration's shapes, matrix
products in the same precision, and the drawing of batches. All are measured in turn, round after round, so
that other load on the machine affects all of them. Figures are medians over the rounds, with the lowest and
the highest; a share is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from mmdiff.checkpoint import build_model  # noqa: E402
from mmdiff.config import TrainConfig, load_train_config  # noqa: E402
from mmdiff.data.augment import draw_batch  # noqa: E402
from mmdiff.data.examples import Examples, batch_rows  # noqa: E402
from mmdiff.data.parquet import read_parquet  # noqa: E402
from mmdiff.device import choose_device  # noqa: E402
from mmdiff.modalities import Modality  # noqa: E402
from mmdiff.training.trainer import Trainer  # noqa: E402

Shape = tuple[int, int, int]  # m, k, n of a product (m, k) x (k, n)
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = {"image": PICTURE, "mask": PICTURE, "label": pa.int64(), "embedding": pa.list_(pa.float32())}


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured. square: side of the largest product. rows: of the data file."""

    rounds: int = 7
    seconds: float = 2.0  # of each measurement in a round
    square: int = 2048
    rows: int = 512


QUICK = Effort(rounds=2, seconds=0.05, square=256, rows=32)
ON_GPU = Effort(square=8192, rows=4096)


# -- data ----------------------------------------------------------------------------------------------


def random_cell(modality: Modality, rng: np.random.Generator, side: int) -> Any:
    """A random cell of a data file: photos are smooth, as WebP; masks are blocks, as PNG."""
    if modality.kind == "label":
        return int(rng.integers(len(modality.classes)))
    if modality.kind == "embedding":
        return rng.standard_normal(modality.shape).astype(np.float32)
    is_image, data = modality.kind == "image", io.BytesIO()
    coarse = rng.integers(256 if is_image else len(modality.classes), size=(8, 8, 3 if is_image else 1))
    picture = Image.fromarray(coarse.astype(np.uint8).squeeze())
    method = Image.Resampling.BICUBIC if is_image else Image.Resampling.NEAREST
    picture.resize((side, side), method).save(data, "WEBP" if is_image else "PNG")
    return {"bytes": data.getvalue(), "path": None}


def write_random(path: Path, modalities: list[Modality], rows: int) -> None:
    """A Parquet file of random examples; kinds from outside the package are left out, hence absent."""
    rng = np.random.default_rng(0)
    known = [m for m in modalities if m.kind in COLUMNS]
    columns = {m.name: [random_cell(m, rng, m.image_size) for _ in range(rows)] for m in known}
    types = {m.name: COLUMNS[m.kind] for m in known}
    pq.write_table(pa.table({n: pa.array(cells, types[n]) for n, cells in columns.items()}), path)


# -- operations of a step ------------------------------------------------------------------------------


def count_flops(trainer: Trainer) -> dict[str, float]:
    """FLOPs of one training image, forward and backward, by operator and as "total"."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # else uncounted on CPUs
        trainer.train_step()
    batch = trainer.config.optim.batch_size
    parts = {str(op): count / batch for op, count in counter.get_flop_counts()["Global"].items()}
    return parts | {"total": sum(parts.values())}


def model_products(trainer: Trainer) -> dict[Shape, int]:
    """Products of a step's linear layers, three for each (forward, and the gradients): shape -> how many."""
    shapes: dict[Shape, int] = {}

    def note(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        rows, wide, narrow = inputs[0].numel() // layer.in_features, layer.in_features, layer.out_features
        for shape in ((rows, wide, narrow), (rows, narrow, wide), (narrow, rows, wide)):
            shapes[shape] = shapes.get(shape, 0) + 1

    layers = [module for module in trainer.model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    trainer.train_step()
    for hook in hooks:
        hook.remove()
    return shapes


class Products:
    """Matrix products of given shapes to run, in the precision of the training."""

    def __init__(self, shapes: dict[Shape, int], device: torch.device) -> None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._pairs = [
            (torch.randn(m, k, device=device, dtype=dtype), torch.randn(k, n, device=device, dtype=dtype))
            for m, k, n in shapes
        ]
        self._times = list(shapes.values())
        self.flops = sum(2 * m * k * n * times for (m, k, n), times in shapes.items())

    def __call__(self) -> None:
        for (a, b), times in zip(self._pairs, self._times, strict=True):
            for _ in range(times):
                a @ b


# -- measuring -----------------------------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(action: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Wall time of each of some calls; waits for the device once, at the end."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        action()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def in_turn(
    actions: dict[str, Callable[[], Any]], effort: Effort, device: torch.device
) -> list[dict[str, float]]:
    """Seconds per call of every action, in turn in each round, after one call to warm up."""
    calls = {}
    for name, action in actions.items():
        action()
        calls[name] = max(1, round(effort.seconds / seconds_per_call(action, 1, device)))
    return [
        {name: seconds_per_call(action, calls[name], device) for name, action in actions.items()}
        for _ in range(effort.rounds)
    ]


def summary(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest of the rounds, to four digits."""
    found = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far: of the GPU's allocator, or of this process with all libraries."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in _lines(info) if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def read_random(config: TrainConfig, modalities: list[Modality], rows: int) -> tuple[Examples, float]:
    """Random examples read from a file, and the rows read in a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.parquet"
        write_random(path, modalities, rows)
        read_parquet(path, modalities, config.data)  # imports what it needs
        start = time.perf_counter()
        examples = read_parquet(path, modalities, config.data)
        return examples, rows / (time.perf_counter() - start)


def _work(plain: Trainer) -> tuple[dict[str, float], Any]:
    """FLOPs and shapes of the products of a step, of a model that is not compiled: hooks see into it."""
    return count_flops(plain), model_products(plain)


def environment(device: torch.device) -> dict[str, Any]:
    """Where and how the figures are measured."""
    on_gpu = device.type == "cuda"
    precision = "bfloat16" if on_gpu else "float32"
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "precision": precision,
        "compiled": on_gpu,
    }


def measure(config: TrainConfig, device: torch.device, effort: Effort) -> dict[str, Any]:
    """All figures of one configuration."""
    batch, on_gpu = config.optim.batch_size, device.type == "cuda"
    modalities = list(build_model(config.model).modalities.values())
    examples, rows_per_second = read_random(config, modalities, max(effort.rows, batch))
    trainer = Trainer(config, examples, device, compile_model=on_gpu)
    for _ in range(3):
        trainer.train_step()
    memory = peak_memory_mb(device)  # before anything else needs memory
    flops, shapes = _work(Trainer(config, examples, device))
    products = {
        "square": Products({(effort.square,) * 3: 1}, device),
        "model": Products(shapes, device),
    }
    resident, generator = examples.to(device), torch.Generator(device)

    def draw() -> None:
        rows = batch_rows(len(resident), 0, batch, config.optim.seed).to(device)
        draw_batch(resident, trainer.model.modalities, rows, generator, config.data.flip)

    rounds = in_turn({"step": trainer.train_step, "draw": draw, **products}, effort, device)
    trained = [batch * flops["total"] / r["step"] for r in rounds]  # FLOPs in a second
    matmul = {name: [those.flops / r[name] for r in rounds] for name, those in products.items()}
    said = {"parameters": sum(p.numel() for p in trainer.model.parameters()), "batch_size": batch}
    return (
        environment(device)
        | said
        | {
            "rounds": effort.rounds,
            "square_side": effort.square,
            "images_per_second": summary([batch / r["step"] for r in rounds]),
            "mflop_per_image": {name: round(count / 1e6, 3) for name, count in flops.items()},
            "training_gflops": summary([rate / 1e9 for rate in trained]),
            "matmul_gflops": {
                name: summary([rate / 1e9 for rate in rates]) for name, rates in matmul.items()
            },
            "share_of_matmul": {
                name: summary([t / rate for t, rate in zip(trained, rates, strict=True)])
                for name, rates in matmul.items()
            },
            "draw_images_per_second": summary([batch / r["draw"] for r in rounds]),
            "parquet_rows_per_second": float(f"{rows_per_second:.4g}"),
            "peak_memory_mb": memory,
        }
    )


# -- the command ---------------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """The figures as lines of text."""
    spread = {
        "training, images/s": found["images_per_second"],
        "training, GFLOP/s": found["training_gflops"],
        f"matmul of {found['square_side']}³, GFLOP/s": found["matmul_gflops"]["square"],
        "matmuls of the model's shapes, GFLOP/s": found["matmul_gflops"]["model"],
        "training / large matmul": found["share_of_matmul"]["square"],
        "training / the model's matmuls": found["share_of_matmul"]["model"],
        "batches drawn, images/s": found["draw_images_per_second"],
    }
    plain = {
        "Parquet read, rows/s": found["parquet_rows_per_second"],
        "MFLOP per training image": found["mflop_per_image"]["total"],
        "peak memory, MB": found["peak_memory_mb"],
    }
    head = f"{found['config']}, batch {found['batch_size']}, {found['precision']}, {found['device']}"
    lines = [head, f"{'':40}{'median':>10}{'low':>10}{'high':>10}"]
    lines += [f"{what:40}" + "".join(f"{v:>10.4g}" for v in of.values()) for what, of in spread.items()]
    return "\n".join(lines + [f"{what:40}{value:>10.6g}" for what, value in plain.items()])


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, help="TOML file, see configs/")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--batch-size", type=int, help="default: optim.batch_size of the configuration")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--quick", action="store_true", help="only to see whether it runs")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    try:
        config, device = load_train_config(args.config), choose_device(args.device)
        if args.batch_size is not None:
            optim = dataclasses.replace(config.optim, batch_size=args.batch_size)
            config = dataclasses.replace(config, optim=optim)
    except ValueError as error:
        sys.exit(f"training.py: {error}")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as the command does
    effort = QUICK if args.quick else ON_GPU if device.type == "cuda" else Effort()
    found = {"config": args.config.stem} | measure(config, device, effort)
    print(table(found))
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
