"""Images and texts to unit vectors in one CLIP space, by any open_clip model."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
LOCAL_DIR = "local-dir:"  # open_clip's schema for a model in a folder


class ClipEmbedder:
    """A frozen CLIP model, loaded at its first use: open_clip alone takes seconds to import.

    Args:
        folder_or_tag: a folder with `open_clip_config.json` and `open_clip_model.safetensors`, or
            "model/tag" for weights that open_clip downloads, such as "ViT-B-32/laion2b_s34b_b79k"; these are
            downloaded at once.

    Attributes:
        dim: numbers of an embedding.
    """

    def __init__(self, folder_or_tag: str | Path, device: str | torch.device = "cpu"):
        self._name, self.device = str(folder_or_tag), torch.device(device)
        self._loading = threading.Lock()
        dim = _dim_of(Path(self._name)) if Path(self._name).is_dir() else None
        self.dim: int = dim or self.embed_texts([""]).shape[1]

    def __getattr__(self, name: str) -> Any:
        """What `_load` sets: model, tokenizer, image_size, mean, std."""
        if name.startswith("_"):
            raise AttributeError(name)
        with self._loading:
            if "model" not in vars(self):
                self._load()
        return object.__getattribute__(self, name)

    def _load(self) -> None:
        import open_clip

        name, tag = _resolve(self._name)
        try:
            model = open_clip.create_model(name, pretrained=tag, device=self.device)
        except Exception as error:
            if tag is None:
                raise
            raise RuntimeError(
                f"the weights of {self._name!r} could not be downloaded ({error}). Without internet, give "
                f"a folder that holds {CONFIG_NAME} and {WEIGHTS_NAME}: checkpoints/clip-tiny, or one that "
                "`python -m mmdiff.clip.train` writes"
            ) from error
        self.tokenizer = open_clip.get_tokenizer(name)
        preprocess = model.visual.preprocess_cfg
        size = preprocess["size"]
        self.image_size: int = size if isinstance(size, int) else size[0]
        self.mean = torch.tensor(preprocess["mean"], device=self.device).view(3, 1, 1)
        self.std = torch.tensor(preprocess["std"], device=self.device).view(3, 1, 1)
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Float images (B, 3, H, W) in [-1, 1] of any size to unit vectors (B, dim)."""
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"got {images.dtype} images of shape {tuple(images.shape)}, expected float (B, 3, H, W) in "
                "[-1, 1]; add the batch axis with images[None] and scale bytes with images / 127.5 - 1"
            )
        images = resize_square(images.to(self.device, torch.float32), self.image_size)
        return self.model.encode_image(((images + 1) / 2 - self.mean) / self.std, normalize=True)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to unit vectors (B, dim), cut off at the model's context length."""
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"got {texts!r}, expected a non-empty list of texts; put one text in a list")
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)


def resize_square(images: Tensor, size: int) -> Tensor:
    """The central square of images (B, 3, H, W) in [-1, 1] at (B, 3, size, size), bicubic and antialiased."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = images[..., top : top + side, left : left + side]
    return F.interpolate(square, size=(size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def _dim_of(folder: Path) -> int | None:
    """Numbers of an embedding, None if the configuration does not say. ValueError if files are missing."""
    # Checked here, because open_clip would use random weights or a pickle.
    missing = [name for name in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"the folder '{folder}' is not a CLIP checkpoint: {', '.join(missing)} is missing; "
            "`python -m mmdiff.clip.train --out FOLDER` writes one"
        )
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    return config.get("model_cfg", {}).get("embed_dim")


def _resolve(folder_or_tag: str) -> tuple[str, str | None]:
    """(model name, pretrained tag) as open_clip's factory takes them; ValueError if there is none."""
    import open_clip

    folder = Path(folder_or_tag)
    if folder.is_dir():
        return f"{LOCAL_DIR}{folder}", None
    name, _, tag = folder_or_tag.partition("/")
    if tag not in open_clip.list_pretrained_tags_by_model(name):
        raise ValueError(
            f"{folder_or_tag!r} is neither a folder nor a pretrained open_clip model; give a folder such as "
            "checkpoints/clip-tiny, or model/tag such as ViT-B-32/laion2b_s34b_b79k (all of them: "
            "`python -c 'import open_clip; print(open_clip.list_pretrained())'`)"
        )
    return name, tag
