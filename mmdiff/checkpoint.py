"""Checkpoint folders: config.json, model.safetensors (half precision), README.md. No pickle is loaded.

Further weights may lie in model-*.safetensors, such as those of a head that was trained later; in the order
of these names they take the place of weights of the same name.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from mmdiff.config import ModelConfig, saved_model, to_dict
from mmdiff.files import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, write_text, write_weights
from mmdiff.first_edition.model import FirstEdition
from mmdiff.model import MultiModalDiffusion

VERSION = 1  # of config.json
FURTHER_FILES = "model-*.safetensors"
LOCAL = ("checkpoints/", "runs/")  # folders of this project; no owner on the Hub is meant
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def build_model(config: ModelConfig) -> MultiModalDiffusion:
    """The model of a configuration, with random weights."""
    return (MultiModalDiffusion if config.core == "levels" else FirstEdition)(config)


def save_checkpoint(model: MultiModalDiffusion, folder: str | Path, card: str | None = None) -> None:
    """Write ``model`` as a checkpoint folder; ``card`` is the text of its README.md, if it has one.

    Raises OSError as `write_tensors` does.
    """
    write_checkpoint(model.config, model.state_dict(), folder, card)


def write_checkpoint(
    config: ModelConfig, weights: Mapping[str, torch.Tensor], folder: str | Path, card: str | None = None
) -> None:
    """The same from a configuration and the state dict ``weights``, whole tensors on any device."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(weights, folder / WEIGHTS_FILE)
    for further in weights_files(folder)[1:]:  # of what was here before
        further.unlink()
    text = json.dumps({"format": "mmdiff", "version": VERSION, "model": to_dict(config)}, indent=2)
    write_text(folder / CONFIG_FILE, text + "\n")
    if card is not None:
        write_text(folder / CARD_FILE, card)


def weights_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's weights; of a name in several the last counts."""
    return [folder / WEIGHTS_FILE, *sorted(folder.glob(FURTHER_FILES))]


def resolve(name: str | Path) -> Path:
    """A local folder as it is, or a Hugging Face Hub id downloaded to the cache.

    Raises:
        ValueError: neither a folder nor a repository that can be reached.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    looks_like_hub_id = str(name).count("/") == 1 and not str(name).startswith((".", "/", "~", *LOCAL))
    if not looks_like_hub_id:
        place = "" if folder.is_absolute() else f" below {Path.cwd()}"
        raise ValueError(
            f"no checkpoint folder at {folder}{place}; give a folder with {CONFIG_FILE}, or a Hub id."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:
        raise ValueError(
            f"{name!r} is no local folder and could not be loaded from the Hugging Face Hub "
            f"({type(error).__name__}). Check the name and the network, or download the checkpoint elsewhere "
            "and give its folder."
        ) from error


def load_config(folder: Path) -> ModelConfig:
    """The model configuration of a checkpoint folder. Raises ValueError if it is missing or unusable."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("format") != "mmdiff":
            raise ValueError("it was not written by mmdiff")
        model, version = values["model"], values.get("version", 1)
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {error}. Download the checkpoint again.") from error
    if version not in range(1, VERSION + 1):
        raise ValueError(
            f"{path} is of version {str(version)[:20]}, but this mmdiff reads 1 to {VERSION}; update it."
        )
    try:
        return saved_model(model)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def load_checkpoint(name: str | Path, device: torch.device | str = "cpu") -> MultiModalDiffusion:
    """The model of a checkpoint folder or Hub id, in float32, in evaluation mode.

    Raises:
        ValueError: the weights are missing, damaged, pickled, not finite or of another architecture.
    """
    folder = resolve(name)
    config, weights = load_config(folder), folder / WEIGHTS_FILE
    if not weights.is_file():
        others = ", ".join(sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES))
        pickled = f" It has {others}, but pickled weights can run code and are not loaded." if others else ""
        raise ValueError(f"{folder} has no {WEIGHTS_FILE}.{pickled} Save the weights with mmdiff.train.")
    tensors: dict[str, torch.Tensor] = {}
    for file in weights_files(folder):
        tensors |= _read_weights(file, config if file == weights else None)
    try:
        model = build_model(config)
    except Exception as error:  # its options reach constructors of all kinds
        raise ValueError(f"{folder / CONFIG_FILE} cannot be used: {error}") from error
    try:
        model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{weights} does not fit {CONFIG_FILE} beside it: {error}") from error
    return model.to(device).eval().requires_grad_(False)


def _read_weights(file: Path, config: ModelConfig | None) -> dict[str, torch.Tensor]:
    """The tensors of a file, of which there must be enough for ``config``, if it is given."""
    try:
        if config:
            _check_size(file, config)
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file} is damaged or not a safetensors file ({error}). Download or train it again."
        ) from error
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"{file} holds numbers that are not finite, in {bad[0]}; its training had diverged, or the "
            "file is damaged. Take an earlier checkpoint, or download it again."
        )
    return tensors


def _check_size(weights: Path, config: ModelConfig) -> None:
    """Raises ValueError if the configuration asks for more weights than there are, before they are made."""
    with safe_open(weights, "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]
    # attention alone has four matrices of width x width in each block
    least = 4 * config.width**2 * config.depth
    if sum(map(math.prod, shapes)) < least:
        raise ValueError(
            f"{weights} does not fit {CONFIG_FILE} beside it, whose model has more than {least:,} weights."
        )
