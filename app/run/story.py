"""How a run went, in one sentence: what was decided at which step."""

import numpy as np

from app.run.history import Frame, Record, distance
from app.wording import listed
from mmdiff.modalities import Modality

SETTLED = 0.9  # of the way to the final prediction
SHORTEST = dict.fromkeys(
    ("class", "class_map", "vector"), 0.5
)  # way, by form: what hardly changes is settled


def story(record: Record, sample: int) -> str:
    """Such as "At step 9 it settled on Monarch; the mask followed at step 11."; "" if there is none to tell.

    Modalities that are given are left out, see `settled_at` for the others.
    """
    if not record.finished or len(record.frames) < 3:
        return ""
    by_step: dict[int, list[Modality]] = {}
    for spec in sorted(settling(record), key=lambda spec: spec.form != "class"):
        by_step.setdefault(settled_at(record, spec, sample), []).append(spec)
    if not by_step:
        return ""
    first, *later = sorted(by_step)
    parts = [_first(record, by_step[first], first, sample)]
    followed = [f"{_named(record, by_step[step], sample)} at step {step}" for step in later]
    if followed:
        parts.append(f"{followed[0].replace(' at step', ' followed at step', 1)}{_more(followed[1:])}")
    return "; ".join(parts) + "."


def settling(record: Record) -> list[Modality]:
    """The modalities that a run creates or repaints."""
    return [
        spec for name, spec in record.modalities.items() if record.role(name) in ("generated", "filled in")
    ]


def settled_at(record: Record, spec: Modality, sample: int) -> int:
    """The index of the step from which on a modality is settled; that of the last one at the latest.

    It is settled where it has come `SETTLED` of the way from its first prediction to its last one, and stays
    so near. A way that is short counts as one of at least `SHORTEST`.
    """
    frames = record.frames
    apart = [_apart(frame, frames[-1], spec, sample) for frame in frames]
    near = (1 - SETTLED) * max(apart[0], SHORTEST.get(spec.form, 0))
    unsettled = [k for k, far in enumerate(apart) if far > near]
    return frames[unsettled[-1] + 1 if unsettled else 0].index


def _apart(frame: Frame, last: Frame, spec: Modality, sample: int) -> float:
    """How far a prediction is from the last one; at most 1 but for pictures."""
    x, end = (f.x[spec.name][sample] for f in (frame, last))
    if spec.form == "class":
        return float(np.abs(x - end).sum() / 2)
    if spec.form == "class_map":
        return float((frame.classes[spec.name][sample] != last.classes[spec.name][sample]).mean())
    return 1 - _cosine(x, end) if spec.form == "vector" else distance(x, end)


def _first(record: Record, specs: list[Modality], step: int, sample: int) -> str:
    if specs[0].form == "class" and len(specs) == 1:
        return f"At step {step} it settled on {_label(record, specs[0], sample)}"
    return f"At step {step} it settled {_named(record, specs, sample)}"


def _named(record: Record, specs: list[Modality], sample: int) -> str:
    labels = {spec.name: f" ({_label(record, spec, sample)})" for spec in specs if spec.form == "class"}
    return listed([f"the {spec.name}{labels.get(spec.name, '')}" for spec in specs])


def _label(record: Record, spec: Modality, sample: int) -> str:
    return spec.classes[int(record.last.x[spec.name][sample].argmax())]


def _more(followed: list[str]) -> str:
    return "".join(f", {words}" for words in followed)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


def how_settled(record: Record, frame: Frame, spec: Modality) -> np.ndarray:
    """How settled a modality seems at a step, from 0 to 1, while the end is not known: (B,), an estimate.

    Of a label it is the largest probability, of a mask the mean over its pixels, each from chance on; of a
    picture or an embedding how little it still changes, as a share of its largest change so far.
    """
    x = frame.x[spec.name]
    if spec.classes:
        most = x.max(1).astype(np.float32) / (255 if spec.form == "class_map" else 1)
        chance = 1 / len(spec.classes)
        return ((most.reshape(len(x), -1).mean(1) - chance) / (1 - chance)).clip(0, 1)
    changes = [f.change[spec.name] for f in record.frames if f.index <= frame.index and spec.name in f.change]
    return 1 - changes[-1] / np.max(changes, axis=0).clip(1e-9) if changes else np.zeros(len(x))
