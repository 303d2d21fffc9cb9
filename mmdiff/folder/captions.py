"""Captions: x.txt beside x.jpg, or a table captions.csv or captions.jsonl with the columns file, caption."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from mmdiff.folder.findings import Findings
from mmdiff.folder.layout import Layout, Photo, readable


def add_captions(layout: Layout, findings: Findings) -> None:
    """Give photos their captions; a text beside the photo takes precedence over a table."""
    index = PhotoIndex(layout.photos)
    broken, lost, empty = [], [], []
    for table in layout.caption_tables:
        prefix = layout.name(table.parent) if table.parent != layout.root else ""
        try:
            rows = list(_csv_rows(table) if table.suffix == ".csv" else _jsonl_rows(table))
        except (ValueError, OSError, csv.Error) as error:
            broken.append(f"{layout.name(table)}: {error}")
            continue
        for file, caption in rows:
            photos = index.find(file, prefix)
            if not photos:
                lost.append(f"{file or 'a row without a file'} in {layout.name(table)}")
            elif not caption:
                empty.append(f"{file} in {layout.name(table)}")
            for photo in photos:
                photo.caption = caption
    for key, path in layout.texts.items():
        photos = index.by_key.get(key, [])
        if not photos:
            lost.append(layout.name(path))
            continue
        try:
            caption = _one_line(path.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError) as error:
            broken.append(f"{layout.name(path)}: {error}")
            continue
        if not caption:
            empty.append(layout.name(path))
        for photo in photos:
            photo.caption = caption or photo.caption
    findings.problem(
        "Files of captions that cannot be read",
        broken,
        "Left out; save them as UTF-8 text, tables with the columns file and caption.",
    )
    findings.problem(
        "Captions of photos that are not there",
        lost,
        "Left out; name the photo by its path inside the folder, such as CLASS/x.jpg.",
    )
    findings.note("Empty captions", empty, "These photos count as photos without a caption.")


class PhotoIndex:
    """Photos by every name that a table may use."""

    def __init__(self, photos: list[Photo]) -> None:
        self.by_name = {photo.name: [photo] for photo in photos}
        self.by_key: dict[str, list[Photo]] = {}
        self.by_file: dict[str, list[Photo]] = {}
        for photo in photos:
            self.by_key.setdefault(photo.key, []).append(photo)
            self.by_file.setdefault(photo.name.rpartition("/")[2], []).append(photo)

    def find(self, file: str, prefix: str) -> list[Photo]:
        """Photos called ``file``: a path, perhaps from the table's folder ``prefix``, or a unique name."""
        name = readable(file).replace("\\", "/").removeprefix("./")
        inside = f"{prefix}/{name}" if prefix else name
        for found in (self.by_name.get(inside), self.by_name.get(name)):
            if found:
                return found
        alone = self.by_file.get(name, [])
        return self.by_key.get(inside) or self.by_key.get(name) or (alone if len(alone) == 1 else [])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _csv_rows(path: Path) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""))
    if not {"file", "caption"} <= set(reader.fieldnames or ()):
        raise ValueError(f"its first line is {reader.fieldnames}, not file,caption")
    for row in reader:
        yield (row["file"] or "").strip(), _one_line(row["caption"] or "")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield str(row["file"]).strip(), _one_line(str(row["caption"] or ""))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f'line {number} is not of the form {{"file": "…", "caption": "…"}}') from None
