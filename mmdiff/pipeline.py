"""The pipeline: a checkpoint, user input in, generated modalities out; whole or step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdiff.checkpoint import load_checkpoint, resolve
from mmdiff.clip.vocabulary import COMMAND, VOCABULARY_FILE, Description, Vocabulary, Words
from mmdiff.device import choose_device, choose_precision, usual_defaults
from mmdiff.images import to_uint8
from mmdiff.lazy_mapping import LazyMapping
from mmdiff.leads import counting
from mmdiff.modalities import KINDS, Modality
from mmdiff.model import MultiModalDiffusion
from mmdiff.network.conditioning import Call
from mmdiff.request import NO_LIMITS, Change, Limits, Request
from mmdiff.schedule import NoiseSchedule
from mmdiff.serving import openvino
from mmdiff.serving.denoising import Denoising, Step
from mmdiff.serving.engine import Engine, Member, Ticket


@dataclass(frozen=True)
class Output:
    """Results of one call; each modality is an attribute, None if it was neither given nor wanted.

    Attributes:
        values: name -> what `Modality.present` makes of it. image: B pictures. mask: (B, H, W) int64.
            label: (B, K) probabilities. embedding: (B, D), unit length. Also reached as `output.image` etc.
        seconds: wall time of sampling. steps, seed: as used; sample k has seed `seed + k`.
    """

    values: Mapping[str, Any]
    seconds: float
    steps: int
    seed: int

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})  # not there yet while an output is copied or unpickled
        if name in KINDS or name in values:
            return values.get(name)
        raise AttributeError(f"no modality is called {name!r}; this output has {', '.join(values)}.")


class Run(Iterator[Step]):
    """The steps of a request as they are made. Sampling begins with the first `next`, and `close` ends it.

    `owner` may be set before, such as to a visitor's address: runs of one give way to those of others, see
    `Engine`.
    """

    owner = ""

    def __init__(self, engine: Engine, member: Member) -> None:
        self._engine, self._member = engine, member
        self._ticket: Ticket | None = None

    def __next__(self) -> Step:
        return next(self._begun())

    def wait(self, seconds: float) -> int:
        """Waits for the next step, at most so long; the place in line, 0 once sampling goes on."""
        ticket = self._begun()
        return 0 if ticket.wait(seconds) else ticket.ahead

    def close(self) -> None:
        """Ends sampling within a step, or before it has begun."""
        self._ticket = self._ticket or Ticket(self._engine, self._member)
        self._ticket.close()

    def __del__(self) -> None:
        self.close()

    def _begun(self) -> Ticket:
        self._ticket = self._ticket or self._engine.submit(self._member, self.owner)
        return self._ticket


class Pipeline:
    """Any subset of the modalities given, any subset wanted.

    >>> pipe = Pipeline.from_pretrained("checkpoints/orchard")
    >>> pipe(given={"label": "Apple Golden 2"}, wanted=("image", "mask"), seed=1).image[0]
    """

    def __init__(
        self,
        model: MultiModalDiffusion,
        device: torch.device,
        embedder: Any = None,
        vocabulary: Vocabulary | None = None,
        background: bool = False,
        precision: str = "float32",
    ) -> None:
        self.model = model.to(device).eval()
        self.precision = choose_precision(precision, device)
        self.device = device
        self.schedule = self._make_schedule(None)
        self.embedder = embedder
        self._parts = (self.model, device, embedder, vocabulary, background, precision)
        self.words = Words(embedder, vocabulary) if embedder is not None and vocabulary else None
        self.modalities: dict[str, Modality] = dict(model.modalities.items())
        for modality in self.modalities.values():
            modality.attach(embedder)
        self.engine = Engine(self.answer, background=background)

    @cached_property
    def network(self) -> MultiModalDiffusion:
        """What computes: the model, or a copy in bfloat16, which is made when it is needed first."""
        return self.model if self.precision == torch.float32 else _in_bfloat16(self.model)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, also of `pickle`, get an engine of their own: locks and threads cannot be copied."""
        return type(self), self._parts

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: str = "auto",
        background: bool = False,
        precision: str = "auto",
    ) -> Pipeline:
        """Load a checkpoint folder or Hugging Face Hub id; "auto" takes the GPU where there is one.

        The network computes in "float32" or "bfloat16"; "auto" takes the latter where the processor has
        instructions for it. docs/demo.md says how much results differ. What is given is encoded in float32.

        In the `background` sampling has a thread of its own, for servers; see `mmdiff.serving.engine`.

        The embedder that the checkpoint names is looked for beside it, then in it, then as an open_clip
        tag; its vocabulary is taken along if it has one. Raises ValueError if the checkpoint is missing or
        damaged.
        """
        chosen = choose_device(device)
        folder = resolve(name)
        with usual_defaults():
            model = load_checkpoint(folder, chosen)
            embedder = load_embedder(model.config.embedder, folder, chosen)
            return cls(model, chosen, embedder, Vocabulary.load(folder), background, precision)

    # -- embeddings --------------------------------------------------------------------------------

    @property
    def has_text(self) -> bool:
        """Whether texts and photos can be embedded."""
        return self.embedder is not None

    def embed_text(self, texts: str | Sequence[str]) -> Tensor:
        """(B, D) unit vectors of texts, or of one, in the space of the embedding modality.

        Raises ValueError for anything else.
        """
        embedder, listed = self._need_embedder(), _listed(texts, isinstance(texts, str), "texts")
        if not all(isinstance(text, str) for text in listed):
            raise ValueError(f"embed_text got {listed!r:.200}; give a list of texts.")
        return self.engine.call(lambda: embedder.embed_texts(listed))

    def embed_image(self, images: Any) -> Tensor:
        """(B, D) unit vectors of photos, or of one, in the space of the embedding modality.

        Raises ValueError for anything else.
        """
        one = isinstance(images, (Image.Image, str, Path, bytes)) or getattr(images, "ndim", 4) < 4
        listed = _listed(images, one, "photos")
        embedder, parse = self._need_embedder(), self.modalities[self.model.anchor].parse
        return self.engine.call(
            lambda: embedder.embed_images(torch.stack([parse(image) for image in listed]).to(self.device))
        )

    @property
    def can_describe(self) -> bool:
        """Whether embeddings can be put into words."""
        return self.words is not None

    def describe(self, vectors: np.ndarray | Tensor, count: int = 5) -> list[Description]:
        """Embeddings (B, D) in words: of each the `count` nearest captions, labels and text probes.

        Raises ValueError if the checkpoint has no embedder or no vocabulary, or for another shape.
        """
        self._need_embedder()
        if self.words is None:
            raise ValueError(
                f"this checkpoint has no {VOCABULARY_FILE}, so its embeddings cannot be put into words; "
                f"write one with `{COMMAND}`, naming its folder and its training data."
            )
        if not self.words.ready:  # the networks are left to one thread, see `mmdiff.serving.engine`
            self.engine.call(self.words.prepare)
        return self.words.describe(vectors, count)

    def _need_embedder(self) -> Any:
        if self.embedder is None:
            raise ValueError("this checkpoint has no embedder; use one that has an embedding modality.")
        return self.embedder

    # -- sampling ----------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Output:
        """The result of `stream`, which takes the same arguments."""
        for step in self.stream(*args, **kwargs):
            output = step.output
        return output

    def stream(
        self, given: Mapping[str, Any] | None = None, wanted: Sequence[str] = (), **options: Any
    ) -> Run:
        """`start` with a `Request` of these arguments, whose other fields are the options."""
        unknown = sorted(set(options) - {field.name for field in fields(Request)})
        if unknown:
            known = ", ".join(field.name for field in fields(Request))
            raise TypeError(f"there is no option {', '.join(unknown)}; a request has {known}.")
        return self.start(Request(given or {}, wanted, **options))

    def start(self, request: Request, limits: Limits = NO_LIMITS) -> Run:
        """Denoise, with arrays in every step; all runs of this pipeline share the calls of the network.

        Raises ValueError at once for a request that cannot be run.
        """
        request = request.checked(self.modalities, self.schedule.num_steps, limits)
        seeds = [request.seed + k for k in range(request.num_samples)]
        present = partial(self._present, shown=request.shown, seed=seeds[0])
        return self._run(lambda: self._parsed(request), seeds, present)

    def run_batch(self, request: Request, seeds: Sequence[int]) -> Run:
        """The same on tensors, with other values for each sample.

        Args:
            request: `given` holds tensors (B, *shape) on the device, `known_pixels` is (B, H, W) bool or
                None; `wanted` names what is generated. seed and num_samples are not used.
            seeds: one a sample.

        Yields steps whose x_hat are tensors in the modalities' own ranges; given modalities come back as they
        are (classes one-hot).
        """
        request.check_sampling(self.schedule.num_steps)
        request.check_guidance(self.modalities)
        return self._run(lambda: request, seeds, lambda step: step)

    def _run(self, make: Callable[[], Request], seeds: Sequence[int], present: Callable[[Step], Step]) -> Run:
        def begin() -> Denoising:  # parses, embeds and encodes, so it is left to the engine's thread
            request = make()
            schedule = self._schedule_of(request)
            return Denoising(self.model, self.network, schedule, request, seeds, self.device, present)

        return Run(self.engine, self.engine.call(begin))

    def compile(self) -> bool:
        """Have OpenVINO compute the network from here on; whether it does.

        It takes some seconds and makes every step two to three times as fast. OpenVINO has to be installed,
        the network on the CPU, and the model one with levels.
        """
        if not (openvino.installed() and self.device.type == "cpu" and self.model.has_levels):
            return False

        def swap() -> None:
            network = copy.copy(self.network)  # the model itself is left as it is
            network.outputs = openvino.Compiled(self.model, self.precision)
            self.network = network

        self.engine.call(swap)
        return True

    def answer(self, calls: list[Call]) -> Sequence[Mapping[str, Tensor]]:
        """The network's raw outputs for each of the calls, in float32."""
        fast = self.precision != torch.float32
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast):
            return self.network.answer(calls)

    def _schedule_of(self, request: Request) -> NoiseSchedule:
        """The noise schedule of a run; with levels only what it generates has a lead."""
        if not self.model.has_levels:
            return self.schedule if request.leads is None else self._make_schedule(request.leads)
        names, own = self.model.names, self.schedule.leads
        asked = own if request.leads is None else dict.fromkeys(names, 0.0) | dict(request.leads)
        leads = counting(asked, request.made(names, self.model.anchor))
        return self.schedule if leads == own else self._make_schedule(leads)

    def _make_schedule(self, leads: Mapping[str, float] | None) -> NoiseSchedule:
        schedule = self.model.make_schedule(leads)
        # Tables beside the samples save a wait per look-up; only MPS has no float64 to hold them.
        return schedule if self.device.type == "mps" else schedule.to(self.device)

    def _parsed(self, request: Request) -> Request:
        """The request with tensors on the device in place of what people give, the same for every sample."""
        values = {n: self.modalities[n].parse(v) for n, v in request.given.items()}
        count = request.num_samples
        batch = {n: v.expand(count, *v.shape).to(self.device) for n, v in values.items()}
        known = request.known_pixels
        if known is not None:
            known = torch.from_numpy(np.ascontiguousarray(known))  # torch takes no mirrored views
            known = known.expand(count, -1, -1).to(self.device)
        changes = tuple(Change(change.after, self._parsed(change.request)) for change in request.changes)
        return replace(request, given=batch, known_pixels=known, changes=changes)

    def _present(self, step: Step, shown: Collection[str], seed: int) -> Step:
        """A step with arrays, as people see it; what takes a network is computed when somebody looks."""
        x_hat, noisy = (self._arrays(values, shown) for values in (step.x_hat, step.noisy))
        for name in x_hat:
            if not self.modalities[name].frozen_encoder:
                x_hat[name]
        output = None
        if step.index == step.total:
            values = {n: self.modalities[n].present(v) for n, v in x_hat.items()}
            output = Output(values, step.seconds, step.total, seed)
        return replace(step, x_hat=x_hat, noisy=noisy, output=output)

    def _arrays(self, values: Mapping[str, Tensor | None], shown: Collection[str]) -> LazyMapping[Any]:
        """Predictions or noisy states, those that are ``shown``."""
        return LazyMapping({n: partial(self._array, values, n) for n in values if n in shown})

    def _array(self, values: Mapping[str, Tensor | None], name: str) -> np.ndarray | None:
        # In the engine's thread, as it may be a network that decodes, see `mmdiff.serving.engine`.
        value = self.engine.call(partial(values.__getitem__, name))
        if value is None:
            return None
        return to_uint8(value) if name == self.model.anchor else value.float().cpu().numpy()


