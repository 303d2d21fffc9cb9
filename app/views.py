"""What the page shows of predictions, as HTML: one panel per modality, one card per sample.

A panel is drawn from the arrays of a preview (see `mmdiff.Pipeline.stream`), so live previews and results
look the same. A new kind of modality is one function and one line in `PANELS`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from app.adapters import colour_mask

TOP = 5  # bars per list
WORDS = {"captions": ("Nearest captions", 3), "labels": ("Nearest labels", 3), "probes": ("Text probes", 4)}
MAX_LEGEND = 12  # classes in a legend

Panel = tuple[str, str, str]  # "visual", "list" or "words", its body and what stands beside its name, as HTML


@dataclass(frozen=True)
class Scene:
    """What is drawn, whatever the step.

    Attributes:
        modalities: name -> spec, those given or wanted, in order.
        roles: name -> what became of it: "given", "generated" or "filled in".
        describe: embeddings (B, D) -> a `mmdiff.vocabulary.Description` of each, or nothing.
        file_name: start of the names under which pictures are saved.
    """

    modalities: Mapping[str, Any]
    roles: Mapping[str, str]
    describe: Callable[[np.ndarray], Sequence[Any]]
    file_name: str


@dataclass(frozen=True)
class Sample:
    """One sample of a preview.

    Attributes:
        number: counted from 1.
        x: name -> its array, see `mmdiff.Pipeline.stream`.
        words: name -> `mmdiff.vocabulary.Description` of those that can be put into words.
    """

    number: int
    x: Mapping[str, np.ndarray]
    words: Mapping[str, Any]


def samples(scene: Scene, x_hat: Mapping[str, np.ndarray]) -> str:
    """All samples of a preview: arrays (B, ...) by modality -> HTML."""
    count = len(next(iter(x_hat.values())))
    words = {n: scene.describe(x_hat[n]) for n, s in scene.modalities.items() if s.kind == "embedding"}
    cards = ""
    for k in range(count):
        x = {name: x_hat[name][k] for name in scene.modalities}
        cards += _card(scene, Sample(k + 1, x, {name: w[k] for name, w in words.items() if w}), count)
    legends = "".join(_legend(spec) for spec in scene.modalities.values() if spec.kind == "mask")
    return f'<div class="samples {"many" if count > 1 else "one"}">{cards}</div>{legends}'


def _card(scene: Scene, sample: Sample, count: int) -> str:
    panels = {"visual": "", "list": "", "words": ""}
    for spec in scene.modalities.values():
        kind, body, save = PANELS[spec.kind](scene, spec, sample)
        panels[kind] += _panel(scene, spec, kind, body, save)
    number = f'<div class="number">Sample {sample.number} of {count}</div>' if count > 1 else ""
    lists = f'<div class="lists">{panels["list"]}</div>' if panels["list"] else ""
    body = panels["visual"] + lists + panels["words"]
    return f'<article class="sample">{number}<div class="panels">{body}</div></article>'


def _panel(scene: Scene, spec: Any, kind: str, body: str, save: str) -> str:
    role = scene.roles[spec.name]
    return (
        f'<figure class="panel {kind}" data-modality="{escape(spec.name)}"><figcaption>'
        f'<b>{escape(spec.name.capitalize())}</b><span class="role is-{role.split()[0]}">{role}</span>{save}'
        f"</figcaption>{body}</figure>"
    )


def _save(uri: str, name: str) -> str:
    return f'<a class="save" download="{escape(name)}.png" href="{uri}" title="Save as PNG">Save</a>'


def _image_panel(scene: Scene, spec: Any, sample: Sample) -> Panel:
    uri = png(Image.fromarray(sample.x[spec.name]))
    body = f'<div class="frame"><img src="{uri}" alt="Predicted picture"></div>'
    return "visual", body, _save(uri, f"{scene.file_name}_{spec.name}_{sample.number}")


def _mask_panel(scene: Scene, spec: Any, sample: Sample) -> Panel:
    probabilities = sample.x[spec.name]
    pictures = [
        png(Image.fromarray(sample.x[n])) for n, other in scene.modalities.items() if other.kind == "image"
    ]
    layers = "".join(f'<img src="{uri}" alt="">' for uri in pictures)
    mask = png(overlay(probabilities, spec.palette, bool(pictures)))
    layers += f'<img class="overlay" src="{mask}" alt="Predicted mask">'
    exact = png(colour_mask(probabilities.argmax(0), spec.palette))
    save = _save(exact, f"{scene.file_name}_{spec.name}_{sample.number}")
    return "visual", f'<div class="frame">{layers}</div>', save


def overlay(probabilities: np.ndarray, palette: np.ndarray, over_picture: bool) -> Image.Image:
    """Class probabilities (K, H, W) -> RGBA picture, the fainter the less certain.

    Over a picture the first class (background or void) is left clear.
    """
    best = probabilities.argmax(0)
    opacity = np.clip(probabilities.max(0), 0, 1)
    if over_picture:
        opacity = np.where(best == 0, 0, opacity)
    return Image.fromarray(np.dstack([palette[best], (255 * opacity).astype(np.uint8)]))


def _label_panel(scene: Scene, spec: Any, sample: Sample) -> Panel:
    top = np.argsort(-sample.x[spec.name])[:TOP]
    rows = [(spec.classes[k], float(sample.x[spec.name][k]), f"{sample.x[spec.name][k]:.0%}") for k in top]
    return "list", bars(rows), ""


def _embedding_panel(scene: Scene, spec: Any, sample: Sample) -> Panel:
    if spec.name not in sample.words:
        return "list", _strip(sample.x[spec.name]), ""
    groups = "".join(_word_group(sample.words[spec.name], name) for name in WORDS)
    return "words", f'<div class="groups">{groups}</div>', '<span class="unit">by cosine</span>'


def _word_group(description: Any, name: str) -> str:
    """The nearest captions, labels or probes with their cosines; nothing if there are none."""
    title, count = WORDS[name]
    rows = [(text, max(0.0, cosine), f"{cosine:.2f}") for text, cosine in getattr(description, name)[:count]]
    return f'<section data-words="{name}"><h4>{title}</h4>{bars(rows)}</section>' if rows else ""


def _strip(vector: np.ndarray) -> str:
    cells = np.clip(128 + 128 * vector / (np.abs(vector).max() + 1e-9), 0, 255).astype(np.uint8)
    uri = png(Image.fromarray(cells[None].repeat(max(1, len(cells) // 8), 0)))
    text = f"{len(vector)} numbers; this model cannot put them into words"
    return f'<p class="hint">{text}</p><img class="strip" src="{uri}" alt="">'


PANELS: dict[str, Callable[[Scene, Any, Sample], Panel]] = {
    "image": _image_panel,
    "mask": _mask_panel,
    "label": _label_panel,
    "embedding": _embedding_panel,
}


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """(name, share 0..1, text) -> horizontal bars."""
    items = "".join(
        f'<li><span class="name">{escape(name)}</span><span class="value">{text}</span>'
        f'<span class="track"><i style="width:{100 * share:.1f}%"></i></span></li>'
        for name, share, text in rows
    )
    return f'<ul class="bars">{items}</ul>'


def _legend(spec: Any) -> str:
    return f'<div class="legend">{swatches(spec.classes[:MAX_LEGEND], spec.palette)}</div>'


def swatches(classes: Sequence[str], palette: np.ndarray) -> str:
    """Class names with their colours."""
    return "".join(
        f'<span><i style="background:#{bytes(rgb).hex()}"></i>{escape(name)}</span>'
        for name, rgb in zip(classes, palette, strict=False)
    )


def status(text: str, share: float | None = None, kind: str = "calm") -> str:
    """One line on how things stand; `share` (0..1) adds a progress bar; `kind` is calm, busy or problem."""
    role = "alert" if kind == "problem" else "status"
    bar = "" if share is None else f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="status {kind}" role="{role}"><p>{text}</p>{bar}</div>'


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def png(image: Image.Image) -> str:
    """A picture as a data URI, lossless."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
