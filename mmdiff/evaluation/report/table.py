"""The table model: what a report shows, and its two forms, Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

CODE = re.compile(r"`([^`]+)`")
WIDE = 5  # columns from which the page folds a table


@dataclass(frozen=True)
class Table:
    """Rows of text under a head.

    Attributes:
        rows: each as long as `head`.
        detail: whether docs leave it out; the page shows every table.
        stacked: whether a narrow page shows a row's cells below its first (class `tasks` in how.css).
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    detail: bool = False
    stacked: bool = False

    def to_markdown(self) -> str:
        lines = [_line(self.head), "|---" * len(self.head) + "|", *map(_line, self.rows)]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def to_html(self, folded: bool = False) -> str:
        head = "".join(f'<th scope="col">{html_text(name)}</th>' for name in self.head)
        rows = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        table = (
            f'<div class="scroll" tabindex="0"><table class="{"tasks" if self.stacked else "figures"}">'
            f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
        )
        return _fold(self.title, table) if folded else f"<h3>{html_text(self.title)}</h3>{table}"

    def _cells(self, row: Sequence[str]) -> str:
        named = zip(self.head[1:], row[1:], strict=True)
        cells = "".join(f'<td data-head="{escape(head)}">{html_text(cell)}</td>' for head, cell in named)
        return f'<th scope="row">{html_text(row[0])}</th>{cells}'


@dataclass(frozen=True)
class Report:
    """The tables of one file of results.

    Attributes:
        note: how they were measured.
        title, about: for the page, where the titles of the tables do not say enough.
        source: path of the file from the root of the project, "" for results without a file.
        command: the command that measures them again, "" if it is unknown.
    """

    tables: tuple[Table, ...]
    note: str
    title: str = ""
    about: str = ""
    source: str = ""
    command: str = ""

    def to_markdown(self) -> str:
        """All tables but details, and the note."""
        shown = [table.to_markdown() for table in self.tables if not table.detail]
        return "\n".join([*shown, f"{self.note}\n"])

    def to_html(self) -> str:
        """A section: the first table open unless it is wide, the others folded, then note and command."""
        title = f"<h3>{html_text(self.title)}</h3><p>{html_text(self.about)}</p>" if self.title else ""
        tables = "".join(
            table.to_html(folded=k > 0 or len(table.head) >= WIDE) for k, table in enumerate(self.tables)
        )
        note = f'<p class="hint">{html_text(self.note)} From {escape(self.source)}.</p>'
        command = f"<pre>{escape(self.command)}</pre>"
        again = _fold("The command that measures this again", command) if self.command else ""
        return f'<section class="report">{title}{tables}{note}{again}</section>'


def html_text(text: str) -> str:
    """Text as HTML: escaped, `code` between backticks."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def _fold(summary: str, content: str) -> str:
    return f"<details><summary>{html_text(summary)}</summary>{content}</details>"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
