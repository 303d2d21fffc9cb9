"""Measured results of a checkpoint, read from the JSON that `python -m mmdiff.evaluate` wrote.

Every figure comes from docs/results/*.json, and the command that makes it anew from the pages that name it,
so nothing that the page says was typed by hand. A file that cannot be read becomes words, not an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from app import efficiency, evidence
from app.tables import Table, examples, look_up, number

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("docs") / "results"
TASKS_HEAD = ("Measured", "Value", "Examples", "To compare")
SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)

Results = Mapping[str, Any]
Figure = Callable[[Results, str], float | None]  # from results and the key that stands for "*"


@dataclass(frozen=True)
class Report:
    """What one file holds.

    Attributes:
        source: its path from the root of the project.
        tables: at least one.
        how: how it was measured, a sentence.
        command: what makes it anew, "" if no page names it.
        title: of the whole, "" if its tables say enough. about: a word on it, "" if none is needed.
    """

    source: str
    tables: tuple[Table, ...]
    how: str
    command: str
    title: str = ""
    about: str = ""


@dataclass(frozen=True)
class Metric:
    """A row of a table of tasks.

    Attributes:
        text: what is measured; "{}" stands for the last key where `path` ends in "*".
        path: where the figure stands in "tasks", keys joined by dots.
        form: how it is written.
        references: words and a figure each of what it may be held against: chance, a baseline, real photos.
    """

    text: str
    path: str
    form: str
    references: tuple[tuple[str, Figure], ...] = ()


def at(path: str) -> Figure:
    """The number at a dotted path, in which "{}" is the key; None if there is none."""
    return lambda results, key: number(results, path.replace("{}", key))


def chance(guesses: int) -> Figure:
    """The share that so many random guesses among the judge's classes hit."""

    def share(results: Results, key: str) -> float | None:
        classes = number(results, "judge.classes")
        return guesses / classes if classes else None

    return share


JUDGE = ("real photos", at("judge.val_top1"))
WHITE_RULE = ("real photos", at("white_rule_iou_on_photos"))

PHOTOS = (
    Metric("Mask from photo: IoU of “{}”", "mask_from_image.iou.*", ".4f"),
    Metric(
        "Mask from photo: mean IoU over all photos",
        "mask_from_image.miou_pooled",
        ".4f",
        (("a separate segmenter", at("tasks.image_from_mask.segmenter_on_photos.miou_pooled")),),
    ),
    Metric("Mask from photo: pixels right", "mask_from_image.pixel_accuracy", ".1%"),
    Metric("Label from photo: top-1", "label_from_image.top1", ".1%", (("chance", chance(1)),)),
    Metric("Label from photo: top-5", "label_from_image.top5", ".1%", (("chance", chance(5)),)),
    Metric(
        "Photo from label: a separate classifier names the label asked for",
        "image_from_label.judge_agreement",
        ".1%",
        (("chance", chance(1)), JUDGE),
    ),
    Metric(
        "Photo from mask: IoU of the mask asked for and the picture",
        "image_from_mask.mask_rule_iou",
        ".4f",
        (WHITE_RULE,),
    ),
    Metric(
        "Photo from mask: mean IoU of what a separate segmenter sees in it",
        "image_from_mask.segmenter.miou_pooled",
        ".4f",
        (("in the masks’ own photos", at("tasks.image_from_mask.segmenter_on_photos.miou_pooled")),),
    ),
    Metric(
        "Photo and label together: that classifier agrees",
        "joint.judge_agreement",
        ".1%",
        (("chance", chance(1)), JUDGE),
    ),
    Metric(
        "The same where all else follows the label: that classifier agrees",
        "joint_following_label.judge_agreement",
        ".1%",
        (("chance", chance(1)), JUDGE),
    ),
    Metric("Photo and mask together: their IoU", "joint.mask_rule_iou", ".4f", (WHITE_RULE,)),
    Metric(
        "Holes ({}): PSNR inside, dB",
        "holes.*.psnr",
        ".2f",
        (("mean of the known pixels", at("tasks.holes.{}.psnr_mean_fill")),),
    ),
    Metric(
        "Holes ({}): LPIPS, less is better",
        "holes.*.lpips",
        ".3f",
        (
            ("Telea", at("tasks.holes.{}.fillings.telea.lpips")),
            ("Navier-Stokes", at("tasks.holes.{}.fillings.navier_stokes.lpips")),
        ),
    ),
    *(
        Metric(
            f"Photos from nothing: {name}",
            f"likeness.generated.{name}",
            ".2f",
            (("training photos", at(f"tasks.likeness.training_photos.{name}")),),
        )
        for name in ("precision", "recall")
    ),
)

