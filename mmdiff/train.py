"""Training: `python -m mmdiff.train CONFIG --out RUN`.

Writes state, checkpoints, a log and samples to the folder of the run, and continues a run that is there.
`accelerate launch -m mmdiff.train CONFIG` does the same on several GPUs or machines, see docs/training.md.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

import torch

from mmdiff.checkpoint import build_model
from mmdiff.config import TrainConfig, load_train_config
from mmdiff.data.batches import Batches, make_embedder, training_data, validation_data
from mmdiff.data.examples import Examples
from mmdiff.training.loop import resume, run
from mmdiff.training.processes import join_processes
from mmdiff.training.state import start_from
from mmdiff.training.trainer import Trainer


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.train", description=__doc__.splitlines()[0])
    parser.add_argument("config", help="TOML file, see configs/")
    parser.add_argument(
        "--out", help="folder of the run, resumed if it holds one already (default: runs/<name of CONFIG>)"
    )
    parser.add_argument("--train", help="data to train on (default: data.train of the configuration)")
    parser.add_argument("--val", help="data to validate on (default: data.val of the configuration)")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--images", type=int, help="budget (default: optim.images of the configuration)")
    parser.add_argument("--batch-size", type=int, help="default: optim.batch_size of the configuration")
    parser.add_argument(
        "--accumulate",
        type=int,
        default=1,
        help="parts that each process works on a batch in, one after the other, for less memory (default: 1)",
    )
    parser.add_argument(
        "--shard", action="store_true", help="divide the weights themselves among the processes (FSDP2)"
    )
    parser.add_argument("--lr", type=float, help="default: optim.lr of the configuration")
    parser.add_argument("--head", help="train only the head of this modality (default: optim.head)")
    parser.add_argument("--max-minutes", type=float, default=math.inf, help="stop cleanly after this long")
    parser.add_argument("--init", help="checkpoint folder whose weights a new run starts from")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on a GPU only")
    parser.add_argument("--log-every", type=int, default=50, help="steps between lines of the metrics log")
    return parser.parse_args(arguments)


def apply_overrides(config: TrainConfig, arguments: argparse.Namespace) -> TrainConfig:
    """The configuration with the options of the command line."""
    said = {name: value for name, value in vars(arguments).items() if value is not None}
    optim = {name: said[name] for name in ("images", "batch_size", "lr", "head") if name in said}
    data = {name: said[name] for name in ("train", "val") if name in said}
    if data:
        data["prepared"] = ""  # otherwise what was prepared would be read all the same
    return dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, **optim),
        data=dataclasses.replace(config.data, **data),
    )


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    out = Path(args.out or Path("runs", Path(args.config).stem))
    try:
        trainer, train, val = prepare(args)
        if not resume(trainer, out) and args.init:
            start_from(trainer, args.init)
    except ValueError as error:
        sys.exit(f"mmdiff.train: {error}")
    main_process = trainer.processes.main
    if main_process:
        print(_summary(trainer, train), flush=True)
    try:
        reason = run(trainer, val, out, args.max_minutes, args.log_every)
    except (FloatingPointError, OSError) as error:
        sys.exit(f"mmdiff.train: {error}")
    if main_process:
        print(f"stopped by {reason} after {trainer.images} images; checkpoint in {out}")
    trainer.processes.close()


def prepare(args: argparse.Namespace) -> tuple[Trainer, Examples | Batches, Examples | None]:
    """A new trainer, its training data and the validation examples. Raises ValueError, naming the mistake."""
    for option in ("log_every", "accumulate"):
        if getattr(args, option) < 1:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} is {getattr(args, option)}; give a number of at least 1.")
    config = apply_overrides(load_train_config(args.config), args)
    processes, device = join_processes(args.device, args.shard)
    embedder = make_embedder(config, args.embedder, device)
    blueprint = build_model(config.model)
    blueprint.load_pretrained("checkpoints")  # views are encoded before training begins
    train = training_data(config, blueprint, embedder, processes, args.accumulate)
    val = validation_data(config, blueprint, embedder)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    compiled = on_gpu if args.compile is None else args.compile
    trainer = Trainer(config, train, device, compiled, processes, args.accumulate)
    trainer.load_pretrained("checkpoints")
    return trainer, train, val


def _summary(trainer: Trainer, train: Examples | Batches) -> str:
    parameters = sum(p.numel() for p in trainer.model.parameters())
    examples = f"streamed from {trainer.config.data.ready().train}"
    if isinstance(train, Examples):
        counts = ", ".join(f"{int(has.sum())} {name}" for name, has in train.present.items())
        examples = f"{len(train)} examples ({counts})"
    together = f"{trainer.processes.count} processes, " if trainer.processes.count > 1 else ""
    return f"{parameters / 1e6:.2f} M parameters, {examples}, {together}{trainer.device}, step {trainer.step}"


if __name__ == "__main__":
    main()
