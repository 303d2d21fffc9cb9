"""Every subset of the modalities given, the rest generated: do results ever get worse with more given?

All subsets use the same examples and the same noise, so that they can be compared example by example.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from itertools import permutations, product

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.evaluation import metrics
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.skip import Skip

NONE, HOLED, WHOLE = 0, 1, 2  # how much of a modality is given; only a photo can have holes
RECALL_RANK = 5
STANDARD_ERRORS = 2.0  # a larger difference is significant
FEW = "at least two examples of every measurement are needed for standard errors"
BY_CHANCE = 0.0228  # probability of a normal variable that far below its mean

Given = Mapping[str, int]  # name of each modality -> NONE, HOLED or WHOLE
Scores = dict[str, Tensor]  # "modality.metric" -> (n,) of the examples, higher is better, NaN if undefined


def all_subsets(ev: Evaluation) -> dict:
    """Mean and standard error of every wanted modality's metrics for every given subset, JSON-ready.

    "photos" holds the image metrics of the real photos; "monotonicity" compares every subset with all that
    contain it, on `Bench.capped` scores, and lists where more given is significantly worse. Raises `Skip` if
    fewer than two examples have all modalities.
    """
    bench = Bench(ev)
    results = [(given, bench.scores(given)) for given in subsets(tuple(ev.pipe.modalities))]
    capped = [(given, bench.capped(scores)) for given, scores in results]
    pairs = [pair for smaller, larger in permutations(capped, 2) for pair in compare(smaller, larger)]
    return {
        "examples": len(bench.rows),
        "gallery": bench.gallery,
        "holes": ev.settings.holes[0],
        "subsets": [{"given": describe(given), "metrics": summaries(scores)} for given, scores in results],
        "photos": summaries(bench.photos),
        "skipped": bench.skipped,
        "monotonicity": {
            "compared": len(pairs),
            "standard_errors": STANDARD_ERRORS,
            "worse_if_all_were_equal": round(BY_CHANCE * len(pairs), 1),
            "worse": [pair for pair in pairs if pair["gain"] < -STANDARD_ERRORS * pair["se"]],
        },
    }


def subsets(names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Every choice of given modalities, the photo also with holes, that leaves something to generate."""
    levels = [(NONE, HOLED, WHOLE) if name == "image" else (NONE, WHOLE) for name in names]
    for chosen in product(*levels):
        if min(chosen) < WHOLE:
            yield dict(zip(names, chosen, strict=True))


def describe(given: Given) -> str:
    """The subset in words."""
    return " + ".join(n + (" with holes" if v == HOLED else "") for n, v in given.items() if v) or "nothing"


def compare(smaller: tuple[Given, Scores], larger: tuple[Given, Scores]) -> Iterator[dict]:
    """Gain of each metric from the smaller subset to the larger; nothing if it does not contain the smaller.

    Gains are paired by example and negative where more given is worse; "se" is the standard error.
    """
    (less, before), (more, after) = smaller, larger
    if any(less[name] > more[name] for name in less):
        return
    for name in sorted(before.keys() & after.keys()):
        found = summary(after[name] - before[name])
        yield {
            "metric": name,
            "subset": describe(less),
            "superset": describe(more),
            "subset_mean": summary(before[name])["mean"],
            "superset_mean": summary(after[name])["mean"],
            "gain": found["mean"],
            "se": found["se"],
        }


def summaries(scores: Scores) -> dict[str, dict]:
    return {name: summary(values) for name, values in scores.items()}


def summary(values: Tensor) -> dict:
    """Mean of the numbers (n,) that are not NaN, its standard error, and how many there are."""
    values = values[~values.isnan()]
    if len(values) < 2:
        raise Skip(FEW)
    return {"mean": values.mean().item(), "se": values.std().item() / len(values) ** 0.5, "n": len(values)}


class Bench:
    """Examples that have every modality, and the metrics of samples for them.

    Attributes:
        rows: (n,) of the examples. photos: the image metrics of the real photos. skipped: metric -> reason.
        gallery: number of embeddings that a generated one is looked up among.
    """

    def __init__(self, ev: Evaluation) -> None:
        self.ev = ev
        self.rows = ev.rows_with(*ev.pipe.modalities)
        if len(self.rows) < 2:
            raise Skip(f"{FEW}, and {len(self.rows)} have all modalities")
        self.real = ev.read(self.rows)
        self.known = HOLES[ev.settings.holes[0]](len(self.rows), ev.size, ev.settings.seed)
        self.gallery: int | None = None
        self.photos: Scores = {}
        self.skipped: dict[str, str] = {}
        for name, metric in IMAGE_METRICS.items():  # skips are known before the sampling
            try:
                self.photos[name] = metric(self, self.real["image"]).double()
            except Skip as reason:
                self.skipped[name] = str(reason)

    def scores(self, given: Given) -> Scores:
        """Metrics of everything that is not given."""
        wanted = [name for name, level in given.items() if level < WHOLE]
        values = {name: self.real[name] for name, level in given.items() if level}
        if given["image"] == HOLED:
            out = self.ev.inpaint(describe(given), wanted, values, self.known)
        else:
            s = self.ev.settings
            steps = s.reading_steps if given["image"] == WHOLE else s.steps
            out = self.ev.sample(describe(given), wanted, len(self.rows), values, steps=steps)
        found: Scores = {}
        for name in wanted:
            found |= METRICS.get(name, partial(_error, name))(self, out[name])
        if given["image"] == HOLED:
            squares, count = metrics.hole_error(out["image"], self.real["image"], self.known)
            found["image.psnr"] = metrics.psnr(squares / count)
        return {name: values.double() for name, values in found.items()}

    def capped(self, scores: Scores) -> Scores:
        """The scores, each at most that of the example's own photo, which no picture can surpass."""
        return {
            name: torch.minimum(values, self.photos[name]) if name in self.photos else values
            for name, values in scores.items()
        }

    @cached_property
    def caption_vectors(self) -> Tensor:
        """Embeddings (n, D) of the examples' captions, NaN where there is none."""
        self.ev.with_captions(self.rows)  # raises where there are no captions at all
        captions = [self.ev.examples.captions[int(row)] for row in self.rows]
        vectors = self.ev.embed_texts(captions)
        return vectors.masked_fill(torch.tensor([not caption for caption in captions])[:, None], torch.nan)


