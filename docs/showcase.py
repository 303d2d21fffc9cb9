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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

from app.export.lettering import wrapped, write  # noqa: E402
from app.run.defaults import ANCHOR, follow_scale, from_nothing  # noqa: E402
from app.run.history import picture_of  # noqa: E402
from app.run.service import Service  # noqa: E402
from app.run.showcase import FOLDER, STEPS, Example, Scene, play  # noqa: E402
from mmdiff.images import open_image, square  # noqa: E402
from mmdiff.request import Request  # noqa: E402

PICTURES = 6  # to try
CARD, TILE = (1200, 630), 250  # px
PLACES = ((0, 0), (1, 0), (0, 1), (1, 1))  # column and row of the tiles on the card
PAPER, INK, LEAF, PIN = "#fafaf9", "#1c1917", "#3a6955", "#b4622a"


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
        how = {"given": {name: title}, "guidance_scale": follow_scale(specs)} if name else from_nothing(specs)
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
    for tile, (column, row) in zip(scene["tiles"], PLACES, strict=False):
        card.paste(drawn(tile, -1, TILE), (620 + 270 * column, 55 + 270 * row))
    card.save(path, quality=88)


def drawn(tile: Mapping[str, Any], moment: int, side: int) -> Image.Image:
    """What a tile shows at a moment, without noise."""
    if "strip" in tile:
        strip, size = Image.open(io.BytesIO(base64.b64decode(tile["strip"].split(",")[1]))), tile["size"]
        left = range(0, strip.width, size)[moment]
        picture = strip.convert("RGB").crop((left, 0, left + size, size))
        return picture.resize((side, side), Image.Resampling.LANCZOS)
    picture = Image.new("RGB", (side, side), "#ffffff")
    draw, size = ImageDraw.Draw(picture), side // 8
    draw.rectangle((0, 0, side - 1, side - 1), outline="#e7e5e4")
    lines = wrapped(tile["texts"][moment], size, side * 0.87)[:5]
    for k, line in enumerate(lines):
        middle = side / 2 + 1.25 * size * (k - (len(lines) - 1) / 2)
        write(draw, (side / 2, middle), line, size, INK, anchor="mm")
    return picture


def save_film(scenes: Sequence[Scene], path: Path) -> None:
    """The scenes one after the other as an animated picture: a row of tiles that come out of noise."""
    side, gap, grain = 140, 16, 40
    rng, frames, times = np.random.default_rng(0), [], []
    width = len(scenes[0]["tiles"]) * (side + gap) + gap
    noise = [rng.normal(128, 60, (grain, grain, 3)).clip(0, 255) for _ in scenes[0]["tiles"]]
    for scene in scenes:
        for moment, share in list(enumerate(scene["noise"]))[::-2][::-1]:
            frame = Image.new("RGB", (width, side + 2 * gap), PAPER)
            for k, tile in enumerate(scene["tiles"]):
                pinned, x = tile["name"] == scene["pinned"], gap + k * (side + gap)
                picture = drawn(tile, 0 if pinned else moment, side)
                if pinned:
                    ImageDraw.Draw(frame).rectangle((x - 5, gap - 5, x + side + 4, gap + side + 4), PIN)
                else:
                    grey = (
                        noise[k]
                        if tile["form"] == "picture"
                        else noise[k].mean(2, keepdims=True).repeat(3, 2)
                    )
                    grains = Image.fromarray(grey.astype(np.uint8)).resize(
                        (side, side), Image.Resampling.NEAREST
                    )
                    picture = Image.blend(picture, grains, share)
                frame.paste(picture, (x, gap))
            frames.append(frame)
            times.append(360 if share else 2200)
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=times, loop=0, quality=40, method=6
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--photos", type=Path, help="Parquet file of photos that may be shown")
    parser.add_argument("--seed", type=int, default=1, help="of the first scene (%(default)s)")
    parser.add_argument("--tries", type=int, default=8, help="seeds of which each scene shows the best")
    parser.add_argument("--film", type=Path, help="animated WebP of the scenes to write, too")
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
    if arguments.film:
        save_film(plays, arguments.film)
    found = photos(service, arguments.photos) if arguments.photos else generated(service, arguments.seed)
    save_examples(list(found), folder)


if __name__ == "__main__":
    main()
