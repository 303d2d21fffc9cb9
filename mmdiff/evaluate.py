"""Measure a checkpoint on a data set, task by task, and write the figures as JSON.

    python -m mmdiff.evaluate CHECKPOINT --data PARQUET --out results.json --judge benchmarks/judges/orchard

Each task is a function from an `Evaluation` to an `Outcome`; a task that the data, the model or the judge
cannot support raises `Skip` with the reason, which is reported in its place.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from mmdiff import losses, metrics
from mmdiff.config import DataConfig
from mmdiff.data import Examples, draw_batch, read_parquet
from mmdiff.holes import HOLES
from mmdiff.judge import Judge
from mmdiff.modalities.image import to_uint8
from mmdiff.modalities.mask import VOID
from mmdiff.pipeline import Pipeline
from mmdiff.samplers import SAMPLERS
from mmdiff.tasks import Condition

GRID_SAMPLES, GRID_COLUMNS, GRID_SCALE, CAPTION_HEIGHT = 64, 8, 2, 14
RULE_MIN_IOU = 0.95  # on real photos; below it the white-background rule does not describe the data


class Skip(Exception):
    """Why a task cannot be measured here."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample and how much. Guidance is used where a picture is made from a label or a mask."""

    steps: int = 30
    batch: int = 64
    seed: int = 0
    sampler: str = "ddim"
    eta: float = 0.0
    guidance: float = 1.0
    samples: int = 490  # pictures for the judge: as many of each class for "image from label"
    limit: int | None = None  # examples to use, drawn with the seed; None means all
    holes: tuple[str, ...] = ("blocks",)
    bound_draws: int = 8  # random times an example in the estimate of the bound

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "samples", "bound_draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; give at least 1, or leave it out to use all examples.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a whole number from 0 on.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}.")
        unknown = [h for h in self.holes if h not in HOLES]
        if unknown:
            raise ValueError(f"unknown holes {', '.join(unknown)}; known: {', '.join(HOLES)}.")


@dataclasses.dataclass
class Outcome:
    """What a task measured, and what it looked like.

    Attributes:
        figures: JSON-ready results.
        panels: pictures side by side in a cell of the grid, each (n, H, W, 3) uint8.
        captions: a text for each cell.
    """

    figures: dict
    panels: list[Tensor] = dataclasses.field(default_factory=list)
    captions: list[str] = dataclasses.field(default_factory=list)


