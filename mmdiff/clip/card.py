"""The README.md of a CLIP checkpoint, from its measurements."""

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
    "leeds": "butterflies, the Leeds Butterfly set by Wang, Markert and Everingham (research use)",
    "species": "butterflies of 75 species, collected from the web by others (research and demonstration)",
}
EXTENDED = """
Then the text tower alone was taught {count} combinations of colour and kind that no photo shows, or
hardly any: {combinations}.
Such texts now lie where recoloured photos do (mean cosine {found[new_cosine][after]:.2f}, before
{found[new_cosine][before]:.2f}); all others stayed where they were (mean cosine {found[kept_cosine]:.3f}).
Commit 279370b of mmdiff can do it again, with `mmdiff.clip.extend`. The image tower, which did not take
part, tells kinds apart by their usual colours, so such texts say little about the kind.
"""
STARTED = "It started from `{init}`, after {seen_before:,} pairs before these.\n"
TEMPLATE = Path(__file__).with_name("card.md")


def write_card(folder: Path, results: list[dict]) -> None:
    """Write it. folder: a checkpoint of `mmdiff.clip.train`; results: of `evaluate`, one per data set."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    training, found = config["training"], config["training"].get("extended")
    origins = [ORIGINS.get(source, f"{source} (terms unknown)") for source in training["sources"]]
    text = TEMPLATE.read_text(encoding="utf-8").format(
        name=folder.resolve().name,
        folder=folder.as_posix() if not folder.is_absolute() else folder.name,
        model=config["model_cfg"],
        training=training,
        millions=training["parameters"] / 1e6,
        epochs=training["images_seen"] / training["pairs"],
        origins="\n".join(f"- {origin}" for origin in dict.fromkeys(origins)),
        research=": research, not commerce" if any("research" in origin for origin in origins) else "",
        recipe=", ".join(f"{name} {value:g}" for name, value in training["recipe"].items()),
        started=STARTED.format(**training) if "init" in training else "",
        extended=extension(found) if found else "",
        results="\n\n".join(map(_results_table, results)) or "Not measured.",
    )
    (folder / "README.md").write_text(text)


def extension(found: dict) -> str:
    """About the combinations that were added to the text tower of checkpoints/clip-tiny."""
    combinations = found["combinations"]
    return EXTENDED.format(found=found, count=len(combinations), combinations=", ".join(combinations))


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
    if "colour_pairs" in result:
        pairs = result["colour_pairs"]
        lines += [
            "",
            "A sentence with two colours is nearer to a photo with both than to one with only one of them in "
            f"**{pairs['both_above_one']:.3f}** of the comparisons (chance {pairs['chance']}), over "
            f"{pairs['pairs']} pairs of colours.",
        ]
    return "\n".join(lines)
