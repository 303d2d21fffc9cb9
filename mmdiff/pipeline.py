"""The pipeline: a checkpoint, user input in, generated modalities out; whole or step by step."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdiff.checkpoint import load_checkpoint, resolve
from mmdiff.clip.vocabulary import COMMAND, VOCABULARY_FILE, Description, Vocabulary, Words
from mmdiff.device import choose_device
from mmdiff.images import to_uint8
from mmdiff.modalities import KINDS, Modality
from mmdiff.model import ABSENT, KNOWN, UNKNOWN, Conditioning, MultiModalDiffusion
from mmdiff.samplers import RULES, Rule, SampleNoise, Step, Trajectory, is_whole, timesteps
from mmdiff.serving.denoising import Run, Segment, unsettled
from mmdiff.serving.engine import Engine, Member, Ticket
from mmdiff.training.masking import Condition

MAX_SEED = 2**63 - 1
OWN_NUMBERS = 1 << 62  # flips a bit of a seed, for random numbers apart from those of its trajectory


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


@dataclass(frozen=True)
class StreamedStep:
    """One denoising step as people see it.

    Attributes:
        index, total: 1 ... total. t: the time the predictions were made at.
        x_hat: name -> every head's clean prediction: image (B, H, W, 3) uint8, mask (B, K, H, W) and label
            (B, K) probabilities, embedding (B, D).
        output: the finished `Output` on the last step, None before.
    """

    index: int
    total: int
    t: int
    x_hat: Mapping[str, np.ndarray]
    output: Output | None


@dataclass(frozen=True)
class Change:
    """Other conditions for the rest of a run, from after step `after` on (1 to steps - 1).

    The other attributes are the arguments of the same names of `Pipeline.stream`. Pictures, masks and labels
    that were decided by then stay as far as the new conditions leave them free; what is left out from there
    on stays as it was predicted last.
    """

    after: int
    given: Mapping[str, Any] = field(default_factory=dict)
    wanted: Sequence[str] = ()
    known_pixels: np.ndarray | None = None
    guidance_scale: float | Mapping[str, float] = 1.0


class Stream(Iterator[Any]):
    """Steps as they are made. Sampling begins when the first one is asked for and ends with `close`."""

    def __init__(self, engine: Engine, member: Member) -> None:
        self._engine, self._member = engine, member
        self._ticket: Ticket | None = None

    def __next__(self) -> Any:
        return next(self._begun())

    def wait(self, seconds: float) -> int:
        """Waits for the next step, at most so long; the place in line, 0 once sampling goes on."""
        ticket = self._begun()
        return 0 if ticket.wait(seconds) else ticket.ahead

    def close(self) -> None:
        """Ends sampling within a step."""
        if self._ticket is not None:
            self._ticket.close()

    def __del__(self) -> None:
        self.close()

    def _begun(self) -> Ticket:
        self._ticket = self._ticket or self._engine.submit(self._member)
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
    ) -> None:
        self.model = model.to(device).eval()
        self.device = device
        schedule = model.make_schedule()
        # Tables beside the samples save a wait per look-up; only MPS has no float64 to hold them.
        self.schedule = schedule if device.type == "mps" else schedule.to(device)
        self.embedder = embedder
        self.words = Words(embedder, vocabulary) if embedder is not None and vocabulary else None
        self.modalities: dict[str, Modality] = dict(model.modalities.items())
        for modality in self.modalities.values():
            modality.attach(embedder)
        self.engine = Engine(self.model.answer, background=background)

    @classmethod
    def from_pretrained(cls, name: str | Path, device: str = "auto", background: bool = False) -> Pipeline:
        """Load a checkpoint folder or Hugging Face Hub id; "auto" takes the GPU where there is one.

        In the `background` sampling has a thread of its own, for servers; see `mmdiff.serving.engine`.

        The embedder that the checkpoint names is looked for beside it, then in it, then as an open_clip
        tag; its vocabulary is taken along if it has one. Raises ValueError if the checkpoint is missing or
        damaged.
        """
        chosen = choose_device(device)
        folder = resolve(name)
        model = load_checkpoint(folder, chosen)
        embedder = load_embedder(model.config.embedder, folder, chosen)
        return cls(model, chosen, embedder, Vocabulary.load(folder), background)

    # -- embeddings --------------------------------------------------------------------------------

    @property
    def has_text(self) -> bool:
        """Whether texts and photos can be embedded."""
        return self.embedder is not None

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """(B, D) unit vectors of texts in the space of the embedding modality."""
        embedder = self._need_embedder()
        return self.engine.call(lambda: embedder.embed_texts(list(texts)))

    def embed_image(self, images: Sequence[Image.Image]) -> Tensor:
        """(B, D) unit vectors of photos in the space of the embedding modality."""
        embedder, parse = self._need_embedder(), self.modalities[self.model.anchor].parse
        return self.engine.call(
            lambda: embedder.embed_images(torch.stack([parse(image) for image in images]).to(self.device))
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
        self,
        given: Mapping[str, Any] | None = None,
        wanted: Sequence[str] = (),
        steps: int = 30,
        seed: int = 0,
        num_samples: int = 1,
        known_pixels: np.ndarray | None = None,
        guidance_scale: float | Mapping[str, float] = 1.0,
        sampler: str = "ddim",
        eta: float = 0.0,
        changes: Sequence[Change] = (),
    ) -> Stream:
        """Denoise and yield every step; whatever else this pipeline streams meanwhile shares the batches.

        Args:
            given: name -> value. image: picture, array or path. mask: class numbers. label: class name or
                number. embedding: text, picture or vector.
            wanted: names of the modalities to generate; empty means all that are not given.
            steps: network calls, 1 to T. seed: of the first sample; the next ones count up.
            num_samples: results to generate at once.
            known_pixels: (H, W) bool, the part of the given image to keep; the rest is filled in.
            guidance_scale: how strongly what is given counts, 0 to 100; 1 is off. A number counts for all
                of it at once and runs every sample through the network twice a step. A mapping from names to
                numbers, such as {"embedding": 3, "mask": 1.5}, counts for each modality by itself and takes
                once more for each number other than 1; names that are left out have 1. See
                `mmdiff.guidance.composed`. Pixels that are given are kept whatever the scale, and a number
                for everything leaves them out; in a mapping the image may be named where it has
                `known_pixels`, which says how strongly the holes follow them. A label that is not given but
                has a number other than 1 is settled early, by a draw from what its head says while the photo
                is still noise, and all else follows it as if it were given.
            sampler: "ddim", "ancestral" or "dpmpp_2m". eta: fresh noise of "ddim", 0 to 1.
            changes: other conditions from some step on, in order; see `Change`.

        Raises:
            ValueError: at once, for anything in the wrong form.
        """
        self._check_numbers(steps, seed, num_samples)
        self._check_changes(changes, steps)
        conditions = [Change(0, given or {}, wanted, known_pixels, guidance_scale), *changes]

        def make_run() -> Run:
            segments = [self._parsed(condition, num_samples) for condition in conditions]
            shown = {name for c in conditions for name in (*c.given, *self._wanted(c))}
            seeds = [int(seed) + k for k in range(num_samples)]
            trajectory = self._trajectory(seeds, steps, sampler, eta)
            present = partial(self._present, shown=shown, seed=seeds[0])
            return Run(self.model, trajectory, segments, present, self._uniform(seeds))

        return Stream(self.engine, self.engine.call(make_run))

    def run(
        self,
        condition: Condition,
        wanted: Sequence[str],
        seeds: Sequence[int],
        steps: int = 30,
        sampler: str = "ddim",
        guidance_scale: float | Mapping[str, float] = 1.0,
        eta: float = 0.0,
    ) -> Stream:
        """The batched interface on tensors: one sample per seed, x_hat in the modalities' own ranges.

        Yields `mmdiff.samplers.Step`; the last one's x_hat is the result. Given modalities come back as they
        are (classes one-hot).
        """
        self._check_guidance(guidance_scale, condition.given, condition.known_pixels is not None)

        def make_run() -> Run:
            segment = self._segment(0, condition, wanted, guidance_scale, len(seeds))
            trajectory = self._trajectory(seeds, steps, sampler, eta)
            return Run(self.model, trajectory, [segment], uniform=self._uniform(seeds))

        return Stream(self.engine, self.engine.call(make_run))

    def _trajectory(self, seeds: Sequence[int], steps: int, sampler: str, eta: float) -> Trajectory:
        if sampler not in RULES:
            raise ValueError(f"no sampler is called {sampler!r}; choose among {', '.join(RULES)}.")
        if not isinstance(eta, (int, float)) or not 0 <= eta <= 1:
            raise ValueError(f"eta is {eta!r}; give a number from 0 (deterministic) to 1.")
        if eta and sampler != "ddim":
            raise ValueError(f"eta is an option of the sampler 'ddim', not of {sampler!r}; leave it at 0.")
        noise = SampleNoise(list(seeds), self.device)
        rule = Rule(eta) if eta else RULES[sampler]
        return Trajectory(self.schedule, noise(self.model.z_shape), steps, rule, noise)

    def _uniform(self, seeds: Sequence[int]) -> dict[str, Tensor]:
        """name -> (B,) in [0, 1), to draw what is settled on the way."""
        normal = SampleNoise([seed ^ OWN_NUMBERS for seed in seeds], self.device)((len(self.modalities),))
        return dict(zip(self.modalities, torch.special.ndtr(normal).T, strict=True))

    def _parsed(self, change: Change, num_samples: int) -> Segment:
        """Conditions as people give them -> checked and on the device, the same for every sample."""
        given = dict(change.given)
        known = self._check_known_pixels(given, change.known_pixels)
        wanted = self._wanted(change)
        self._check_guidance(change.guidance_scale, given, known is not None)
        values = {n: self.modalities[n].parse(v) for n, v in given.items()}
        batch = {n: v.expand(num_samples, *v.shape).to(self.device) for n, v in values.items()}
        if known is not None:
            known = torch.from_numpy(known).expand(num_samples, -1, -1).to(self.device)
        return self._segment(
            change.after, Condition(batch, known), wanted, change.guidance_scale, num_samples
        )

    def _segment(
        self,
        after: int,
        condition: Condition,
        wanted: Sequence[str],
        guidance_scale: float | Mapping[str, float],
        batch: int,
    ) -> Segment:
        """The network is asked for what is wanted, and for what is to be settled on the way."""
        asked = (*wanted, *unsettled(guidance_scale, condition.given))
        return Segment(after, condition, self._encode(condition, asked, batch), guidance_scale)

    @torch.no_grad()
    def _encode(self, condition: Condition, wanted: Sequence[str], batch: int) -> Conditioning:
        """What is given and wanted, in the space Z."""
        model, anchor, size = self.model, self.model.anchor, self.model.config.image_size
        flags = torch.full((batch, len(model.names)), ABSENT, device=self.device)
        for i, name in enumerate(model.names):
            if name in condition.given:
                flags[:, i] = KNOWN
            elif name in wanted or name == anchor:
                flags[:, i] = UNKNOWN
        known = torch.zeros(batch, 1, size, size, device=self.device)
        if anchor in condition.given:
            known += 1.0 if condition.known_pixels is None else condition.known_pixels[:, None].float()
            holes = known.flatten(1).amin(1) == 0
            flags[:, 0] = torch.where(holes, UNKNOWN, KNOWN)
        e = model.encode_given(condition.given, model.encode(condition.given), known)
        internal = model.condition(e, flags, known, condition.given.get(anchor))
        return replace(internal, read=model.read(internal))  # once, for guidance too

    def _present(self, step: Step, seconds: float, shown: set[str], seed: int) -> StreamedStep:
        """A step as people see it."""
        x_hat = {n: v.float().cpu().numpy() for n, v in step.x_hat.items() if n in shown}
        if self.model.anchor in x_hat:
            x_hat[self.model.anchor] = to_uint8(x_hat[self.model.anchor])
        output = None
        if step.index == step.total:
            values = {n: self.modalities[n].present(v) for n, v in x_hat.items()}
            output = Output(values, seconds, step.total, seed)
        return StreamedStep(step.index, step.total, step.t, x_hat, output)

    # -- checks ------------------------------------------------------------------------------------

    def _check_known_pixels(self, given: dict[str, Any], known: np.ndarray | None) -> np.ndarray | None:
        if known is None:
            return None
        size = self.model.config.image_size
        known = np.ascontiguousarray(known)  # torch takes no mirrored views
        if self.model.anchor not in given:
            raise ValueError("known_pixels says which part of a photo to keep, but no image is given.")
        if known.shape != (size, size) or known.dtype != bool:
            raise ValueError(
                f"known_pixels is {known.dtype} of shape {known.shape}; give bool of shape ({size}, {size}), "
                "True where the pixel is to be kept."
            )
        return known

    def _wanted(self, change: Change) -> tuple[str, ...]:
        """Names of what is to be generated; all that is not given if none are named."""
        given, known, wanted = change.given, change.known_pixels, change.wanted
        wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        for name in (*given, *wanted):
            if name not in self.modalities:
                names = ", ".join(self.modalities)
                raise ValueError(f"no modality is called {name!r}; this checkpoint has {names}.")
        filling = {self.model.anchor} if known is not None and not np.all(known) else set()
        wanted = wanted or tuple(n for n in self.modalities if n not in given or n in filling)
        both = [n for n in wanted if n in given and n not in filling]
        if both:
            raise ValueError(f"{', '.join(both)}: given and wanted at once; leave it out of one of them.")
        if not wanted:
            raise ValueError("everything is given, so nothing is left to generate; leave something out.")
        return wanted

    def _check_numbers(self, steps: int, seed: int, num_samples: int) -> None:
        timesteps(self.schedule.num_steps, steps)
        if not is_whole(num_samples) or num_samples < 1:
            raise ValueError(f"num_samples is {num_samples!r}; give a whole number of at least 1.")
        if not is_whole(seed) or not 0 <= seed <= MAX_SEED - num_samples:
            raise ValueError(f"seed is {seed!r}; give a whole number from 0 to {MAX_SEED - num_samples}.")

    def _check_changes(self, changes: Sequence[Change], steps: int) -> None:
        earliest = 1
        for change in changes:
            after = change.after
            if not is_whole(after) or not earliest <= after < steps:
                raise ValueError(
                    f"a change comes after step {after!r}; give whole numbers from {earliest} to "
                    f"{steps - 1}, each larger than the one before."
                )
            earliest = after + 1

    def _check_guidance(
        self, guidance_scale: float | Mapping[str, float], given: Collection[str], holes: bool
    ) -> None:
        """`holes`: whether the anchor may have some."""
        if not isinstance(guidance_scale, Mapping):
            return _check_scale("guidance_scale", guidance_scale)
        guidable = [name for name in given if name != self.model.anchor or holes]
        drawable = [name for name, modality in self.modalities.items() if modality.drawable]
        for name, scale in guidance_scale.items():
            _check_scale(f"guidance_scale of {name!r}", scale)
            if name not in (*guidable, *drawable):
                why = "is no modality of this checkpoint"
                if name in self.modalities:
                    why = "is kept as it is given" if name in given else "is not given"
                others = ", ".join(guidable) or "other modalities, once they are given"
                raise ValueError(
                    f"guidance_scale names {name!r}, which {why}; leave it out, and guide {others}."
                )


def _check_scale(what: str, scale: float) -> None:
    if isinstance(scale, bool) or not isinstance(scale, (int, float, np.number)) or not 0 <= scale <= 100:
        raise ValueError(f"{what} is {scale!r}; give a number from 0 to 100, 1 is off.")


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
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{folder} needs the embedder {name!r}: {error}") from error
