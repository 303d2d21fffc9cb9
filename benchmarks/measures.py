"""Measures of compared systems: figures, and the values of single photos behind them for intervals.

Each is a function of a `benchmarks.trials.Trial`. What cannot be measured, as AlexNet on very small photos,
is left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.trials import Reference, Trial
from mmdiff.evaluation import metrics
from mmdiff.evaluation.evaluation import GALLERY
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.likeness import NEIGHBOURS, distances, manifold_bits
from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.skip import Skip

NEAR = 5  # k of recall@k


def scattered(count: int, size: int, seed: int = 0) -> Tensor:
    """Known pixels (count, size, size) bool of holes of single pixels, half of all."""
    maps = [np.random.default_rng([seed, k]).permutation(size**2) < size**2 // 2 for k in range(count)]
    return torch.from_numpy(np.stack(maps)).view(count, size, size)


KINDS: dict[str, Callable[[int, int, int], Tensor]] = {
    **{kind: HOLES[kind] for kind in ("blocks10", "blocks25", "blocks", "blocks75", "box")},
    "scattered": scattered,
}


@dataclass(frozen=True)
class Measured:
    """figures: by name. each: values of single photos (n,), or of classes, by the name of their mean."""

    figures: dict[str, float] = field(default_factory=dict)
    each: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def means(cls, each: Mapping[str, Tensor]) -> Measured:
        """Values whose means are the figures."""
        return cls({name: mean(values) for name, values in each.items()}, dict(each))

    def __or__(self, other: Measured) -> Measured:
        return Measured(self.figures | other.figures, self.each | other.each)


# -- holes -----------------------------------------------------------------------------------------------


def holes(ev: Trial) -> Measured:
    """LPIPS of holes of every kind; its mean over kinds, and that of PSNR in the holes."""
    lpips, psnr = _filled(ev, ev.filled)
    by_kind = {f"{kind}_lpips": mean(values) for kind, values in lpips.items()}
    return Measured(by_kind) | _over_kinds("holes", lpips, psnr)


def unpasted_holes(ev: Trial) -> Measured:
    """The means of the network's own output, in which the known pixels are not put back."""
    return _over_kinds("unpasted_holes", *_filled(ev, ev.unpasted))