def _listed(values: Any, one: bool, what: str) -> list[Any]:
    """A list of one value or of several. Raises ValueError if there is none."""
    listed = [values] if one else list(values) if isinstance(values, Iterable) else []
    if not listed:
        raise ValueError(f"got {repr(values)[:200]} instead of {what}; give a list with at least one.")
    return listed


def _in_bfloat16(model: MultiModalDiffusion) -> MultiModalDiffusion:
    """A copy that answers, under autocast, and decodes, with weights cast once instead of in every call."""
    network = copy.deepcopy(model, {id(model.modalities): model.modalities})
    kinds = torch.nn.Linear, torch.nn.Conv2d, torch.nn.RMSNorm
    for name, module in network.named_modules():
        if isinstance(module, kinds) and not name.startswith("modalities."):
            module.to(torch.bfloat16)
    network.modalities = torch.nn.ModuleDict({n: m.in_bfloat16() for n, m in model.modalities.items()})
    return network


def load_embedder(name: str, folder: Path, device: torch.device) -> Any:
    """The embedder a checkpoint names; None for "".

    It may lie beside the checkpoint, inside it or in the working directory's checkpoints/, where training
    took it from, or be an open_clip tag.
    """
    if not name:
        return None
    from mmdiff.clip.embedder import ClipEmbedder

    places = (folder.parent / name, folder / name, Path("checkpoints", name))
    local = [path for path in places if path.is_dir()]
    try:
        return ClipEmbedder(local[0] if local else name, device)
    except Exception as error:  # open_clip has many for a damaged folder
        raise ValueError(f"{folder} needs the embedder {name!r}: {error}") from error
