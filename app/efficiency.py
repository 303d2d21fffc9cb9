"""Tables of `benchmarks/efficiency.py`: what many in one costs, and quality by number of steps."""

from __future__ import annotations

from typing import Any

from app.tables import Table, look_up

Results = dict[str, Any]

# text, name of the figure, how it is written
FIGURES = (
    ("holes: LPIPS", "hole_lpips", ".3f"),
    ("photo from label: classifier agrees", "judge_from_label", ".1%"),
    ("photo and label together: classifier agrees", "judge_joint", ".1%"),
)
GUIDED = "ancestral, guided"  # by the pixels around holes, which takes two calls a step


def tables(results: Results) -> list[Table]:
    """Cost of a pass, and a table of every figure by sampler and steps."""
    points = results["quality"]
    measured = [column for column in FIGURES if any(column[1] in point for point in points)]
    return [costs(results), *(by_steps(results, *column) for column in measured)]


def costs(results: Results) -> Table:
    """All modalities in one pass, against photos alone and against a model for each."""
    passes = results["passes"]
    single = passes["single"].values()
    rows = (
        (
            "Seconds of a pass",
            _seconds(passes["joint_against_photos"]),
            _seconds(passes["joint_against_all_single"]),
        ),
        (
            "Operations of a pass",
            _share(passes["joint"]["operations"], passes["single"][passes["modalities"][0]]["operations"]),
            _share(passes["joint"]["operations"], sum(one["operations"] for one in single)),
        ),
        (
            "Parameters, and so memory",
            _share(passes["joint"]["parameters"], passes["single"][passes["modalities"][0]]["parameters"]),
            _share(passes["joint"]["parameters"], sum(one["parameters"] for one in single)),
        ),
    )
    count = len(passes["modalities"])
    head = (f"{count} modalities in one pass", "Against photos alone", f"Against {count} models for one each")
    return Table("Cost of many in one", head, rows)


def _seconds(pair: dict[str, Any]) -> str:
    low, high = pair["ratio_range"]
    return f"× {pair['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _share(one: int, other: int) -> str:
    return f"× {one / other:.2f}"


def by_steps(results: Results, text: str, figure: str, form: str) -> Table:
    """A row for every sampler, a column for every number of steps."""
    points = {(p["sampler"], p["steps"]): p[figure] for p in results["quality"] if figure in p}
    samplers, steps = (list(dict.fromkeys(key[k] for key in points)) for k in (0, 1))
    rows = tuple(
        (sampler, *(f"{points[sampler, n]:{form}}" if (sampler, n) in points else "–" for n in steps))
        for sampler in samplers
    )
    return Table(text[0].upper() + text[1:], ("Steps", *(str(n) for n in steps)), rows)


def how(results: Results) -> str:
    guidance, samples = look_up(results, "settings.guidance"), look_up(results, "settings.samples")
    pair, scale = results["passes"]["joint_against_photos"], results["filling_guidance"]
    return (
        f"Passes of {results['passes']['batch']} samples, medians of {pair['rounds']} pairs in turn, "
        f"{results['device']}. {samples} pictures a figure, photos from labels rounded up to equally "
        f"many of each and with guidance {guidance:g}, "
        f"holes “{GUIDED}” by the pixels around them with {scale:g}, which takes two calls a step."
    )
