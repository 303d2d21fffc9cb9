"""The split into training and validation photos: by hash of their paths, the same share of every class."""

import hashlib
from collections import defaultdict

from mmdiff.folder.layout import Findings, Photo


def assign_splits(photos: list[Photo], share: float, seed: int, findings: Findings) -> None:
    """Set the split of every photo; copies of one photo are always on the same side.

    Photos that lie in train/ and val/ stay there, except for copies, which all go to train.
    """
    copies: dict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        copies[photo.facts.digest].append(photo)
    groups = list(copies.values())
    _report_copies(groups, findings)
    strata: dict[str | None, list[list[Photo]]] = defaultdict(list)
    for group in groups:
        sides = {photo.split for photo in group}
        if sides == {None}:
            strata[group[0].label].append(group)
        elif len(sides) > 1:
            _place(group, "train")
    for stratum in strata.values():
        stratum.sort(key=lambda group: order(group[0], seed))
        wanted = max(1, round(share * sum(map(len, stratum)))) if len(stratum) > 1 else 0
        for group in stratum:
            held_out = len(group) <= wanted
            _place(group, "val" if held_out else "train")
            wanted -= len(group) * held_out


def order(photo: Photo, seed: int) -> bytes:
    """A key that sorts photos in a random order that depends on their paths and the seed alone."""
    return hashlib.sha256(f"{seed}/{photo.name}".encode()).digest()


def _place(group: list[Photo], split: str) -> None:
    for photo in group:
        photo.split = split


def _report_copies(groups: list[list[Photo]], findings: Findings) -> None:
    several = [group for group in groups if len(group) > 1]
    across = [g for g in several if len({photo.split for photo in g}) > 1]
    other = [g for g in several if len({photo.label for photo in g}) > 1]
    findings.note(
        "Photos that are exact copies of another",
        [f"{g[0].name} = {copy.name}" for g in several for copy in g[1:]],
        "Copies go to the same side of the split; remove them if they are not meant.",
    )
    findings.note(
        "Photos that lie both in train/ and in val/",
        [g[0].name for g in across],
        "All copies go to train, so that validation is of unseen photos.",
    )
    findings.problem(
        "Photos of which copies lie in different classes",
        [" = ".join(photo.name for photo in g) for g in other],
        "Kept as they are, but one of them must be wrong; remove it.",
    )
