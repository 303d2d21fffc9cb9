"""One request on its way through the engine: a sampler, what the network sees, and changes of conditions."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmdiff.guidance import guide
from mmdiff.lazy_mapping import LazyMapping
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN, Call, Conditioning
from mmdiff.request import Request
from mmdiff.samplers import SAMPLERS, Encodings, SampleNoise, Sampler, clean_signal, timesteps
from mmdiff.schedule import LEVEL_MAX, LEVEL_MIN, NoiseSchedule

# Time, as a share of T, at which modalities of `sample_first` are sampled. Much above it heads are undecided
# and samples fall on few classes; below it the photo takes shape without them.
FIRST_SAMPLED_AT = 0.9
OWN_NUMBERS = 1 << 62  # flips a bit of a seed, for random numbers apart from the sampler's


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        index, total: 1 ... total. t: the time the predictions were made at.
        x_hat: name -> (B, ...), every head's clean prediction, with what is given in it. As arrays: image
            (B, H, W, 3) uint8, mask (B, K, H, W) and label (B, K) probabilities, embedding (B, D).
        z: (B, *Z), the state after the step.
        seconds: since the run began.
        output: the finished `mmdiff.pipeline.Output` on the last step, None before.
        levels: name -> log signal-to-noise ratio at which the network saw each modality: `LEVEL_MAX` if it is
            given, `LEVEL_MIN` if it is ignored.
        noisy: name -> (B, ...), what z_t, from which the predictions were made, shows of each dense modality
            itself, see `Modality.decode`; computed when looked at. As arrays: image (B, H, W, 3) uint8, mask
            (B, H, W) class numbers. None for a modality that cannot be read off z_t.
    """

    index: int
    total: int
    t: int
    x_hat: Mapping[str, Any]
    z: Tensor
    seconds: float
    output: Any = None
    levels: Mapping[str, float] = field(default_factory=dict)
    noisy: Mapping[str, Any] = field(default_factory=dict)


