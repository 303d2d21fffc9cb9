"""What taught the heads of a checkpoint, where that was less than all of its data.

A checkpoint folder may have a file `taught.json`, {modality: {"by": words, "labels": [class names]}}: only
examples of these labels had a value of the modality, so of others its head speaks of what it never saw.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "taught.json"


def read_taught(folder: Path | None) -> Mapping[str, Mapping[str, Any]]:
    """The content of a checkpoint folder's file; {} without one. Raises ValueError if it is malformed."""
    path = folder and folder / FILE
    if not path or not path.is_file():
        return {}
    try:
        taught = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"by": str(of["by"]), "labels": list(of["labels"])} for name, of in taught.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be used ({error!r}). Write "
            '{"mask": {"by": "street photos", "labels": ["street"]}}, or remove it.'
        ) from error
