"""All checks of a folder: its usable photos and masks, and the findings about the others."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from mmdiff.folder.captions import add_captions
from mmdiff.folder.layout import Findings, Layout, Photo, scan
from mmdiff.folder.masks import (
    VOID,
    MaskCoding,
    MaskFacts,
    black_and_white,
    by_list,
    clashing_palettes,
    decide_coding,
    inspect_mask,
    read_classes,
)
from mmdiff.folder.pictures import PhotoFacts, inspect_photo
from mmdiff.folder.split import assign_splits

FEW = 10  # photos of a class
UNBALANCED = 10  # times more photos of one class than of another
LONG = 2.5  # times longer than wide

ASSUMED = {  # how numbers of masks were found -> the note on it
    "soft": ("Masks with soft edges or noise", "Each grey counts as black or white, whichever is nearer."),
    "colours": (
        "Masks in the colours of PASCAL VOC, or of this project",
        "Their colours count, not the order of their palettes.",
    ),
}

T = TypeVar("T")


@dataclass
class Checked:
    """The usable part of a folder, and the findings.

    Attributes:
        photos: usable photos, each with its split; sorted by path.
        classes: names of the photos' classes, in the order of their numbers.
        coding: the meaning of mask values, None without usable masks.
        masks: facts about each usable mask.
    """

    findings: Findings
    photos: list[Photo] = field(default_factory=list)
    classes: tuple[str, ...] = ()
    coding: MaskCoding | None = None
    masks: dict[Path, MaskFacts] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether there are photos for training and for validation."""
        return {photo.split for photo in self.photos} == {"train", "val"}


def check_folder(root: Path, size: int, val_share: float, seed: int) -> Checked:
    """Check a folder of photos for a model of ``size`` pixels.

    Raises ValueError if ``root`` is no folder; all other flaws become findings.
    """
    findings = Findings(root)
    checked = Checked(findings)
    layout = scan(findings)
    _check_photos(layout, size, checked)
    _check_masks(layout, checked)
    add_captions(layout, findings)
    checked.classes = tuple(sorted({photo.label for photo in checked.photos if photo.label is not None}))
    _check_classes(checked)
    assign_splits(checked.photos, val_share, seed, findings)
    _check_splits(checked)
    return checked


def workers() -> ThreadPoolExecutor:
    """Threads for decoding, at most as many as memory has room for large photos."""
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _inspect(work: Callable[[Path], T], paths: Iterable[Path], what: str) -> tuple[dict, dict[Path, str]]:
    """Facts about each file, or the reason why there are none."""
    paths = list(paths)
    facts: dict[Path, T] = {}
    errors: dict[Path, str] = {}

    def one(path: Path) -> T | str:
        try:
            return work(path)
        except (ValueError, OSError, MemoryError) as error:
            return getattr(error, "strerror", None) or str(error) or type(error).__name__

    with workers() as pool:
        results = tqdm(pool.map(one, paths), f"check {what}", len(paths), unit="file", disable=None)
        for path, result in zip(paths, results, strict=True):
            (errors if isinstance(result, str) else facts)[path] = result
    return facts, errors


def _check_photos(layout: Layout, size: int, checked: Checked) -> None:
    findings = checked.findings
    if not layout.photos:
        findings.problem(
            "No photos found",
            [str(findings.root)],
            "Put photos (JPEG, PNG, WebP …) into a subfolder for each class.",
        )
    facts, errors = _inspect(inspect_photo, (photo.path for photo in layout.photos), "photos")
    for photo in layout.photos:
        photo.facts = facts.get(photo.path)
    checked.photos = [photo for photo in layout.photos if photo.facts]
    findings.problem(
        "Photos that cannot be read",
        errors,
        "Left out; copy them again from where they came, or save them anew as JPEG or PNG.",
    )

    def note(what: str, where: Callable[[PhotoFacts], bool], advice: str) -> None:
        findings.note(what, [photo.name for photo in checked.photos if where(photo.facts)], advice)

    note(
        f"Photos smaller than {size} pixels",
        lambda f: min(f.size) < size,
        "They are enlarged in training and stay soft; choose a smaller --size or remove them.",
    )
    note(
        f"Photos over {LONG:g} times longer than wide",
        lambda f: max(f.size) > LONG * min(f.size),
        "Training sees their central square only; cut them yourself if what matters is elsewhere.",
    )
    note("Pictures of several frames", lambda f: f.animated, "The first frame is used.")
    note("Photos with transparency", lambda f: f.transparent, "It becomes white.")
    cmyk = "Turned into RGB; colours can shift a little."
    note("Photos in print colours (CMYK)", lambda f: f.mode == "CMYK", cmyk)
    note(
        "Photos of 16 bits",
        lambda f: f.mode.startswith("I"),
        "Turned into 8 bits; of those that use 8, 10, 12 or 14 only, the highest of these is white.",
    )


