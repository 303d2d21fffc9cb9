"""Records what a checkpoint shows of itself: `python docs/showcase.py checkpoints/orchard`.

Into the folder `showcase` of the checkpoint it writes the scenes that the page opens with (the best of some
seeds, by how well the model reads its own photos), pictures to try, and the card of a link that is shared.
Pictures to try are photos where --photos names some whose licence allows it, otherwise the model makes them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image, ImageDraw  # noqa: E402

from app.export.lettering import wrapped, write  # noqa: E402
from app.run.defaults import ANCHOR, from_nothing  # noqa: E402
from app.run.history import picture_of  # noqa: E402
from app.run.service import Service  # noqa: E402
from app.run.showcase import FOLDER, STEPS, Example, Scene, play  # noqa: E402
from mmdiff.images import open_image, square  # noqa: E402
from mmdiff.request import Request  # noqa: E402

PICTURES = 6  # to try
CARD, TILE = (1200, 630), 250  # px
PAPER, INK, LEAF = "#fafaf9", "#1c1917", "#3a6955"


def pins_of(service: Service) -> list[str]:
    """Out of noise, then every modality pinned once, the photo last."""
    others = [name for name in service.modalities if name != ANCHOR]
    return ["", *others, ANCHOR]


def photos(service: Service, path: Path) -> Iterator[Example]:
    """Photos of a Parquet file in the format of the training data, each of another class."""
    import pandas

    rows, size = pandas.read_parquet(path), service.modalities[ANCHOR].image_size
    classes = next(spec.classes for spec in service.modalities.values() if spec.form == "class")
    labelled = sorted(rows["label"][rows["label"] >= 0].unique())
    for label in labelled[len(labelled) // (2 * PICTURES) :: len(labelled) // PICTURES][:PICTURES]:
        row = rows[rows["label"] == label].iloc[0]
        picture = square(open_image(io.BytesIO(row["image"]["bytes"]), "photo"), size)
        yield Example(classes[label], picture, False)


def generated(service: Service, seed: int) -> Iterator[Example]:
    """Pictures that the model makes at full quality, each of another class where it knows any."""
    specs = service.modalities
    name = next((name for name, spec in specs.items() if spec.form == "class"), "")
    classes = specs[name].classes if name else ()
    for k in range(PICTURES):
        title = classes[k * len(classes) // PICTURES] if name else f"Picture {k + 1}"
        how = {"given": {name: title}, "guidance_scale": 2.0} if name else from_nothing(specs)
        record = service.run(Request(wanted=(ANCHOR,), steps=STEPS, seed=seed + k, **how))
        yield Example(title, picture_of(record.last, specs[ANCHOR], 0), True)


def save_examples(found: Sequence[Example], folder: Path) -> None:
    """The pictures, and a list of them."""
    entries = []
    for k, example in enumerate(found):
        file = f"example_{k}.webp"
        example.picture.save(folder / file, quality=90, method=6)
        entries.append({"title": example.title, "file": file, "generated": example.generated})
    (folder / "examples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def save_card(scene: Scene, path: Path) -> None:
    """The picture of a shared link: what came out of a scene, and what it is."""
    card = Image.new("RGB", CARD, PAPER)
    draw = ImageDraw.Draw(card)
    write(draw, (70, 104), "mmdiff", 40, LEAF)
    for k, line in enumerate(("One model.", "Pin any one;", "it makes the rest.")):
        write(draw, (70, 196 + 78 * k), line, 64, INK)
    places = [(620, 55), (890, 55), (620, 325), (890, 325)]
    for tile, (x, y) in zip(scene["tiles"], places, strict=False):
        if "strip" in tile:
            strip = Image.open(io.BytesIO(base64.b64decode(tile["strip"].split(",")[1])))
            last = strip.convert("RGB").crop((strip.width - tile["size"], 0, strip.width, strip.height))
            card.paste(last.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        else:
            draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), "#ffffff", "#e7e5e4")
            lines = wrapped(tile["texts"][-1], 32, TILE - 32)[:5]
            for k, line in enumerate(lines):
                middle = y + TILE / 2 + 40 * (k - (len(lines) - 1) / 2)
                write(draw, (x + TILE / 2, middle), line, 32, INK, anchor="mm")
    card.save(path, quality=88)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, help="Parquet file of photos that may be shown")
    parser.add_argument("--seed", type=int, default=1, help="of the first scene (%(default)s)")
    parser.add_argument("--tries", type=int, default=8, help="seeds of which each scene shows the best")
    arguments = parser.parse_args()
    service = Service.from_checkpoint(arguments.checkpoint)
    folder = arguments.checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    plays = list(play(service, pins_of(service), arguments.seed, arguments.tries))
    for number, scene in enumerate(plays):
        text = json.dumps(scene, separators=(",", ":"))
        (folder / f"scene_{number}.json").write_text(text, encoding="utf-8")
        print(
            f"scene {number}: {scene['pinned'] or 'nothing'} pinned, seed {scene['seed']}, {len(text)} bytes"
        )
    save_card(plays[0], folder / "card.jpg")
    found = photos(service, arguments.photos) if arguments.photos else generated(service, arguments.seed)
    save_examples(list(found), folder)


if __name__ == "__main__":
    main()
