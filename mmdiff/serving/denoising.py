"""One request on its way through the engine: a trajectory, its denoisers, and changes of mind on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmdiff.guidance import combined
from mmdiff.lazy import Lazy
from mmdiff.model import ABSENT, Conditioning, MultiModalDiffusion, Query, TrajectoryDenoiser
from mmdiff.samplers import Step, Trajectory
from mmdiff.training.masking import Condition

# Share of T. Much above it heads have not made up their mind, and draws fall on few classes; below it the
# photo takes shape without them.
SETTLED = 0.9


@dataclass(frozen=True)
class Segment:
    """What holds from after step `after` on.

    Attributes:
        condition: what is given, in data space. internal: the same and what is wanted, in Z.
        guidance_scale: a number for everything given at once, or name -> number. What is named but not given
            is settled on the way, see `Run`.
    """

    after: int
    condition: Condition
    internal: Conditioning
    guidance_scale: float | Mapping[str, float] = 1.0

    @property
    def unsettled(self) -> tuple[str, ...]:
        """Names of what is guided but not given."""
        return unsettled(self.guidance_scale, self.condition.given)


def unsettled(guidance_scale: float | Mapping[str, float], given: Collection[str]) -> tuple[str, ...]:
    """Names of what is guided but not given."""
    if not isinstance(guidance_scale, Mapping):
        return ()
    return tuple(name for name, scale in guidance_scale.items() if scale != 1 and name not in given)


class Run:
    """A member of `mmdiff.serving.engine.Engine`; its steps have what is given put in.

    The first segment holds from the start. At a later one the samples go on from where they are: what
    becomes given takes its place in z at once, under the noise that is there; what becomes free stays as it
    is until the network thinks otherwise; what is left out is shown as it was last.

    What is unsettled in a segment is settled as soon as z is no longer noise alone: every sample draws from
    what the head says then, p(x_i | z_t, given), and the draw counts as given from there on. That is the
    chain rule, p(x_i) p(the rest | x_i), with guidance in its second factor.

    Args:
        present: a step and the seconds since the run began -> what is handed out.
        uniform: name -> (B,) in [0, 1), by which draws are made.
    """

    def __init__(
        self,
        model: MultiModalDiffusion,
        trajectory: Trajectory,
        segments: Sequence[Segment],
        present: Callable[[Step, float], Any] = lambda step, seconds: step,
        uniform: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._model, self._trajectory, self._present = model, trajectory, present
        self._uniform = uniform or {}
        self._predicted: Mapping[str, Tensor] = {}
        self._settled: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # predictions of what is left out by now
        self._began: float | None = None
        self._later = list(segments)
        calls = max(len(self._denoisers_of(s)) + len(s.unsettled) for s in segments)
        self.rows = len(trajectory.z) * calls
        self._begin(self._later.pop(0))

    @property
    def done(self) -> bool:
        return self._trajectory.done

    def queries(self) -> list[Query]:
        """What the network is asked for the next step."""
        self._began = self._began or time.perf_counter()
        if self._later and self._later[0].after == self._trajectory.index:
            self._change(self._later.pop(0))
            self._predicted = {}  # of what was given until now a head says nothing of worth
            self._settled = {n: v for n, v in self._settled.items() if n in self._segment.unsettled}
        if (names := self._segment.unsettled) and self._can_settle(names):
            self._settle(names)
        return [d.query(self._trajectory.z, self._trajectory.t) for d, _ in self._denoisers]

    @torch.no_grad()
    def advance(self, answers: Sequence[Mapping[str, Tensor]]) -> Any:
        """The step that the network's answers lead to, presented."""
        t = self._trajectory.t
        told, *free = (d.interpret(raw, t) for (d, _), raw in zip(self._denoisers, answers, strict=True))
        if free:
            scales = [scale for _, scale in self._denoisers[1:]]
            told = combined(told, list(zip(free, scales, strict=True)))
        step = self._with_given(self._trajectory.advance(told))
        self._predicted = step.x_hat
        return self._present(step, time.perf_counter() - self._began)

    def _change(self, segment: Segment) -> None:
        """From here on the segment holds."""
        self._trajectory.revise(lambda clean: self._model.put_in_place(clean, segment.internal))
        before, after = self._absent(self._segment), self._absent(segment)
        kept = {name: self._predicted[name] for name in after - before}
        self._kept = {n: v for n, v in self._kept.items() if n in after} | kept
        self._begin(segment)

    def _absent(self, segment: Segment) -> set[str]:
        """Names of what is neither given nor asked for; it is the same for all samples."""
        absent = (segment.internal.flags[0] == ABSENT).tolist()
        return {name for name, out in zip(self._model.names, absent, strict=True) if out}

    def _can_settle(self, names: Sequence[str]) -> bool:
        times = self._trajectory.times
        late = times[self._trajectory.index] <= SETTLED * times[0]
        return late and all(name in self._settled or name in self._predicted for name in names)

    @torch.no_grad()
    def _settle(self, names: Sequence[str]) -> None:
        """Draws what was not drawn before, and goes on with all of it given."""
        for name in names:
            if name not in self._settled:
                modality, predicted = self._model.modalities[name], self._predicted[name]
                self._settled[name] = modality.draw(predicted, self._uniform[name])
        drawn = {name: self._settled[name] for name in names}
        condition = self._segment.condition
        self._change(
            dataclasses.replace(
                self._segment,
                condition=dataclasses.replace(condition, given={**condition.given, **drawn}),
                internal=self._model.become_known(self._segment.internal, drawn),
            )
        )

    def _begin(self, segment: Segment) -> None:
        self._segment = segment
        self._denoisers = self._denoisers_of(segment)

    def _denoisers_of(self, segment: Segment) -> list[tuple[TrajectoryDenoiser, float]]:
        """The denoiser that is told everything, then those that are told less, with their scales."""
        model, schedule, internal = self._model, self._trajectory.schedule, segment.internal
        if isinstance(segment.guidance_scale, Mapping):
            free = segment.unsettled
            scales = {(n,): scale for n, scale in segment.guidance_scale.items() if n not in free}
        else:
            scales = {tuple(set(internal.e) - {model.anchor}): segment.guidance_scale}
        return [(model.denoiser(schedule, internal), 1.0)] + [
            (model.unconditional_denoiser(schedule, internal, names), scale)
            for names, scale in scales.items()
            if names and scale != 1
        ]

    def _with_given(self, step: Step) -> Step:
        condition = self._segment.condition
        given = {name: partial(self._put_in, name, condition, step) for name in condition.given}
        predicted = {name: partial(step.x_hat.__getitem__, name) for name in step.x_hat}
        kept = {name: partial(self._kept.__getitem__, name) for name in self._kept}
        return dataclasses.replace(step, x_hat=Lazy(predicted | given | kept))

    def _put_in(self, name: str, condition: Condition, step: Step) -> Tensor:
        """What is given of a modality, and of a photo with holes the prediction in them."""
        value = self._model.modalities[name].as_prediction(condition.given[name])
        if name == self._model.anchor and condition.known_pixels is not None:
            anchor = self._model.modalities[name]
            return anchor.completed(value, step.x_hat[name], condition.known_pixels[:, None])
        return value
