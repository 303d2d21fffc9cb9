"""Do the losses of the modalities pull the shared network the same way, and how hard does each pull?

    python benchmarks/gradients.py configs/orchard-small.toml --train data/orchard/train.parquet \
        --images 40000 --out docs/results/orchard-gradients.json

While a model is trained from scratch, the gradient of each weighted loss term is measured now and then: its
norm in the parameters that all modalities share, and its cosine with the gradient of the photos' terms. A
term with a far larger norm than the photos' dominates the optimiser's step (Adam divides by the size of the
sum); a negative cosine works against the photos.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.study import CPU, command, optim_with, write
from mmdiff.checkpoint import build_model
from mmdiff.config import load_train_config
from mmdiff.data.batches import load_examples, make_embedder
from mmdiff.training.trainer import Trainer

SHARES = (0.1, 0.3, 0.6, 0.95)  # of the training, after which gradients are measured


def term_gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Gradients of the next batch's weighted loss terms in the shared backbone: modality -> (P,).

    The anchor's is that of all its terms together. Nothing is stepped.
    """
    model = trainer.model.train()
    draw = trainer.next_draw()
    trainer.seed_dropout(0)
    terms = trainer.losses(model, draw)
    shared = list(model.backbone.parameters())
    found = {}
    for name in model.names:
        own = {f"L2/{name}", *(["L1"] if name == model.anchor else [])}
        alone = {key: value if key in own else torch.zeros_like(value) for key, value in terms.items()}
        value = trainer.objective.total(alone)
        parts = torch.autograd.grad(value, shared, retain_graph=True, allow_unused=True)
        flat = [
            (torch.zeros_like(p) if part is None else part).flatten()
            for part, p in zip(parts, shared, strict=True)
        ]
        found[name] = torch.cat(flat)
    return found


def pulls(trainer: Trainer, batches: int) -> dict[str, dict[str, float]]:
    """For every modality the root mean square norm over batches, and the mean cosine with the anchor's."""
    norms: dict[str, list[float]] = {}
    cosines: dict[str, list[float]] = {}
    for _ in range(batches):
        gradients = term_gradients(trainer)
        anchor = gradients[trainer.model.anchor]
        for name, gradient in gradients.items():
            norms.setdefault(name, []).append(gradient.norm().item())
            cosines.setdefault(name, []).append(torch.cosine_similarity(gradient, anchor, 0).item())
    return {
        name: {
            "norm": round((sum(n * n for n in norms[name]) / batches) ** 0.5, 4),
            "cosine": round(sum(cosines[name]) / batches, 3),
        }
        for name in norms
    }


def follow(trainer: Trainer, batches: int) -> list[dict[str, Any]]:
    """Train to the end, and measure the gradients after each of `SHARES`."""
    total = trainer.config.optim.images
    marks = [share * total for share in SHARES]
    points = []
    while marks:
        if trainer.images >= marks[0]:
            marks.pop(0)
            points.append({"images": trainer.images, "pulls": pulls(trainer, batches)})
            print(points[-1], flush=True)
        else:
            trainer.train_step()
    return points


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    torch.set_num_threads(args.threads)
    try:
        config = optim_with(images=args.images)(load_train_config(args.config))
        embedder = make_embedder(config, args.embedder, CPU)
        examples = load_examples(args.train, build_model(config.model), config, embedder)
        trainer = Trainer(config, examples, CPU)
        trainer.load_pretrained("checkpoints")
    except ValueError as error:
        sys.exit(f"error: {error}")
    report = {
        "command": command("gradients", arguments),
        "config": Path(args.config).stem,
        "batch_size": config.optim.batch_size,
        "batches": args.batches,
        "weights": {m.name: m.loss_weight for m in config.model.modalities},
        "gradients": follow(trainer, args.batches),
    }
    write(report, args.out)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="training configuration, such as configs/orchard-small.toml")
    parser.add_argument("--train", required=True, help="Parquet file to train on")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--embedder", help="folder of the embedder (default: checkpoints/<model.embedder>)")
    parser.add_argument("--images", type=int, default=20_000, help="budget of the training")
    parser.add_argument("--batches", type=int, default=8, help="batches to average over")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
