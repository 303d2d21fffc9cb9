"""Atomic writes: a file is written under a temporary name, flushed to the disk, then renamed."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

# files of a folder with trained weights
CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"


def write_weights(weights: Mapping[str, torch.Tensor], path: Path) -> None:
    """`write_tensors` in half precision, for inference."""
    write_tensors({n: t.half() if t.is_floating_point() else t for n, t in weights.items()}, path)


def write_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    metadata: dict[str, str] | None = None,
    backup: Path | None = None,
) -> None:
    """Write a safetensors file so that ``path`` holds either the old or the new content, never a part.

    The old file is renamed to ``backup``, if given. A kill between the two renames leaves only the backup.

    Raises:
        OSError: it cannot be written, as on a full disk; the old file stays as it was.
    """
    with _replacing(path, backup) as temporary:
        whole = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        try:
            save_file(whole, temporary, metadata)
        except SafetensorError as error:  # it wraps the errors of the disk
            raise OSError(f"{path}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file likewise. Raises OSError as `write_tensors` does."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _replacing(path: Path, backup: Path | None = None) -> Iterator[Path]:
    """The temporary name of a file to write; it replaces ``path`` once it is complete and on the disk."""
    temporary = path.with_suffix(path.suffix + ".part")
    try:
        yield temporary
        _flush(temporary)
        if backup and path.exists():
            os.replace(path, backup)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a power failure."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
