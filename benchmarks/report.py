"""Put measured results into the Markdown that quotes them: `python benchmarks/report.py [--check]`.

Text between `<!-- results NAME -->` and `<!-- end -->` is made from docs/results/NAME.json, which
`python -m mmdiff.evaluate` or a script beside this one wrote, so no number is typed by hand. With "brief"
after NAME, details are left out. The tab "How it works" shows the blocks of docs/*.md.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.tables import costs, questions, studies
from benchmarks.tables.evaluation import Report, Results, evaluated

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("docs") / "results"
PAGES = ("README.md", "docs/*.md", "checkpoints/*/README.md")
BLOCK = re.compile(
    r"(<!-- results (?P<name>[\w-]+)(?P<brief> brief)? -->\n).*?(?P<end><!-- end -->)", re.DOTALL
)
# key that only the results of one script have -> its report
BUILDERS: dict[str, Callable[[Results], Report]] = {
    "question": questions.answers,
    "scarce": studies.scarce,
    "passes": costs.efficiency,
    "variants": studies.ablations,
    "gradients": studies.gradients,
    "noise_levels": studies.noise_levels,
    "engine_against_bare_loop": costs.engine,
    "share_of_matmul": costs.training,
    "runs": costs.equal_time,
}


def build(results: Results) -> Report:
    """The tables of any results: those of a script beside this one, else of `mmdiff.evaluate`."""
    return next((found for key, found in BUILDERS.items() if key in results), evaluated)(results)


def filled(text: str) -> str:
    """``text`` with every results block made anew. Exits with the name of a file that cannot be used."""

    def block(match: re.Match[str]) -> str:
        path = FOLDER / f"{match['name']}.json"
        try:
            report = build(json.loads((ROOT / path).read_text(encoding="utf-8")))
        except Exception as error:  # whatever is wrong with a file, it is named
            sys.exit(f"error: {path.as_posix()} cannot be used: {error!r}. Measure it again.")
        return match[1] + report.to_markdown(brief=bool(match["brief"])) + match["end"]

    return BLOCK.sub(block, text)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if a page is out of date")
    check = parser.parse_args(arguments).check
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            if check:
                sys.exit(f"{path.relative_to(ROOT)} is out of date; run python benchmarks/report.py")
            path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
