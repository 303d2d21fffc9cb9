"""`Evaluation`: the examples, the sampling in batches and the observers that all tasks share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff.clip.vocabulary import embed_distinct
from mmdiff.data.augment import draw_batch
from mmdiff.data.examples import Examples
from mmdiff.evaluation import metrics, perceptual
from mmdiff.evaluation.classical_inpainting import CLASSICAL_METHODS, InpaintingMethod, mean_fill
from mmdiff.evaluation.metrics import json_numbers
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.evaluation.skip import Skip
from mmdiff.images import to_uint8
from mmdiff.modalities.mask import VOID
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request, following

RULE_MIN_IOU = 0.95  # on real photos; below it the white-background rule does not describe the data
GALLERY = 400  # embeddings that a query is looked up among


@dataclass
class Outcome:
    """What a task measured, and pictures of it.

    Attributes:
        figures: JSON-ready results.
        panels: pictures side by side in a cell of the grid, each (n, H, W, 3) uint8.
        captions: a text for each cell.
        each: values of the single examples behind some figures, (n,) by name, for paired comparisons.
    """

    figures: dict
    panels: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    each: dict[str, Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Evaluation:
    """A pipeline, examples, settings and independent observers.

    Attributes:
        classifier, segmenter: networks that say what a generated picture shows.
        train_captions: texts that the model was trained with, for `benchmarks/prompts.py`.
        train_photos: (n, 3, H, W) uint8 that the model was trained with, for `copies` and `likeness`.
        rows: (n,) of the examples to measure.
    """

    pipe: Pipeline
    examples: Examples
    settings: EvaluationSettings
    classifier: Classifier | None = None
    train_captions: Sequence[str] = ()
    segmenter: Segmenter | None = None
    train_photos: Tensor | None = None

    def __post_init__(self) -> None:
        self.rows = self._drawn(len(self.examples), self.settings.limit)

    @property
    def size(self) -> int:
        """Height and width of the pictures in pixels."""
        return self.pipe.modalities["image"].shape[-1]

    def require(self, *names: str) -> None:
        """Raises `Skip` unless the model has these modalities."""
        for name in names:
            if name not in self.pipe.modalities:
                raise Skip(f"the model has no modality {name!r}")

    def rows_with(self, *names: str) -> Tensor:
        """Rows of the examples that have all of these modalities. Raises `Skip` where there are none."""
        self.require(*names)
        for name in names:
            if name not in self.examples.present:
                raise Skip(f"the data has no {name}")
        keep = torch.stack([self.examples.present[n][self.rows] for n in names]).all(0)
        if not keep.any():
            raise Skip(f"no example has {' and '.join(names)}")
        return self.rows[keep]

    def drawn(self, rows: Tensor) -> Tensor:
        """At most `EvaluationSettings.samples` of the rows, drawn with the seed, in order."""
        return rows[self._drawn(len(rows), self.settings.samples)]

    def _drawn(self, count: int, most: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(self.settings.seed)
        return torch.randperm(count, generator=generator)[:most].sort().values

    def with_captions(self, rows: Tensor) -> tuple[Tensor, list[str]]:
        """Those of the rows that have a caption, and the captions. Raises `Skip` where there are none."""
        keep = [int(row) for row in rows if self.examples.captions[int(row)]]
        if not keep:
            raise Skip("no example has a caption")
        return torch.tensor(keep), [self.examples.captions[row] for row in keep]

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Data-space values of the examples, on the CPU; the embedding is the photo's."""
        return draw_batch(self.examples, self.pipe.modalities, rows, None, flip=False)[0]

    def sample(
        self,
        title: str,
        wanted: Sequence[str],
        count: int,
        given: Mapping[str, Tensor] | None = None,
        known_pixels: Tensor | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Run the pipeline on ``count`` samples in batches: name -> (count, ...) on the CPU.

        Masks are class indices (count, H, W), labels probabilities (count, K), pictures in [-1, 1].

        Args:
            title: of the progress bar. given: name -> (count, ...). known_pixels: (count, H, W) bool.
            options: other fields of `mmdiff.request.Request`; steps, sampler and eta are those of the
                settings by default.
        """
        s, device = self.settings, self.pipe.device
        options = {"steps": s.steps, "sampler": s.sampler, "eta": s.eta} | options
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        with tqdm(total=count, desc=title, unit="sample", mininterval=1) as bar:
            for index in torch.arange(count).split(s.batch):
                request = Request(
                    {n: v[index].to(device) for n, v in (given or {}).items()},
                    tuple(wanted),
                    None if known_pixels is None else known_pixels[index].to(device),
                    **options,
                )
                for step in self.pipe.run_batch(request, self.seeds(index)):
                    last = step
                for name in wanted:
                    x_hat, form = last.x_hat[name], self.pipe.modalities[name].form
                    parts[name].append((x_hat.argmax(1) if form == "class_map" else x_hat.float()).cpu())
                bar.update(len(index))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def predict(self, name: str, photos: Tensor) -> Tensor:
        """A modality of whole photos (n, 3, H, W): (n, ...) as `sample` returns it."""
        steps = self.settings.reading_steps
        return self.sample(f"{name} from image", [name], len(photos), {"image": photos}, steps=steps)[name]

    def images_from(self, title: str, count: int, **given: Tensor) -> Tensor:
        """Pictures made from other modalities, with the settings' guidance: (count, 3, H, W) in [-1, 1]."""
        return self.sample(title, ["image"], count, given, guidance_scale=self.settings.guidance)["image"]

    def following_label(self) -> dict[str, Any]:
        """`following` the generated label with the settings' guidance; `Skip` without a label or guidance."""
        self.require("label")
        if self.settings.guidance == 1:
            raise Skip("guidance is 1, so nothing follows the label")
        return following("label", self.settings.guidance, self.pipe.modalities)

    def inpaint(
        self, title: str, wanted: Sequence[str], given: Mapping[str, Tensor], known_pixels: Tensor
    ) -> dict[str, Tensor]:
        """`sample` of photos with holes, with the settings for these."""
        s = self.settings
        options = {"guidance_scale": {"image": s.filling_guidance}, "steps": s.filling_steps or s.steps}
        return self.sample(title, wanted, len(known_pixels), given, known_pixels, **options)

    def inpainting_methods(self) -> Mapping[str, InpaintingMethod]:
        """Methods to compare inpainting with, by name."""
        return CLASSICAL_METHODS if self.settings.classical else {"mean": mean_fill}

    def seeds(self, index: Tensor) -> list[int]:
        """The seeds of the samples of these numbers (n,)."""
        return [self.settings.seed * 1_000_003 + int(k) for k in index]

    def embed_images(self, images: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) in [-1, 1] -> unit vectors (n, D) on the CPU."""
        embedder = self._embedder()
        return torch.cat([embedder.embed_images(chunk).cpu() for chunk in images.split(256)])

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """n texts -> unit vectors (n, D) on the CPU; equal texts are embedded once."""
        return embed_distinct(self._embedder(), texts)

    def _embedder(self) -> Any:
        if self.pipe.embedder is None:
            raise Skip("the checkpoint has no embedder")
        return self.pipe.embedder

    def embedding_ranks(self, predicted: Tensor, rows: Tensor) -> tuple[Tensor, int]:
        """Rank of each example's own embedding among those near its prediction.

        A gallery holds the embeddings of up to `GALLERY` examples, those of up to as many queries among
        them; near-duplicates of a photo are in it like any other example.

        Args:
            predicted: (n, D). rows: (n,) of the examples.

        Returns:
            Ranks (n,), 1 the nearest, and the size of the gallery.
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

    def classify(self, images: Tensor) -> Tensor:
        """The classifier's class of each picture, numbered like the model's labels: (n,) long."""
        return self.class_numbers("classifier")[self.classifier.probabilities(images).argmax(1)]

    def segment(self, images: Tensor) -> Tensor:
        """The segmenter's mask of each picture, numbered like the model's classes: (n, H, W) long."""
        return self.class_numbers("segmenter")[self.segmenter.read(images)]

    def class_numbers(self, noun: str) -> Tensor:
        """The model's number of each class of the "classifier" or "segmenter"; `Skip` if none is suitable."""
        option, name = {"classifier": ("--judge", "label"), "segmenter": ("--segmenter", "mask")}[noun]
        observer = getattr(self, noun)
        if observer is None:
            raise Skip(f"no {noun}: give {option} a folder made by mmdiff.evaluation.observers.{noun}")
        self.require(name)
        own = self.pipe.modalities[name].classes
        if set(own) != set(observer.classes):
            raise Skip(f"the {noun} was trained on other classes than the model's {name}s")
        return torch.tensor([own.index(c) for c in observer.classes])

    def mask_counts(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, list[int]]:
        """Confusion of the classes (n, K, K) without void pixels, and which classes are not void."""
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
            "iou": dict(zip(names, json_numbers(each), strict=True)),
            "iou_pooled": dict(zip(names, json_numbers(pooled), strict=True)),
            "miou": each.nanmean().item(),
            "miou_pooled": pooled.nanmean().item(),
            "pixel_accuracy": metrics.pixel_accuracy(counts.sum(0)).item(),
        }

    def lpips(self, images: Tensor, others: Tensor) -> Tensor:
        """Perceptual distance of pictures (n, 3, H, W) in [-1, 1] from others: (n,) on the CPU.

        Raises `Skip` where it cannot be measured, see `mmdiff.evaluation.perceptual`.
        """
        return self._lpips(images, others)

    @cached_property
    def _lpips(self) -> Callable[[Tensor, Tensor], Tensor]:
        return perceptual.load_lpips(self.pipe.device)

    @cached_property
    def white_rule_iou(self) -> float:
        """Mean IoU of the white-background rule and the annotated masks on real photos."""
        rows = self.rows_with("image", "mask")
        if len(self.pipe.modalities["mask"].classes) != 2:
            raise Skip("the white-background rule needs masks of two classes, background and object")
        real = self.read(rows)
        by_rule = metrics.white_background_mask(real["image"])
        return metrics.object_iou(by_rule, real["mask"] == 1).mean().item()

    def require_rule(self) -> None:
        """Raises `Skip` where the masks of the real photos do not come from a white background."""
        if self.white_rule_iou < RULE_MIN_IOU:
            raise Skip(
                f"the white-background rule reaches only IoU {self.white_rule_iou:.3f} on these photos"
            )

    def rule_ious(self, images: Tensor, masks: Tensor) -> Tensor:
        """IoU of each mask with the object that the white-background rule finds in the picture: (n,)."""
        self.require_rule()
        return metrics.object_iou(metrics.white_background_mask(images), masks == 1)

    def picture(self, images: Tensor) -> Tensor:
        """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8."""
        return torch.from_numpy(to_uint8(images))

    def coloured(self, masks: Tensor) -> Tensor:
        """Class maps (n, H, W) -> (n, H, W, 3) uint8 in the colours of the mask's palette."""
        return torch.as_tensor(self.pipe.modalities["mask"].palette)[masks]

    def class_names(self, labels: Tensor) -> list[str]:
        return [self.pipe.modalities["label"].classes[int(k)] for k in labels]
