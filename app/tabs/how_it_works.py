"""The tab that explains: in a sentence, a picture and plain words; folded, what researchers ask for."""

import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import gradio as gr

from app.run.defaults import ANCHOR
from app.run.service import Service
from app.task import TASKS
from app.theme import html
from app.wording import escaped, listed
from mmdiff.request import have_levels

NAME, TITLE = "how_it_works", "How it works"
ROOT = Path(__file__).parents[2]
STATIC = ROOT / "app" / "static"
PICTURES = [STATIC / name for name in ("architecture.svg", "architecture_narrow.svg")]
EQUATIONS = STATIC / "equations.md"  # two columns, with "---" between them
INSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]*\)")  # a link that the page does not serve
HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
TABLES = re.compile(r"<!-- results (?P<name>[\w-]+) -->\n(?P<tables>.*?)<!-- end -->", re.DOTALL)
COMMAND = re.compile(r"(?:^|`)(python (?:\\\n|[^\n`])+)", re.MULTILINE)  # goes on after a \ at a line's end
LATEX = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]

# What the denoiser is told of noise and roles, by whether the model has levels.
TOLD = {
    False: {
        "noise": "time t",
        "roles": "flags: wanted, given or ignored",
        "told": "the time t, a flag for each modality",
    },
    True: {
        "noise": "a level of each: how clean it is",
        "roles": "highest: given, lowest: ignored",
        "told": "the level of each modality",
    },
}
TAKEAWAY = (
    "It learned to clean up noise in {names} together. So whatever you already have, it completes the rest."
)
IDEA = (
    "While it learns, noise is added to a photo, a little at a time, until nothing of it is left. The model "
    "learns the way back: from noise to a photo.",
    "{others} are put under noise together with their photo. So the way back returns all of them at once, "
    "and they agree.",
    "What you provide stays as it is at every step, and the rest comes out to match it. One model does this "
    "in every direction.",
)

NOTATION = (
    '<p class="hint">The encoding of the image is z<sub>0</sub>, X is all modalities x<sub>i</sub>, '
    "E<sub>i</sub> is the encoder of one of them, a<sub>t</sub> says how much a step keeps, and a hat "
    "marks what the model predicts.</p>"
)
DRAWN = {"picture": "image", "class_map": "mask", "class": "label", "vector": "embedding"}  # in PICTURES
# form of a modality -> how the page shows a prediction of it
SHOWN = {
    "picture": "the clean picture that the model expects at this step, blurred while unsure.",
    "class_map": "the likeliest class of every pixel, the fainter the less certain.",
    "class": "the likeliest classes with their probabilities.",
    "vector": "the captions, labels and words that lie nearest, with their similarity.",
}
EARLY = " A run chooses one of them early; its first step shows how sure the model was before."


def build(service: Service) -> None:
    """Adds the tab to the current `gr.Tabs`."""
    specs = service.modalities
    with gr.Tab(TITLE, id=NAME, elem_id=f"{NAME}-tab"):
        with gr.Column(elem_classes="how"):
            html(f"{_takeaway(specs)}{_picture(specs)}{_idea(specs)}{_page(specs)}")
            with gr.Accordion("For researchers", open=False, elem_id="researchers"):
                html(f"<h2>In equations</h2>{NOTATION}")
                with gr.Column(elem_classes="equations"):
                    for column in EQUATIONS.read_text(encoding="utf-8").split("\n---\n"):
                        gr.Markdown(column, latex_delimiters=LATEX)
                gr.Markdown(measured(service.name), latex_delimiters=[], elem_id="measured")
                with gr.Accordion("Model card", open=False, elem_id="model-card"):
                    gr.Markdown(model_card(service.folder), latex_delimiters=[])


def _takeaway(specs: Mapping[str, Any]) -> str:
    return f'<h2 class="takeaway">{TAKEAWAY.format(names=escaped(listed(list(specs))))}</h2>'


def _idea(specs: Mapping[str, Any]) -> str:
    others = escaped(listed([name for name in specs if name != ANCHOR]).capitalize())
    sentences = "".join(f"<li>{sentence.format(others=others)}</li>" for sentence in IDEA)
    return f'<h2>The idea</h2><ol class="idea">{sentences}</ol>'


