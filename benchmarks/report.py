"""Put measured results into the Markdown that quotes them: `python benchmarks/report.py [--check]`.

Text between `<!-- results NAME -->` and `<!-- end -->` is made from docs/results/NAME.json, which
`python -m mmdiff.evaluate` or a script beside this one wrote, so no number is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdiff.evaluation.report.files import FOLDER, build

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/*.md", "checkpoints/*/README.md")
BLOCK = re.compile(r"(<!-- results (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """``text`` with every results block made anew."""

    def block(match: re.Match[str]) -> str:
        results = json.loads((ROOT / FOLDER / f"{match['name']}.json").read_text(encoding="utf-8"))
        return match[1] + build(results).to_markdown() + match[3]

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