def _filled(
    ev: Trial, fill: Callable[[Tensor, Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """LPIPS and PSNR of every photo, (n,) by kind of hole; LPIPS is left out where it cannot be measured."""
    real, lpips, psnr = ev.read(ev.rows_with("image"))["image"], {}, {}
    for kind, draw in KINDS.items():
        known = draw(len(real), ev.size, ev.settings.seed)
        filled = fill(real, known)
        squares, values = metrics.hole_error(filled, real, known)
        psnr[kind] = metrics.psnr(squares / values)
        with suppress(Skip):
            lpips[kind] = ev.lpips(filled, real)
    return lpips, psnr


def _over_kinds(prefix: str, lpips: Mapping[str, Tensor], psnr: Mapping[str, Tensor]) -> Measured:
    values = {f"{prefix}_lpips": list(lpips.values()), f"{prefix}_psnr": list(psnr.values())}
    return Measured.means({n: torch.stack(each).double().mean(0) for n, each in values.items() if each})


# -- reading ---------------------------------------------------------------------------------------------


def reading(ev: Trial) -> Measured:
    """Everything that the system reads off whole photos."""
    readers = {"mask": _read_masks, "label": _read_labels, "embedding": _read_embeddings}
    found = Measured()
    for name, read in readers.items():
        if name in ev.used:
            found |= read(ev)
    return found


def _read_masks(ev: Trial) -> Measured:
    real = ev.read(ev.rows_with("image", "mask"))
    counts, kept = ev.mask_counts(ev.predict("mask", real["image"]), real["mask"])
    return Measured.means({"mask_iou": metrics.iou(counts)[:, kept].nanmean(1)})


def _read_labels(ev: Trial) -> Measured:
    real = ev.read(ev.rows_with("image", "label"))
    probabilities = ev.predict("label", real["image"])
    hits = (probabilities.argmax(1) == real["label"]).double()
    nats = metrics.nll(probabilities, real["label"])
    return Measured.means({"label_top1": hits}) | Measured({"label_nll": mean(nats)})


def _read_embeddings(ev: Trial) -> Measured:
    rows = ev.rows_with("image", "embedding")
    real = ev.read(rows)
    predicted = ev.predict("embedding", real["image"])
    ranks, _ = ev.embedding_ranks(predicted, rows)
    cosine = F.cosine_similarity(predicted, real["embedding"]).double()
    return Measured.means({"embedding_cosine": cosine, "embedding_recall": (ranks <= NEAR).double()})


# -- making ----------------------------------------------------------------------------------------------


def making(ev: Trial) -> Measured:
    """All that a system uses, generated together: are the photos real ones, does the rest agree with them?"""
    count = ev.settings.samples
    made = ev.made(count)
    found = _or_nothing(lambda: likeness_to(ev.reference, made["image"]))
    if "label" in made:
        labels = made["label"].argmax(1)
        agree = (ev.classify(made["image"]) == labels).double()
        found |= Measured.means({"judge_together": agree})
        found |= Measured({"labels_made": float(len(labels.unique()))})
    if "embedding" in made:
        found |= _embedding_agrees(ev, made["image"], made["embedding"])
    return found


def real_photos(reference: Reference) -> dict[str, float]:
    """The same figures of a second set of real photos: what can be reached. Empty without AlexNet."""
    return _or_nothing(lambda: likeness_to(reference, reference.real[1])).figures


def likeness_to(reference: Reference, photos: Tensor) -> Measured:
    """Precision, recall and distances of photos (n, 3, H, W) from real ones, in both feature spaces."""
    found = Measured()
    for prefix, space in reference.spaces.items():
        real, made = reference.features[prefix], space(photos)
        each = manifold_bits(real, made) | {"kernel": kernel_values(real, made)}
        found |= Measured.means({f"{prefix}{name}": values for name, values in each.items()})
        found |= Measured({f"{prefix}frechet": distances(real, made)["frechet"]})
    return found


def _or_nothing(measure: Callable[[], Measured]) -> Measured:
    try:
        return measure()
    except Skip:
        return Measured()


def kernel_values(real: Tensor, made: Tensor) -> Tensor:
    """Values of the made photos (m,) whose mean is the kernel distance (Bińkowski et al. 2018).

    The features are (n, D) and (m, D). The values are its linear part in the made photos (Hájek's
    projection), so that their spread is that of the distance.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    def among(features: Tensor) -> Tensor:
        own = kernel(features, features).fill_diagonal_(0)
        return own.sum(1) / (len(features) - 1)

    of_made = among(made)
    return 2 * of_made - of_made.mean() - 2 * kernel(made, real).mean(1) + among(real).mean()


def _embedding_agrees(ev: Trial, photos: Tensor, embeddings: Tensor) -> Measured:
    """Cosine of generated embeddings to those of their photos, and recall among the other generated ones."""
    try:
        seen = ev.embed_images(photos)
    except Skip:
        return Measured()
    chunks = torch.arange(len(photos)).split(GALLERY)
    ranks = [metrics.gallery_ranks(embeddings[c], seen[c], torch.arange(len(c))) for c in chunks]
    each = {
        "embedding_together": F.cosine_similarity(embeddings, seen).double(),
        "embedding_together_recall": (torch.cat(ranks) <= NEAR).double(),
    }
    return Measured.means(each)


def from_label(ev: Trial) -> Measured:
    """Photos of every class, without guidance and with it: the judge, precision and recall by class."""
    classes = len(ev.pipe.modalities["label"].classes)
    labels = torch.arange(classes).repeat(math.ceil(ev.settings.samples / classes))
    plain, found = ev.settings, Measured()
    for prefix, scale in (("", 1.0), ("guided_", plain.guidance)):
        ev.settings = dataclasses.replace(plain, guidance=scale)
        photos = ev.images_from("photos from labels", len(labels), label=labels)
        hits = (ev.classify(photos) == labels).double()
        found |= Measured.means({f"{prefix}judge_from_label": hits})
        found |= _or_nothing(partial(_by_class, ev, photos, labels, prefix))
    ev.settings = plain
    return found


def _by_class(ev: Trial, photos: Tensor, labels: Tensor, prefix: str) -> Measured:
    """Precision and recall within each class that has enough photos; a value for each of these."""
    seen, rows = ev.reference.spaces[""](photos), []
    for k, real in enumerate(ev.reference.classes):
        made = seen[labels == k]
        if min(len(real), len(made)) > NEIGHBOURS:
            rows.append({name: bits.mean() for name, bits in manifold_bits(real, made).items()})
    names = ("precision", "recall") if rows else ()
    return Measured.means({f"{prefix}class_{n}": torch.stack([row[n] for row in rows]) for n in names})


def from_text(ev: Trial) -> Measured:
    """Photos of captions: cosine to the caption for the embedder, and whether the judge sees its label.

    A system without an embedding, which knows labels, makes the class whose training captions are nearest.
    """
    rows, texts = ev.with_captions(ev.rows_with("image", "label"))
    vectors = ev.embed_texts(texts)
    given = {"embedding": vectors} if "embedding" in ev.used else {"label": _nearest_classes(ev, vectors)}
    photos = ev.images_from("photos from texts", len(texts), **given)
    each = {"judge_from_text": (ev.classify(photos) == ev.read(rows)["label"]).double()}
    each["text_cosine"] = F.cosine_similarity(ev.embed_images(photos), vectors).double()
    return Measured.means(each)


def _nearest_classes(ev: Trial, vectors: Tensor) -> Tensor:
    """The class of each text (n, D): that with the nearest mean of its training captions' embeddings."""
    train = ev.reference.train
    rows = [k for k in train.present["label"].nonzero()[:, 0].tolist() if train.captions[k]]
    captions = ev.embed_texts([train.captions[k] for k in rows])
    labels = train.stored["label"][rows].long()
    classes = len(ev.pipe.modalities["label"].classes)
    sums = torch.zeros(classes, captions.shape[1]).index_add_(0, labels, captions)
    return (vectors @ F.normalize(sums, dim=1).T).argmax(1)
