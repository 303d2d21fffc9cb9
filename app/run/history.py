"""The history of a run: what every head predicted at each step, in few bytes, for player and downloads."""

import threading
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from app.pictures import colour_mask
from mmdiff.modalities import Modality
from mmdiff.request import Request
from mmdiff.serving.denoising import Step

Later = Callable[[], Step]  # computes a step
TOP = 5  # classes that `in_words` names


@dataclass(frozen=True)
class Frame:
    """Every head's prediction at one step, of all samples.

    Attributes:
        index: 1 ... the number of steps. t: the time the predictions were made at.
        x: name -> predictions as in `mmdiff.pipeline`, (B, ...): of the image (B, H, W, 3) uint8; of class
            maps the probabilities times 255, (B, K, H, W) uint8.
        classes: name of a class map -> (B, H, W) uint8, its likeliest classes.
        change: name of a picture or a vector -> (B,), the distance to the frame before, per step between
            them; {} at the first.
        levels: name -> log signal-to-noise ratio at which the network saw it, see `Step.levels`.
        noisy: name -> what z_t itself shows of it, as `Step.noisy`, class numbers as uint8; {} unless the
            record has it.
    """

    index: int
    t: int
    x: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]
    change: Mapping[str, np.ndarray] = field(default_factory=dict)
    levels: Mapping[str, float] = field(default_factory=dict)
    noisy: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Record:
    """A run and its frames.

    Attributes:
        request: what was asked, complete. checkpoint: name of the model.
        modalities: name -> spec, those given or wanted, in order.
        describe: embeddings (B, D) -> a `mmdiff.clip.vocabulary.Description` of each, or [].
        taught: modalities that a part of the data taught, see `app.run.taught`.
        frames: the steps done so far, in order. seconds: that they took.
        between: further steps, which came too soon to be seen and are yet to be computed.
        noisy: whether the frames have the noisy states of what is not given, too.
    """

    request: Request
    checkpoint: str
    modalities: Mapping[str, Modality]
    describe: Callable[[np.ndarray], Sequence[Any]] = lambda vectors: []
    taught: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    between: list[Later] = field(default_factory=list)
    seconds: float = 0.0
    noisy: bool = False
    _completing: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def add(self, step: Step) -> Frame:
        """Keeps the predictions of a step of `mmdiff.Pipeline.start`, in the order of their indices."""
        self.seconds = max(self.seconds, step.seconds)
        place = bisect(self.frames, step.index, key=lambda frame: frame.index)
        x, classes = {}, {}
        for name, spec in self.modalities.items():
            x[name] = step.x_hat[name]
            if spec.form == "class_map":
                x[name] = np.rint(255 * np.clip(x[name], 0, 1)).astype(np.uint8)
                classes[name] = step.x_hat[name].argmax(1).astype(np.uint8)
        change = self._change(self.frames[place - 1], step.index, x) if place else {}
        noisy = self._noisy(step) if self.noisy else {}
        frame = Frame(step.index, step.t, x, classes, change, step.levels, noisy)
        self.frames.insert(place, frame)
        return frame

    def complete(self, stop: threading.Event | None = None) -> bool:
        """Adds the steps between, those that there are until `stop` is set; whether none is left."""
        with self._completing:
            while self.between and not (stop and stop.is_set()):
                self.add(self.between.pop(0)())
        return not self.between

    def _change(self, before: Frame, index: int, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`Frame.change` of the predictions ``x`` at the step ``index``."""
        moving = [spec.name for spec in self.of_form("picture", "vector")]
        pairs = {name: zip(before.x[name], x[name], strict=True) for name in moving}
        steps = index - before.index
        return {name: np.array([distance(*pair) for pair in pairs[name]]) / steps for name in moving}

    def _noisy(self, step: Step) -> dict[str, np.ndarray]:
        """What z_t shows of those dense modalities that are not given: the network sees these clean."""
        shown = {
            spec.name: step.noisy.get(spec.name) for spec in self.dense if self.role(spec.name) != "given"
        }
        seen = {name: value for name, value in shown.items() if value is not None}
        maps = {spec.name for spec in self.of_form("class_map")}
        return {name: value.astype(np.uint8) if name in maps else value for name, value in seen.items()}

    @property
    def last(self) -> Frame:
        """The result, or the last step before the run was stopped."""
        return self.frames[-1]

    @property
    def finished(self) -> bool:
        """Whether all its steps are there."""
        return bool(self.frames) and self.last.index == self.request.steps

    @property
    def seconds_left(self) -> float:
        """An estimate, from the steps so far."""
        return self.seconds / self.last.index * (self.request.steps - self.last.index)

    @property
    def dense(self) -> list[Modality]:
        """The modalities that are shown as pictures, in order."""
        return [spec for spec in self.modalities.values() if spec.dense]

    def of_form(self, *forms: str) -> list[Modality]:
        """The modalities of these forms, in order."""
        return [spec for spec in self.modalities.values() if spec.form in forms]

    def role(self, name: str) -> str:
        """What a modality is after all changes: "given", "generated", "filled in" or "ignored"."""
        now = self.request.conditions[-1]
        if name not in now.given:
            return "generated" if name in now.wanted else "ignored"
        return "filled in" if name in now.wanted else "given"

    def said(self, spec: Modality, vectors: np.ndarray) -> Sequence[Any]:
        """What the model says of these embeddings (B, D), see `describe`; [] if it has no words for them."""
        return self.describe(vectors) if spec.takes_text else []

    def in_words(self, spec: Modality) -> list[dict[str, Any] | None]:
        """The last prediction of each sample as JSON values, None where there is nothing to say.

        The likeliest classes with their probabilities, the areas of a class map, or the nearest texts.
        """
        x = self.last.x[spec.name]
        if spec.form == "class":
            likeliest = np.argsort(-x, axis=1, kind="stable")[:, :TOP]
            return [_rounded(spec, p, order) for p, order in zip(x, likeliest, strict=True)]
        if spec.form == "class_map":
            return [_rounded(spec, row, range(len(row))) for row in areas(self.last, spec)]
        return [description.as_dict() for description in self.said(spec, x)] or [None] * len(x)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square difference."""
    return float(np.sqrt(((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean()))


def _rounded(spec: Modality, shares: np.ndarray, order: Sequence[int]) -> dict[str, float]:
    return {spec.classes[k]: round(float(shares[k]), 5) for k in order}


@dataclass(frozen=True)
class Track:
    """A run in the player.

    Attributes:
        id: unique for each run. title: shown when there are two tracks.
        running: whether frames are still to come. since: only frames with a larger index are sent.
        sent: indices of frames that are not sent again.
        fork_step: up to this step the track equals the first one.
    """

    id: str
    title: str
    record: Record
    running: bool = False
    since: int = 0
    sent: frozenset[int] = frozenset()
    fork_step: int | None = None


def picture_of(frame: Frame, spec: Modality, sample: int) -> Image.Image:
    """A sample of a dense modality: RGB, or a palette picture of class numbers."""
    values = frame.classes if spec.form == "class_map" else frame.x
    return _picture(values[spec.name][sample], spec)


def noisy_picture_of(frame: Frame, spec: Modality, sample: int) -> Image.Image:
    """The noisy state in which a sample of a dense modality was, in the form of `picture_of`."""
    return _picture(frame.noisy[spec.name][sample], spec)


def _picture(value: np.ndarray, spec: Modality) -> Image.Image:
    if spec.form == "class_map":
        return colour_mask(value, spec.palette)
    if value.dtype == np.uint8:  # of the image, which comes as pixels
        return Image.fromarray(value)
    return spec.preview(value).convert("RGB")


def uncertainty(frame: Frame, spec: Modality) -> np.ndarray:
    """How much the samples of a frame differ at each pixel: (H, W), 0 where they all agree, at most 1.

    Of a picture it is the standard deviation over the samples, root mean square over the colours, as a share
    of the largest there can be (half black, half white). Of a class map it is the entropy of the mean of the
    samples' class probabilities, as a share of log K.
    """
    x = frame.x[spec.name]
    if spec.form == "picture":
        pixels = np.stack([np.asarray(picture_of(frame, spec, k), np.float32) for k in range(len(x))])
        return np.sqrt((pixels / 255).var(0).mean(-1)) / 0.5
    mean = (x.astype(np.float32) / 255).mean(0)
    mean = mean / mean.sum(0).clip(1e-6)
    return -(mean * np.log(mean.clip(1e-12))).sum(0) / np.log(len(mean))


def areas(frame: Frame, spec: Modality) -> np.ndarray:
    """Share of the picture that each class of a class map has: (B, K), rows sum to 1."""
    classes = frame.classes[spec.name]
    return np.stack([(classes == k).mean((1, 2)) for k in range(len(spec.classes))], axis=1)