class Denoising:
    """A member of `mmdiff.serving.engine.Engine` that makes the steps of a request.

    The request's conditions hold from the start. At a change the samples go on from where they are: a
    modality that becomes given replaces what z holds of it, under the same noise; one that becomes free stays
    as it is until the network predicts something else; one that is ignored keeps its last prediction.

    A modality of `Request.sample_first` is sampled from what its head predicts as soon as z is no longer
    noise alone, and is given from there on. That is the chain rule, p(x_i) p(the rest | x_i), with guidance
    in its second factor.

    Args:
        network: the model itself, or its copy of lower precision, whose answers are decoded.
        request: with values in `given` as tensors (B, *shape) on the device, and `known_pixels` (B, H, W).
        seeds: one a sample. present: makes the step that is handed out.

    Attributes:
        rows: samples in one call of the network, at most.
    """

    def __init__(
        self,
        model: MultiModalDiffusion,
        network: MultiModalDiffusion,
        schedule: NoiseSchedule,
        request: Request,
        seeds: Sequence[int],
        device: torch.device,
        present: Callable[[Step], Step],
    ) -> None:
        self._model, self._network, self._schedule = model, network, schedule
        self._present = present
        self._device, self._batch = device, len(seeds)
        self._noise = SampleNoise(seeds, device)
        self._uniform = _uniform(model.names, seeds, device)
        self._make_sampler = partial(SAMPLERS[request.sampler], schedule, noise=self._noise)
        if request.eta:
            self._make_sampler = partial(self._make_sampler, eta=request.eta)
        self._times = timesteps(schedule.num_steps, request.steps, schedule.spacing)
        self._is_guided = _between(model.guided_levels, schedule.level[model.anchor], self._times)
        self._index = 0  # steps made
        self._predicted: Mapping[str, Tensor] = {}  # by the last step
        self._sampled: dict[str, Tensor] = {}  # of `sample_first`
        self._kept: dict[str, Tensor] = {}  # last predictions of what is ignored by now
        self._began: float | None = None
        self._changes = list(request.changes)
        self.rows = len(seeds) * request.branches(model.anchor)
        self._start_sampler(self._noise(model.z_shape))
        self._follow(request, self._encode(request))

    @property
    def done(self) -> bool:
        return self._index == len(self._times) - 1

    def queries(self) -> list[Call]:
        """The calls of the network for the next step: with all that is given, then its guidance branches."""
        self._began = self._began or time.perf_counter()
        if self._changes and self._changes[0].after == self._index:
            request = self._changes[0].request
            self._change(request, self._encode(request))
            self._changes.pop(0)  # not before: what fails is tried again
            self._predicted = {}  # the head of what was given until now has predicted nothing of use
            self._sampled = {n: v for n, v in self._sampled.items() if n in request.sample_first}
        if self._can_sample_first():
            self._sample_first()
        seen = [self._conditioning, *(self._branches if self._is_guided[self._index] else ())]
        return [self._model.call_at(self._schedule, self._z, self._t, own) for own in seen]

    @torch.no_grad()
    def advance(self, answers: Sequence[Mapping[str, Tensor]]) -> Step:
        """The step that the network's answers to `queries` lead to."""
        conditional, *others = (self._model.clean_encodings(raw, self._conditioning) for raw in answers)
        t, noisy = self._t, self._network.decoded(self._z)
        if others:
            branches = zip(others, self._scales.items(), strict=True)
            conditional = guide(conditional, [self._branch(conditional, *branch) for branch in branches])
        self._z, self._t, self._clean = self._sampler.send(conditional)
        self._index += 1
        self._predicted = self._with_given(self._network.predictions(answers[0]))
        seconds = time.perf_counter() - self._began
        step = Step(self._index, len(self._times) - 1, t, self._predicted, self._z, seconds)
        return self._present(replace(step, levels=self._levels(t), noisy=noisy))

    def _levels(self, t: int) -> dict[str, float]:
        levels = {name: table[t].item() for name, table in self._schedule.level.items()}
        ends = {KNOWN: LEVEL_MAX, ABSENT: LEVEL_MIN}
        flags = self._conditioning.flags[0].tolist()  # the same for all samples
        return {n: ends.get(flag, levels[n]) for n, flag in zip(self._model.names, flags, strict=True)}

    def _branch(
        self, conditional: Encodings, other: Encodings, guided: tuple[tuple[str, ...], float]
    ) -> tuple[Encodings, float]:
        """A branch for `guide`, in which a modality is not pushed away from what would be without itself."""
        names, scale = guided
        kept = {name: conditional[name] for name in names if name != self._model.anchor}
        return {**other, **kept}, scale

    # -- conditions ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _encode(self, request: Request) -> Conditioning:
        """What is given and wanted, in the space Z."""
        model, anchor, size = self._model, self._model.anchor, self._model.config.image_size
        generated = {anchor, *request.wanted, *request.sample_first}
        flags = torch.full((self._batch, len(model.names)), ABSENT, device=self._device)
        for i, name in enumerate(model.names):
            if name in request.given:
                flags[:, i] = KNOWN
            elif name in generated:
                flags[:, i] = UNKNOWN
        known = torch.zeros(self._batch, 1, size, size, device=self._device)
        if anchor in request.given:
            known += 1.0 if request.known_pixels is None else request.known_pixels[:, None].float()
            holes = known.flatten(1).amin(1) == 0
            flags[:, 0] = torch.where(holes, UNKNOWN, KNOWN)
        e = model.encode_given(request.given, model.encode(request.given), known)
        return model.read(model.condition(e, flags, known, request.given.get(anchor)))

    def _follow(self, request: Request, conditioning: Conditioning) -> None:
        """From here on these conditions hold."""
        self._request, self._conditioning = request, conditioning
        guided = self._guided(request, conditioning).items()
        self._scales = {names: scale for names, scale in guided if names and scale != 1}
        self._branches = [self._model.without(conditioning, names) for names in self._scales]

    def _guided(self, request: Request, conditioning: Conditioning) -> dict[tuple[str, ...], float]:
        """What each guidance branch does not see, with its scale."""
        if isinstance(request.guidance_scale, Mapping):
            visible = self._model.names if self._model.has_levels else conditioning.e
            return {(n,): s for n, s in request.guidance_scale.items() if n in visible}
        return {tuple(n for n in conditioning.e if n != self._model.anchor): request.guidance_scale}

    def _change(self, request: Request, conditioning: Conditioning) -> None:
        """Other conditions from here on; z holds what is given by them, under the same noise."""
        self._revise(self._model.with_given(self._clean, conditioning))
        before, after = self._ignored(self._conditioning), self._ignored(conditioning)
        kept = {name: self._predicted[name] for name in after - before}
        self._kept = {n: v for n, v in self._kept.items() if n in after} | kept
        self._follow(request, conditioning)

    @torch.no_grad()
    def _revise(self, clean: Encodings) -> None:
        """z with other clean encodings under the same noise; the next jump is first order."""
        moved = {name: clean[name] - before for name, before in self._clean.items()}
        self._start_sampler(self._z + clean_signal(self._schedule, self._t, moved), clean)

    def _start_sampler(self, z: Tensor, clean: Encodings | None = None) -> None:
        self._sampler: Sampler = self._make_sampler(z=z, times=self._times[self._index :])
        self._z, self._t, _ = next(self._sampler)
        self._clean = clean

    def _ignored(self, conditioning: Conditioning) -> set[str]:
        """Names of what is neither given nor generated; it is the same for all samples."""
        absent = (conditioning.flags[0] == ABSENT).tolist()
        return {name for name, out in zip(self._model.names, absent, strict=True) if out}

    # -- what is sampled first -----------------------------------------------------------------------------

    def _pending(self) -> list[str]:
        """Names of what is yet to be sampled, and to be given from there on."""
        return [name for name in self._request.sample_first if name not in self._request.given]

    def _can_sample_first(self) -> bool:
        names = self._pending()
        late = self._t <= FIRST_SAMPLED_AT * self._times[0]
        return bool(names) and late and all(n in self._sampled or n in self._predicted for n in names)

    @torch.no_grad()
    def _sample_first(self) -> None:
        for name in self._pending():
            if name not in self._sampled:
                modality, predicted = self._model.modalities[name], self._predicted[name]
                self._sampled[name] = modality.draw(predicted, self._uniform[name])
        drawn = {name: self._sampled[name] for name in self._pending()}
        request = replace(self._request, given={**self._request.given, **drawn})
        self._change(request, self._model.giving(self._conditioning, drawn))

    # -- what is handed out --------------------------------------------------------------------------------

    def _with_given(self, predicted: Mapping[str, Tensor]) -> LazyMapping[Tensor]:
        """Predictions in data space, with given values, and the last ones of what is ignored by now."""
        given = {n: partial(self._given, n, self._request, predicted) for n in self._request.given}
        others = {name: partial(predicted.__getitem__, name) for name in predicted}
        kept = {name: partial(self._kept.__getitem__, name) for name in self._kept}
        return LazyMapping(others | given | kept)

    def _given(self, name: str, request: Request, predicted: Mapping[str, Tensor]) -> Tensor:
        """The given value of a modality, and in the holes of a photo the prediction."""
        modality = self._model.modalities[name]
        value = modality.as_prediction(request.given[name])
        if name == self._model.anchor and request.known_pixels is not None:
            return modality.completed(value, predicted[name], request.known_pixels[:, None])
        return value


def _between(bounds: tuple[float, float], level: Tensor, times: Sequence[int]) -> list[bool]:
    """Whether the level at each of the times is within the bounds."""
    least, most = bounds
    return [least <= value <= most for value in level[list(times)].tolist()]


def _uniform(names: Sequence[str], seeds: Sequence[int], device: torch.device) -> dict[str, Tensor]:
    """name -> (B,) in [0, 1), for what is sampled first."""
    normal = SampleNoise([seed ^ OWN_NUMBERS for seed in seeds], device)((len(names),))
    return dict(zip(names, torch.special.ndtr(normal).T, strict=True))