WORDS = (
    Metric(
        "Embedding from photo: cosine",
        "embedding_from_image.cosine",
        ".3f",
        (("to another photo’s", at("tasks.embedding_from_image.cosine_to_another")),),
    ),
    Metric(
        "Embedding from photo: its own among the 5 nearest",
        "embedding_from_image.recall@5",
        ".1%",
        (("chance", at("tasks.embedding_from_image.chance@5")),),
    ),
    Metric(
        "Photo from caption: cosine in the embedding space",
        "image_from_text.generated.cosine",
        ".3f",
        (("the captions’ own photos", at("tasks.image_from_text.photos.cosine")),),
    ),
    Metric(
        "Photo from text: the colour asked for",
        "prompts.overall.colour",
        ".1%",
        (("captions of real photos", at("tasks.prompts.photos.colour")),),
    ),
    Metric("… colour and kind often together in training", "prompts.common.colour", ".1%"),
    Metric("… rarely or never together in training", "prompts.rare.colour", ".1%"),
    Metric("Photo from text, often together: that classifier names the kind", "prompts.common.kind", ".1%"),
    Metric(
        "Photo from text, rarely or never together: the same",
        "prompts.rare.kind",
        ".1%",
        (("real photos in such colours", at("tasks.prompts.recoloured_photos.kind")),),
    ),
)

# columns of the subsets: text, name of the metric, how it is written
COLUMNS = (
    ("photo: classifier names the label", "image.judge", ".2f"),
    ("photo: cosine to the caption", "image.caption", ".3f"),
    ("photo: IoU with the mask", "image.mask_rule_iou", ".3f"),
    ("hole: PSNR, dB", "image.psnr", ".2f"),
    ("hole: LPIPS", "image.negative_lpips", ".3f"),
    ("mask: mean IoU", "mask.miou", ".3f"),
    ("label: top-1", "label.top1", ".2f"),
    ("embedding: cosine", "embedding.cosine", ".3f"),
    ("embedding: recall@5", "embedding.recall@5", ".2f"),
)


def read(checkpoint: str, root: Path = ROOT) -> tuple[list[Report], list[str]]:
    """Reports on the checkpoint of this name, and a sentence for each of its files that cannot be used.

    A file belongs to a checkpoint if it says so, or, where it says nothing, by its name: NAME.json,
    NAME-*.json, evidence-NAME.json or evidence-NAME-*.json. Tables of tasks come first, comparisons with
    other systems last.
    """
    reports, problems = [], []
    evidence_of = re.compile(rf"evidence-{re.escape(checkpoint)}(-|$)")
    for path in sorted((root / FOLDER).glob("*.json"), key=lambda path: path.stem):
        source = (FOLDER / path.name).as_posix()
        try:
            results = _load(path)
            if results.get("checkpoint") != checkpoint and not evidence_of.match(path.stem):
                continue
            reports += _reports(results, source, root)
        except (OSError, ValueError) as error:
            mine = path.stem == checkpoint or path.stem.startswith(f"{checkpoint}-")
            if mine or evidence_of.match(path.stem):
                problems.append(f"{source} cannot be used: {error}. Measure anew, or delete the file.")
    return sorted(reports, key=_place), problems


def _reports(results: Results, source: str, root: Path) -> list[Report]:
    """One, or none if there is nothing to show. Raises ValueError for figures that cannot be read."""
    try:
        tables = tuple(table for table in _tables(results) if table.rows)
        heading = evidence.heading(results) if evidence in _pages(results) else ()
        return [Report(source, tables, _how(results), _command(source, root), *heading)] if tables else []
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its figures cannot be read ({error!r})") from None


def _place(report: Report) -> tuple[bool, bool, int]:
    head = report.tables[0].head
    return Path(report.source).stem.startswith("evidence-"), head != TASKS_HEAD, len(head)


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON (line {error.lineno})") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    return results if isinstance(results, dict) else {}  # a list is of embedders


def _tables(results: Results) -> Iterator[Table]:
    if _dict(results, "tasks"):
        yield Table(_title(results), TASKS_HEAD, tuple(_task_rows(results, PHOTOS)))
        yield Table("Words and embeddings", TASKS_HEAD, tuple(_task_rows(results, WORDS)))
        rows = tuple(_bound_rows(results))
        yield Table("The bound, term by term", ("Term", "nats", "bits per dimension"), rows)
    if subsets := _dict(results, "subsets"):
        yield _subsets(subsets)
    for page in _pages(results):
        if page is evidence:
            yield evidence.described(results)
        yield from page.tables(results)


