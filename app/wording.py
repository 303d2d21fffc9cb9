"""Small pieces of the page in words: durations, lists, the status line."""

from collections.abc import Sequence
from html import escape

from app.run.defaults import ANCHOR
from mmdiff.modalities import Modality

# groups of words that describe an embedding, and how many of each are shown
WORDS = {
    "captions": ("Nearest captions", 3),
    "labels": ("Nearest labels", 3),
    "probes": ("Matching words", 4),
}

# what the value of a modality is, by its form, in the words of somebody who never heard of modalities
GLOSSES = {"class_map": "what is where", "class": "its name"}

# what a modality is in a run, see `mmdiff` requests -> as the page and the films say it
ROLES = {"given": "provided", "generated": "created", "filled in": "repainted", "ignored": "left out"}


def gloss(spec: Modality) -> str:
    """What a modality is in plain words, to stand beside its name wherever that is a heading; "" for none."""
    if spec.name == ANCHOR:
        return "the photo"
    return "words that fit" if spec.takes_text else GLOSSES.get(spec.form, "")


def glossed(spec: Modality) -> str:
    """A modality in a sentence: plain words, and its name in brackets."""
    plain = gloss(spec)
    return f"{plain} ({spec.name})" if plain else spec.name


def status(text: str, share: float | None = None, kind: str = "calm") -> str:
    """One line on how things stand; `share` (0..1) adds a progress bar; `kind` is calm, busy or problem."""
    # Steps are not read aloud, one after the other; the player announces how a run ends.
    role = {"problem": ' role="alert"', "calm": ' role="status"'}.get(kind, "")
    bar = "" if share is None else f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="status {kind}"{role}><p>{text}</p>{bar}</div>'


def escaped(text: object) -> str:
    """Text as HTML shows it, also in an attribute's "value": names, captions and errors are not ours."""
    return escape(str(text), quote=False).replace('"', "&quot;")


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def steps_of(count: int) -> str:
    """So many steps, in words."""
    return "1 step" if count == 1 else f"{count} steps"
