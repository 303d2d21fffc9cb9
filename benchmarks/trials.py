"""Trials: evaluations of compared systems, each of which fills holes and makes photos in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.classifier_guidance import guided, log_probabilities, noisy_scores
from benchmarks.repaint import repainted
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples
from mmdiff.evaluation.classical_inpainting import CLASSICAL_METHODS
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.likeness import load_features
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.modalities import Modality
from mmdiff.samplers import Encodings, SampleNoise, sample_ddim, timesteps

Features = Callable[[Tensor], Tensor]


@dataclass(eq=False)
class Reference:
    """Real photos that generated ones are compared with, in two feature spaces.

    Attributes:
        train: training examples. modalities: of the models, which say how photos are cut.
        judge: whose features before the last layer are the second space. count: photos a set.
    """

    train: Examples
    modalities: Mapping[str, Modality]
    judge: Classifier
    count: int
    seed: int = 0

    @cached_property
    def spaces(self) -> dict[str, Features]:
        """AlexNet's features, which are made for any photos, and the judge's, made for these."""
        return {"": load_features(torch.device("cpu")), "judge_": partial(judge_features, self.judge)}

    @cached_property
    def real(self) -> tuple[Tensor, Tensor]:
        """Two sets of training photos without a common one, (count, 3, H, W) in [-1, 1] each if there are as
        many.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(self.seed))
        count = min(self.count, len(order) // 2)
        return self.photos(order[:count]), self.photos(order[count : 2 * count])

    @cached_property
    def features(self) -> dict[str, Tensor]:
        """The first set in every space."""
        return {name: space(self.real[0]) for name, space in self.spaces.items()}

    @cached_property
    def classes(self) -> list[Tensor]:
        """AlexNet's features of the training photos of every class."""
        labels = self.train.stored["label"]
        rows = [
            (self.train.present["label"] & (labels == k)).nonzero()[:, 0]
            for k in range(len(self.modalities["label"].classes))
        ]
        space = self.spaces[""]
        return [space(self.photos(own)) if len(own) else torch.empty(0, 1) for own in rows]

    def photos(self, rows: Tensor) -> Tensor:
        """The central squares of training photos, (n, 3, H, W) in [-1, 1]."""
        return draw_batch(self.train, self.modalities, rows, None, flip=False)[0]["image"]


@torch.no_grad()
def judge_features(judge: Classifier, photos: Tensor) -> Tensor:
    """What the judge's last layer reads: (n, 3, H, W) -> (n, width)."""
    chunks = (judge.blocks(judge.stem(judge.sized(chunk))).mean((2, 3)) for chunk in photos.split(256))
    return torch.cat([chunk.float() for chunk in chunks])


@dataclass(eq=False)
class Trial(Evaluation):
    """An evaluation of a system that uses some of the modalities.

    Attributes:
        used: names of them, the photo first. reference: what its photos are compared with.
    """

    used: tuple[str, ...] = ()
    reference: Reference | None = None

    @property
    def calls(self) -> int:
        """Calls of the network that fill a hole."""
        return self.settings.filling_steps or self.settings.steps

    def filled(self, photos: Tensor, known: Tensor) -> Tensor:
        """The photos (n, 3, H, W) inpainted where not ``known`` (n, H, W), with all else generated, too."""
        return self.inpaint("holes", self.used, {"image": photos}, known)["image"]

    @torch.no_grad()
    def unpasted(self, photos: Tensor, known: Tensor) -> Tensor:
        """The same as the network's last prediction has it, also of the pixels that are known."""
        out = []
        for rows in torch.arange(len(photos)).split(self.settings.batch):
            with self.precise():
                out.append(self._predicted(photos[rows], known[rows, None].float(), self.seeds(rows)))
        return torch.cat(out)

    def made(self, count: int) -> dict[str, Tensor]:
        """All that the system uses, generated with nothing given: name -> (count, ...)."""
        return self.sample("made", self.used, count)

    def images_from(self, title: str, count: int, **given: Tensor) -> Tensor:
        """Photos of other modalities (count, ...), guided by them, with all else generated, too."""
        wanted = [name for name in self.used if name not in given]
        return self.sample(title, wanted, count, given, guidance_scale=self.settings.guidance)["image"]

    def precise(self) -> Any:
        """The precision that the pipeline computes in, for calls of the network beside it."""
        enabled = self.pipe.precision != torch.float32
        return torch.autocast(self.pipe.device.type, torch.bfloat16, enabled=enabled)

    def times(self, steps: int) -> list[int]:
        """The times of a run of so many steps."""
        schedule = self.pipe.schedule
        return timesteps(schedule.num_steps, steps, schedule.spacing)

    def _predicted(self, photos: Tensor, known: Tensor, seeds: list[int]) -> Tensor:
        model, schedule, eta = self.pipe.model, self.pipe.schedule, self.settings.eta
        nothing = model.nothing_given(len(photos), self.pipe.device, self.used)
        e = model.encode_given({model.anchor: photos}, model.encode({model.anchor: photos}), known)
        seen = model.condition(e, nothing.flags, known, photos)
        denoise, noise = model.denoiser(schedule, seen), SampleNoise(seeds)
        sampler = sample_ddim(schedule, noise(model.z_shape), self.times(self.calls), noise, eta)
        z, t, _ = next(sampler)
        while t > 0:
            clean, x_hat = denoise(z, t)
            z, t, _ = sampler.send(clean)
        return x_hat[model.anchor]


@dataclass(eq=False)
class RePaintTrial(Trial):
    """Holes are filled by RePaint: ``resamples`` calls for each of the steps that the others take."""

    resamples: int = 10

    @property
    def calls(self) -> int:
        return super().calls * self.resamples

    def filled(self, photos: Tensor, known: Tensor) -> Tensor:
        with self.precise():
            return repainted(self, photos, known, super().calls, self.resamples)


@dataclass(eq=False)
class ClassicalTrial(Trial):
    """Holes are filled by a method that learns nothing."""

    method: str = "telea"
    calls = 0

    def filled(self, photos: Tensor, known: Tensor) -> Tensor:
        return CLASSICAL_METHODS[self.method](photos, known)


@dataclass(eq=False)
class GuidedTrial(Trial):
    """Photos of labels by classifier guidance; labels of photos by the classifier.

    Attributes:
        reader: a network trained by `benchmarks.systems.NoisyClassifier`.
    """

    reader: Any = field(default=None)

    def made(self, count: int) -> dict[str, Tensor]:
        photos = self.sample("made", ("image",), count)["image"]
        return {"image": photos, "label": self.predict("label", photos)}

    @torch.no_grad()
    def predict(self, name: str, photos: Tensor) -> Tensor:
        """Probabilities of the labels of whole photos, (n, K), as if they were hardly noisy."""
        model, schedule = self.reader, self.pipe.schedule
        out = []
        for chunk in photos.split(self.settings.batch):
            with self.precise():
                z = model.encode({model.anchor: chunk})[model.anchor]
                out.append(log_probabilities(model, schedule, z, 1).softmax(1))
        return torch.cat(out)

    @torch.no_grad()
    def images_from(self, title: str, count: int, **given: Tensor) -> Tensor:
        out = []
        for rows in torch.arange(count).split(self.settings.batch):
            with self.precise():
                out.append(self._guided(given["label"][rows], self.seeds(rows)))
        return torch.cat(out)

    def _guided(self, labels: Tensor, seeds: list[int]) -> Tensor:
        model, schedule = self.pipe.model, self.pipe.schedule
        denoise = model.denoiser(
            schedule, model.nothing_given(len(labels), self.pipe.device, (model.anchor,))
        )

        def unconditional(z: Tensor, t: int) -> Encodings:
            return denoise(z, t)[0]

        noise, s = SampleNoise(seeds), self.settings
        sampler = sample_ddim(schedule, noise(model.z_shape), self.times(s.steps), noise, s.eta)
        scores = noisy_scores(self.reader, schedule, labels)
        clean = guided(schedule, sampler, unconditional, scores, s.guidance, most=1.0)
        return model.modalities[model.anchor].decode(model.channels.take(model.anchor, clean[model.anchor]))