def _picture(specs: Mapping[str, Any]) -> str:
    """The architecture, wide and narrow (how.css shows one); forms that the model lacks are faint."""
    sizes: dict[str, str] = {}
    for spec in specs.values():
        sizes.setdefault(DRAWN[spec.form], _size(spec))  # the first of a form is drawn
    texts = {name: escaped(sizes.get(name, "absent")) for name in DRAWN.values()} | TOLD[have_levels(specs)]
    pictures = "".join(Template(path.read_text(encoding="utf-8")).substitute(texts) for path in PICTURES)
    lacking = "".join(f" without-{name}" for name in DRAWN.values() if name not in sizes)
    return f'<div class="architecture{lacking}">{pictures}</div>'


def _size(spec: Any) -> str:
    """How large a modality is, in words."""
    if spec.classes:
        return f"{len(spec.classes)} classes"
    return f"{spec.shape[-1]} × {spec.shape[-2]} px" if spec.form == "picture" else f"{spec.shape[0]} numbers"


def _page(specs: Mapping[str, Any]) -> str:
    shown = ""
    for form, words in SHOWN.items():
        if names := ", ".join(name for name, spec in specs.items() if spec.form == form):
            early = EARLY if form == "class" and not have_levels(specs) else ""
            shown += f"<li><b>{escaped(names.capitalize())}</b>: {words}{early}</li>"
    tabs = "".join(f"<dt>{t.title}</dt><dd>{t.intro}</dd>" for t in TASKS if t.fits(specs))
    return (
        '<div class="columns"><section><h2>What the page shows</h2>'
        "<p>A run goes from noise to a result in a few dozen steps. At each of them you see what the model "
        f"would answer if it had to stop there:</p><ul>{shown}</ul>"
        "<p>The same seed gives the same result. Several samples show how far answers may differ.</p>"
        "</section>"
        f"<section><h2>What each tab does</h2><dl>{tabs}</dl></section></div>"
    )


def measured(checkpoint: str, docs: Path = ROOT / "docs") -> str:
    """What docs/*.md show of a checkpoint, as Markdown: all but the main tables folded, the comparisons last.

    `benchmarks/report.py` writes the tables into blocks: NAME and NAME-* are of the checkpoint NAME, and
    evidence-* compare small models to put the method to the test, whatever checkpoint is shown. A sentence
    stands for what is missing.
    """
    sections, problems, commands = {}, [], []
    for path in sorted(docs.glob("*.md")):
        try:
            page = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(
                f"docs/{path.name} cannot be read, so its tables are missing ({type(error).__name__})."
            )
            continue
        commands += COMMAND.findall(page)
        for block in TABLES.finditer(page):
            if re.fullmatch(rf"evidence-.+|{re.escape(checkpoint)}(-.+)?", block["name"]):
                title = (HEADING.findall(page, 0, block.start()) or [block["name"]])[-1]
                tables = block["tables"] or "`python benchmarks/report.py` has not made these tables yet.\n"
                sections[block["name"]] = title, f"{tables}\nFrom docs/{path.name}."
    if checkpoint not in sections:
        problems.append(f"There are no measured results for the checkpoint “{checkpoint}”.")
    order = sorted(sections, key=lambda name: (name.startswith("evidence-"), name))
    shown = (_section(*sections[name], _command(name, commands), name != checkpoint) for name in order)
    return "\n\n".join(["## What was measured", *map(escaped, problems), *shown])


def _command(name: str, commands: list[str]) -> str:
    """The command that writes docs/results/NAME.json, "" if none does."""
    output = re.compile(rf"--out docs/results/{re.escape(name)}\.json(?!\S)")
    return next((command.strip() for command in commands if output.search(command)), "")


def _section(title: str, tables: str, command: str, folded: bool) -> str:
    if command:
        tables += f" Reproduce this:\n\n```sh\n{command}\n```"
    return f"<details><summary>{escaped(title)}</summary>\n\n{tables}\n\n</details>" if folded else tables


def model_card(folder: Path | None) -> str:
    """README.md of a checkpoint's folder as Markdown, without front matter and links into the project."""
    path = folder / "README.md" if folder else None
    if path is None or not path.is_file():
        return "This checkpoint has no model card."
    text = path.read_text(encoding="utf-8", errors="replace")
    if text.startswith("---\n"):
        _, _, text = text.removeprefix("---\n").partition("\n---\n")
    return INSIDE.sub(r"\1", text)
