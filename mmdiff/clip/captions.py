"""The grammar of captions: reading one, and shorter and longer ways to say it.

A caption is "a [style] photo of SUBJECT[, a NAME][ with CLAUSE, CLAUSE, …][ on or among SURROUNDINGS]":
"a photo of a dark red round apple", "a bright photo of the sea with blue above, grey below",
"a photo of an orange and black butterfly, a monarch with open wings on a green background".
"""

import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MODIFIERS = ("dark", "pale", "bright")  # they belong to the word after them: "dark red" never becomes "red"
AND = "and"  # joins the words beside it: "orange and black" are the colours of one thing
ARTICLES = ("a", "an", "the")
CLAUSE, STYLE = "with ", " photo"  # the beginning of a probe that is a clause, the end of one that is a style
SURROUNDINGS = ("on ", "among ")  # the beginnings of surroundings
BARE_NAME = 0.3  # share of the varied texts of something named that say its name alone

CAPTION = re.compile(
    r"(?:(?P<style>.*?) photo of )?(?P<subject>.*?)(?:, an? (?P<name>[^,]+?))?"
    r"(?: with (?P<clauses>.+?))?(?: (?P<surroundings>(?:on|among) .+))?$",
    re.DOTALL,
)


class Reading(NamedTuple):
    """The parts of "a STYLE photo of ARTICLE ATTRIBUTES NOUN, a NAME with CLAUSE, CLAUSE, … SURROUNDINGS",
    maybe empty.
    """

    style: str
    article: str
    attributes: tuple[str, ...]
    noun: str
    name: str
    clauses: tuple[str, ...]
    surroundings: str

    def probes(self) -> Iterator[str]:
        """The parts as short texts, without repetition; the name is none, it is what labels are for."""
        style = [f"{self.style}{STYLE}"] if self.style else []
        clauses = [f"{CLAUSE}{clause}" for clause in self.clauses]
        said = [*self.attributes, self.noun, *clauses, self.surroundings, *style]
        yield from dict.fromkeys(filter(None, said))


def read_caption(caption: str) -> Reading:
    """The parts of a caption."""
    parts = CAPTION.match(caption).groupdict("")
    article, attributes, noun = _split_subject(parts["subject"])
    style = " ".join(word for word in parts["style"].split() if word not in ARTICLES)
    clauses = tuple(filter(None, parts["clauses"].split(", ")))
    return Reading(style, article, tuple(attributes), noun, parts["name"], clauses, parts["surroundings"])


def vary(caption: str, rng: random.Random, distractors: Sequence[str] = ()) -> str:
    """The caption with a random part of its content.

    Attributes, names, clauses and surroundings are left out, never changed, so the result still describes
    the picture. Sometimes a random word of `distractors` is added, which teaches the model to ignore unknown
    words.
    """
    said = read_caption(caption)
    keep = rng.random()  # one rate per text, so that bare and full texts are both common
    if said.name and rng.random() < BARE_NAME:
        text = with_article("a", said.name) if rng.random() < 0.8 else said.name
    else:
        text = _vary_subject(said, keep, rng, distractors)
        if said.name and rng.random() < keep:
            text += f", {with_article('a', said.name)}"
    if caption.partition(" photo of ")[1] and rng.random() < 0.7:
        style = with_article("a", f"{said.style} photo") if said.style and rng.random() < 0.7 else "a photo"
        text = f"{style} of {text}"
    clauses = [clause for clause in said.clauses if rng.random() < keep]
    text += f" {CLAUSE}{', '.join(clauses)}" if clauses else ""
    return f"{text} {said.surroundings}" if said.surroundings and rng.random() < keep else text


def _vary_subject(said: Reading, keep: float, rng: random.Random, distractors: Sequence[str]) -> str:
    attributes = [group for group in said.attributes if rng.random() < keep]
    if distractors and rng.random() < 0.15:
        attributes.insert(rng.randint(0, len(attributes)), rng.choice(distractors))
    phrase = " ".join([*attributes, said.noun])
    return with_article(said.article, phrase) if said.article and rng.random() < 0.8 else phrase


def _split_subject(subject: str) -> tuple[str, list[str], str]:
    """ "a dark red round apple" -> ("a", ["dark red", "round"], "apple")."""
    words = subject.split()
    article = words.pop(0) if words and words[0] in ARTICLES else ""
    groups: list[str] = []
    joined = False  # whether the next word belongs to the group before it
    for word in words:
        if groups and (joined or word == AND):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
        joined = word in MODIFIERS or word == AND
    *attributes, noun = groups or [""]
    return article, attributes, noun


def with_article(article: str, words: str) -> str:
    """("a", "orange apple") -> "an orange apple"; ("", "trees") -> "trees"."""
    if article in ("a", "an"):
        article = "an" if words.startswith(tuple("aeiou")) else "a"
    return f"{article} {words}".strip()
