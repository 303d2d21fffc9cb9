"""What the page shows of predictions, as HTML: one panel per modality, one card per sample.

A panel is drawn from the arrays of a preview (see `mmdiff.Pipeline.stream`), so live previews and results look
the same. A new kind of modality is one function and one line in `PANELS`.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from app.adapters import colour_mask

TOP = 5  # bars per list
MAX_LEGEND = 12  # classes in a legend


@dataclass(frozen=True)
class Scene:
    """What is drawn, whatever the step.

    Attributes:
        modalities: name -> spec, those given or wanted, in order.
        roles: name -> what became of it: "given", "generated" or "filled in".
        nearest_texts: (D,) embedding -> texts with their cosine.
        file_name: start of the names under which pictures are saved.
    """

    modalities: Mapping[str, Any]
    roles: Mapping[str, str]
    nearest_texts: Callable[[np.ndarray], Sequence[tuple[str, float]]]
    file_name: str = field(default="mmdiff")


def samples(scene: Scene, x_hat: Mapping[str, np.ndarray]) -> str:
    """All samples of a preview: arrays (B, ...) by modality -> HTML."""
    count = len(next(iter(x_hat.values())))
    cards = "".join(_card(scene, {n: x_hat[n][k] for n in scene.modalities}, k, count) for k in range(count))
    legends = "".join(_legend(spec) for spec in scene.modalities.values() if spec.kind == "mask")
    return f'<div class="samples {"many" if count > 1 else "one"}">{cards}</div>{legends}'


def _card(scene: Scene, x: Mapping[str, np.ndarray], index: int, count: int) -> str:
    panels = "".join(PANELS[spec.kind](scene, spec, x, f"{index + 1}") for spec in scene.modalities.values())
    number = f'<div class="number">Sample {index + 1} of {count}</div>' if count > 1 else ""
    return f'<article class="sample">{number}<div class="panels">{panels}</div></article>'


def _panel(scene: Scene, spec: Any, body: str, save: str = "", kind: str = "visual") -> str:
    role = scene.roles[spec.name]
    return (
        f'<figure class="panel {kind}" data-modality="{escape(spec.name)}"><figcaption>'
        f'<b>{escape(spec.name.capitalize())}</b><span class="role is-{role.split()[0]}">{role}</span>{save}'
        f"</figcaption>{body}</figure>"
    )


def _save(uri: str, name: str) -> str:
    return f'<a class="save" download="{escape(name)}.png" href="{uri}" title="Save as PNG at the model’s size">Save</a>'


def _image_panel(scene: Scene, spec: Any, x: Mapping[str, np.ndarray], number: str) -> str:
    uri = png(Image.fromarray(x[spec.name]))
    body = f'<div class="frame"><img src="{uri}" alt="Predicted picture"></div>'
    return _panel(scene, spec, body, _save(uri, f"{scene.file_name}_{spec.name}_{number}"))


def _mask_panel(scene: Scene, spec: Any, x: Mapping[str, np.ndarray], number: str) -> str:
    probabilities = x[spec.name]
    pictures = [png(Image.fromarray(x[n])) for n, other in scene.modalities.items() if other.kind == "image"]
    layers = "".join(f'<img src="{uri}" alt="">' for uri in pictures)
    layers += f'<img class="overlay" src="{png(overlay(probabilities, spec.palette, bool(pictures)))}" alt="Predicted mask">'
    exact = png(colour_mask(probabilities.argmax(0), spec.palette))
    save = _save(exact, f"{scene.file_name}_{spec.name}_{number}")
    return _panel(scene, spec, f'<div class="frame">{layers}</div>', save)


def overlay(probabilities: np.ndarray, palette: np.ndarray, over_picture: bool) -> Image.Image:
    """Class probabilities (K, H, W) -> RGBA picture, the fainter the less certain.

    Over a picture the first class (background or void) is left clear.
    """
    best = probabilities.argmax(0)
    opacity = np.clip(probabilities.max(0), 0, 1)
    if over_picture:
        opacity = np.where(best == 0, 0, opacity)
    return Image.fromarray(np.dstack([palette[best], (255 * opacity).astype(np.uint8)]))


def _label_panel(scene: Scene, spec: Any, x: Mapping[str, np.ndarray], number: str) -> str:
    top = np.argsort(-x[spec.name])[:TOP]
    rows = [(spec.classes[k], float(x[spec.name][k]), f"{x[spec.name][k]:.0%}") for k in top]
    return _panel(scene, spec, bars(rows), kind="list")


def _embedding_panel(scene: Scene, spec: Any, x: Mapping[str, np.ndarray], number: str) -> str:
    nearest = scene.nearest_texts(x[spec.name])
    if not nearest:
        return _panel(scene, spec, _strip(x[spec.name]), kind="list")
    rows = [(text, max(0.0, cosine), f"{cosine:.2f}") for text, cosine in nearest[:TOP]]
    return _panel(scene, spec, '<p class="hint">nearest texts, by cosine</p>' + bars(rows), kind="list")


def _strip(vector: np.ndarray) -> str:
    cells = np.clip(128 + 128 * vector / (np.abs(vector).max() + 1e-9), 0, 255).astype(np.uint8)
    uri = png(Image.fromarray(cells[None].repeat(max(1, len(cells) // 8), 0)))
    return f'<p class="hint">{len(vector)} numbers; this model cannot put them into words</p><img class="strip" src="{uri}" alt="">'


PANELS: dict[str, Callable[[Scene, Any, Mapping[str, np.ndarray], str], str]] = {
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
    """One line on how things stand, with a progress bar if `share` (0..1) is given; `kind` calm, busy or problem."""
    role = "alert" if kind == "problem" else "status"
    bar = "" if share is None else f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="status {kind}" role="{role}"><p>{text}</p>{bar}</div>'


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
