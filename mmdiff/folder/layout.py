"""The roles of a folder's files, photos with class and split, masks, captions, and findings about them."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmdiff.folder.pictures import PhotoFacts

PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".mpo"}
CAMERA_FILES = {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
# Names of folders and files with a meaning, in lower case: capitals make no difference.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
UNLABELLED = ("unlabelled", "unlabeled")
CONTAINERS = ("images", "jpegimages", "photos")  # around all photos, with folders of classes inside if any
MASKS = ("masks", "mask", "segmentationclass", "segmentations", "segmentation", "annotations", "labels")
INSTANCES = ("segmentationobject", "instances")  # masks of objects one by one, which are no classes
CLASS_FILES = ("classes.txt", "classes.json")
CAPTION_TABLES = ("captions.csv", "captions.jsonl", "metadata.csv", "metadata.jsonl")
# of operating systems and disk stations; hidden files are skipped, too
JUNK = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin", "lost+found")
SHOWN = 3  # names that a finding lists

Files = Iterable[Path | str] | Mapping[Path, object] | Mapping[str, object]  # paths or names, with details


@dataclass(frozen=True)
class Finding:
    """One kind of finding: what, in which files, and advice."""

    what: str
    files: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        names = ", ".join(self.files[:SHOWN])
        if len(self.files) > SHOWN:
            names += f" and {len(self.files) - SHOWN:,} more"
        count = f" ({len(self.files):,})" if len(self.files) > 1 else ""
        return f"{self.what}{count}: {names}. {self.advice}"


@dataclass
class Findings:
    """Findings about the folder ``root``, in the order in which they are made.

    Files with problems are left out until they are mended; notes are worth a look. Without files there is no
    finding.
    """

    root: Path
    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def problem(self, what: str, files: Files, advice: str) -> None:
        """Record a problem of ``files``."""
        self._add(self.problems, what, files, advice)

    def note(self, what: str, files: Files, advice: str) -> None:
        """Record a note about ``files``."""
        self._add(self.notes, what, files, advice)

    def _add(self, findings: list[Finding], what: str, files: Files, advice: str) -> None:
        names = [self.name(file) if isinstance(file, Path) else file for file in files]
        if isinstance(files, Mapping):
            names = [f"{name}: {detail}" for name, detail in zip(names, files.values(), strict=True)]
        if names:
            findings.append(Finding(what, tuple(names), advice))

    def name(self, path: Path) -> str:
        """Path inside the folder, as `readable` text."""
        return readable(path.relative_to(self.root).as_posix())


@dataclass
class Photo:
    """One photo with its class, mask and caption.

    Attributes:
        name: path inside the folder, with `/`.
        label: name of its class, None if unknown.
        split: "train" or "val"; None before `assign_splits` decides.
        facts: what `inspect_photo` finds in the file.
    """

    path: Path
    name: str
    label: str | None
    split: str | None
    mask: Path | None = None
    caption: str = ""
    facts: PhotoFacts | None = None

    @property
    def key(self) -> str:
        """The name without its ending, which masks and captions share."""
        return without_ending(self.name)


@dataclass
class Layout:
    """The files of a folder by their role; masks and texts by name without ending."""

    photos: list[Photo] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)
    caption_tables: list[Path] = field(default_factory=list)
    class_file: Path | None = None
    mask_folders: set[str] = field(default_factory=set)  # that are not called masks


def readable(text: str) -> str:
    """Text in composed Unicode (NFC); bytes of file names that are no UTF-8 become replacement marks."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def without_ending(name: str) -> str:
    """class/x.jpg -> class/x"""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def scan(findings: Findings) -> Layout:
    """Sort the files of the folder by their role and give photos their masks.

    Raises ValueError if there is no such folder.
    """
    if not findings.root.is_dir():
        raise ValueError(f"there is no folder {findings.root}; give the folder that holds your photos.")
    layout, files = Layout(), {path: findings.name(path) for path in _files(findings)}
    top = {name.partition("/")[0].casefold() for name in files.values() if "/" in name}
    top = {SPLITS.get(name, name) for name in top}
    split_folders = [name for name in ("train", "val") if name in top] if "train" in top else []
    rest: dict[str, list[Path]] = defaultdict(list)
    for path, name in files.items():
        rest[_place(layout, path, name, split_folders)].append(path)
    findings.problem(
        "Camera files that cannot be read", rest["camera"], "Left out; save them as JPEG or PNG."
    )
    findings.problem(
        "Masks of single objects", rest["instances"], "Left out; masks number classes, not single objects."
    )
    findings.note(
        "Folders that are taken for masks",
        sorted(layout.mask_folders),
        "Rename them if they hold photos of a class.",
    )
    findings.problem(
        "Photos outside of train/ and val/",
        rest["outside"],
        "Left out, because a folder train/ is there; move them into train/ or val/.",
    )
    findings.note("Files that are no pictures", rest["stray"], "Passed over.")
    _note_one_split(split_folders, top, findings)
    _match_masks(layout, split_folders, findings)
    return layout


