"""Tasks: one measurement each, a function from an `Evaluation` to an `Outcome`.

A task that the data, the model or the judge cannot support raises `Skip` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from mmdiff import losses
from mmdiff.data.examples import draw_batch
from mmdiff.evaluation import metrics
from mmdiff.evaluation.copies import copies
from mmdiff.evaluation.core import Evaluation, Outcome, Skip, mean, numbers, or_reason
from mmdiff.evaluation.fillings import FILLINGS
from mmdiff.evaluation.hole_figures import Filled, beside, score
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.likeness import likeness
from mmdiff.evaluation.prompts import caption_colours, prompts
from mmdiff.evaluation.repaint import repainted

RANKS = (1, 5, 10)  # k of recall@k


def mask_from_image(ev: Evaluation) -> Outcome:
    """IoU of every class: mean over pictures, and pooled over all pixels. Void pixels do not count."""
    real = ev.read(ev.having("image", "mask"))
    count = len(real["image"])
    out = ev.sample(
        "mask from image", ["mask"], count, {"image": real["image"]}, steps=ev.settings.reading_steps
    )
    return Outcome(
        {"n": count} | ev.mask_figures(out["mask"], real["mask"]),
        [ev.picture(real["image"]), ev.coloured(out["mask"]), ev.coloured(real["mask"])],
        ["photo, predicted, true"] * count,
    )


def label_from_image(ev: Evaluation) -> Outcome:
    """Top-1 and top-5 accuracy, and whether the probabilities mean what they say."""
    real = ev.read(ev.having("image", "label"))
    count = len(real["image"])
    out = ev.sample(
        "label from image", ["label"], count, {"image": real["image"]}, steps=ev.settings.reading_steps
    )
    hits = {f"top{k}": metrics.top_k_hits(out["label"], real["label"], k) for k in (1, 5)}
    named, true = ev.class_names(out["label"].argmax(1)), ev.class_names(real["label"])
    return Outcome(
        {
            "n": count,
            **{name: mean(h) for name, h in hits.items()},
            "nll": mean(metrics.nll(out["label"], real["label"])),
            "ece": metrics.calibration_error(out["label"], real["label"]),
        },
        [ev.picture(real["image"])],
        [a if a == b else f"{a}, not {b}" for a, b in zip(named, true, strict=True)],
    )


def image_from_label(ev: Evaluation) -> Outcome:
    """Share of pictures that the judge names as the class they were made for; equally many of each class."""
    ev.require("label")
    classes = ev.pipe.modalities["label"].classes
    each = math.ceil(ev.settings.samples / len(classes))
    asked = torch.arange(len(classes)).repeat(each)
    ev.judged(torch.empty(0, 3, ev.size, ev.size))  # raises before the work, not after it
    out = ev.sample(
        "image from label", ["image"], len(asked), {"label": asked}, guidance=ev.settings.guidance
    )
    hits = ev.judged(out["image"]) == asked
    by_class = hits.view(each, -1).double().mean(0)
    return Outcome(
        {
            "n": len(asked),
            "judge_agreement": mean(hits),
            "by_class": dict(zip(classes, numbers(by_class), strict=True)),
        },
        [ev.picture(out["image"])],
        ev.class_names(asked),
    )


def joint(ev: Evaluation) -> Outcome:
    """Everything generated together: do label and mask belong to the picture?"""
    return _jointly(ev, "joint", 1.0)


def joint_following_label(ev: Evaluation) -> Outcome:
    """The same with the label settled early and followed, `Settings.guidance` strongly."""
    ev.require("label")
    if ev.settings.guidance == 1:
        raise Skip("guidance is 1, so nothing follows the label")
    return _jointly(ev, "joint following label", {"label": ev.settings.guidance}, ("label",))


def _jointly(
    ev: Evaluation, title: str, guidance: float | Mapping[str, float], sample_first: Sequence[str] = ()
) -> Outcome:
    wanted = [n for n in ("image", "mask", "label") if n in ev.pipe.modalities]
    if len(wanted) < 2:
        raise Skip("the model has nothing to generate jointly with the image")
    count = ev.settings.samples
    out = ev.sample(title, wanted, count, guidance=guidance, sample_first=sample_first)
    figures: dict = {"n": count}
    panels, captions = [ev.picture(out["image"])], [""] * count
    if "label" in wanted:
        labels = out["label"].argmax(1)
        captions = ev.class_names(labels)
        figures["distinct_labels"] = len(labels.unique())
        figures["judge_agreement"] = or_reason(lambda: mean(ev.judged(out["image"]) == labels))
    if "mask" in wanted:
        panels.append(ev.coloured(out["mask"]))
        figures["mask_rule_iou"] = or_reason(lambda: mean(ev.rule_ious(out["image"], out["mask"])))
    return Outcome(figures, panels, captions)


def image_from_mask(ev: Evaluation) -> Outcome:
    """Does the picture show the mask it was made for? Read off by the segmenter, else by the white rule.

    Beside it stands what the segmenter reads off the masks' own photos, the most that can be expected.
    """
    if ev.segmenter is None:
        ev.require_rule()
    real = ev.read(ev.some(ev.having("mask", "image")))
    count, given = len(real["mask"]), real["mask"]
    if ev.segmenter is not None:
        on_photos = ev.mask_figures(ev.segmented(real["image"]), given)  # raises before the work
    out = ev.sample("image from mask", ["image"], count, {"mask": given}, guidance=ev.settings.guidance)
    figures: dict = {"n": count}
    panels = [ev.coloured(given), ev.picture(out["image"])]
    if ev.segmenter is None:
        figures["mask_rule_iou"] = mean(ev.rule_ious(out["image"], given))
    else:
        seen = ev.segmented(out["image"])
        figures |= {"segmenter": ev.mask_figures(seen, given), "segmenter_on_photos": on_photos}
        panels.append(ev.coloured(seen))
    return Outcome(figures, panels, ["given, picture, what is seen in it"] * count)


def holes(ev: Evaluation) -> Outcome:
    """What is in the holes, of ours and of fillings that know no other pictures: PSNR in dB, SSIM, LPIPS."""
    real = ev.read(ev.some(ev.having("image")))["image"]
    figures, panels, each = {}, [], {}
    for kind in ev.settings.holes:
        known = HOLES[kind](len(real), ev.size, ev.settings.seed)
        out = ev.fill(f"holes: {kind}", ["image"], {"image": real}, known)["image"]
        exact = torch.equal(torch.where(known[:, None], out, 0), torch.where(known[:, None], real, 0))
        ours = score(ev, out, real, known)
        others = {name: _filled(ev, fill, real, known) for name, fill in _fillings(ev).items()}
        fillings = {name: beside(ours, other) for name, other in others.items()}
        each |= {
            f"{kind}/{name}": f.lpips for name, f in {"ours": ours, **others}.items() if f.lpips is not None
        }
        shares = {"n": len(real), "hidden": mean(~known), "known_exact": exact}
        figures[kind] = shares | ours.figures | {"fillings": fillings}
        for key in ("psnr", "psnr_pooled"):
            by_mean = fillings["mean"][key]
            figures[kind][key.replace("psnr", "psnr_mean_fill")] = by_mean
            figures[kind][key.replace("psnr", "gain")] = ours.figures[key] - by_mean
        if not panels:
            shown = torch.where(known[:, None], real, 0)
            panels = [ev.picture(shown), ev.picture(out), ev.picture(real)]
    return Outcome(figures, panels, ["holes, filled, true"] * len(real), each)


def _fillings(ev: Evaluation) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What our filling is compared with."""
    classical = {name: fill for name, fill in FILLINGS.items() if ev.settings.classical or name == "mean"}
    return classical | ({"repaint": partial(repainted, ev)} if ev.settings.repaint else {})