def _mask(bench: Bench, predicted: Tensor) -> Scores:
    classes = bench.ev.pipe.modalities["mask"].classes
    counts, kept = bench.ev.mask_counts(predicted, bench.real["mask"])
    each = metrics.iou(counts)[:, kept]  # (n, classes but void)
    scores = {"mask.miou": each.nanmean(1)}
    return scores | {f"mask.iou_{classes[1]}": each[:, 1]} if kept == [0, 1] else scores


def _label(bench: Bench, predicted: Tensor) -> Scores:
    return {"label.top1": metrics.top_k_hits(predicted, bench.real["label"], 1)}


def _embedding(bench: Bench, predicted: Tensor) -> Scores:
    ranks, bench.gallery = bench.ev.embedding_ranks(predicted, bench.rows)
    cosine = F.cosine_similarity(predicted, bench.real["embedding"])
    return {"embedding.cosine": cosine, f"embedding.recall@{RECALL_RANK}": ranks <= RECALL_RANK}


def _image(bench: Bench, predicted: Tensor) -> Scores:
    return {name: IMAGE_METRICS[name](bench, predicted) for name in bench.photos}


def _error(name: str, bench: Bench, predicted: Tensor) -> Scores:
    """Of any other modality: its mean absolute error, negative."""
    real, modality = bench.real[name], bench.ev.pipe.modalities[name]
    target = modality.as_prediction(real) if modality.form == "class" else real
    return {f"{name}.negative_error": -(predicted - target).abs().double().flatten(1).mean(1)}


def _seen_mask(bench: Bench, images: Tensor) -> Tensor:
    """IoU of the true masks with what the segmenter sees, a mean over the classes of each picture."""
    counts, kept = bench.ev.mask_counts(bench.ev.segment(images), bench.real["mask"])
    return metrics.iou(counts)[:, kept].nanmean(1)


METRICS: dict[str, Callable[[Bench, Tensor], Scores]] = {
    "image": _image,
    "mask": _mask,
    "label": _label,
    "embedding": _embedding,
}
IMAGE_METRICS: dict[str, Callable[[Bench, Tensor], Tensor]] = {
    # against the true label in every subset, whether or not it is given
    "image.judge": lambda bench, images: bench.ev.classify(images) == bench.real["label"],
    "image.caption": lambda bench, images: F.cosine_similarity(
        bench.ev.embed_images(images), bench.caption_vectors
    ),
    "image.mask_rule_iou": lambda bench, images: bench.ev.rule_ious(images, bench.real["mask"]),
    "image.segmenter_miou": _seen_mask,
    "image.negative_lpips": lambda bench, images: -bench.ev.lpips(images, bench.real["image"]),
}


def table(report: Mapping) -> str:
    """The report of `all_subsets` as text: a line for every subset, then where more given is worse."""
    columns = list(dict.fromkeys(name for row in report["subsets"] for name in row["metrics"]))
    cells = [["given", *columns]]
    for row in [*report["subsets"], {"given": "(real photos)", "metrics": report["photos"]}]:
        found = (row["metrics"].get(name) for name in columns)
        cells.append([row["given"], *(f"{f['mean']:.3f} ± {f['se']:.3f}" if f else "" for f in found)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]
    order = report["monotonicity"]
    lines += [
        "",
        f"More given is worse by over {order['standard_errors']:g} standard errors in {len(order['worse'])} "
        f"of {order['compared']} comparisons; if all were equal, about {order['worse_if_all_were_equal']:g} "
        "would be.",
    ]
    for pair in sorted(order["worse"], key=lambda pair: pair["gain"] / max(pair["se"], 1e-12)):
        lines.append(
            f"  {pair['metric']}: {pair['subset_mean']:.3f} given {pair['subset']}, "
            f"{pair['superset_mean']:.3f} given {pair['superset']} ({pair['gain']:+.3f} ± {pair['se']:.3f})"
        )
    lines += [f"{name} skipped: {reason}" for name, reason in report["skipped"].items()]
    return "\n".join(lines)
