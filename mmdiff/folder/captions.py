"""Captions: x.txt beside x.jpg, or a table captions.csv, captions.jsonl, metadata.csv or metadata.jsonl."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mmdiff.folder.layout import Findings, Layout, Photo, readable

# names of the columns of tables, also those of `datasets`
FILE, CAPTION = ("file", "file_name", "filename"), ("caption", "text")


def add_captions(layout: Layout, findings: Findings) -> None:
    """Give photos their captions; a text beside the photo takes precedence over a table."""
    index = PhotoIndex(layout.photos)
    broken, lost, empty = {}, [], []

    def read(path: Path, parse: Callable[[str], Iterable[Any]]) -> list[Any]:
        try:
            return list(parse(path.read_text(encoding="utf-8-sig")))
        except (ValueError, OSError, csv.Error) as error:
            broken[path] = error
            return []

    for table in layout.caption_tables:
        name = findings.name(table)
        for file, caption in read(table, _csv_rows if table.suffix.lower() == ".csv" else _jsonl_rows):
            photos = index.find(file, name.rpartition("/")[0])
            if not photos:
                lost.append(f"{file or 'a row without a file'} in {name}")
            elif not caption:
                empty.append(f"{file} in {name}")
            for photo in photos:
                photo.caption = caption
    for key, path in layout.texts.items():
        photos = index.by_key[key]
        if not photos:
            lost.append(path)
        for caption in read(path, lambda text: [_one_line(text)]) if photos else ():
            if not caption:
                empty.append(path)
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
    """Photos by every name that a table may use: the path, with or without ending, and the file's name."""

    def __init__(self, photos: list[Photo]) -> None:
        self.by_name = {photo.name: [photo] for photo in photos}
        self.by_key, self.by_file = defaultdict(list), defaultdict(list)
        for photo in photos:
            self.by_key[photo.key].append(photo)
            self.by_file[photo.name.rpartition("/")[2]].append(photo)

    def find(self, file: str, prefix: str) -> list[Photo]:
        """Photos called ``file``: a path, perhaps from the table's folder ``prefix``, or a unique name."""
        name = readable(file).replace("\\", "/").removeprefix("./")
        inside = f"{prefix}/{name}" if prefix else name
        for photos in (self.by_name, self.by_key):
            if found := photos.get(inside) or photos.get(name):
                return found
        return self.by_file[name] if len(self.by_file[name]) == 1 else []


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _csv_rows(text: str) -> Iterator[tuple[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    head = [name.strip().casefold() for name in next(reader, [])]
    file, caption = (next((head.index(n) for n in names if n in head), None) for names in (FILE, CAPTION))
    if file is None or caption is None:
        raise ValueError(f"its first line is {head or None}, not file,caption")
    for row in filter(None, reader):
        if len(row) > len(head) and caption < len(head) - 1:
            raise ValueError(
                f"line {reader.line_num} has more cells than the first; put quotes around texts with commas"
            )
        row += [""] * (len(head) - len(row))
        # a caption at the end may hold commas without quotes
        last = ",".join(row[caption:]) if caption == len(head) - 1 else row[caption]
        yield row[file].strip(), _one_line(last)


def _jsonl_rows(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, caption = ([row[name] for name in names if name in row][0] for names in (FILE, CAPTION))
            yield str(file).strip(), _one_line(str(caption or ""))
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f'line {number} is not of the form {{"file": "…", "caption": "…"}}') from None
