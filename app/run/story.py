"""How a run went, in one sentence: what was decided at which step."""

from collections.abc import Callable

import numpy as np

from app.run.history import Frame, Record, distance
from app.wording import listed
from mmdiff.modalities import Modality

SURE = 0.5  # probability from which a label is settled
ALIKE = 0.95  # share of a mask's pixels, or cosine of an embedding, from which it is the final one
NEAR = 0.1  # of the way from the first prediction of a picture to the last one


def story(record: Record, sample: int) -> str:
    """Such as "At step 9 it settled on Monarch; the mask followed at step 11."; "" if there is none to tell.

    A modality is settled from the step on at which its prediction equals the last one, or nearly so, and
    stays like that. Modalities that are given are left out.
    """
    if not record.finished or len(record.frames) < 3:
        return ""
    own = [
        spec for name, spec in record.modalities.items() if record.role(name) in ("generated", "filled in")
    ]
    by_step: dict[int, list[Modality]] = {}
    for spec in sorted(own, key=lambda spec: spec.form != "class"):
        by_step.setdefault(settled_at(record, spec, sample), []).append(spec)
    if not by_step:
        return ""
    first, *later = sorted(by_step)
    parts = [_first(record, by_step[first], first, sample)]
    followed = [f"{_named(record, by_step[step], sample)} at step {step}" for step in later]
    if followed:
        parts.append(f"{followed[0].replace(' at step', ' followed at step', 1)}{_more(followed[1:])}")
    return "; ".join(parts) + "."


def settled_at(record: Record, spec: Modality, sample: int) -> int:
    """The index of the step from which on a modality is settled; that of the last one at the latest."""
    is_settled = _test(record.frames, spec, sample)
    unsettled = [k for k, frame in enumerate(record.frames) if not is_settled(frame)]
    return record.frames[min(unsettled[-1] + 1 if unsettled else 0, len(record.frames) - 1)].index


def _test(frames: list[Frame], spec: Modality, sample: int) -> Callable[[Frame], bool]:
    """Whether a frame has the final prediction of a modality already."""
    last = frames[-1].x[spec.name][sample]
    if spec.form == "class":
        best = last.argmax()
        return lambda frame: (
            frame.x[spec.name][sample].argmax() == best and frame.x[spec.name][sample][best] > SURE
        )
    if spec.form == "class_map":
        final = frames[-1].classes[spec.name][sample]
        return lambda frame: (frame.classes[spec.name][sample] == final).mean() >= ALIKE
    if spec.form == "vector":
        return lambda frame: _cosine(frame.x[spec.name][sample], last) >= ALIKE
    way = distance(frames[0].x[spec.name][sample], last)
    return lambda frame: distance(frame.x[spec.name][sample], last) <= NEAR * way


def _first(record: Record, specs: list[Modality], step: int, sample: int) -> str:
    if specs[0].form == "class" and len(specs) == 1:
        return f"At step {step} it settled on {_label(record, specs[0], sample)}"
    return f"At step {step} it settled {_named(record, specs, sample)}"


def _named(record: Record, specs: list[Modality], sample: int) -> str:
    names = [f"the {spec.name}" for spec in specs]
    labels = [_label(record, spec, sample) for spec in specs if spec.form == "class"]
    return listed(names).replace("the label", f"the label ({labels[0]})") if labels else listed(names)


def _label(record: Record, spec: Modality, sample: int) -> str:
    return spec.classes[int(record.last.x[spec.name][sample].argmax())]


def _more(followed: list[str]) -> str:
    return "".join(f", {words}" for words in followed)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-9))


def how_settled(record: Record, frame: Frame, spec: Modality) -> np.ndarray:
    """How settled a modality seems at a step, from 0 to 1, while the end is not known: (B,).

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
