"""A pipeline without a network, with the interface of `mmdiff.Pipeline`, and a served page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmdiff.clip.vocabulary import Description, Vocabulary, Words
from mmdiff.config import ModalityConfig
from mmdiff.modalities import Modality, build_modality
from mmdiff.pipeline import Run
from mmdiff.request import Limits, Request
from mmdiff.schedule import LEVEL_MAX, NoiseSchedule
from mmdiff.serving.denoising import Step
from mmdiff.serving.engine import Engine

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # for the clients in the tests; the page never reports


def make_specs(size: int, labels: Sequence[str], classes: Sequence[str]) -> dict[str, Modality]:
    """The four kinds of modality that come along."""
    options = {
        "image": {},
        "mask": {"classes": classes},
        "label": {"classes": labels},
        "embedding": {"dim": 16},
    }
    return {n: build_modality(ModalityConfig(n, n, options=of), size, 8) for n, of in options.items()}


LABELS = (
    "Apple Braeburn",
    "Apple Golden",
    "Apple Red",
    "Cherry Rainier",
    "Cherry Wax",
    "Tomato Heart",
    "Tomato Maroon",
)
COLOURS = np.array(
    [[168, 50, 44], [214, 178, 66], [190, 28, 38], [224, 120, 88], [96, 20, 34], [206, 66, 42], [112, 46, 40]]
)


VOCABULARY = Vocabulary.from_captions(
    [f"a photo of a {colour} {name.split()[0].lower()}" for name in LABELS for colour in ("red", "dark red")],
    [label for label in range(len(LABELS)) for _ in range(2)],
    LABELS,
)


class LetterEmbedder:
    """Texts by their bytes."""

    dim = 16

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.from_numpy(np.stack([_unit(sum(text.encode()), self.dim) for text in texts]))


SCHEDULE = SimpleNamespace(num_steps=1000, abar=torch.linspace(0, torch.pi / 2, 1001).cos() ** 2)


class FakePipeline:
    """Draws a disc: its colour is the label, its place comes from the seed, its mask is the disc.

    With `leads` its modalities have levels, as those of models that are told them.
    """

    def __init__(
        self,
        size: int = 64,
        step_seconds: float = 0.0,
        modalities: tuple[str, ...] = ("image", "mask", "label"),
        capacity: int = 32,
        leads: Mapping[str, float] | None = None,
    ) -> None:
        specs = make_specs(size, LABELS, ("background", "fruit"))
        self.modalities = {name: spec for name, spec in specs.items() if name in modalities}
        self.leads = leads
        for name, spec in self.modalities.items():
            spec.lead = None if leads is None else leads.get(name, 0.0)
        self.size, self.step_seconds = size, step_seconds
        self.device, self.schedule = SimpleNamespace(type="cpu"), SCHEDULE
        self.has_text = self.can_describe = "embedding" in self.modalities
        self.words = Words(LetterEmbedder(), VOCABULARY)
        self.calls: list[Request] = []
        self.engine = Engine(self._answer, capacity, background=True)
        self.broken: Exception | None = None

    def compile(self) -> bool:
        return False

    def describe(self, vectors: np.ndarray, count: int = 5) -> list[Description]:
        return self.words.describe(vectors, count)

    def start(self, request: Request, limits: Limits) -> Run:
        request = request.checked(self.modalities, self.schedule.num_steps, limits)
        self.calls.append(request)
        return Run(self.engine, FakeRun(self, request))

    def levels(self, request: Request, t: int) -> dict[str, float]:
        """Of every modality at a time; none without leads."""
        if self.leads is None:
            return {}
        leads = self.leads if request.leads is None else request.leads
        schedule = NoiseSchedule(self.schedule.num_steps, tuple(self.modalities), leads)
        levels = {name: table[t].item() for name, table in schedule.level.items()}
        return levels | dict.fromkeys(set(request.given) - set(request.wanted), LEVEL_MAX)

    def _answer(self, queries):
        time.sleep(self.step_seconds)
        if self.broken:
            raise self.broken
        return queries

    def _target(self, seed: int, given: dict[str, Any]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        label = LABELS.index(given["label"]) if "label" in given else int(rng.integers(len(LABELS)))
        rows, columns = np.mgrid[: self.size, : self.size] / self.size - 0.5
        x, y, radius = *rng.uniform(-0.08, 0.08, 2), rng.uniform(0.26, 0.36)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        light = np.clip(1.25 - 1.4 * np.hypot(rows - y + 0.1, columns - x + 0.1), 0.5, 1.3)[..., None]
        image = np.where(inside[..., None], np.clip(COLOURS[label] * light, 0, 255), 255)
        mask = np.stack([~inside, inside]).astype(np.float32)
        return {
            "image": image,
            "mask": mask,
            "label": np.eye(len(LABELS), dtype=np.float32)[label],
            "embedding": _unit(sum(LABELS[label].encode()), 16),
            "depth": np.where(inside, 0.5, -1.0)[None],
        }

    def _blur(
        self, target: dict[str, np.ndarray], noise: float, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        grain = rng.normal(128, 40, target["image"].shape)
        flat = np.full_like(target["label"], 1 / len(LABELS))
        vector = (1 - noise) * target["embedding"] + noise * _unit(int(rng.integers(999)), 16)
        return {
            "image": np.clip((1 - noise) * target["image"] + noise * grain, 0, 255).astype(np.uint8),
            "mask": ((1 - noise) * target["mask"] + noise / 2).astype(np.float32),
            "label": (1 - noise) * target["label"] + noise * flat,
            "embedding": (vector / np.linalg.norm(vector)).astype(np.float32),
            "depth": ((1 - noise) * target["depth"]).astype(np.float32),
        }

    def _keep_given(
        self, x_hat: dict[str, np.ndarray], given: dict[str, Any], known: np.ndarray | None
    ) -> None:
        if "image" in given:
            photo = np.asarray(given["image"])
            keep = np.ones(photo.shape[:2], dtype=bool) if known is None else np.asarray(known)
            x_hat["image"][:, keep] = photo[keep]
        if "mask" in given:
            indices = np.asarray(given["mask"])
            x_hat["mask"][:] = np.stack([indices == k for k in range(2)])
        if isinstance(given.get("embedding"), str):
            x_hat["embedding"][:] = self.words.embedder.embed_texts([given["embedding"]]).numpy()


class FakeRun:
    """A member of the engine: every step a little less blurred; what is given may change on the way."""

    def __init__(self, pipe: FakePipeline, request: Request) -> None:
        self.pipe, self.request = pipe, request
        self.began = 0.0
        self.rows, self.index, self.rng = request.num_samples, 0, np.random.default_rng(request.seed)

    @property
    def done(self) -> bool:
        return self.index == self.request.steps

    def queries(self) -> list[int]:
        self.began = self.began or time.perf_counter()
        return [self.request.seed + k for k in range(self.rows)]

    def advance(self, answers: list[int]) -> Step:
        begun = [change for change in self.request.changes if change.after <= self.index]
        now = begun[-1].request if begun else self.request
        self.index += 1
        steps = self.request.steps
        noise = 1 - self.index / steps
        samples = [
            self.pipe._blur(self.pipe._target(seed, dict(now.given)), noise, self.rng) for seed in answers
        ]
        x_hat = {name: np.stack([sample[name] for sample in samples]) for name in self.request.shown}
        self.pipe._keep_given(x_hat, dict(now.given), now.known_pixels)
        t = round(1000 * (1 - ((self.index - 1) / steps) ** 2))
        seconds, levels = time.perf_counter() - self.began, self.pipe.levels(self.request, t)
        noisy = {n: self._state(n, value, t) for n, value in x_hat.items() if n in ("image", "mask")}
        return Step(self.index, steps, t, x_hat, torch.zeros(0), seconds, levels=levels, noisy=noisy)

    def _state(self, name: str, prediction: np.ndarray, t: int) -> np.ndarray:
        """What the state at a time shows of a prediction: nothing but noise at first."""
        share, rng = t / self.pipe.schedule.num_steps, np.random.default_rng(self.request.seed + t)
        if name == "mask":
            lost = rng.random(prediction[:, 0].shape) < share
            return np.where(lost, rng.integers(0, 2, lost.shape), prediction.argmax(1))
        grain = rng.normal(128, 64, prediction.shape)
        return ((1 - share) * prediction + share * grain).clip(0, 255).astype(np.uint8)


def _unit(seed: int, dim: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def photo(size: tuple[int, int] = (120, 90), seed: int = 3) -> Image.Image:
    """A colourful picture (width, height) in which every pixel differs from its neighbours."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@contextmanager
def served(*services: Any, **options: Any) -> Iterator[str]:
    """The page of these services on a free port; yields its address. The options are those of `launch`."""
    from app.ui import build_demo, launch

    demo = build_demo(services)
    try:
        yield launch(demo, prevent_thread_lock=True, quiet=True, **options)[1].rstrip("/")
    finally:
        demo.close(verbose=False)
