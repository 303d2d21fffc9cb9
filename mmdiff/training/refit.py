"""Fit the head of a label anew on frozen features.

    python -m mmdiff.training.refit CHECKPOINT --train PARQUET --out FOLDER

After hundreds of epochs the head of a label has memorised its training photos: its loss is zero and it learns
nothing more, although its input token still separates new photos. A new head, fitted to noisy tokens of whole
photos and of the usual mixture of tasks, classifies new photos better.
"""

import argparse
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mmdiff.checkpoint import save_checkpoint
from mmdiff.config import DataConfig, TrainConfig
from mmdiff.data.augment import draw_batch
from mmdiff.data.batches import load_examples
from mmdiff.data.examples import Examples
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from mmdiff.training.trainer import OBJECTIVES

BATCH = 64
EPOCHS = 40
NOISE = 0.3  # standard deviations of a token's entries


class TokenTap:
    """Keeps the last input of a head: (B, width)."""

    def __init__(self, head: nn.Module) -> None:
        self.token: Tensor | None = None
        head.register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.token = inputs[0].detach().float().cpu()


def reading_tokens(pipe: Pipeline, examples: Examples, rows: Tensor, name: str, tap: TokenTap) -> Tensor:
    """Tokens (n, width) at t = T with the whole photo given and the label wanted."""
    tokens = []
    for chunk in tqdm(rows.split(BATCH), desc="photos"):
        x, _ = draw_batch(examples, pipe.modalities, chunk, None, flip=False)
        photo = {pipe.model.anchor: x[pipe.model.anchor].to(pipe.device)}
        list(pipe.run_batch(Request(photo, (name,), steps=1), [int(k) for k in chunk]))
        tokens.append(tap.token)
    return torch.cat(tokens)


@torch.no_grad()
def mixture_tokens(pipe: Pipeline, examples: Examples, rows: Tensor, seed: int, tap: TokenTap) -> Tensor:
    """Tokens (n, width) at random times under the mixture of tasks of the training."""
    config = TrainConfig(pipe.model.config, DataConfig(margin=examples.margin))
    objective = OBJECTIVES[config.model.core](pipe.model, config, pipe.device)
    generator = torch.Generator(pipe.device).manual_seed(seed)
    tokens = []
    for chunk in tqdm(rows.split(BATCH), desc="tasks"):
        draw = objective.draw(examples, chunk.to(pipe.device), generator, augment=True)
        objective.losses(pipe.model, draw)
        tokens.append(tap.token)
    return torch.cat(tokens)


def fit(head: nn.Sequential, tokens: Tensor, labels: Tensor, seed: int) -> None:
    """Train ``head`` (Linear, GELU, Linear) anew on tokens (n, width) and labels (n,), in place."""
    torch.manual_seed(seed)
    for layer in (head[0], head[2]):
        layer.reset_parameters()
    mean, std = tokens.mean(0), tokens.std(0) + 1e-6
    tokens = (tokens - mean) / std
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, EPOCHS)
    for _ in tqdm(range(EPOCHS), desc="fit"):
        for rows in torch.randperm(len(tokens)).split(BATCH):
            noisy = tokens[rows] + NOISE * torch.randn(len(rows), tokens.shape[1])
            loss = F.cross_entropy(head(noisy), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():  # the standardisation moves into the first layer
        head[0].weight /= std
        head[0].bias -= head[0].weight @ mean


def refit(pipe: Pipeline, examples: Examples, name: str, photos: int, mixture: int, seed: int) -> None:
    """Fit the head of the label ``name`` anew, in place."""
    head = pipe.model.heads[name].mlp
    tap = TokenTap(head)
    if name not in examples.present or not examples.present[name].any():
        raise ValueError(f"no example has a {name}, so there is nothing to fit.")
    known = examples.present[name].nonzero()[:, 0]
    order = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))]
    read, mixed = order[:photos].sort().values, order.flip(0)[:mixture].sort().values
    there = examples.to(pipe.device)
    tokens = [
        reading_tokens(pipe, examples, read, name, tap),
        mixture_tokens(pipe, there, mixed, seed, tap),
    ]
    labels = examples.stored[name][torch.cat([read, mixed])].long()
    pipe.model.cpu().requires_grad_(True)
    fit(head, torch.cat(tokens), labels, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.training.refit", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--train", required=True, help="Parquet file of training examples")
    parser.add_argument("--out", required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--head", default="label", help="modality whose head is fitted (default: %(default)s)"
    )
    parser.add_argument("--photos", type=int, default=8192, help="whole photos to read at most")
    parser.add_argument("--mixture", type=int, default=3072, help="examples of the usual tasks at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    args = parser.parse_args(arguments)
    try:
        # in float32 the network that answers is the model itself, whose head is tapped
        pipe = Pipeline.from_pretrained(args.checkpoint, args.device, precision="float32")
        if min(args.photos, args.mixture) < 1:
            raise ValueError("--photos and --mixture must be 1 or more; the head is fitted to both.")
        if args.head not in pipe.modalities or pipe.modalities[args.head].kind != "label":
            raise ValueError(f"--head is {args.head!r}; name a label among {', '.join(pipe.modalities)}.")
        config = TrainConfig(pipe.model.config, DataConfig(margin=4))
        examples = load_examples(args.train, pipe.model, config, pipe.embedder)
        refit(pipe, examples, args.head, args.photos, args.mixture, args.seed)
    except ValueError as error:
        sys.exit(f"mmdiff.training.refit: {error}")
    save_checkpoint(pipe.model, args.out)


if __name__ == "__main__":
    main()
