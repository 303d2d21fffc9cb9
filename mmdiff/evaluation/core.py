"""What every measurement shares: settings, the examples, sampling in batches, judge and rules."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff.data.examples import Examples, draw_batch
from mmdiff.evaluation import metrics
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.observers.classifier import Judge
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.modalities.image import to_uint8
from mmdiff.modalities.mask import VOID
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from mmdiff.samplers import SAMPLERS

RULE_MIN_IOU = 0.95  # on real photos; below it the white-background rule does not describe the data
GALLERY = 400  # embeddings that a query is looked up among

T = TypeVar("T")


class Skip(Exception):
    """Why something cannot be measured here."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample and how much. Guidance is used where a picture is made from a label, a mask or a text."""

    steps: int = 30
    reading_steps: int = 1  # where a whole photo is given: p(x_i | photo) itself, more draw a sample of it
    filling_steps: int | None = None  # where a photo has holes; None means as many as `steps`
    filling_guidance: float = 1.0  # how strongly holes follow the known pixels; 1 is off
    batch: int = 64
    seed: int = 0
    sampler: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    samples: int = 490  # pictures to generate at most a task; "image from label" has as many of each class
    prompts: int = 200  # texts that combine kind and colour, half of them of rare combinations
    limit: int | None = None  # examples to use, drawn with the seed; None means all
    holes: tuple[str, ...] = ("blocks",)
    classical: bool = True  # also fill the holes by Telea's method and by Navier-Stokes
    repaint: int = 0  # resamples of RePaint, which fills the same holes untold; 0 leaves it out
    bound_draws: int = 4  # random times an example in the estimate of the bound

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "reading_steps": 1, "batch": 1, "samples": 1, "prompts": 2, "bound_draws": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {low}.")
        if self.filling_steps is not None and self.filling_steps < 1:
            raise ValueError(f"filling_steps is {self.filling_steps}; give at least 1, or leave it out.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; give at least 1, or leave it out to use all examples.")
        if self.repaint < 0:
            raise ValueError(f"repaint is {self.repaint}; give the number of resamples, or 0 for none.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a whole number from 0 on.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}.")
        unknown = [h for h in self.holes if h not in HOLES]
        if unknown:
            raise ValueError(f"unknown holes {', '.join(unknown)}; known: {', '.join(HOLES)}.")


