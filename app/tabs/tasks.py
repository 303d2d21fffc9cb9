"""The tasks that have a tab of their own: which modalities take part and what may become of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = ("image", "mask", "label", "embedding")  # that the page can take and show
GIVEN, GENERATE, IGNORE = "Given", "Generate", "Ignore"  # what may become of a modality


@dataclass(frozen=True)
class Task:
    """A tab.

    Attributes:
        name: in links, settings and element ids. title: of the tab. intro: what can be done, one sentence.
        needs: kinds without which there is no tab. kinds: kinds that take part; none named means all.
        choices: what may become of a modality. fixed: kinds that are always given.
    """

    name: str
    title: str
    intro: str
    needs: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    choices: tuple[str, ...] = (GIVEN, GENERATE)
    fixed: tuple[str, ...] = ()

    def modalities(self, every: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a model's modalities that take part: name -> spec."""
        return {name: spec for name, spec in every.items() if not self.kinds or spec.kind in self.kinds}

    def fits(self, every: Mapping[str, Any]) -> bool:
        """Whether a model has what the task needs."""
        return set(self.needs) <= {spec.kind for spec in every.values()}


TASKS = (
    Task(
        "image_mask",
        "Image + mask",
        "Make a photo and its mask together, cut out what a photo shows, or paint a mask and get the photo.",
        ("image", "mask"),
        ("image", "mask"),
    ),
    Task(
        "fill_in",
        "Fill in",
        "Paint over a part of a photo and have it made anew. Everything else comes back bit for bit.",
        ("image",),
        choices=(GIVEN, GENERATE, IGNORE),
        fixed=("image",),
    ),
    Task(
        "image_label",
        "Image + label",
        "Make a photo with its name, name what a photo shows, or choose a name and get the photo.",
        ("image", "label"),
        ("image", "label"),
    ),
    Task(
        "image_embedding",
        "Image + embedding",
        "Write a sentence and get the photo, or show a photo and see what it means in words.",
        ("image", "embedding"),
        ("image", "embedding"),
    ),
    Task(
        "any_to_any",
        "Any to any",
        "Decide for every modality whether it is given, generated or left out.",
        ("image",),
        choices=(GIVEN, GENERATE, IGNORE),
    ),
)