def _check_masks(layout: Layout, checked: Checked) -> None:
    findings = checked.findings
    masked = [photo for photo in checked.photos if photo.mask]
    listed = _class_list(layout, findings)
    facts, errors = _inspect(inspect_mask, dict.fromkeys(photo.mask for photo in masked), "masks")
    findings.problem(
        "Masks that cannot be used",
        errors,
        "Left out; save masks as PNG without transparency, one number or colour for each class.",
    )
    facts = {path: by_list(mask, listed) for path, mask in facts.items()}
    pairs = [(p, facts[p.mask]) for p in masked if p.mask in facts]
    shapes = {
        p.mask: f"{_pixels(mask.size)}, photo {_pixels(p.facts.size)}"
        for p, mask in pairs
        if mask.size != p.facts.size
    }
    fitting = {p.mask for p, mask in pairs if mask.fits(p.facts.size)}
    findings.problem(
        "Masks of another shape than their photo",
        {path: text for path, text in shapes.items() if path not in fitting},
        "Left out; export them at the size of the photo, upright where the camera says how it was held.",
    )
    findings.note(
        "Masks of another size than their photo",
        {path: text for path, text in shapes.items() if path in fitting},
        "Resized, as the shape is the same.",
    )
    findings.note(
        "Photos with a mask that the camera held turned",
        [p.name for p, _ in pairs if p.mask in fitting and p.facts.turned],
        "Photos are stored upright; see that their masks are drawn upright too.",
    )
    for p, mask in pairs:  # photos of one name, x.jpg and x.png, share a mask that may fit one of them only
        if not mask.fits(p.facts.size):
            p.mask = None
    usable = {path: mask for path, mask in facts.items() if path in fitting}
    for path in _report_palettes(usable, listed, findings):
        del usable[path]
    coding = decide_coding(usable.values(), listed)
    _report_values(layout, usable, coding, listed, findings)
    _keep_masks(layout, {p: f for p, f in usable.items() if coding.reads(f)}, coding, checked)


def _report_palettes(masks: dict[Path, MaskFacts], listed: Mapping | None, findings: Findings) -> list[Path]:
    clashing = clashing_palettes(masks, listed)
    findings.problem(
        "Masks whose palettes disagree: a colour has several numbers, or a number several colours",
        clashing,
        "Left out; write masks/classes.txt with the colour of each class, or save them with one palette.",
    )
    return clashing


def _class_list(layout: Layout, findings: Findings) -> dict | None:
    try:
        return read_classes(layout.class_file) if layout.class_file else None
    except ValueError as error:
        findings.problem(
            "The list of mask classes that cannot be read",
            {layout.class_file: error},
            "Passed over, as if there were none.",
        )
        return None


def _report_values(
    layout: Layout,
    masks: dict[Path, MaskFacts],
    coding: MaskCoding,
    listed: Mapping | None,
    findings: Findings,
) -> None:
    """Findings about masks that the coding cannot read, and about values that may surprise."""
    unread = {path: facts for path, facts in masks.items() if not coding.reads(facts)}
    coloured = {path: facts for path, facts in unread.items() if facts.numbers is None}
    if coding.colours:
        findings.problem(
            "Masks with colours that masks/classes.txt does not list",
            {path: _unlisted(facts, coding) for path, facts in coloured.items()},
            "Left out; add the colours to the list, or save the masks without soft edges.",
        )
    else:
        findings.problem(
            "Masks in colours, but nothing says what the colours mean",
            list(coloured),
            "Left out; write masks/classes.txt with a line such as 'sky 70 130 180' for each class.",
        )
    numbered = {path: _beyond(facts, coding) for path, facts in unread.items() if path not in coloured}
    if listed:
        findings.problem(
            f"Masks with values beyond the {len(listed)} classes of {findings.name(layout.class_file)}",
            numbered,
            f"Left out; values count from 0 to {len(listed) - 1}, 255 is ignored. "
            "List the missing classes or renumber the masks.",
        )
    else:
        findings.problem(
            "Masks with too many different values for class numbers",
            numbered,
            "Left out; save them without soft edges, or list all classes in masks/classes.txt.",
        )
    by_value = {p: f for p, f in masks.items() if coding.reads(f) and not coding.by_colour(f)}
    for how, (what, advice) in ASSUMED.items():
        findings.note(what, [path for path, facts in by_value.items() if facts.how == how], advice)
    white = [path for path, facts in by_value.items() if 255 in facts.numbers]
    if black_and_white(by_value.values()) and coding.numbers[255]:
        findings.note("Masks in black and white", white, f"White (255) is the class {coding.classes[1]!r}.")
    else:
        findings.note("Masks with the value 255", white, "It means ignored: void, number 0 from now on.")


