"""What a checkpoint knows, said up front: one sentence from its own modalities, and all of its classes."""

from collections.abc import Mapping, Sequence

from app.run.defaults import ANCHOR
from app.wording import escaped, gloss, listed
from mmdiff.modalities import Modality

FEW = 4  # classes that the sentence names, from all parts of their list


def knowledge(modalities: Mapping[str, Modality]) -> str:
    """HTML: the sentence and, to unfold, the classes of every modality that has more than it names."""
    size = modalities[ANCHOR].image_size
    own = sorted((spec for spec in modalities.values() if spec.classes), key=lambda spec: spec.dense)
    sentence = " ".join([*map(_said, own), f"Its images have {size} × {size} pixels."])
    long = [spec for spec in own if len(spec.classes) > FEW]
    return f'<div class="knows"><p>{sentence}</p>{_all(long) if long else ""}</div>'


def _said(spec: Modality) -> str:
    """The sentence on one modality with classes; the first class of a class map is the ground."""
    if spec.form == "class_map":
        ground, *things = spec.classes
        return f"Its {escaped(spec.name)}s tell {escaped(listed(things))} from {escaped(ground)}."
    count = len(spec.classes)
    some = spec.classes if count <= FEW else [spec.classes[k * count // FEW] for k in range(FEW)]
    among = ":" if count <= FEW else ", such as"
    return f"Knows <b>{count} {escaped(spec.name)}s</b>{among} {escaped(listed(some))}."


def _all(specs: Sequence[Modality]) -> str:
    lists = "".join(map(_list, specs))
    box = f'<div tabindex="0" role="group" aria-label="All classes">{lists}</div>'
    return f"<details><summary>See all</summary>{box}</details>"


def _list(spec: Modality) -> str:
    plain = gloss(spec)
    title = f"{escaped(spec.name.capitalize())}{plain and f' · {escaped(plain)}'}"
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escaped(name)}</li>' for name in spec.classes)}</ul>"
