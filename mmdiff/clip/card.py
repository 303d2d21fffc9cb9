"""The README.md of a CLIP checkpoint, from its measurements."""

from __future__ import annotations

import json
from pathlib import Path

from mmdiff.clip.embedder import CONFIG_NAME

FRUITS = "fruit, Fruits-360 3-body problem by Mihai Oltean (CC BY-SA 4.0)"
ORIGINS = {  # `source` column of the data: what it is and on which terms
    "apple": FRUITS,
    "cherry": FRUITS,
    "tomato": FRUITS,
    "labelmefacade": "street photos, LabelMeFacade (non-commercial research)",
    "camvid": "street photos, CamVid (research use)",
    "intel": "outdoor scenes, Intel scene classification (research use)",
    "landscape": "outdoor scenes, a landscape collection (research use)",
}
EXTENDED = """
Then the text tower alone was taught {count} combinations of colour and kind that no photo shows, or
hardly any: {combinations}.
Such texts now lie where recoloured photos do (mean cosine {after:.2f}, before {before:.2f}); all others
stayed where they were (mean cosine {kept:.3f}). `python -m mmdiff.clip.extend` repeats it. The image tower,
which did not take part, tells kinds apart by their usual colours, so such texts say little about the kind.
"""
CONTENT = """\
---
library_name: open_clip
license: other
pipeline_tag: zero-shot-image-classification
tags: [clip]
---
# {name}

A CLIP-style model of {parameters:.1f} M parameters that puts small pictures and short English attribute
sentences into one space of {dim} dimensions: "a dark red round apple", "a photo of the sea with blue above,
grey below". open_clip loads it from this folder:

```python
import open_clip

model = open_clip.create_model("local-dir:{folder}")
tokenizer = open_clip.get_tokenizer("local-dir:{folder}")
```

`mmdiff.clip.ClipEmbedder("{folder}")` does so too and takes pictures of any size.

## Data and licence

{pairs:,} pictures with {distinct_captions:,} distinct captions, made from colours, shapes, classes and masks:

{origins}

The weights may be used as the strictest of these terms allows{research}.

## Training

{seen:,} pairs ({epochs:.0f} epochs) in {seconds:,.0f} s on one {device} with torch {torch}: {recipe}.
Images {image_size} px in {patch_size}-px patches; the loss over time is in `metrics.csv`.
`python -m mmdiff.clip.train` repeats it.
{extended}
## Results

{results}

## Limits

- It knows the words of its captions, a few dozen, and ignores the rest; it reads no counts and no relations
  beyond "above" and "below". The vocabulary is that of CLIP, so any text is accepted.
- Its captions were made by rules from pixels and labels, not by people, and share the rules' mistakes.
- Pictures are read at {image_size} px, as their central square.
- Validation fruit are the ends of turntable sequences trained on: near-duplicates of training pictures.
"""


def write_card(folder: Path, results: list[dict]) -> None:
    """Write it. folder: a checkpoint of `mmdiff.clip.train`; results: of `evaluate`, one per data set."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    model, training = config["model_cfg"], config["training"]
    origins = [ORIGINS.get(source, f"{source} (terms unknown)") for source in training["sources"]]
    text = CONTENT.format(
        name=folder.resolve().name,
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        parameters=training["parameters"] / 1e6,
        dim=model["embed_dim"],
        pairs=training["pairs"],
        distinct_captions=training["distinct_captions"],
        origins="\n".join(f"- {origin}" for origin in dict.fromkeys(origins)),
        research=": research, not commerce" if any("research" in origin for origin in origins) else "",
        seen=training["images_seen"],
        epochs=training["images_seen"] / training["pairs"],
        seconds=training["seconds"],
        device=training["device"],
        torch=training["torch"],
        recipe=", ".join(f"{name} {value:g}" for name, value in training["recipe"].items()),
        extended=_extension(training.get("extended")),
        image_size=model["vision_cfg"]["image_size"],
        patch_size=model["vision_cfg"]["patch_size"],
        results="\n\n".join(map(_results_table, results)) or "Not measured.",
    )
    (folder / "README.md").write_text(text)


def _extension(found: dict | None) -> str:
    """About `mmdiff.clip.extend`, if it was used."""
    if found is None:
        return ""
    return EXTENDED.format(
        count=len(found["combinations"]),
        combinations=", ".join(found["combinations"]),
        kept=found["kept_cosine"],
        **found["new_cosine"],
    )


def _results_table(result: dict) -> str:
    """One data set as a Markdown table, chance in brackets."""
    lines = [
        f"`{result['data']}`, {result['images']:,} pictures; retrieval in galleries of {result['gallery']}, "
        f"mean of {result['galleries']}. Chance in brackets.",
        "",
        "| | recall@1 | recall@5 | recall@10 |",
        "|---|---|---|---|",
    ]
    for name, recalls in result["retrieval"].items():
        cells = [f"{recalls[f'recall@{k}']:.3f} ({recalls[f'chance@{k}']:.3f})" for k in (1, 5, 10)]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    if "zero_shot" in result:
        shot = result["zero_shot"]
        lines += [
            "",
            f"Zero-shot accuracy over {shot['classes']} classes: **{shot['accuracy']:.3f}** (chance "
            f"{shot['chance']:.3f}, commonest class {shot['majority']:.3f}); prompts: {shot['prompts']}.",
        ]
    return "\n".join(lines)
