"""Problems of a folder and notes about it, in the order in which they are found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

SHOWN = 3  # names that a finding lists


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
    """Files with problems are left out until they are mended; notes are worth a look."""

    problems: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)

    def problem(self, what: str, files: Iterable[str], advice: str) -> None:
        """Record a problem of ``files``; without files there is none."""
        _add(self.problems, what, files, advice)

    def note(self, what: str, files: Iterable[str], advice: str) -> None:
        """Record a note about ``files``; without files there is none."""
        _add(self.notes, what, files, advice)


def _add(findings: list[Finding], what: str, files: Iterable[str], advice: str) -> None:
    names = tuple(files)
    if names:
        findings.append(Finding(what, names, advice))
