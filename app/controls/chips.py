"""Help with the text of an embedding: words to click, by their slot in a caption, and unknown ones named."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from app.wording import escaped
from mmdiff.clip.captions import MODIFIERS, read_caption
from mmdiff.clip.vocabulary import Vocabulary
from mmdiff.colour_words import WORDS as COLOURS

MOST = 14  # chips of a slot
# A caption is "a photo of COLOUR SHAPE KIND, SPECIES SURROUNDINGS with DETAILS"; not every slot has words.
SLOTS = ("colour", "shape", "kind", "species", "surroundings", "details")
WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
PLAIN = frozenset(  # say nothing about a picture
    "a an the of and or with in on at to is are it its some very photo photos picture image".split()
)


def slots(vocabulary: Vocabulary) -> dict[str, list[str]]:
    """The commonest words of the training captions by their slot; slots without a choice are left out."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for caption, count in vocabulary.captions.items():
        for slot, words in _parts(caption):
            counts[slot][words] += count
    found = {slot: [words for words, _ in counts[slot].most_common(MOST)] for slot in SLOTS}
    return {slot: words for slot, words in found.items() if len(words) > 1}


def _parts(caption: str) -> list[tuple[str, str]]:
    """The parts of a caption with their slots."""
    said = read_caption(caption)
    parts = [("colour" if _is_colour(words) else "shape", words) for words in said.attributes]
    parts += [("kind", said.noun), ("species", said.name), ("surroundings", said.surroundings)]
    return [*filter(all, parts), *(("details", clause) for clause in said.clauses)]


def _is_colour(words: str) -> bool:
    return all(word in COLOURS or word in MODIFIERS or word == "and" for word in words.split())


def unknown_words(text: str, vocabulary: Vocabulary) -> list[str]:
    """Words of the text that no training caption and no label has, in order, each once.

    A plural of a known word is known.
    """
    said = [*vocabulary.captions, *vocabulary.labels, *vocabulary.probes]
    said += [caption for captions in vocabulary.labels.values() for caption in captions]
    known = PLAIN.union(*map(_words, said))
    return [
        word
        for word in dict.fromkeys(_words(text))
        if not {word, word.removesuffix("s"), word.removesuffix("es")} & known
    ]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def unknown_note(text: str | None, vocabulary: Vocabulary) -> str:
    """HTML that names the unknown words of a text; "" if there are none."""
    unknown = unknown_words(text or "", vocabulary)
    if not unknown:
        return ""
    named = escaped(", ".join(unknown[:5])) + (" …" if len(unknown) > 5 else "")
    said = f"Not in its vocabulary: <b>{named}</b>. The model has to guess."
    return f'<p class="hint unknown" role="status">{said}</p>'


def chips(found: Mapping[str, list[str]]) -> str:
    """HTML of the chips; chips.js writes the caption."""
    return f'<div class="chips">{"".join(map(_row, found, found.values()))}</div>'


def _row(slot: str, texts: list[str]) -> str:
    title = slot.capitalize()
    buttons = "".join(
        f'<button type="button" class="chip" aria-pressed="false">{escaped(words)}</button>'
        for words in texts
    )
    return f'<div role="group" aria-label="{title}" data-slot="{slot}"><span>{title}</span>{buttons}</div>'
