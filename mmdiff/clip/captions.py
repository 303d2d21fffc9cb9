"""Shorter and longer ways to say a caption, so that prompts need not sound like the training captions.

A caption is "a [style] photo of SUBJECT", then perhaps " with CLAUSE, CLAUSE, …":
"a photo of a dark red round apple", "a bright photo of the sea with blue above, grey below".
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from open_clip import SimpleTokenizer
from torch import Tensor

MODIFIERS = ("dark", "pale", "bright")  # they belong to the word after them: "dark red" never becomes "red"
ARTICLES = ("a", "an", "the")
VARIANTS = 24  # texts a caption is tokenised into, half of them the caption itself


class CaptionTexts:
    """Every distinct caption, tokenised once in VARIANTS ways, on the training device."""

    def __init__(self, captions: list[str], context_length: int, seed: int, device: torch.device):
        tokenizer = SimpleTokenizer(context_length=context_length)
        rng, distractors = random.Random(seed), _words(tokenizer)
        distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        texts: list[str] = []
        for caption in distinct:
            texts += [caption] * (VARIANTS // 2)
            texts += [vary(caption, rng, distractors) for _ in range(VARIANTS - VARIANTS // 2)]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self.tokens = tokenizer(list(numbers)).to(device)  # (texts, context_length)
        self.table = torch.tensor([numbers[text] for text in texts], device=device).view(-1, VARIANTS)
        self.caption_ids = torch.tensor([distinct[caption] for caption in captions], device=device)  # (N,)

    def sample(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, context_length) of one text for each row, and which image and text match, (B, B)."""
        captions = self.caption_ids[rows]
        texts = self.table[captions, torch.randint(VARIANTS, rows.shape, device=rows.device)]
        matches = (captions[:, None] == captions) | (texts[:, None] == texts)
        return self.tokens[texts], matches


def vary(caption: str, rng: random.Random, distractors: Sequence[str] = ()) -> str:
    """The caption with a random part of what it says.

    Attributes and clauses are left out, never changed, so the result still holds for the picture. Now
    and then a word of `distractors`, which means nothing here, teaches the model to ignore unknown words.
    """
    head, _, tail = caption.partition(" with ")
    style, _, subject = head.rpartition(" photo of ")
    keep = rng.random()  # one rate per text, so that bare and full texts are both common
    text = _vary_subject(subject, keep, rng, distractors)
    if style and rng.random() < 0.7:
        text = f"{style if rng.random() < 0.7 else 'a'} photo of {text}"
    clauses = [clause for clause in tail.split(", ") if clause and rng.random() < keep]
    return f"{text} with {', '.join(clauses)}" if clauses else text


def _vary_subject(subject: str, keep: float, rng: random.Random, distractors: Sequence[str]) -> str:
    words = subject.split()
    article = words.pop(0) if words[0] in ARTICLES else ""
    *attributes, noun = attribute_groups(words)
    attributes = [group for group in attributes if rng.random() < keep]
    if distractors and rng.random() < 0.15:
        attributes.insert(rng.randint(0, len(attributes)), rng.choice(distractors))
    phrase = " ".join([*attributes, noun])
    if article in ("a", "an"):
        article = "an" if phrase[0] in "aeiou" else "a"
    return f"{article} {phrase}" if article and rng.random() < 0.8 else phrase


def attribute_groups(words: list[str]) -> list[str]:
    """["dark", "red", "round", "apple"] -> ["dark red", "round", "apple"]."""
    groups: list[str] = []
    for word in words:
        if groups and groups[-1] in MODIFIERS:
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return groups


def _words(tokenizer: SimpleTokenizer) -> list[str]:
    """The whole words of the vocabulary."""
    words = sorted(token.removesuffix("</w>") for token in tokenizer.encoder if token.endswith("</w>"))
    return [word for word in words if word.isascii() and word.isalpha() and len(word) > 2]
