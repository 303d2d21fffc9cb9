"""Plot of `benchmarks/evidence.py`: figures of every system by the number of training images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables.questions import FIGURES, by_budget
from benchmarks.tables.studies import OURS

SHOWN = ("holes_lpips", "frechet", "recall", "mask_iou", "label_top1", "embedding_cosine")


def plot(report: Mapping[str, Any], path: Path) -> None:
    """A panel for each figure that was measured, a line for each system, bars from the least to the most of
    its seeds.
    """
    from matplotlib.figure import Figure

    table = by_budget(report)
    panels = [name for name in SHOWN if any(name in one for row in table.values() for one in row.values())]
    figure = Figure(figsize=(4 * max(1, len(panels)), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels, strict=False):
        for k, (system, row) in enumerate(table.items()):
            points = {images: one[name] for images, one in row.items() if name in one}
            if points:
                _line(axes, points, system, f"C{k % 10}")
        axes.set(xlabel="training images", xscale="log", title=FIGURES[name][0])
        budgets = sorted({images for row in table.values() for images in row})
        axes.set_xticks(budgets, [f"{images:,}" for images in budgets])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _line(axes: Any, points: Mapping[int, list[float]], system: str, colour: str) -> None:
    images = sorted(points)
    means = [sum(points[n]) / len(points[n]) for n in images]
    width = 3 if system == OURS else 1.2
    axes.plot(images, means, marker="o", color=colour, linewidth=width, label=system)
    axes.vlines(images, [min(points[n]) for n in images], [max(points[n]) for n in images], color=colour)