def _title(results: Results) -> str:
    """Of a table of tasks that make pictures, so that files with other settings have other titles."""
    tasks = _dict(results, "tasks")
    if set(tasks) == {"holes"}:
        return "Holes"
    return "The label followed" if "joint_following_label" in tasks else "Photos, masks and labels"


def _pages(results: Results) -> list[ModuleType]:
    """What makes tables of the files that scripts in benchmarks/ write."""
    made = {"comparisons": evidence, "passes": efficiency}
    return [page for key, page in made.items() if _dict(results, key)]


def _task_rows(results: Results, metrics: Iterable[Metric]) -> Iterator[tuple[str, ...]]:
    for metric in metrics:
        for key, path in _paths(results, f"tasks.{metric.path}"):
            value = number(results, path)
            if value is not None:
                compared = [
                    f"{words} {reference:{metric.form}}"
                    for words, figure in metric.references
                    if (reference := figure(results, key)) is not None
                ]
                count = f"{examples(results, path):,}"
                yield (metric.text.format(key), f"{value:{metric.form}}", count, "; ".join(compared))


def _paths(results: Results, path: str) -> Iterator[tuple[str, str]]:
    """(key, path with that key) for all keys that stand at "*", or ("", path) without a "*"."""
    before, star, after = path.partition("*")
    if not star:
        yield "", path
        return
    for key in _dict(results, before.rstrip(".")):
        yield key, before + key + after


def _bound_rows(results: Results) -> Iterator[tuple[str, ...]]:
    for term in _dict(results, "tasks.bound.nats"):
        nats = number(results, f"tasks.bound.nats.{term}")
        bits = number(results, f"tasks.bound.bits_per_dimension.{term}")
        yield (
            term,
            "–" if nats is None else f"{nats:,.2f}",
            "–" if bits is None else f"{bits:.4f}",
        )


def _subsets(found: Results) -> Table:
    """A row for every given subset, the real photos last; without columns in which nothing was measured."""
    given = found.get("subsets")
    rows = [
        *(given if isinstance(given, list) else ()),
        {"given": "(real photos)", "metrics": _dict(found, "photos")},
    ]
    cells = [[_mean(row, metric, form) for _, metric, form in COLUMNS] for row in rows]
    used = [k for k in range(len(COLUMNS)) if any(row[k] for row in cells)]
    head = ("Given", *(COLUMNS[k][0] for k in used))
    named = zip(rows, cells, strict=True)
    lines = tuple((str(row.get("given", "?")), *(line[k] for k in used)) for row, line in named)
    return Table("Whatever is given, everything else generated", head, lines if used else ())


def _mean(row: Any, metric: str, form: str) -> str:
    """A mean; distances are kept as their negatives and get their usual sign; LPIPS only where holes are."""
    value = row.get("metrics", {}).get(metric) if isinstance(row, dict) else None
    if not isinstance(value, dict) or ("lpips" in metric and "holes" not in str(row.get("given"))):
        return ""
    mean = number(value, "mean")
    if mean is None:
        return ""
    return f"{-mean if '.negative_' in metric else mean:{form}}"


def _how(results: Results) -> str:
    for page in _pages(results):
        return page.how(results)
    settings = _dict(results, "settings")
    sampling = f"{settings.get('steps', '?')} steps of {settings.get('sampler', '?')}"
    guidance = number(results, "settings.guidance")
    measured = number(results, "subsets.examples") or number(results, "examples") or 0
    scale = "" if guidance is None else f", guidance {guidance:g}"
    apart = holes_apart(settings)
    return f"{int(measured):,} examples of {results.get('data', '?')}, {sampling}{scale}{apart}."


def holes_apart(settings: Results) -> str:
    """How holes were filled, where it was otherwise than by the steps and without guidance."""
    steps, scale = number(settings, "filling_steps"), number(settings, "filling_guidance")
    words = "" if steps is None else f" in {steps:g} steps"
    words += "" if scale in (None, 1) else f" guided by the pixels around them ({scale:g})"
    return words and f"; holes{words}"


def _command(source: str, root: Path) -> str:
    """The command that a page gives for writing `source`, "" if none does."""
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        for block in SHELL.findall(text):
            for command in re.split(r"(?<!\\)\n", block):
                if re.search(rf"--out {re.escape(source)}(?!\S)", command):
                    return command.strip()
    return ""


def _dict(tree: Any, path: str) -> dict[str, Any]:
    """The dictionary at a dotted path, empty if there is none. Raises ValueError for anything else."""
    value = look_up(tree, path)
    if value is None or isinstance(value, dict):
        return value or {}
    raise ValueError(f"“{path}” is {str(value)[:40]!r} instead of a group of figures")
