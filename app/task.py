"""The tasks that have a tab of their own: which modalities take part and what may become of them."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.run.defaults import ANCHOR
from mmdiff.modalities import Modality

GIVEN, GENERATE, IGNORE = "I provide", "Create", "Leave out"  # what may become of a modality


@dataclass(frozen=True)
class Task:
    """A tab.

    Attributes:
        name: in links, settings and element ids. title: of the tab. intro: what can be done, one sentence.
        forms: of the modalities that take part beside the photo, and without which there is no tab; none
            named means all.
        choices: what may become of a modality. inpaints: whether the photo is always given, with a hole.
    """

    name: str
    title: str
    intro: str
    forms: tuple[str, ...] = ()
    choices: tuple[str, ...] = (GIVEN, GENERATE)
    inpaints: bool = False

    def modalities(self, every: Mapping[str, Modality]) -> dict[str, Modality]:
        """The modalities of a model that take part: name -> spec."""
        return {n: s for n, s in every.items() if n == ANCHOR or not self.forms or s.form in self.forms}

    def fits(self, every: Mapping[str, Modality]) -> bool:
        """Whether a model has what the task needs."""
        return set(self.forms) <= {spec.form for spec in every.values()}


TASKS = (
    Task(
        "image_mask",
        "Image + mask",
        "Create an image with its mask, cut out what a photo shows, or paint a mask and get the image.",
        ("class_map",),
    ),
    Task(
        "fill_in",
        "Fill in",
        "Paint over a part of a photo and have it repainted. Everything else stays pixel-identical.",
        choices=(GIVEN, GENERATE, IGNORE),
        inpaints=True,
    ),
    Task(
        "image_label",
        "Image + label",
        "Create an image with its label, name what a photo shows, or choose a label and get the image.",
        ("class",),
    ),
    Task(
        "image_embedding",
        "Image + embedding",
        "Write a sentence and get the image, or provide a photo and see which words fit it.",
        ("vector",),
    ),
    Task(
        "any_to_any",
        "Any to any",
        "Choose for each of them whether you provide it, the model creates it, or it is left out.",
        choices=(GIVEN, GENERATE, IGNORE),
    ),
)
