"""The documentation names what exists, and its Python runs."""

import dataclasses
import re
from pathlib import Path

import pytest

from mmdiff.pipeline import Pipeline

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("checkpoints/*/README.md"),
]
README = PAGES[0].read_text(encoding="utf-8")
COMMAND = re.compile(r"python -m (mmdiff[\w.]*)")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")
FILE = re.compile(
    r"(?<![\w./-])((?:mmdiff|app|benchmarks|configs|tests|docs)/[\w./-]*\w\.(?:py|toml|md|png))\b"
)
BLOCK = re.compile(r"<!-- results ([\w-]+)(?: brief)? -->")
CODE = re.compile(r"```.*?```", re.DOTALL)


def missing(text: str, folder: Path) -> set[str]:
    """Modules of commands, files and targets of links that do not exist."""
    modules = {name for name in COMMAND.findall(text) if not exists(name)}
    files = {name for name in FILE.findall(text) if not (ROOT / name).exists()}
    links = {f"{name}{part}" for name, part in LINK.findall(text) if name and not leads(folder / name, part)}
    return modules | files | links


def exists(module: str) -> bool:
    path = ROOT.joinpath(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def leads(target: Path, part: str) -> bool:
    """Whether there is such a file, and such a heading in it."""
    if not part:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", CODE.sub("", target.read_text(encoding="utf-8")), re.MULTILINE)
    return part[1:] in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_what_exists(page):
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # its older entries name what was there
        text = text.split("\n## ")[1]
    assert not missing(text, page.parent)


def test_what_is_missing_is_found():
    text = (
        "python -m mmdiff.nothing, `mmdiff/nothing.py` [a](b.md) [c](README.md#limits) [d](README.md#nothing)"
    )
    assert missing(text, ROOT) == {"mmdiff.nothing", "mmdiff/nothing.py", "b.md", "README.md#nothing"}


def test_every_table_of_results_has_its_figures():
    names = {name for page in PAGES for name in BLOCK.findall(page.read_text(encoding="utf-8"))}
    assert "orchard" in names
    assert not {name for name in names if not (ROOT / f"docs/results/{name}.json").is_file()}


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) < 200
    assert not {page.name for page in ROOT.glob("docs/*.md") if page.name not in README} - {
        "evidence-appendix.md"
    }


@pytest.mark.slow
def test_the_minute_of_python_runs(monkeypatch, tmp_path):
    """In two steps at most, elsewhere, and otherwise as it is printed."""
    start = Pipeline.start

    def shorter(pipe, request, *limits):
        return start(pipe, dataclasses.replace(request, steps=min(request.steps, 2)), *limits)

    monkeypatch.setattr(Pipeline, "start", shorter)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["out"].mask.shape == (4, 96, 96) and names["step"].total == 2 and Path("fruit.png").exists()