@dataclasses.dataclass
class Outcome:
    """What a task measured, and what it looked like.

    Attributes:
        figures: JSON-ready results.
        panels: pictures side by side in a cell of the grid, each (n, H, W, 3) uint8.
        captions: a text for each cell.
        each: values of the single examples behind some figures, (n,) by name, for comparing pairs.
    """

    figures: dict
    panels: list[Tensor] = dataclasses.field(default_factory=list)
    captions: list[str] = dataclasses.field(default_factory=list)
    each: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Evaluation:
    """A pipeline, examples, settings and what else there is to measure with.

    Args:
        judge, segmenter: independent observers of pictures.
        train_captions: texts the model was trained with, for the task `prompts`.
        train_photos: (n, 3, H, W) uint8 that the model was trained with, for the task `copies`.
    """

    def __init__(
        self,
        pipe: Pipeline,
        examples: Examples,
        settings: Settings,
        judge: Judge | None = None,
        train_captions: Sequence[str] = (),
        segmenter: Segmenter | None = None,
        train_photos: Tensor | None = None,
    ) -> None:
        self.pipe, self.settings, self.judge, self.segmenter = pipe, settings, judge, segmenter
        self.examples, self.train_captions, self.train_photos = examples, train_captions, train_photos
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(examples), generator=generator)
        self.rows = order[: settings.limit].sort().values

    @property
    def size(self) -> int:
        return self.pipe.modalities["image"].shape[-1]

    # -- examples ------------------------------------------------------------------------------------

    def having(self, *names: str) -> Tensor:
        """Rows of the examples that have all of these modalities. Raises `Skip` where there are none."""
        self.require(*names)
        for name in names:
            if name not in self.examples.present:
                raise Skip(f"the data has no {name}")
        keep = torch.stack([self.examples.present[n][self.rows] for n in names]).all(0)
        if not keep.any():
            raise Skip(f"no example has {' and '.join(names)}")
        return self.rows[keep]

    def some(self, rows: Tensor) -> Tensor:
        """At most `Settings.samples` of the rows, drawn with the seed, in order."""
        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = torch.randperm(len(rows), generator=generator)[: self.settings.samples]
        return rows[drawn.sort().values]

    def with_captions(self, rows: Tensor) -> tuple[Tensor, list[str]]:
        """Those of the rows that have a caption, and the captions. Raises `Skip` where there are none."""
        keep = [int(row) for row in rows if self.examples.captions[int(row)]]
        if not keep:
            raise Skip("no example has a caption")
        return torch.tensor(keep), [self.examples.captions[row] for row in keep]

    def require(self, *names: str) -> None:
        """Raises `Skip` unless the model has these modalities."""
        for name in names:
            if name not in self.pipe.modalities:
                raise Skip(f"the model has no modality {name!r}")

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Data-space values of the examples, on the CPU; the embedding is the photo's."""
        return draw_batch(self.examples, self.pipe.modalities, rows, None, flip=False)[0]

    # -- sampling ------------------------------------------------------------------------------------

    def sample(
        self,
        title: str,
        wanted: Sequence[str],
        count: int,
        given: Mapping[str, Tensor] | None = None,
        known_pixels: Tensor | None = None,
        guidance: float | Mapping[str, float] = 1.0,
        steps: int | None = None,
        sample_first: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """Run the pipeline on ``count`` samples in batches: name -> (count, ...) on the CPU.

        Masks are class indices (count, H, W), labels probabilities (count, K), pictures in [-1, 1].
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        device, s = self.pipe.device, self.settings
        with tqdm(total=count, desc=title, unit="sample", mininterval=1) as bar:
            for index in torch.arange(count).split(s.batch):
                request = Request(
                    {n: v[index].to(device) for n, v in (given or {}).items()},
                    tuple(wanted),
                    None if known_pixels is None else known_pixels[index].to(device),
                    guidance,
                    sample_first,
                    steps=steps or s.steps,
                    sampler=s.sampler,
                    eta=s.eta,
                )
                for step in self.pipe.run_batch(request, self.seeds(index)):
                    last = step
                for name in wanted:
                    parts[name].append(self._compact(name, last.x_hat[name]))
                bar.update(len(index))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def fill(
        self, title: str, wanted: Sequence[str], given: Mapping[str, Tensor], known_pixels: Tensor
    ) -> dict[str, Tensor]:
        """`sample` of photos with holes, as the settings have it for these."""
        s = self.settings
        guidance, count = {"image": s.filling_guidance}, len(known_pixels)
        return self.sample(title, wanted, count, given, known_pixels, guidance, s.filling_steps)

    def seeds(self, index: Tensor) -> list[int]:
        """The seeds of the samples of these numbers (n,)."""
        return [self.settings.seed * 1_000_003 + int(k) for k in index]

    def _compact(self, name: str, prediction: Tensor) -> Tensor:
        is_mask = self.pipe.modalities[name].kind == "mask"
        return (prediction.argmax(1) if is_mask else prediction.float()).cpu()

    # -- the embedding space -------------------------------------------------------------------------

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1] -> unit vectors (n, D) on the CPU."""
        embedder = self._need_embedder()
        return torch.cat([embedder.embed_images(chunk).cpu() for chunk in images.split(256)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> unit vectors (n, D) on the CPU; equal texts are embedded once."""
        embedder = self._need_embedder()
        row = {text: k for k, text in enumerate(dict.fromkeys(texts))}
        distinct = list(row)
        chunks = [distinct[k : k + 256] for k in range(0, len(distinct), 256)]
        vectors = torch.cat([embedder.embed_texts(chunk).cpu() for chunk in chunks])
        return vectors[[row[text] for text in texts]]

    def _need_embedder(self):
        if self.pipe.embedder is None:
            raise Skip("the checkpoint has no embedder")
        return self.pipe.embedder

    def retrieved(self, predicted: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """Rank (n,) of each example's own embedding in a gallery near its prediction (n, D); gallery size.

        A gallery holds the embeddings of up to `GALLERY` examples, those of up to as many queries among
        them; near-duplicates of a photo are in it like any other example.
        """
        everything = self.examples.present["embedding"].nonzero()[:, 0]
        generator = torch.Generator().manual_seed(self.settings.seed)
        ranks, size = [], min(GALLERY, len(everything))
        for chunk in torch.arange(len(rows)).split(size):
            own = rows[chunk]
            others = everything[~torch.isin(everything, own)]
            others = others[torch.randperm(len(others), generator=generator)][: size - len(own)]
            gallery = self.read(torch.cat([own, others]))["embedding"]
            ranks.append(metrics.gallery_ranks(predicted[chunk], gallery, torch.arange(len(own))))
        return torch.cat(ranks), size

    # -- judge and rules -----------------------------------------------------------------------------

    def judged(self, images: Tensor) -> Tensor:
        """The judge's class of each picture, numbered like the model's labels: (n,) long."""
        if self.judge is None:
            raise Skip("no judge: give --judge a folder made by mmdiff.evaluation.observers.classifier")
        self.require("label")
        own = self.pipe.modalities["label"].classes
        if set(own) != set(self.judge.classes):
            raise Skip("the judge was trained on other classes than the model's labels")
        renumber = torch.tensor([own.index(c) for c in self.judge.classes])
        return renumber[self.judge.probabilities(images).argmax(1)]

    def segmented(self, images: Tensor) -> Tensor:
        """The segmenter's mask of each picture, numbered like the model's classes: (n, H, W) long."""
        if self.segmenter is None:
            raise Skip(
                "no segmenter: give --segmenter a folder made by mmdiff.evaluation.observers.segmenter"
            )
        self.require("mask")
        own = self.pipe.modalities["mask"].classes
        if set(own) != set(self.segmenter.classes):
            raise Skip("the segmenter was trained on other classes than the model's masks")
        return torch.tensor([own.index(c) for c in self.segmenter.classes])[self.segmenter.read(images)]

    def mask_counts(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, list[int]]:
        """Confusion of the classes (n, K, K), void pixels left out, and which classes are not void."""
        classes = self.pipe.modalities["mask"].classes
        void = classes.index(VOID) if VOID in classes else None
        counts = metrics.confusion(predicted, target, len(classes), ignore=void)
        return counts, [k for k in range(len(classes)) if k != void]

    def mask_figures(self, predicted: Tensor, target: Tensor) -> dict:
        """IoU of every class but void, its mean over pictures and pooled over all pixels, and accuracy."""
        classes = self.pipe.modalities["mask"].classes
        counts, kept = self.mask_counts(predicted, target)
        each = metrics.iou(counts)[:, kept].nanmean(0)
        pooled = metrics.iou(counts.sum(0))[kept]
        names = [classes[k] for k in kept]
        return {
            "iou": dict(zip(names, numbers(each), strict=True)),
            "iou_pooled": dict(zip(names, numbers(pooled), strict=True)),
            "miou": each.nanmean().item(),
            "miou_pooled": pooled.nanmean().item(),
            "pixel_accuracy": metrics.pixel_accuracy(counts.sum(0)).item(),
        }

    @cached_property
    def lpips(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Perceptual distance of pictures from others, see `mmdiff.evaluation.perceptual`."""
        from mmdiff.evaluation.perceptual import load_lpips  # which needs `Skip` from here

        return load_lpips(self.pipe.device)

    @cached_property
    def white_rule_iou(self) -> float:
        """Mean IoU of the white-background rule and the given masks on real photos."""
        rows = self.having("image", "mask")
        if len(self.pipe.modalities["mask"].classes) != 2:
            raise Skip("the white-background rule needs masks of two classes, background and object")
        real = self.read(rows)
        return (
            metrics.object_iou(metrics.white_background_mask(real["image"]), real["mask"] == 1).mean().item()
        )

    def require_rule(self) -> None:
        """Raises `Skip` where the masks of the real photos do not come from a white background."""
        if self.white_rule_iou < RULE_MIN_IOU:
            raise Skip(
                f"the white-background rule reaches only IoU {self.white_rule_iou:.3f} on these photos"
            )

    def rule_ious(self, images: Tensor, masks: Tensor) -> Tensor:
        """IoU of each mask with what the white-background rule reads off the picture: (n,)."""
        self.require_rule()
        return metrics.object_iou(metrics.white_background_mask(images), masks == 1)

    # -- for the grid --------------------------------------------------------------------------------

    def picture(self, images: Tensor) -> Tensor:
        """Samples for the grid: (n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8."""
        return torch.from_numpy(to_uint8(images))

    def coloured(self, masks: Tensor) -> Tensor:
        """Class maps (n, H, W) -> (n, H, W, 3) uint8 in the colours of the mask's palette."""
        return torch.as_tensor(self.pipe.modalities["mask"].palette)[masks]

    def class_names(self, labels: Tensor) -> list[str]:
        return [self.pipe.modalities["label"].classes[int(k)] for k in labels]


def mean(values: Tensor) -> float:
    """Mean of numbers or of truth values (n,)."""
    return values.double().mean().item()


def numbers(values: Tensor) -> list[float | None]:
    """JSON has no NaN: a class that never occurs is null."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def or_reason(measure: Callable[[], T]) -> T | dict[str, str]:
    """What ``measure`` returns, or {"skipped": reason}."""
    try:
        return measure()
    except Skip as reason:
        return {"skipped": str(reason)}
