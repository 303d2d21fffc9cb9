"""The status line of runs: where they stand in line, how far they are, and how they ended."""

from collections.abc import Sequence

from app.run.history import Track
from app.run.service import Waiting
from app.wording import duration, listed, status, steps_of
from mmdiff.request import SAMPLERS


def waiting(event: Waiting) -> str:
    """Why a run has not begun."""
    if not event.place:
        return "The model is still being loaded; your run starts by itself."
    before = f"{event.place - 1} are before you; yours starts by itself."
    return f"All places are taken. {before if event.place > 1 else 'Yours is the next run to start.'}"


def progress(begun: Sequence[Track]) -> str:
    """How far the slowest run is."""
    slowest = max((run.record for run in begun), key=lambda record: record.seconds_left)
    text = f"Step <b>{slowest.last.index}</b> of {slowest.request.steps} · "
    return status(f"{text}{duration(slowest.seconds_left)} left", _share(begun), "busy")


def summary(begun: Sequence[Track], note: str = "") -> str:
    """How all of them ended, and what else there is to say of them."""
    record = max((run.record for run in begun), key=lambda record: record.seconds)
    request = begun[0].record.request
    if not all(run.record.finished for run in begun):
        at = f"at step {record.last.index} of {record.request.steps}"
        text = f"<b>Stopped</b> {at}. Below is what the model expected by then"
    else:
        counts = list(dict.fromkeys(str(run.record.request.steps) for run in begun))
        steps = steps_of(record.request.steps) if len(counts) == 1 else f"{listed(counts)} steps"
        text = f"<b>Done</b> in {duration(record.seconds)} · {steps}"
    text += f" · seed {request.seed} · {SAMPLERS[request.sampler].partition(',')[0]}"
    return status(f"{text}. {note}" if note else text, _share(begun))


def _share(begun: Sequence[Track]) -> float:
    """The part of all steps of these runs that is done."""
    return sum(run.record.last.index for run in begun) / sum(run.record.request.steps for run in begun)
