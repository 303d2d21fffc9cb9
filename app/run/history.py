"""What a run has predicted so far, every step of it, kept small: what the page draws and people take home."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.run.job import Job


@dataclass(frozen=True)
class Frame:
    """Every head's prediction at one step, of all samples.

    Attributes:
        index: 1 ... the number of steps. t: the time the predictions were made at.
        x: name -> image (B, H, W, 3) uint8, mask (B, K, H, W) uint8 probabilities times 255, label (B, K)
            float32 probabilities, embedding (B, D) float32.
        classes: name of a mask -> (B, H, W) uint8, its likeliest classes.
    """

    index: int
    t: int
    x: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]


@dataclass
class Record:
    """A run and its frames.

    Attributes:
        job: what was asked. checkpoint: name of the model. frames: the steps done so far, in order.
        modalities: name -> spec, those given or wanted, in order.
        seconds: so far. stopped: whether it was ended before its last step.
    """

    job: Job
    checkpoint: str
    modalities: Mapping[str, Any]
    frames: list[Frame] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False

    def add(self, index: int, t: int, x_hat: Mapping[str, np.ndarray]) -> Frame:
        """Keeps a step's predictions, as `mmdiff.Pipeline.stream` gives them."""
        x, classes = {}, {}
        for name, spec in self.modalities.items():
            x[name] = x_hat[name]
            if spec.kind == "mask":
                x[name] = np.rint(255 * np.clip(x_hat[name], 0, 1)).astype(np.uint8)
                classes[name] = x_hat[name].argmax(1).astype(np.uint8)
        self.frames.append(Frame(index, t, x, classes))
        return self.frames[-1]

    @property
    def last(self) -> Frame:
        """The result, or what there was when the run was stopped."""
        return self.frames[-1]

    @property
    def num_samples(self) -> int:
        return self.job.num_samples

    def role(self, name: str) -> str:
        """What became of a modality: "given", "generated" or "filled in" (in the end, after all changes)."""
        now = self.job.conditions[-1]
        if name not in now.given:
            return "generated" if name in now.wanted else "ignored"
        return "filled in" if name in now.wanted else "given"


def uncertainty(frame: Frame, name: str, kind: str) -> np.ndarray:
    """How much the samples of a frame differ at each pixel: (H, W), 0 where they all agree, at most 1.

    Of a picture it is the standard deviation over the samples, root mean square over the colours, as a share
    of the largest there can be (half black, half white). Of a mask it is the entropy of the mean of the
    samples' class probabilities, as a share of log K.
    """
    x = frame.x[name].astype(np.float32) / 255
    if kind == "image":
        return np.sqrt(x.var(0).mean(-1)) / 0.5
    mean = x.mean(0)
    mean = mean / mean.sum(0).clip(1e-6)
    return -(mean * np.log(mean.clip(1e-12))).sum(0) / np.log(len(mean))


def areas(frame: Frame, name: str) -> np.ndarray:
    """Share of the picture that each class of a mask has: (B, K), rows sum to 1."""
    classes, count = frame.classes[name], frame.x[name].shape[1]
    return np.stack([(classes == k).mean((1, 2)) for k in range(count)], axis=1)
