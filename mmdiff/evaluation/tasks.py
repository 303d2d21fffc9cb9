"""Tasks: one measurement each, a function from an `Evaluation` to an `Outcome`.

A task raises `Skip` with the reason where the data, the model or the observers do not allow it.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mmdiff.bound import bound as levels_bound
from mmdiff.data.augment import draw_batch
from mmdiff.evaluation import metrics
from mmdiff.evaluation.classical_inpainting import InpaintingMethod
from mmdiff.evaluation.colours import caption_colours
from mmdiff.evaluation.copies import copies
from mmdiff.evaluation.evaluation import Evaluation, Outcome
from mmdiff.evaluation.holes import HOLES, Inpainted, compared, inpainting_figures
from mmdiff.evaluation.likeness import likeness
from mmdiff.evaluation.metrics import json_numbers, mean
from mmdiff.evaluation.skip import Skip, or_reason
from mmdiff.first_edition.losses import bound as flags_bound

RANKS = (1, 5, 10)  # k of recall@k


def mask_from_image(ev: Evaluation) -> Outcome:
    """IoU of every class: mean over pictures, and pooled over all pixels. Void pixels do not count."""
    real = ev.read(ev.rows_with("image", "mask"))
    count = len(real["image"])
    predicted = ev.predict("mask", real["image"])
    return Outcome(
        {"n": count} | ev.mask_figures(predicted, real["mask"]),
        [ev.picture(real["image"]), ev.coloured(predicted), ev.coloured(real["mask"])],
        ["photo, predicted, true"] * count,
    )


def label_from_image(ev: Evaluation) -> Outcome:
    """Top-1 and top-5 accuracy, and whether the probabilities are calibrated."""
    real = ev.read(ev.rows_with("image", "label"))
    probabilities = ev.predict("label", real["image"])
    hits = {f"top{k}": metrics.top_k_hits(probabilities, real["label"], k) for k in (1, 5)}
    named, true = ev.class_names(probabilities.argmax(1)), ev.class_names(real["label"])
    return Outcome(
        {
            "n": len(real["image"]),
            **{name: mean(h) for name, h in hits.items()},
            "nll": mean(metrics.nll(probabilities, real["label"])),
            "ece": metrics.calibration_error(probabilities, real["label"]),
        },
        [ev.picture(real["image"])],
        [a if a == b else f"{a}, not {b}" for a, b in zip(named, true, strict=True)],
    )


def image_from_label(ev: Evaluation) -> Outcome:
    """Share of pictures that the classifier recognises as their class; equally many of each class."""
    ev.require("label")
    classes = ev.pipe.modalities["label"].classes
    each = math.ceil(ev.settings.samples / len(classes))
    labels = torch.arange(len(classes)).repeat(each)
    ev.class_numbers("classifier")  # raises `Skip` before the sampling
    images = ev.images_from("image from label", len(labels), label=labels)
    hits = ev.classify(images) == labels
    by_class = hits.view(each, -1).double().mean(0)
    return Outcome(
        {
            "n": len(labels),
            "judge_agreement": mean(hits),
            "by_class": dict(zip(classes, json_numbers(by_class), strict=True)),
        },
        [ev.picture(images)],
        ev.class_names(labels),
    )


def joint(ev: Evaluation) -> Outcome:
    """Everything generated together: do label and mask match the picture?"""
    return _joint(ev, "joint")


def joint_following_label(ev: Evaluation) -> Outcome:
    """The same, where the rest follows the label, guided."""
    return _joint(ev, "joint following label", **ev.following_label())


def _joint(ev: Evaluation, title: str, **options: Any) -> Outcome:
    wanted = [n for n in ("image", "mask", "label") if n in ev.pipe.modalities]
    if len(wanted) < 2:
        raise Skip("the model has no modality to generate together with the image")
    count = ev.settings.samples
    out = ev.sample(title, wanted, count, **options)
    figures: dict = {"n": count}
    panels, captions = [ev.picture(out["image"])], [""] * count
    if "label" in wanted:
        labels = out["label"].argmax(1)
        captions = ev.class_names(labels)
        figures["distinct_labels"] = len(labels.unique())
        figures["judge_agreement"] = or_reason(lambda: mean(ev.classify(out["image"]) == labels))
    if "mask" in wanted:
        panels.append(ev.coloured(out["mask"]))
        figures["mask_rule_iou"] = or_reason(lambda: mean(ev.rule_ious(out["image"], out["mask"])))
        if ev.segmenter is not None:
            figures["segmenter"] = or_reason(lambda: ev.mask_figures(ev.segment(out["image"]), out["mask"]))
    return Outcome(figures, panels, captions)


def image_from_mask(ev: Evaluation) -> Outcome:
    """Does the picture show the mask it was made from? By the segmenter, else by the white-background rule.

    "segmenter_on_photos" is what the segmenter reaches on the masks' own photos: the upper limit.
    """
    if ev.segmenter is None:
        ev.require_rule()
    real = ev.read(ev.drawn(ev.rows_with("mask", "image")))
    count, masks = len(real["mask"]), real["mask"]
    if ev.segmenter is not None:  # raises `Skip` before the sampling
        on_photos = ev.mask_figures(ev.segment(real["image"]), masks)
    images = ev.images_from("image from mask", count, mask=masks)
    figures: dict = {"n": count}
    panels = [ev.coloured(masks), ev.picture(images)]
    if ev.segmenter is None:
        figures["mask_rule_iou"] = mean(ev.rule_ious(images, masks))
    else:
        seen = ev.segment(images)
        figures |= {"segmenter": ev.mask_figures(seen, masks), "segmenter_on_photos": on_photos}
        panels.append(ev.coloured(seen))
    return Outcome(figures, panels, ["given, picture, what is seen in it"] * count)


def holes(ev: Evaluation) -> Outcome:
    """PSNR in dB, SSIM and LPIPS of inpainted holes, ours beside methods without a trained model."""
    real = ev.read(ev.drawn(ev.rows_with("image")))["image"]
    figures, panels, each = {}, [], {}
    for kind in ev.settings.holes:
        known = HOLES[kind](len(real), ev.size, ev.settings.seed)
        out = ev.inpaint(f"holes: {kind}", ["image"], {"image": real}, known)["image"]
        visible = torch.where(known[:, None], real, 0)
        exact = torch.equal(torch.where(known[:, None], out, 0), visible)
        ours = inpainting_figures(out, real, known, ev.lpips)
        methods = ev.inpainting_methods().items()
        others = {name: _inpainted(ev, method, real, known) for name, method in methods}
        fillings = {name: compared(ours, other) for name, other in others.items()}
        each |= {f"{kind}/{n}": f.lpips for n, f in {"ours": ours, **others}.items() if f.lpips is not None}
        shares = {"n": len(real), "hidden": mean(~known), "known_exact": exact}
        figures[kind] = shares | ours.figures | {"fillings": fillings}
        for key in ("psnr", "psnr_pooled"):
            by_mean = fillings["mean"][key]
            figures[kind][key.replace("psnr", "psnr_mean_fill")] = by_mean
            figures[kind][key.replace("psnr", "gain")] = ours.figures[key] - by_mean
        panels = panels or [ev.picture(visible), ev.picture(out), ev.picture(real)]
    return Outcome(figures, panels, ["holes, filled, true"] * len(real), each)


def _inpainted(ev: Evaluation, method: InpaintingMethod, real: Tensor, known: Tensor) -> Inpainted:
    try:
        return inpainting_figures(method(real, known), real, known, ev.lpips)
    except Skip as reason:
        return Inpainted({"skipped": str(reason)}, None)


def embedding_from_image(ev: Evaluation) -> Outcome:
    """Cosine to the embedding of the photo, and recall among the embeddings of other photos."""
    rows = ev.rows_with("image", "embedding")
    real = ev.read(rows)
    predicted = ev.predict("embedding", real["image"])
    ranks, gallery = ev.embedding_ranks(predicted, rows)
    return Outcome(
        {
            "n": len(rows),
            "cosine": mean(F.cosine_similarity(predicted, real["embedding"])),
            "cosine_to_another": mean(F.cosine_similarity(predicted, real["embedding"].roll(1, 0))),
            "gallery": gallery,
            **_recalls(ranks, gallery),
        }
    )


def _recalls(ranks: Tensor, items: int) -> dict[str, float]:
    """Share of queries that rank their item among the k best, and the same for a random order."""
    found = {f"recall@{k}": mean(ranks <= k) for k in RANKS}
    return found | {f"chance@{k}": min(k / items, 1.0) for k in RANKS}


def image_from_text(ev: Evaluation) -> Outcome:
    """Pictures made from captions: cosine to the caption in the embedding space, and colour by rule.

    Each figure stands beside that of the captions' own photos. The model is given texts in the same
    embedding space, so the colour is the independent check. Recall is among the distinct captions.
    """
    ev.require("embedding")
    rows, texts = ev.with_captions(ev.drawn(ev.rows_with("image")))
    vectors = ev.embed_texts(texts)
    out = ev.images_from("image from text", len(rows), embedding=vectors)
    distinct = list(dict.fromkeys(texts))
    own = torch.tensor([distinct.index(text) for text in texts])
    figures: dict = {"n": len(rows), "distinct_captions": len(distinct)}
    photos = ev.read(rows)["image"]
    for name, images in (("generated", out), ("photos", photos)):
        seen = ev.embed_images(images)
        ranks = metrics.gallery_ranks(seen, ev.embed_texts(distinct), own)
        figures[name] = {
            "cosine": mean(F.cosine_similarity(seen, vectors)),
            **_recalls(ranks, len(distinct)),
            "colour": or_reason(lambda images=images: caption_colours(ev, images, texts)),
        }
    return Outcome(figures, [ev.picture(out), ev.picture(photos)], texts)


def bound(ev: Evaluation) -> Outcome:
    """The exact bound L0 ... L3 with nothing given, in nats an example and in bits per dimension."""
    rows = ev.drawn(ev.rows_with("image"))
    device = ev.pipe.device
    generator = torch.Generator(device).manual_seed(ev.settings.seed)
    estimate = levels_bound if ev.pipe.model.has_levels else flags_bound
    totals, seen = Counter(), Counter()  # nats of each term, and examples that have each modality
    batches, draws = rows.split(ev.settings.batch), ev.settings.bound_draws
    for index in tqdm(batches, desc="bound", unit="batch", mininterval=1):
        x, flags = draw_batch(ev.examples, ev.pipe.modalities, index, None, flip=False)
        x = {n: v.to(device) for n, v in x.items()}
        present = dict(zip(ev.pipe.modalities, flags.T.to(device), strict=True))
        terms = estimate(ev.pipe.model, ev.pipe.schedule, x, present, generator, draws=draws)
        totals.update({name: nats.double().sum().item() for name, nats in terms.items()})
        seen.update({name: int(has.sum()) for name, has in present.items()})
    nats, bits = {}, {}
    for name, total in totals.items():
        _, _, modality = name.partition("/")
        modality = modality or "image"
        if seen[modality]:
            nats[name] = total / seen[modality]
            bits[name] = nats[name] / math.prod(ev.pipe.modalities[modality].shape) / math.log(2)
    return Outcome({"n": len(rows), "nats": nats, "bits_per_dimension": bits})


TASKS: dict[str, Callable[[Evaluation], Outcome]] = {
    task.__name__: task
    for task in (
        mask_from_image,
        label_from_image,
        embedding_from_image,
        image_from_label,
        image_from_mask,
        image_from_text,
        joint,
        joint_following_label,
        holes,
        copies,
        likeness,
        bound,
    )
}
