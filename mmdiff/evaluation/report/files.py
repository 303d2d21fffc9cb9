"""Reports of the files in docs/results; a file that cannot be used becomes a sentence, not an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmdiff.evaluation.report import cost, evidence
from mmdiff.evaluation.report.lookup import Results
from mmdiff.evaluation.report.results import TASKS_HEAD, evaluated
from mmdiff.evaluation.report.table import Report

FOLDER = Path("docs") / "results"
COMMAND = re.compile(r"(?:^|`)(python (?:\\\n|[^\n`])+)", re.MULTILINE)  # goes on after a \ at a line's end
# key that only the results of one script have -> its report
BUILDERS: dict[str, Callable[[Results], Report]] = {
    "comparisons": evidence.comparisons,
    "passes": cost.efficiency,
    "variants": evidence.ablations,
    "gradients": evidence.gradients,
    "engine_against_bare_loop": cost.engine,
    "share_of_matmul": cost.training,
}


def build(results: Results) -> Report:
    """The tables of any results, without empty ones. Raises ValueError for figures that cannot be read."""
    builder = next((found for key, found in BUILDERS.items() if key in results), evaluated)
    try:
        report = builder(results)
    except ValueError:
        raise
    except Exception as error:  # whatever is wrong with a file, the page shows the others
        raise ValueError(f"its figures cannot be read ({error!r})") from None
    return replace(report, tables=tuple(table for table in report.tables if table.rows))


def read(checkpoint: str, root: Path) -> tuple[list[Report], list[str]]:
    """Reports on a checkpoint, and a sentence for each of its files that cannot be used.

    A file belongs to the checkpoint that it names, and evidence-NAME.json or evidence-NAME-*.json to NAME.
    Tables of tasks come first, comparisons with other systems last.

    Args:
        root: folder of the project, with README.md and docs/.
    """
    reports, problems = [], []
    named = re.compile(rf"(evidence-)?{re.escape(checkpoint)}(-|$)")
    for path in sorted((root / FOLDER).glob("*.json"), key=lambda path: path.stem):
        source, match = (FOLDER / path.name).as_posix(), named.match(path.stem)
        try:
            results = _load(path)
            if results.get("checkpoint") == checkpoint or match and match[1]:
                report = replace(build(results), source=source, command=_command(source, root))
                reports += [report] if report.tables else []
        except (OSError, ValueError) as error:
            if match:
                problems.append(f"{source} cannot be used: {error}. Measure it again, or delete the file.")
    return sorted(reports, key=_place), problems


def _place(report: Report) -> tuple[bool, bool, int]:
    head = report.tables[0].head
    return bool(report.title), head != TASKS_HEAD, len(head)


def _load(path: Path) -> dict[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON (line {error.lineno})") from None
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    return results if isinstance(results, dict) else {}  # a list is of embedders


def _command(source: str, root: Path) -> str:
    """The command for writing `source` in README.md or docs/*.md, "" if there is none."""
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        for command in COMMAND.findall(text):
            if re.search(rf"--out {re.escape(source)}(?!\S)", command):
                return command.strip()
    return ""
