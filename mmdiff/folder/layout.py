"""The roles of a folder's files: photos with their class and split, masks, captions."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mmdiff.folder.findings import Findings

PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".mpo"}
CAMERA_FILES = {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
SPLITS = ("train", "val")
UNLABELLED = ("unlabelled", "unlabeled")
MASKS = "masks"
CLASS_FILES = ("classes.txt", "classes.json")
CAPTION_TABLES = ("captions.csv", "captions.jsonl")
JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")  # of operating systems; hidden files are skipped, too


@dataclass
class Photo:
    """One photo with its class, mask and caption.

    Attributes:
        name: path inside the folder, with `/`.
        label: name of its class, None if unknown.
        split: "train" or "val"; None before `assign_splits` decides.
        digest: hash of the file, equal for exact copies.
    """

    path: Path
    name: str
    label: str | None
    split: str | None
    mask: Path | None = None
    caption: str = ""
    digest: str = ""

    @property
    def key(self) -> str:
        """The name without its ending, which masks and captions share."""
        return without_ending(self.name)


@dataclass
class Layout:
    """The files of a folder by their role; masks and texts by name without ending."""

    root: Path
    photos: list[Photo] = field(default_factory=list)
    masks: dict[str, Path] = field(default_factory=dict)
    texts: dict[str, Path] = field(default_factory=dict)
    caption_tables: list[Path] = field(default_factory=list)
    class_file: Path | None = None

    def name(self, path: Path) -> str:
        """Path inside the folder, as `readable` text."""
        return readable(path.relative_to(self.root).as_posix())


def readable(text: str) -> str:
    """Text in composed Unicode (NFC); bytes of file names that are no UTF-8 become replacement marks."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def without_ending(name: str) -> str:
    """class/x.jpg -> class/x"""
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0]
    return folder + slash + (stem or file)


def scan(root: Path, findings: Findings) -> Layout:
    """Sort the files of ``root`` by their role and give photos their masks.

    Raises:
        ValueError: ``root`` is no folder.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}; give the folder that holds your photos.")
    layout, strays, cameras, outside = Layout(root), [], [], []
    files = [(path, layout.name(path)) for path in _files(root, findings)]
    top = {name.partition("/")[0] for _, name in files if "/" in name}
    split_folders = [name for name in SPLITS if name in top] if "train" in top else []
    for path, name in files:
        parts = name.split("/")
        split = parts[0] if parts[0] in split_folders and len(parts) > 1 else None
        inner = parts[1:] if split else parts
        ending = path.suffix.lower()
        if inner[0] == MASKS and len(inner) > 1:
            if not _keep_mask(layout, path, split, inner[1:]):
                strays.append(name)
        elif ending in PICTURES and split_folders and not split:
            outside.append(name)
        elif ending in PICTURES:
            label = inner[0] if len(inner) > 1 and inner[0] not in UNLABELLED else None
            layout.photos.append(Photo(path, name, label, split if len(split_folders) == 2 else None))
        elif inner[0] in CAPTION_TABLES and len(inner) == 1:
            layout.caption_tables.append(path)
        elif ending == ".txt":
            layout.texts[without_ending(name)] = path
        else:
            (cameras if ending in CAMERA_FILES else strays).append(name)
    findings.problem("Camera files that cannot be read", cameras, "Left out; save them as JPEG or PNG.")
    findings.problem(
        "Photos outside of train/ and val/",
        outside,
        "Left out, because a folder train/ is there; move them into train/ or val/.",
    )
    findings.note("Files that are no pictures", strays, "Passed over.")
    _note_one_split(split_folders, top, findings)
    _match_masks(layout, split_folders, findings)
    return layout


def _files(root: Path, findings: Findings) -> list[Path]:
    """All files below ``root``, sorted by name; links are followed, but no folder is read twice."""
    found, repeated, closed = [], [], []
    seen, pending = set(), [root]
    while pending:
        folder = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                repeated.append(readable(folder.relative_to(root).as_posix()))
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = [e for e in os.scandir(folder) if not e.name.startswith(".") and e.name not in JUNK]
        except OSError:
            closed.append(readable(folder.relative_to(root).as_posix()))
            continue
        pending += sorted((Path(e.path) for e in entries if _is_folder(e)), reverse=True)
        found += [Path(e.path) for e in entries if not _is_folder(e)]
    findings.problem(
        "Links to a folder that was seen already",
        repeated,
        "Not followed, so that nothing is read for ever or twice; remove the links.",
    )
    findings.problem("Folders that may not be opened", closed, "Left out; give yourself the right to read.")
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _keep_mask(layout: Layout, path: Path, split: str | None, inner: list[str]) -> bool:
    """Add a file of a folder of masks; whether it is a mask or the list of classes.

    Of two masks of one name, the one that is no JPEG is kept.
    """
    if inner in [[name] for name in CLASS_FILES]:
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
        top, _, inner = photo.key.partition("/")
        for key in (photo.key, inner if top in split_folders else photo.key, stem):
            if key not in layout.masks:
                continue
            if key == stem != photo.key and stems[stem] > 1:
                ambiguous.add(key)
                continue
            photo.mask = layout.masks[key]
            used.add(key)
            break
    name = {key: layout.name(path) for key, path in layout.masks.items()}
    findings.problem(
        "Masks whose name fits several photos",
        [name[key] for key in layout.masks if key in ambiguous - used],
        "Left out; put them into folders like those of the photos, such as masks/CLASS/x.png.",
    )
    findings.problem(
        "Masks without a photo",
        [name[key] for key in layout.masks if key not in used | ambiguous],
        "Left out; a mask is called like its photo, such as masks/CLASS/x.png for CLASS/x.jpg.",
    )