def _filled(ev: Evaluation, fill: Callable[[Tensor, Tensor], Tensor], real: Tensor, known: Tensor) -> Filled:
    try:
        return score(ev, fill(real, known), real, known)
    except Skip as reason:
        return Filled({"skipped": str(reason)}, None)


def embedding_from_image(ev: Evaluation) -> Outcome:
    """Cosine to the embedding of the photo, and recall among the embeddings of other photos."""
    rows = ev.having("image", "embedding")
    real = ev.read(rows)
    count = len(rows)
    out = ev.sample(
        "embedding from image",
        ["embedding"],
        count,
        {"image": real["image"]},
        steps=ev.settings.reading_steps,
    )["embedding"]
    ranks, gallery = ev.retrieved(out, rows)
    return Outcome(
        {
            "n": count,
            "cosine": mean(metrics.cosine(out, real["embedding"])),
            "cosine_to_another": mean(metrics.cosine(out, real["embedding"].roll(1, 0))),
            "gallery": gallery,
            **_recalls(ranks, gallery),
        }
    )


def _recalls(ranks: Tensor, items: int) -> dict[str, float]:
    """Share of queries that rank their item among the k best, and the same for a random order."""
    found = {f"recall@{k}": mean(ranks <= k) for k in RANKS}
    return found | {f"chance@{k}": min(k / items, 1.0) for k in RANKS}