def _place(layout: Layout, path: Path, name: str, split_folders: list[str]) -> str:
    """Add a file where it belongs; its role, "" if it is used or may be."""
    split, inner = _split_of(name.split("/"), split_folders)
    first = inner[0].casefold() if len(inner) > 1 else ""
    ending = path.suffix.lower()
    if first in MASKS:
        if inner[0] != "masks":
            layout.mask_folders.add(inner[0])
        inside, inner = _split_of(inner[1:], [] if split else split_folders)
        return "" if _keep_mask(layout, path, split or inside, inner) else "stray"
    if first in INSTANCES:
        return "instances"
    if ending in PICTURES and split_folders and not split:
        return "outside"
    if ending in PICTURES:
        inner = inner[1:] if first in CONTAINERS else inner
        label = inner[0] if len(inner) > 1 and inner[0].casefold() not in UNLABELLED else None
        layout.photos.append(Photo(path, name, label, split if len(split_folders) == 2 else None))
    elif len(inner) == 1 and inner[0].casefold() in CAPTION_TABLES:
        layout.caption_tables.append(path)
    elif ending == ".txt":
        layout.texts[without_ending(name)] = path
    else:
        return "camera" if ending in CAMERA_FILES else "stray"
    return ""


def _files(findings: Findings) -> list[Path]:
    """All files of the folder, sorted by name; links are followed, but no folder is read twice."""
    found, repeated, closed, seen = [], [], [], set()

    def kept(names: list[str]) -> list[str]:
        return sorted(name for name in names if not name.startswith(".") and name.casefold() not in JUNK)

    for folder, folders, files in os.walk(findings.root, onerror=closed.append, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            repeated.append(Path(folder))
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = kept(folders)
        found += [Path(folder, name) for name in kept(files)]
    findings.problem(
        "Links to a folder that was seen already",
        repeated,
        "Not followed, so that nothing is read for ever or twice; remove the links.",
    )
    findings.problem(
        "Folders that may not be opened",
        [Path(error.filename) for error in closed],
        "Left out; give yourself the right to read.",
    )
    return sorted(found)


def _split_of(parts: list[str], split_folders: list[str]) -> tuple[str | None, list[str]]:
    """The split in whose folder a path lies, and the path inside of it."""
    split = SPLITS.get(parts[0].casefold()) if len(parts) > 1 else None
    return (split, parts[1:]) if split in split_folders else (None, parts)


def _keep_mask(layout: Layout, path: Path, split: str | None, inner: list[str]) -> bool:
    """Add a file of a folder of masks; whether it is a mask or the list of classes.

    Of two masks of one name, the one that is no JPEG is kept.
    """
    if len(inner) == 1 and inner[0].casefold() in CLASS_FILES:
        layout.class_file = path
    elif path.suffix.lower() in PICTURES:
        key = without_ending("/".join([split, *inner] if split else inner))
        other = layout.masks.get(key)
        if other is None or other.suffix.lower() in (".jpg", ".jpeg"):
            layout.masks[key] = path
    else:
        return False
    return True


def _note_one_split(split_folders: list[str], top: set[str], findings: Findings) -> None:
    if split_folders == ["train"]:
        findings.note("There is no val/ beside", ["train"], "Validation photos are drawn from train/.")
    if "val" in top and not split_folders:
        findings.note(
            "There is no train/ beside", ["val"], "It counts as a class called val; add train/ beside it."
        )


def _match_masks(layout: Layout, split_folders: list[str], findings: Findings) -> None:
    """Give every photo the mask of the same relative path, or of the same file name if that is unique.

    Paths are compared with and without the folder of the split.
    """
    stems = Counter(photo.key.rpartition("/")[2] for photo in layout.photos)
    used, ambiguous = set(), set()
    for photo in layout.photos:
        stem = photo.key.rpartition("/")[2]
        split, inner = _split_of(photo.key.split("/"), split_folders)
        inner = inner[1:] if inner[0].casefold() in CONTAINERS and len(inner) > 1 else inner
        for key in ("/".join([split or "", *inner]).lstrip("/"), "/".join(inner), photo.key, stem):
            if key not in layout.masks:
                continue
            if key == stem and stem not in (photo.key, "/".join(inner)) and stems[stem] > 1:
                ambiguous.add(key)
                continue
            photo.mask = layout.masks[key]
            used.add(key)
            break
    findings.problem(
        "Masks whose name fits several photos",
        [path for key, path in layout.masks.items() if key in ambiguous - used],
        "Left out; put them into folders like those of the photos, such as masks/CLASS/x.png.",
    )
    findings.problem(
        "Masks without a photo",
        [path for key, path in layout.masks.items() if key not in used | ambiguous],
        "Left out; a mask is called like its photo, such as masks/CLASS/x.png for CLASS/x.jpg.",
    )
