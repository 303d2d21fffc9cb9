"""Embeddings in words: the nearest captions, labels and text probes of a checkpoint's own vocabulary.

python -m mmdiff.clip.vocabulary checkpoints/orchard --data data/orchard/train.parquet

writes `vocabulary.json` into the checkpoint folder; `Pipeline.describe` reads it. Nothing is trained for it.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdiff.checkpoint import load_config
from mmdiff.clip.captions import CLAUSE, STYLE, SURROUNDINGS, read_caption, with_article
from mmdiff.clip.separation import separates

VOCABULARY_FILE = "vocabulary.json"
MAX_CAPTIONS, MAX_CLASS_CAPTIONS, MAX_PROBES = 500, 100, 40  # the commonest
COMMAND = "python -m mmdiff.clip.vocabulary CHECKPOINT --data PARQUET"

Near = tuple[tuple[str, float], ...]  # texts with their cosine, best first


@dataclass(frozen=True)
class Vocabulary:
    """The captions of the training data.

    Attributes:
        captions: the commonest captions and how often they occur.
        labels: class name -> its commonest captions and how often they occur. A name such as "Apple 11"
            means nothing to a text tower; the captions of the class do.
        probes: attributes ("dark red"), kinds ("apple"), clauses ("with trees"), surroundings ("on a green
            background") and styles ("dark photo") that captions are made of, the commonest first.
    """

    captions: dict[str, int]
    labels: dict[str, dict[str, int]]
    probes: tuple[str, ...]

    @classmethod
    def from_captions(
        cls,
        captions: Sequence[str | None],
        labels: Sequence[int | None],
        class_names: Sequence[str],
    ) -> Vocabulary:
        """The vocabulary of N captions and their N class numbers; None, "" and -1 mean unknown.

        Classes without a caption are left out. Raises ValueError if there is no caption at all, or a class
        number without a name.
        """
        counts, of_class, said = Counter(filter(None, captions)), defaultdict(Counter), Counter()
        if not counts:
            raise ValueError("the data has no captions, so there are no words; give data with captions.")
        for caption, label in zip(captions, labels, strict=True):
            if caption and label is not None and label >= 0:
                of_class[label][caption] += 1
        nameless = sorted(label for label in of_class if label >= len(class_names))
        if class_names and nameless:
            raise ValueError(
                f"the data has the class number {nameless[0]}, but the checkpoint has {len(class_names)} "
                "classes; give the data that it was trained on."
            )
        for caption, count in counts.items():
            said.update(dict.fromkeys(read_caption(caption).probes(), count))
        return cls(
            dict(counts.most_common(MAX_CAPTIONS)),
            {
                name: dict(of_class[k].most_common(MAX_CLASS_CAPTIONS))
                for k, name in enumerate(class_names)
                if of_class[k]
            },
            tuple(probe for probe, _ in said.most_common(MAX_PROBES)),
        )

    def save(self, folder: str | Path) -> Path:
        """Write `vocabulary.json` into a checkpoint folder; returns its path."""
        path = Path(folder) / VOCABULARY_FILE
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Vocabulary | None:
        """The vocabulary of a checkpoint folder, None if it has none; ValueError if it is malformed."""
        path = Path(folder) / VOCABULARY_FILE
        if not path.is_file():
            return None
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be used: {error}. Write it again with `{COMMAND}`, or remove it."
            ) from error

    @classmethod
    def _from_json(cls, values: Any) -> Vocabulary:
        if not isinstance(values, dict) or set(values) != {"captions", "labels", "probes"}:
            raise ValueError("expected an object with captions, labels and probes")
        labels, probes = values["labels"], values["probes"]
        _check_counts("captions", values["captions"])
        if not isinstance(labels, dict):
            raise ValueError("labels is no object of class names")
        for name, counts in labels.items():
            _check_counts(f"the captions of the label {name!r}", counts)
        if not isinstance(probes, list) or not all(isinstance(p, str) and p.strip() for p in probes):
            raise ValueError("probes is no list of texts")
        return cls(values["captions"], labels, tuple(probes))


def _check_counts(what: str, counts: Any) -> None:
    numbers = list(counts.values()) if isinstance(counts, dict) else []
    if not numbers or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"{what}: expected texts and how often they occur, whole numbers above 0")


@dataclass(frozen=True)
class Description:
    """An embedding in words: texts with their cosine to it, from -1 to 1, the nearest first.

    Of probes it is the cosine to what one adds to the mean caption. Those that add nothing are left out, and
    those that do not tell the captions apart, see `mmdiff.clip.separation`.
    """

    captions: Near
    labels: Near
    probes: Near

    def as_dict(self, digits: int = 4) -> dict[str, dict[str, float]]:
        """{"captions": {text: cosine, …}, "labels": …, "probes": …} for JSON."""
        return {name: {text: round(c, digits) for text, c in near} for name, near in vars(self).items()}


class Words:
    """A vocabulary in an embedder's space, embedded at its first use."""

    def __init__(self, embedder: Any, vocabulary: Vocabulary) -> None:
        self.embedder, self.vocabulary = embedder, vocabulary

    def describe(self, vectors: Any, count: int = 5) -> list[Description]:
        """The `count` nearest captions, labels and probes of each of the vectors (B, D).

        Raises ValueError if the vectors have another shape.
        """
        if isinstance(vectors, Tensor):
            vectors = vectors.cpu()
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.embedder.dim:
            raise ValueError(
                f"got vectors of shape {tuple(vectors.shape)}, expected (B, {self.embedder.dim}); put a "
                "single vector in a list."
            )
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
        captions, labels, probes = (_nearest(vectors, *table, count) for table in self._tables)
        probes = [tuple((text, near) for text, near in found if near > 0) for found in probes]
        return [Description(*nearest) for nearest in zip(captions, labels, probes, strict=True)]

    @property
    def ready(self) -> bool:
        """Whether the vocabulary has been embedded."""
        return "_tables" in vars(self)

    def prepare(self) -> None:
        """Embed the vocabulary if it is not embedded yet."""
        self._tables  # noqa: B018

    @cached_property
    def _tables(self) -> tuple[tuple[list[str], np.ndarray], ...]:
        """Of captions, labels and probes: the texts and their unit vectors (texts, D).

        In NumPy, so that a lookup starts no OpenMP threads, see `mmdiff.serving.engine`.
        """
        captions, labels = self.vocabulary.captions, self.vocabulary.labels
        probes = {probe: dict.fromkeys(self.prompts(probe), 1) for probe in self.vocabulary.probes}
        groups = {caption: {caption: 1} for caption in captions}, labels, probes
        said, named, probed = (
            (list(group), prompt_centres(self.embedder, list(group.values())).cpu().numpy())
            for group in groups
        )
        return said, named, self._telling(probed[0], self._centred(probed[1], said[1]), said[1])

    @cached_property
    def _counts(self) -> np.ndarray:
        """How often each caption occurs, (C,)."""
        return np.fromiter(self.vocabulary.captions.values(), dtype=np.float32)

    def _centred(self, probes: np.ndarray, captions: np.ndarray) -> np.ndarray:
        """Probes (P, D) without what captions (C, D) share, which is large and says nothing of a photo."""
        own = probes - self._counts / self._counts.sum() @ captions
        return own / np.linalg.norm(own, axis=1, keepdims=True).clip(1e-12)

    def _telling(
        self, probes: list[str], vectors: np.ndarray, captions: np.ndarray
    ) -> tuple[list[str], np.ndarray]:
        """Those probes, of centred vectors (P, D), that tell captions (C, D) apart, see `separates`.

        Others, such as a colour that nearly everything has, would match by accident.
        """
        said = [set(read_caption(caption).probes()) for caption in self.vocabulary.captions]
        kept = [
            k
            for k, probe in enumerate(probes)
            if separates(captions @ vectors[k], np.array([probe in own for own in said]), self._counts)
        ]
        return [probes[k] for k in kept], vectors[kept]

    @cached_property
    def _kinds(self) -> dict[str, str]:
        """Probes that are nouns, such as "sea", with their most common article, "the"."""
        articles: dict[str, Counter[str]] = defaultdict(Counter)
        for caption, count in self.vocabulary.captions.items():
            said = read_caption(caption)
            articles[said.noun][said.article] += count
        probes = filter(articles.__contains__, self.vocabulary.probes)
        return {noun: articles[noun].most_common(1)[0][0] for noun in probes}

    def prompts(self, probe: str) -> list[str]:
        """Texts whose mean embedding represents a probe: captions of every noun with it.

        A text tower trained on such captions alone cannot place "a dark red thing"; in the mean over all
        nouns only the attribute remains.
        """
        if probe in self._kinds:
            return [f"a photo of {with_article(self._kinds[probe], probe)}"]
        kinds = self._kinds or {"thing": "a"}
        subjects = [with_article(article, noun) for noun, article in kinds.items()]
        if probe.startswith((CLAUSE, *SURROUNDINGS)):
            return [f"a photo of {subject} {probe}" for subject in subjects]
        if probe.endswith(STYLE):
            return [f"{with_article('a', probe)} of {subject}" for subject in subjects]
        return [f"a photo of {with_article(article, f'{probe} {noun}')}" for noun, article in kinds.items()]


def prompt_centres(embedder: Any, groups: Sequence[Mapping[str, float]]) -> Tensor:
    """The weighted mean of each group's prompts, {prompt: weight}, as unit vectors (groups, D) on the CPU."""
    vectors = embed_distinct(embedder, [prompt for group in groups for prompt in group])
    centres = torch.zeros(len(groups), vectors.shape[1])
    for centre, group, own in zip(centres, groups, vectors.split([*map(len, groups)]), strict=True):
        centre += torch.tensor([float(weight) for weight in group.values()]) @ own
    return F.normalize(centres, dim=1)


def embed_distinct(embedder: Any, texts: Sequence[str], batch: int = 256) -> Tensor:
    """Unit vectors (n, D) of n texts on the CPU; equal texts are embedded once."""
    row = {text: k for k, text in enumerate(dict.fromkeys(texts))}
    distinct = list(row)
    chunks = [embedder.embed_texts(distinct[k : k + batch]).cpu() for k in range(0, len(distinct), batch)]
    return torch.cat(chunks)[[row[text] for text in texts]] if chunks else torch.empty(0, embedder.dim)


def _nearest(vectors: np.ndarray, texts: Sequence[str], table: np.ndarray, count: int) -> list[Near]:
    cosines = np.einsum("bd,nd->bn", vectors, table)  # row by row, so that no result depends on its batch
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [
        tuple((texts[i], float(row[i])) for i in nearest) for row, nearest in zip(cosines, order, strict=True)
    ]


def write(checkpoint: str | Path, data: Sequence[str | Path]) -> Path:
    """Write the vocabulary of the Parquet files `data` into a checkpoint folder; returns its path.

    Raises ValueError for a folder without a checkpoint and for files without captions.
    """
    from mmdiff.clip.data import read_captions  # which loads open_clip and pyarrow

    modalities = load_config(Path(checkpoint)).modalities
    classes = next((m.options["classes"] for m in modalities if m.kind == "label"), [])
    return Vocabulary.from_captions(*read_captions(data), classes).save(checkpoint)


def main(arguments: list[str] | None = None) -> None:
    about = "Write the words of the training data to a checkpoint."
    parser = argparse.ArgumentParser(prog="python -m mmdiff.clip.vocabulary", description=about)
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--data", nargs="+", required=True, metavar="PARQUET", help="its training data")
    args = parser.parse_args(arguments)
    try:
        path = write(args.checkpoint, args.data)
        vocabulary = Vocabulary.load(args.checkpoint)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    found = f"{len(vocabulary.captions)} captions, {len(vocabulary.labels)} labels"
    print(f"{path}: {found}, {len(vocabulary.probes)} probes")


if __name__ == "__main__":
    main()