class Evaluation:
    """A pipeline, labelled examples, settings and (where there is one) a judge, as the tasks use them."""

    def __init__(self, pipe: Pipeline, examples: Examples, settings: Settings, judge: Judge | None = None):
        self.pipe, self.settings, self.judge = pipe, settings, judge
        self.examples = examples
        generator = torch.Generator().manual_seed(settings.seed)
        order = torch.randperm(len(examples), generator=generator)
        self.rows = order[: settings.limit].sort().values

    @property
    def size(self) -> int:
        return self.pipe.modalities["image"].shape[-1]

    def having(self, *names: str) -> Tensor:
        """Rows of the examples that have all of these modalities. Raises `Skip` where there are none."""
        self.require(*names)
        for name in names:
            if name not in self.examples.present:
                raise Skip(f"the data has no {name}")
        keep = torch.stack([self.examples.present[n][self.rows] for n in names]).all(0)
        if not keep.any():
            raise Skip(f"no example has {' and '.join(names)}")
        return self.rows[keep]

    def require(self, *names: str) -> None:
        """Raises `Skip` unless the model has these modalities."""
        for name in names:
            if name not in self.pipe.modalities:
                raise Skip(f"the model has no modality {name!r}")

    def read(self, rows: Tensor) -> dict[str, Tensor]:
        """Data-space values of the examples, on the CPU."""
        return draw_batch(self.examples, self.pipe.modalities, rows, None, flip=False)[0]

    def sample(
        self,
        title: str,
        wanted: Sequence[str],
        count: int,
        given: Mapping[str, Tensor] | None = None,
        known_pixels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> dict[str, Tensor]:
        """Run the pipeline on ``count`` samples in batches: name -> (count, ...) on the CPU.

        Masks are class indices (count, H, W), labels probabilities (count, K), pictures in [-1, 1].
        """
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        device, s = self.pipe.device, self.settings
        with tqdm(total=count, desc=title, unit="sample", mininterval=1) as bar:
            for index in torch.arange(count).split(s.batch):
                condition = Condition(
                    {n: v[index].to(device) for n, v in (given or {}).items()},
                    None if known_pixels is None else known_pixels[index].to(device),
                )
                seeds = [s.seed * 1_000_003 + int(k) for k in index]
                for step in self.pipe.run(
                    condition, tuple(wanted), seeds, s.steps, s.sampler, guidance, s.eta
                ):
                    last = step
                for name in wanted:
                    parts[name].append(self._compact(name, last.x_hat[name]))
                bar.update(len(index))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _compact(self, name: str, prediction: Tensor) -> Tensor:
        is_mask = self.pipe.modalities[name].kind == "mask"
        return (prediction.argmax(1) if is_mask else prediction.float()).cpu()

    def judged(self, images: Tensor) -> Tensor:
        """The judge's class of each picture, numbered like the model's labels: (n,) long."""
        if self.judge is None:
            raise Skip("no judge: give --judge a folder made by python -m mmdiff.judge")
        self.require("label")
        own = self.pipe.modalities["label"].classes
        if set(own) != set(self.judge.classes):
            raise Skip("the judge was trained on other classes than the model's labels")
        renumber = torch.tensor([own.index(c) for c in self.judge.classes])
        return renumber[self.judge.probabilities(images).argmax(1)]

    @cached_property
    def white_rule_iou(self) -> float:
        """Mean IoU of the white-background rule and the given masks on real photos."""
        rows = self.having("image", "mask")
        if len(self.pipe.modalities["mask"].classes) != 2:
            raise Skip("the white-background rule needs masks of two classes, background and object")
        real = self.read(rows)
        return (
            metrics.object_iou(metrics.white_background_mask(real["image"]), real["mask"] == 1).mean().item()
        )

    def require_rule(self) -> None:
        """Raises `Skip` where the masks of the real photos do not come from a white background."""
        if self.white_rule_iou < RULE_MIN_IOU:
            raise Skip(
                f"the white-background rule reaches only IoU {self.white_rule_iou:.3f} on these photos"
            )

    def rule_iou(self, images: Tensor, masks: Tensor) -> float:
        """Mean IoU of masks with what the white-background rule reads off the pictures."""
        self.require_rule()
        return metrics.object_iou(metrics.white_background_mask(images), masks == 1).mean().item()

    def picture(self, images: Tensor) -> Tensor:
        """Samples for the grid: (n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8."""
        return torch.from_numpy(to_uint8(images))

    def coloured(self, masks: Tensor) -> Tensor:
        """Class maps (n, H, W) -> (n, H, W, 3) uint8 in the colours of the mask's palette."""
        return torch.as_tensor(self.pipe.modalities["mask"].palette)[masks]

    def class_names(self, labels: Tensor) -> list[str]:
        return [self.pipe.modalities["label"].classes[int(k)] for k in labels]


# -- tasks -------------------------------------------------------------------------------------------


def mask_from_image(ev: Evaluation) -> Outcome:
    """IoU of every class: mean over pictures, and pooled over all pixels. Void pixels do not count."""
    real = ev.read(ev.having("image", "mask"))
    count = len(real["image"])
    out = ev.sample("mask from image", ["mask"], count, {"image": real["image"]})
    classes = ev.pipe.modalities["mask"].classes
    void = classes.index(VOID) if VOID in classes else None
    counts = metrics.confusion(out["mask"], real["mask"], len(classes), ignore=void)
    kept = [k for k in range(len(classes)) if k != void]
    each = metrics.iou(counts)[:, kept].nanmean(0)
    pooled = metrics.iou(counts.sum(0))[kept]
    names = [classes[k] for k in kept]
    return Outcome(
        {
            "n": count,
            "iou": dict(zip(names, _numbers(each), strict=True)),
            "iou_pooled": dict(zip(names, _numbers(pooled), strict=True)),
            "miou": each.nanmean().item(),
            "miou_pooled": pooled.nanmean().item(),
            "pixel_accuracy": metrics.pixel_accuracy(counts.sum(0)).item(),
        },
        [ev.picture(real["image"]), ev.coloured(out["mask"]), ev.coloured(real["mask"])],
        ["photo, predicted, true"] * count,
    )


def label_from_image(ev: Evaluation) -> Outcome:
    """Top-1 and top-5 accuracy."""
    real = ev.read(ev.having("image", "label"))
    count = len(real["image"])
    out = ev.sample("label from image", ["label"], count, {"image": real["image"]})
    hits = {f"top{k}": metrics.top_k_hits(out["label"], real["label"], k) for k in (1, 5)}
    named, true = ev.class_names(out["label"].argmax(1)), ev.class_names(real["label"])
    return Outcome(
        {"n": count, **{name: h.double().mean().item() for name, h in hits.items()}},
        [ev.picture(real["image"])],
        [a if a == b else f"{a}, not {b}" for a, b in zip(named, true, strict=True)],
    )


def image_from_label(ev: Evaluation) -> Outcome:
    """Share of pictures that the judge names as the class they were made for; equally many of each class."""
    ev.require("label")
    classes = ev.pipe.modalities["label"].classes
    each = math.ceil(ev.settings.samples / len(classes))
    asked = torch.arange(len(classes)).repeat(each)
    ev.judged(torch.empty(0, 3, ev.size, ev.size))  # raises before the work, not after it
    out = ev.sample(
        "image from label", ["image"], len(asked), {"label": asked}, guidance=ev.settings.guidance
    )
    hits = ev.judged(out["image"]) == asked
    by_class = hits.view(each, -1).double().mean(0)
    return Outcome(
        {
            "n": len(asked),
            "judge_agreement": hits.double().mean().item(),
            "by_class": dict(zip(classes, _numbers(by_class), strict=True)),
        },
        [ev.picture(out["image"])],
        ev.class_names(asked),
    )


def joint(ev: Evaluation) -> Outcome:
    """Everything generated together: do label and mask belong to the picture?"""
    wanted = [n for n in ("image", "mask", "label") if n in ev.pipe.modalities]
    if len(wanted) < 2:
        raise Skip("the model has nothing to generate jointly with the image")
    count = ev.settings.samples
    out = ev.sample("joint", wanted, count)
    figures: dict = {"n": count}
    panels, captions = [ev.picture(out["image"])], [""] * count
    if "label" in wanted:
        labels = out["label"].argmax(1)
        captions = ev.class_names(labels)
        figures["distinct_labels"] = len(labels.unique())
        figures["judge_agreement"] = _or_reason(
            lambda: (ev.judged(out["image"]) == labels).double().mean().item()
        )
    if "mask" in wanted:
        panels.append(ev.coloured(out["mask"]))
        figures["mask_rule_iou"] = _or_reason(lambda: ev.rule_iou(out["image"], out["mask"]))
    return Outcome(figures, panels, captions)


def image_from_mask(ev: Evaluation) -> Outcome:
    """IoU of the given mask and the mask that the white-background rule reads off the picture."""
    ev.require_rule()
    real = ev.read(ev.having("mask"))
    count = len(real["mask"])
    out = ev.sample(
        "image from mask", ["image"], count, {"mask": real["mask"]}, guidance=ev.settings.guidance
    )
    return Outcome(
        {"n": count, "mask_rule_iou": ev.rule_iou(out["image"], real["mask"])},
        [ev.coloured(real["mask"]), ev.picture(out["image"])],
        ["given, picture"] * count,
    )


def holes(ev: Evaluation) -> Outcome:
    """PSNR inside the holes, of ours and of filling with the mean of the known pixels, in dB."""
    real = ev.read(ev.having("image"))["image"]
    figures, panels = {}, []
    for kind in ev.settings.holes:
        known = HOLES[kind](len(real), ev.size, ev.settings.seed)
        out = ev.sample(f"holes: {kind}", ["image"], len(real), {"image": real}, known)["image"]
        baseline = metrics.mean_fill(real, known)
        exact = torch.equal(torch.where(known[:, None], out, 0), torch.where(known[:, None], real, 0))
        figures[kind] = {"n": len(real), "hidden": (~known).double().mean().item(), "known_exact": exact}
        for name, filled in (("psnr", out), ("psnr_mean_fill", baseline)):
            squares, values = metrics.hole_error(filled, real, known)
            figures[kind][name] = metrics.psnr(squares / values).mean().item()
            figures[kind][f"{name}_pooled"] = metrics.psnr(squares.sum() / values.sum()).item()
        figures[kind]["gain"] = figures[kind]["psnr"] - figures[kind]["psnr_mean_fill"]
        figures[kind]["gain_pooled"] = figures[kind]["psnr_pooled"] - figures[kind]["psnr_mean_fill_pooled"]
        if not panels:
            shown = torch.where(known[:, None], real, 0)
            panels = [ev.picture(shown), ev.picture(out), ev.picture(real)]
    return Outcome(figures, panels, ["holes, filled, true"] * len(real))


def bound(ev: Evaluation) -> Outcome:
    """The exact bound L0 ... L3 with nothing given, in nats an example and in bits per dimension."""
    rows = ev.having("image")
    device = ev.pipe.device
    generator = torch.Generator(device).manual_seed(ev.settings.seed)
    totals: dict[str, float] = {}
    seen = dict.fromkeys(ev.pipe.modalities, 0)
    with tqdm(total=len(rows), desc="bound", unit="example", mininterval=1) as bar:
        for index in rows.split(ev.settings.batch):
            x, flags = draw_batch(ev.examples, ev.pipe.modalities, index, None, flip=False)
            x = {n: v.to(device) for n, v in x.items()}
            present = dict(zip(ev.pipe.modalities, flags.T.to(device), strict=True))
            terms = losses.bound(
                ev.pipe.model, ev.pipe.schedule, x, present, generator, draws=ev.settings.bound_draws
            )
            for name, nats in terms.items():
                totals[name] = totals.get(name, 0.0) + nats.double().sum().item()
            for name, has in present.items():
                seen[name] += int(has.sum())
            bar.update(len(index))
    nats, bits = {}, {}
    for name, total in totals.items():
        modality = name.removeprefix("L2/") if name.startswith("L2/") else "image"
        if seen[modality]:
            nats[name] = total / seen[modality]
            bits[name] = nats[name] / math.prod(ev.pipe.modalities[modality].shape) / math.log(2)
    return Outcome({"n": len(rows), "nats": nats, "bits_per_dimension": bits})


TASKS: dict[str, Callable[[Evaluation], Outcome]] = {
    task.__name__: task
    for task in (mask_from_image, label_from_image, image_from_label, image_from_mask, joint, holes, bound)
}


def evaluate(ev: Evaluation, tasks: Sequence[str] = tuple(TASKS), grids: Path | None = None) -> dict:
    """Figures of each task, or {"skipped": reason}; writes a grid of samples a task to ``grids``."""
    results = {}
    for name in tasks:
        start = time.perf_counter()
        try:
            outcome = TASKS[name](ev)
        except Skip as reason:
            results[name] = {"skipped": str(reason)}
            continue
        results[name] = outcome.figures | {"seconds": round(time.perf_counter() - start, 1)}
        if grids is not None and outcome.panels:
            grids.mkdir(parents=True, exist_ok=True)
            draw_grid(outcome).save(grids / f"{name}.png")
    return results


def _numbers(values: Tensor) -> list[float | None]:
    """JSON has no NaN: a class that never occurs is null."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def _or_reason(measure: Callable[[], float]) -> float | dict[str, str]:
    try:
        return measure()
    except Skip as reason:
        return {"skipped": str(reason)}


# -- what people see ---------------------------------------------------------------------------------


def draw_grid(outcome: Outcome) -> Image.Image:
    """Evenly spaced samples of an outcome at twice their size, panels side by side, captions below."""
    total = len(outcome.captions)
    chosen = torch.linspace(0, total - 1, min(GRID_SAMPLES, total)).round().long().tolist()
    strips = torch.cat([panel[chosen] for panel in outcome.panels], dim=2)  # (n, H, W * panels, 3)
    size = (GRID_SCALE * strips.shape[2], GRID_SCALE * strips.shape[1])
    cell = (size[0] + 4, size[1] + CAPTION_HEIGHT)
    grid = Image.new(
        "RGB", (GRID_COLUMNS * cell[0], math.ceil(len(chosen) / GRID_COLUMNS) * cell[1]), "white"
    )
    draw = ImageDraw.Draw(grid)
    for place, (k, strip) in enumerate(zip(chosen, strips, strict=True)):
        left, top = place % GRID_COLUMNS * cell[0], place // GRID_COLUMNS * cell[1]
        grid.paste(Image.fromarray(strip.numpy()).resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left + 2, top + size[1] + 1), _shorten(draw, outcome.captions[k], size[0]), "black")
    return grid


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The longest beginning of the text that fits into ``width`` pixels."""
    while draw.textlength(text) > width:
        text = text[:-1]
    return text


def table(results: Mapping[str, dict]) -> str:
    """The figures as lines of text, one number a line."""
    lines = []
    for task, figures in results.items():
        lines += [(f"{task}.{name}", value) for name, value in _flatten(figures)]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _flatten(figures: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and name != "by_class":
            lines += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            lines.append((prefix + name, f"{value:.4f}"))
        elif not isinstance(value, Mapping):
            lines.append((prefix + name, str(value)))
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    try:
        report = run(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    print(table(report["tasks"]))


def run(args: argparse.Namespace) -> dict:
    """Load everything that the arguments name and measure it."""
    names = [f.name for f in dataclasses.fields(Settings)]
    settings = Settings(**{n: tuple(v) if isinstance(v := getattr(args, n), list) else v for n in names})
    start = time.perf_counter()
    pipe = Pipeline.from_pretrained(args.checkpoint, device=args.device)
    judge = Judge.from_pretrained(args.judge, pipe.device) if args.judge else None
    examples = read_parquet(args.data, pipe.modalities.values(), DataConfig())
    ev = Evaluation(pipe, examples, settings, judge)
    results = evaluate(ev, args.tasks, Path(args.grids) if args.grids else None)
    return {
        "checkpoint": Path(args.checkpoint).name,
        "data": Path(args.data).name,
        "device": _device_name(pipe.device),
        "examples": len(ev.rows),
        "image_size": ev.size,
        "judge": judge.facts if judge else None,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
        "tasks": results,
        "torch": torch.__version__,
        "white_rule_iou_on_photos": _or_reason(lambda: ev.white_rule_iou),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mmdiff.evaluate", description=__doc__.split("\n")[0])
    default = Settings()
    parser.add_argument("checkpoint", help="checkpoint folder or Hugging Face Hub id")
    parser.add_argument("--data", required=True, help="Parquet file of examples that were not trained on")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--judge", help="folder of an independent classifier, see python -m mmdiff.judge")
    parser.add_argument("--grids", help="folder for pictures of 64 samples a task")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"which tasks to measure, of {', '.join(TASKS)} (default: all)",
    )
    parser.add_argument(
        "--holes",
        nargs="+",
        choices=list(HOLES),
        default=list(default.holes),
        metavar="KIND",
        help=f"which kinds of holes, of {', '.join(HOLES)}",
    )
    parser.add_argument("--steps", type=int, default=default.steps, help="sampling steps")
    parser.add_argument("--batch", type=int, default=default.batch, help="samples at a time")
    parser.add_argument("--limit", type=int, help="use only this many examples")
    parser.add_argument("--samples", type=int, default=default.samples, help="generated pictures to judge")
    parser.add_argument("--sampler", choices=list(SAMPLERS), default=default.sampler)
    parser.add_argument("--eta", type=float, default=default.eta, help="fresh noise in each step, 0 to 1")
    parser.add_argument(
        "--guidance",
        type=float,
        default=default.guidance,
        help="for pictures made from a label or a mask; 1 = off",
    )
    parser.add_argument(
        "--bound-draws", type=int, default=default.bound_draws, help="random times an example"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
