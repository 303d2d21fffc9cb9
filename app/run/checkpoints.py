"""The models of the page: the checkpoint that is shown first and those beside it."""

import json
import logging
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from app.run.service import Service, Stops

log = logging.getLogger(__name__)
MAX_OTHERS = 7  # that are loaded, too; a folder of training runs may have any number
MAX_REASON = 300  # characters of why one is left out


def load_all(folder: str | Path, device: str = "auto", precision: str = "auto") -> list[Service]:
    """The checkpoint in `folder`, then the others beside it that can be loaded, at most `MAX_OTHERS`.

    `warm_up` is yet to come. What cannot be loaded is left out with one line in the log, whatever is wrong
    with it. Raises ValueError or OSError if `folder` itself cannot be loaded.
    """
    stops = Stops()
    load = partial(Service.from_checkpoint, device=device, precision=precision, stops=stops, warm=False)
    services = [load(folder)]
    for other in beside(folder):
        if len(services) > MAX_OTHERS:
            break
        try:
            services.append(load(other))
        except Exception as error:  # others may have put anything there
            _leave_out(other, error)
    return services


def warm_up(services: Sequence[Service]) -> None:
    """Warms them up one after the other, while visitors look at the page already."""

    def each() -> None:
        for service in services:
            service.warm_up()
            if service.error:
                log.error("%s cannot be used: %s", service.name, service.error)

    threading.Thread(target=each, name="warm-up", daemon=True).start()


def beside(folder: str | Path) -> list[Path]:
    """The checkpoints in the same folder as this one, without it, by name."""
    folder = Path(folder).resolve()
    return [path for path in sorted(folder.parent.iterdir()) if path != folder and _is_checkpoint(path)]


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a whole checkpoint of a diffusion model (embedders have other configurations)."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError) as error:
        _leave_out(path, error)
        return False
    ours = isinstance(config, dict) and config.get("format") == "mmdiff"
    return ours and (path / "model.safetensors").is_file()


def _leave_out(path: Path, error: Exception) -> None:
    why = " ".join(str(error).split())[:MAX_REASON]
    log.warning("%r is left out: %s", path.name, why or type(error).__name__)