def image_from_text(ev: Evaluation) -> Outcome:
    """Pictures made from captions: nearness to the caption in the embedding space, and colour by rule.

    Each figure stands beside what the captions' own photos reach. The embedding space is the one that the
    texts are given in, so the colour is the independent check. Recall is among the distinct captions.
    """
    ev.require("embedding")
    rows, texts = ev.with_captions(ev.some(ev.having("image")))
    vectors = ev.embed_texts(texts)
    out = ev.sample(
        "image from text", ["image"], len(rows), {"embedding": vectors}, guidance=ev.settings.guidance
    )["image"]
    distinct = list(dict.fromkeys(texts))
    own = torch.tensor([distinct.index(text) for text in texts])
    figures: dict = {"n": len(rows), "distinct_captions": len(distinct)}
    photos = ev.read(rows)["image"]
    for name, images in (("generated", out), ("photos", photos)):
        seen = ev.embed_images(images)
        ranks = metrics.gallery_ranks(seen, ev.embed_texts(distinct), own)
        figures[name] = {
            "cosine": mean(metrics.cosine(seen, vectors)),
            **_recalls(ranks, len(distinct)),
            "colour": or_reason(lambda images=images: caption_colours(ev, images, texts)),
        }
    return Outcome(figures, [ev.picture(out), ev.picture(photos)], texts)


def bound(ev: Evaluation) -> Outcome:
    """The exact bound L0 ... L3 with nothing given, in nats an example and in bits per dimension."""
    rows = ev.some(ev.having("image"))
    device = ev.pipe.device
    generator = torch.Generator(device).manual_seed(ev.settings.seed)
    totals: dict[str, float] = {}
    seen = dict.fromkeys(ev.pipe.modalities, 0)
    with tqdm(total=len(rows), desc="bound", unit="example", mininterval=1) as bar:
        for index in rows.split(ev.settings.batch):
            x, flags = draw_batch(ev.examples, ev.pipe.modalities, index, None, flip=False)
            x = {n: v.to(device) for n, v in x.items()}
            present = dict(zip(ev.pipe.modalities, flags.T.to(device), strict=True))
            terms = losses.bound(
                ev.pipe.model, ev.pipe.schedule, x, present, generator, draws=ev.settings.bound_draws
            )
            for name, nats in terms.items():
                totals[name] = totals.get(name, 0.0) + nats.double().sum().item()
            for name, has in present.items():
                seen[name] += int(has.sum())
            bar.update(len(index))
    nats, bits = {}, {}
    for name, total in totals.items():
        modality = name.removeprefix("L2/") if name.startswith("L2/") else "image"
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
        prompts,
        joint,
        joint_following_label,
        holes,
        copies,
        likeness,
        bound,
    )
}
