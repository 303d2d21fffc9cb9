"""Do photos made from texts show the colour and the kind that the text names? The task `prompts`.

    python benchmarks/prompts.py CHECKPOINT --data PARQUET --train PARQUET --judge FOLDER --out results.json \
        --tasks prompts

takes the arguments of `python -m mmdiff.evaluate`, measures the same and knows this task, too. It is about
the captions of the orchard set.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.recolour import recoloured_copies
from mmdiff.clip.captions import with_article
from mmdiff.data.augment import draw_batch
from mmdiff.evaluate import main
from mmdiff.evaluation.colours import Said, caption_colours, colour_agreement, parse, seen_colours
from mmdiff.evaluation.evaluation import Evaluation, Outcome
from mmdiff.evaluation.skip import Skip, or_reason
from mmdiff.evaluation.tasks import TASKS

PROMPTS = 200  # texts, half of them rare combinations
RARE_BELOW = 0.002  # share of the captions below which a combination of colour and kind is rare
WORDINGS = (
    "a photo of {} {}",
    "{} {}",
    "a photo of {} round {}",
    "{} wide {}",
    "a photo of {} tall {}",
    "{} round {}",
    "a photo of {} wide {}",
    "{} tall {}",
)


def combinations(captions: Sequence[str]) -> tuple[Counter[Said], list[Said], list[Said]]:
    """Counts of each pair of colour and kind in captions; and of all pairs the common and the rare.

    Pairs in less than `RARE_BELOW` of the captions are rare, including those that never occur.
    """
    counts = Counter(said for caption in captions if (said := parse(caption)))
    colours, kinds = sorted({said.colour for said in counts}), sorted({said.kind for said in counts})
    pairs = [Said(*pair) for pair in product(colours, kinds)]
    rare = [pair for pair in pairs if counts[pair] < RARE_BELOW * len(captions)]
    return counts, [pair for pair in pairs if pair not in rare], rare


def write_prompts(pairs: Sequence[Said], count: int) -> tuple[list[str], list[Said]]:
    """``count`` texts that cycle through the pairs, in other words each time, and the pair of each."""
    said = [pairs[k % len(pairs)] for k in range(count)]
    wordings = [WORDINGS[k // len(pairs) % len(WORDINGS)] for k in range(count)]
    subjects = [with_article("a", s.colour) for s in said]
    texts = zip(wordings, subjects, said, strict=True)
    return [wording.format(subject, s.kind) for wording, subject, s in texts], said


def prompts(ev: Evaluation) -> Outcome:
    """Does the object have the colour (and, by the classifier, the kind) that its text names?

    Half of the texts combine colour and kind as training captions commonly do, half as they rarely or never
    do. "photos" is how often the rule agrees with the captions of real photos, "recoloured_photos" how often
    rule and classifier agree on real photos in the colours of rare combinations: the upper limits.
    """
    ev.require("embedding")
    ev.require_rule()
    if not ev.train_captions:
        raise Skip("no training captions: give --train the Parquet file that the model was trained on")
    counts, common, rare = combinations(ev.train_captions)
    if not common or not rare:
        raise Skip("the training captions do not combine colours with kinds, some often and some rarely")
    half = PROMPTS // 2
    texts, asked = map(list.__add__, write_prompts(common, half), write_prompts(rare, half))
    images = ev.images_from("prompts", len(texts), embedding=ev.embed_texts(texts))
    seen = seen_colours(images)
    figures: dict = {"combinations": {"common": len(common), "rare": len(rare)}}
    for name, part in (("overall", slice(None)), ("common", slice(half)), ("rare", slice(half, None))):
        figures[name] = colour_agreement(seen[part], asked[part])
        figures[name]["kind"] = or_reason(lambda part=part: _kind_agreement(ev, images[part], asked[part]))
    rows, captions = ev.with_captions(ev.rows_with("image"))
    figures["photos"] = caption_colours(ev, ev.read(rows)["image"], captions)
    figures["recoloured_photos"] = or_reason(lambda: _recoloured_photos(ev, rare))
    figures["by_combination"] = _by_combination(counts, asked, seen)
    return Outcome(figures, [ev.picture(images)], texts)


def _recoloured_photos(ev: Evaluation, rare: Sequence[Said]) -> dict:
    """The figures of `prompts` for photos that were recoloured to the rare combinations."""
    photos = ev.examples.take(ev.rows_with("image", "mask"))
    try:
        copies = recoloured_copies(photos, len(photos), "image", "mask", ev.settings.seed, wanted=rare)
    except ValueError as reason:
        raise Skip(str(reason)) from None
    if not len(copies):
        raise Skip("no photo could be recoloured to a rare combination")
    rows = torch.arange(len(copies))
    images = draw_batch(copies, ev.pipe.modalities, rows, None, flip=False)[0]["image"]
    asked = [parse(caption) for caption in copies.captions]
    kind = or_reason(lambda: _kind_agreement(ev, images, asked))
    return colour_agreement(seen_colours(images), asked) | {"kind": kind}


def _kind_agreement(ev: Evaluation, images: Tensor, asked: Sequence[Said]) -> float:
    """How often the classifier's class begins with the kind that the text names."""
    named = ev.class_names(ev.classify(images))
    hits = [name.lower().startswith(said.kind) for name, said in zip(named, asked, strict=True)]
    return sum(hits) / len(hits)


def _by_combination(counts: Counter[Said], asked: Sequence[Said], seen: Sequence[str]) -> dict[str, dict]:
    """For each colour and kind: number of training captions, and how often each colour was seen."""
    found: dict[str, dict] = {}
    for said, colour in zip(asked, seen, strict=True):
        found.setdefault(" ".join(said), {"train": counts[said], "seen": Counter()})["seen"][colour] += 1
    return found


if __name__ == "__main__":
    TASKS["prompts"] = prompts
    main()
