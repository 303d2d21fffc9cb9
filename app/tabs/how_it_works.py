"""The tab that explains: the idea, a picture, the equations, what was measured, the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from app import results
from app.results import TASKS_HEAD, Report, Table
from app.run.service import Service
from app.task import TASKS
from app.theme import html

TITLE = "How it works"
KINDS = ("image", "mask", "label", "embedding")  # in the picture
STATIC = Path(__file__).parents[1] / "static"
PICTURES = [STATIC / name for name in ("architecture.svg", "architecture_narrow.svg")]
CODE = re.compile(r"`([^`]+)`")
INSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")  # a link that the page does not serve
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]

IDEA = (
    "Noise is added to a photo, a little at a time, until nothing of it is left; the model has learned to go "
    "the other way, from noise back to a photo.",
    "Mask, label and embedding are put under the same noise together with their photo, so taking the noise "
    "away brings all of them back at once, in agreement.",
    "Whatever you give stays as it is at every step, and the rest comes out to match it: one model, one set "
    "of weights, every direction.",
)

SHOWN = {
    "image": "<b>Image</b>: the clean picture that the model expects at this step, blurred while unsure.",
    "mask": "<b>Mask</b>: the likeliest class of every pixel, the fainter the less certain.",
    "label": "<b>Label</b>: the likeliest labels with their probabilities. A run settles on one of them; how "
    "sure the model was by what is given alone, its first step says.",
    "embedding": "<b>Embedding</b>: the captions, labels and texts that lie nearest, with their cosines.",
}


@dataclass(frozen=True)
class Equation:
    """A formula in LaTeX, its name and what it says in plain words."""

    name: str
    words: str
    latex: str


EQUATIONS = (
    Equation(
        "(1) A step",
        "Each step keeps a little less of what is there, adds a share of every other modality’s encoding, "
        "and adds noise.",
        r"\begin{aligned} q(z_t \mid z_{t-1}, X) &= \mathcal N\big( \sqrt{a_t}\, ( z_{t-1} + c_t ),\; "
        r"(1 - a_t)\, I \big) \\ c_t &= \textstyle\sum_i w_t^{(i)} E_i(x_i) \end{aligned}",
    ),
    Equation(
        "(2) Accumulated weights",
        "What a modality weighs at time $t$ follows from its shares in all steps so far.",
        r"\bar w_t^{(i)} = \sqrt{a_t}\, \big( \bar w_{t-1}^{(i)} + w_t^{(i)} \big), "
        r"\quad \bar w_0^{(i)} = 0",
    ),
    Equation(
        "(3) The marginal",
        "So training can jump to any time at once, without going through the steps before it.",
        r"\begin{aligned} q(z_t \mid z_0, X) &= \mathcal N\big( \sqrt{\bar a_t}\, z_0 + m_t,\; "
        r"(1 - \bar a_t)\, I \big) \\ m_t &= \textstyle\sum_i \bar w_t^{(i)} E_i(x_i), \quad "
        r"\bar a_t = \prod_{s \le t} a_s \end{aligned}",
    ),
    Equation(
        "(4) The posterior",
        "If everything clean were known, this is where a step back would lead; the model’s predictions take "
        "its place.",
        r"\begin{aligned} q(z_{t-1} \mid z_t, z_0, X) &= \mathcal N\big( \mu_t,\; (1 - \bar a_{t-1})\, B_t\, "
        r"I \big) \\ \mu_t &= A_t\, ( z_t - \sqrt{a_t}\, c_t ) \\ &\quad + B_t\, ( \sqrt{\bar a_{t-1}}\, z_0 "
        r"+ m_{t-1} ) \\ A_t &= \sqrt{a_t}\; \tfrac{1 - \bar a_{t-1}}{1 - \bar a_t}, \quad B_t = \tfrac{1 - "
        r"a_t}{1 - \bar a_t} \end{aligned}",
    ),
    Equation(
        "(5) A jump from $t$ to $s$",
        "Sampling takes long jumps: keep the predicted clean point, and as much of the noise as belongs to "
        "the earlier time.",
        r"\begin{aligned} z_s &= \sqrt{\bar a_s}\, \hat z_0 + \hat m_s + \sqrt{1 - \bar a_s - \sigma^2}\; "
        r"\hat\varepsilon + \sigma n \\ \hat\varepsilon &= \big( z_t - \sqrt{\bar a_t}\, \hat z_0 - \hat m_t "
        r"\big) \big/ \sqrt{1 - \bar a_t} \end{aligned}",
    ),
)

LOSS = (
    Equation("The loss", "The negative bound has four parts.", r"L = L_0 + L_1 + L_2 + L_3"),
    Equation(
        "$L_0$, the prior",
        "At the last time nothing but noise is left.",
        r"L_0 = \mathrm{KL}\big( q(z_T \mid z_0, X) \,\big\|\, \mathcal N(0, I) \big)",
    ),
    Equation(
        "$L_1$, the posteriors",
        "Every step back should lead where (4) leads.",
        r"L_1 = \sum_{t > 1} \mathbb E\; \mathrm{KL}\big( q(z_{t-1} \mid z_t, z_0, X) \,\big\|\, p(z_{t-1} "
        r"\mid z_t) \big)",
    ),
    Equation(
        "$L_2$, the modalities",
        "Each modality should be read from the noisy point with a likelihood of its own kind: Gaussian for "
        "pixels, categorical for masks and labels, von Mises-Fisher for embeddings.",
        r"L_2 = -\sum_i \mathbb E\, \log p(x_i \mid z_t)",
    ),
    Equation(
        "$L_3$, the pixels",
        "The last step should give the photo itself.",
        r"L_3 = -\mathbb E\, \log p(x \mid z_1)",
    ),
)

TRAINING = (
    "Training minimises $L_1 + \\sum_i \\lambda_i L_2^{(i)}$, reweighted over $t$ so that the times which "
    "decide class and colour count enough (`mmdiff/losses.py`); `python -m mmdiff.evaluate` reports the "
    "exact terms."
)


def build(service: Service) -> None:
    """Adds the tab to the current `gr.Tabs`."""
    specs = service.modalities
    with gr.Tab(TITLE):
        with gr.Column(elem_classes="how"):
            html(f"{_idea()}{_picture(specs)}{_page(specs)}")
            html("<h2>In equations</h2>" + _notation())
            with gr.Column(elem_classes="equations"):
                for part in (EQUATIONS, LOSS):
                    gr.Markdown(_formulas(part), latex_delimiters=LATEX)
            html(measured(service.name), elem_id="measured")
            with gr.Accordion("Model card", open=False, elem_id="model-card"):
                gr.Markdown(model_card(service.folder), latex_delimiters=[])


def _idea() -> str:
    sentences = "".join(f"<li>{sentence}</li>" for sentence in IDEA)
    return f'<h2>The idea</h2><ol class="idea">{sentences}</ol>'


def _picture(specs: Mapping[str, Any]) -> str:
    """The architecture, wide and narrow (how.css shows one); what the model lacks is faint."""
    kinds = {spec.kind: _size(spec) for spec in specs.values()}
    sizes = {kind: escape(kinds.get(kind, "absent")) for kind in KINDS}
    pictures = "".join(Template(path.read_text(encoding="utf-8")).substitute(sizes) for path in PICTURES)
    lacking = "".join(f" without-{kind}" for kind in KINDS if kind not in kinds)
    return f'<h2>The model</h2><div class="architecture{lacking}">{pictures}</div>'


def _size(spec: Any) -> str:
    """How large a modality is, in words."""
    if spec.kind == "image":
        return f"{spec.shape[-1]} × {spec.shape[-2]} px"
    return f"{spec.shape[0]} numbers" if spec.kind == "embedding" else f"{len(spec.classes)} classes"


def _page(specs: Mapping[str, Any]) -> str:
    kinds = {spec.kind for spec in specs.values()}
    shown = "".join(f"<li>{words}</li>" for kind, words in SHOWN.items() if kind in kinds)
    tabs = "".join(f"<dt>{t.title}</dt><dd>{t.intro}</dd>" for t in TASKS if t.fits(specs))
    return (
        '<div class="columns"><section><h2>What the page shows</h2>'
        "<p>A run goes from noise to a result in a few dozen steps. At each of them you see what the model "
        f"would answer if it had to stop there:</p><ul>{shown}</ul>"
        "<p>The same seed gives the same result. Several samples show how far answers may differ.</p>"
        "</section>"
        f"<section><h2>What each tab does</h2><dl>{tabs}</dl></section></div>"
    )


def _notation() -> str:
    return (
        '<p class="hint">The encoding of the image is z<sub>0</sub>, X is all modalities x<sub>i</sub>, '
        "E<sub>i</sub> is the encoder of one of them, a<sub>t</sub> says how much a step keeps, and a hat "
        "marks what the model predicts.</p>"
    )


def _formulas(equations: Sequence[Equation]) -> str:
    """Equations as Markdown; below the loss, what training makes of it."""
    blocks = [f"**{e.name}.** {e.words}\n\n$${e.latex}$$" for e in equations]
    return "\n\n".join(blocks + ([TRAINING] if equations is LOSS else []))


def measured(checkpoint: str, root: Path = results.ROOT) -> str:
    """What was measured of the checkpoint of this name, as HTML; says so if that is nothing."""
    reports, problems = results.read(checkpoint, root)
    notes = "".join(f'<p class="problem" role="alert">{escape(problem)}</p>' for problem in problems)
    if not reports and not problems:
        notes = (
            f'<p class="hint">There are no measured results for the checkpoint “{escape(checkpoint)}”.</p>'
        )
    return f"<h2>What was measured</h2>{notes}{''.join(map(_report, reports))}"


def _report(report: Report) -> str:
    """Its first table open unless it is wide, the others folded; below them how they were measured."""
    head = f"<h3>{escape(report.title)}</h3><p>{escape(report.about)}</p>" if report.title else ""
    tables = [_open(t) if k == 0 and len(t.head) <= 4 else _fold(t) for k, t in enumerate(report.tables)]
    words = CODE.sub(r"<code>\1</code>", escape(report.how))
    how = f'<p class="hint">{words} From {escape(report.source)}.</p>'
    return f'<section class="report">{head}{"".join(tables)}{how}{_command(report.command)}</section>'


def _command(command: str) -> str:
    if not command:
        return ""
    body = f"<pre>{escape(command)}</pre>"
    return f"<details><summary>The command that measures this anew</summary>{body}</details>"


def _open(table: Table) -> str:
    return f"<h3>{escape(table.title)}</h3>{_table(table)}"


def _fold(table: Table) -> str:
    return f"<details><summary>{escape(table.title)}</summary>{_table(table)}</details>"


def _table(table: Table) -> str:
    """A table; of tasks if values stand beside what to compare, which how.css stacks on a narrow page."""
    kind = "tasks" if table.head == TASKS_HEAD else "figures"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.head)
    rows = "".join(f"<tr>{_cells(table.head, row)}</tr>" for row in table.rows)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cells(head: Sequence[str], row: Sequence[str]) -> str:
    named = [
        f'<td data-head="{escape(h)}">{escape(cell)}</td>' for h, cell in zip(head[1:], row[1:], strict=True)
    ]
    return f'<th scope="row">{escape(row[0])}</th>{"".join(named)}'


def model_card(folder: Path | None) -> str:
    """README.md of a checkpoint's folder as Markdown, without front matter and links into the project."""
    path = folder / "README.md" if folder else None
    if path is None or not path.is_file():
        return "This checkpoint has no model card."
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.startswith("---\n"):
        _, _, text = text.removeprefix("---\n").partition("\n---\n")
    return INSIDE.sub(r"\1", text)
