"""The grammar of captions: reading one, and shorter and longer ways to say it.

A caption is "a [style] photo of SUBJECT", then perhaps " with CLAUSE, CLAUSE, …":
"a photo of a dark red round apple", "a bright photo of the sea with blue above, grey below".
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MODIFIERS = ("dark", "pale", "bright")  # they belong to the word after them: "dark red" never becomes "red"
ARTICLES = ("a", "an", "the")
CLAUSE, STYLE = "with ", " photo"  # the beginning of a probe that is a clause, the end of one that is a style


class Reading(NamedTuple):
    """The parts of "a STYLE photo of ARTICLE ATTRIBUTES NOUN with CLAUSE, CLAUSE, …", maybe empty."""

    style: str
    article: str
    attributes: tuple[str, ...]
    noun: str
    clauses: tuple[str, ...]

    def probes(self) -> Iterator[str]:
        """The parts as short texts, without repetition."""
        style = [f"{self.style}{STYLE}"] if self.style else []
        clauses = [f"{CLAUSE}{clause}" for clause in self.clauses]
        yield from dict.fromkeys(filter(None, [*self.attributes, self.noun, *clauses, *style]))


def read_caption(caption: str) -> Reading:
    """The parts of a caption."""
    style, subject, clauses = _split(caption)
    article, attributes, noun = _split_subject(subject)
    style = " ".join(word for word in style.split() if word not in ARTICLES)
    return Reading(style, article, tuple(attributes), noun, tuple(clauses))


def vary(caption: str, rng: random.Random, distractors: Sequence[str] = ()) -> str:
    """The caption with a random part of its content.

    Attributes and clauses are left out, never changed, so the result still describes the picture. Sometimes
    a random word of `distractors` is added, which teaches the model to ignore unknown words.
    """
    style, subject, clauses = _split(caption)
    keep = rng.random()  # one rate per text, so that bare and full texts are both common
    text = _vary_subject(subject, keep, rng, distractors)
    if style and rng.random() < 0.7:
        text = f"{style if rng.random() < 0.7 else 'a'} photo of {text}"
    clauses = [clause for clause in clauses if rng.random() < keep]
    return f"{text} with {', '.join(clauses)}" if clauses else text


def _vary_subject(subject: str, keep: float, rng: random.Random, distractors: Sequence[str]) -> str:
    article, attributes, noun = _split_subject(subject)
    attributes = [group for group in attributes if rng.random() < keep]
    if distractors and rng.random() < 0.15:
        attributes.insert(rng.randint(0, len(attributes)), rng.choice(distractors))
    phrase = " ".join([*attributes, noun])
    return with_article(article, phrase) if article and rng.random() < 0.8 else phrase


def _split(caption: str) -> tuple[str, str, list[str]]:
    """ "a bright photo of the sea with blue above" -> ("a bright", "the sea", ["blue above"])."""
    head, _, tail = caption.partition(" with ")
    style, _, subject = head.rpartition(" photo of ")
    return style, subject, list(filter(None, tail.split(", ")))


def _split_subject(subject: str) -> tuple[str, list[str], str]:
    """ "a dark red round apple" -> ("a", ["dark red", "round"], "apple")."""
    words = subject.split()
    article = words.pop(0) if words and words[0] in ARTICLES else ""
    groups: list[str] = []
    for word in words:
        if groups and groups[-1] in MODIFIERS:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    *attributes, noun = groups or [""]
    return article, attributes, noun


def with_article(article: str, words: str) -> str:
    """("a", "orange apple") -> "an orange apple"; ("", "trees") -> "trees"."""
    if article in ("a", "an"):
        article = "an" if words.startswith(tuple("aeiou")) else "a"
    return f"{article} {words}".strip()