def _keep_masks(layout: Layout, good: dict[Path, MaskFacts], coding: MaskCoding, checked: Checked) -> None:
    """Drop masks that are void or show one class only."""
    findings = checked.findings
    empty = [path for path, facts in good.items() if coding.seen(facts) == {VOID}]
    findings.note("Masks that are void everywhere", empty, "Left out.")
    good = {path: facts for path, facts in good.items() if path not in empty}
    if good and len(coding.real_classes) < 2:
        findings.problem(
            "Masks that all show one class only",
            list(good),
            "Left out; a mask needs at least two classes, such as background and object.",
        )
        good = {}
    if good:
        checked.coding, checked.masks = coding, good
        shown = set().union(*map(coding.seen, good.values()))
        hidden = [name for name in coding.real_classes if name not in shown]
        findings.note("Classes that no mask shows", hidden, "List classes that exist only.")
        findings.note(
            "Classes of masks that are called by their value",
            [name for name in coding.classes if name.startswith("class ") and layout.class_file is None],
            "Name them in masks/classes.txt, the first line for the value 0.",
        )
        without = [photo.name for photo in checked.photos if photo.mask not in good]
        findings.note("Photos without a mask", without, "That is fine: they are trained on without.")
    for photo in checked.photos:
        photo.mask = photo.mask if photo.mask in good else None


def _check_classes(checked: Checked) -> None:
    findings = checked.findings
    counts = Counter(photo.label for photo in checked.photos if photo.label is not None)
    if len(counts) == 1:
        findings.note(
            "Only one class",
            checked.classes,
            "Labels are not trained. If classes are a level deeper, give that folder instead.",
        )
    if checked.photos and not counts:
        findings.note(
            "Photos without a class",
            [photo.name for photo in checked.photos],
            "Labels are not trained; make a subfolder for each class if there are any.",
        )
    few = {name: counts[name] for name in checked.classes if counts[name] < FEW}
    findings.note(f"Classes of fewer than {FEW} photos", few, "Add photos or join classes.")
    if counts and max(counts.values()) >= UNBALANCED * min(counts.values()):
        most, least = max(counts, key=counts.get), min(counts, key=counts.get)
        findings.note(
            "Very unbalanced classes",
            {most: counts[most], least: counts[least]},
            "The model sees the rare ones seldom; add photos of them, or take some of the others away.",
        )
    odd = [name for name in checked.classes if name != name.strip() or not name.isprintable()]
    findings.note("Class names with odd characters", map(repr, odd), "Rename the folders to be safe.")
    folded = Counter(name.casefold() for name in checked.classes)
    findings.note(
        "Class names that differ in capitals only",
        [name for name in checked.classes if folded[name.casefold()] > 1],
        "They are different classes; rename or join the folders if they are not.",
    )


def _check_splits(checked: Checked) -> None:
    counts = Counter((photo.split, photo.label) for photo in checked.photos)
    unseen = [name for name in checked.classes if counts["val", name] and not counts["train", name]]
    checked.findings.problem(
        "Classes with photos in val/ only", unseen, "They cannot be learned; add photos to train/."
    )
    if checked.photos and not checked.usable:
        missing = "train" if all(photo.split == "val" for photo in checked.photos) else "val"
        checked.findings.problem(
            "A side of the split without a usable photo",
            [missing],
            "Add photos: training and validation each need at least one that is no copy of another.",
        )


def _pixels(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _unlisted(facts: MaskFacts, coding: MaskCoding) -> str:
    if facts.colours is None:
        return "more than 256 colours"
    return ", ".join(" ".join(map(str, c)) for c in sorted(facts.colours - coding.colours.keys())[:3])


def _beyond(facts: MaskFacts, coding: MaskCoding) -> str:
    extra = sorted(facts.numbers - coding.numbers.keys())
    return ", ".join(map(str, extra[:3])) + (" …" if len(extra) > 3 else "")
