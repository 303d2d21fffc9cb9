"""Install a better decoder in a checkpoint: one that was trained further with the encoder frozen.

python -m mmdiff.autoencoder.train --init checkpoints/autoencoder --decoder-only ... --out runs/decoder
python -m mmdiff.autoencoder.install checkpoints/scenes --autoencoder runs/decoder --out checkpoints/scenes
"""

import argparse
import sys
from pathlib import Path

from torch import nn

from mmdiff.autoencoder.network import Autoencoder
from mmdiff.checkpoint import load_checkpoint, resolve, save_checkpoint
from mmdiff.modalities.latent_image import LatentImageModality
from mmdiff.model import MultiModalDiffusion

CLOSE = 2e-3  # relative; checkpoints hold half precision


def install(model: MultiModalDiffusion, autoencoder: Autoencoder) -> None:
    """Replace the decoder of the model's photos, in place.

    Raises:
        ValueError: the model's photos are no latents, or of another encoder than the decoder was trained for.
    """
    anchor = model.modalities[model.anchor]
    if not isinstance(anchor, LatentImageModality):
        raise ValueError("the checkpoint diffuses pixels, which need no decoder.")
    for name in ("encoder", "norm"):
        if not _equal(getattr(anchor.autoencoder, name), getattr(autoencoder, name)):
            raise ValueError(
                "the autoencoder has another encoder than the checkpoint; train it with --init and "
                "--decoder-only from the one that the checkpoint was trained with."
            )
    anchor.autoencoder.decoder.load_state_dict(autoencoder.decoder.state_dict())


def _equal(mine: nn.Module, other: nn.Module) -> bool:
    """Whether all numbers agree, up to half precision, in which checkpoints hold them."""
    theirs = other.state_dict()
    return all(
        value.shape == theirs[name].shape
        and bool((value.float() - theirs[name].float()).norm() <= CLOSE * value.float().norm())
        for name, value in mine.state_dict().items()
        if value.is_floating_point()
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mmdiff.autoencoder.install", description=__doc__.splitlines()[0]
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint that diffuses latents, or a Hub id")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of the autoencoder")
    parser.add_argument("--out", required=True, help="checkpoint folder to write; may be the same")
    args = parser.parse_args(arguments)
    try:
        model = load_checkpoint(resolve(args.checkpoint))
        install(model, Autoencoder.from_pretrained(args.autoencoder))
    except ValueError as error:
        sys.exit(f"mmdiff.autoencoder.install: {error}")
    save_checkpoint(model, args.out)


if __name__ == "__main__":
    main()
