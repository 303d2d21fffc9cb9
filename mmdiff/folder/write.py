"""Training data of a checked folder, as Parquet in the layout of `datasets`, and their configuration."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from mmdiff.folder.check import Checked, workers
from mmdiff.folder.layout import Photo, readable
from mmdiff.folder.pictures import shrink_photo
from mmdiff.folder.split import order

BATCH = 128  # rows in memory
PATCH = 8  # pixels a token spans
PASSES = 400  # times that training sees each photo, within the limits below
FEWEST, MOST = 200_000, 6_000_000  # images of a training run


TASKS = """\
[tasks]
joint = 0.4 # share of the examples with nothing given
given = 0.35 # probability of each modality in the others
holes = 0.6 # share of the given photos
reading = 0.5 # share of the whole photos given with nothing but noise of all else
only_reading = 0.12
other_leads = 0.25 # share with random leads, so that a request can set its own
"""
EMBEDDING = """\
# Captions: train an embedder first (docs/your-data.md), then take the marks away here and above.
# [[model.modalities]]
# name = "embedding"
# kind = "embedding"
# scale = 0.25
# lead = 0.25
# loss_weight = 0.05
# options = { dim = 128 }
"""


def write_split(checked: Checked, split: str, path: Path, short_side: int, seed: int) -> int:
    """Write the photos of one split with masks, labels and captions; returns their number.

    Rows are in random order, because validation reads the first ones only. Raises ValueError if a photo or
    mask cannot be read any more, OSError if the file cannot be written.
    """
    from datasets import ClassLabel, Features, Image, Value

    text = Value("string")
    label = ClassLabel(names=list(checked.classes)) if checked.classes else Value("int64")
    kinds = {"image": Image(), "mask": Image(), "label": label}
    schema = Features(kinds | {"caption": text, "source": text, "id": text}).arrow_schema
    photos = sorted((p for p in checked.photos if p.split == split), key=lambda p: order(p, seed))
    part = path.with_name(path.name + ".part")
    bar = tqdm(total=len(photos), desc=f"write {path.name}", unit="photo", disable=None)
    with workers() as pool, pq.ParquetWriter(part, schema) as writer, bar:
        for start in range(0, len(photos), BATCH):
            rows = list(pool.map(lambda p: _row(checked, p, short_side), photos[start : start + BATCH]))
            writer.write_table(pa.Table.from_pylist(rows, schema))
            bar.update(len(rows))
    os.replace(part, path)
    return len(photos)


def _row(checked: Checked, photo: Photo, short_side: int) -> dict[str, Any]:
    try:
        image, size = shrink_photo(photo.path, short_side)
        mask = photo.mask and checked.coding.shrink(photo.mask, checked.masks[photo.mask], size)
    except (ValueError, OSError) as error:
        raise ValueError(f"{photo.name} cannot be read any more ({error}); run the check again.") from error
    return {
        "image": {"bytes": image, "path": f"{photo.key}.webp"},
        "mask": mask and {"bytes": mask, "path": f"{photo.key}.png"},
        "label": -1 if photo.label is None else checked.classes.index(photo.label),
        "caption": photo.caption,
        "source": readable(checked.findings.root.resolve().name),
        "id": photo.name,
    }


def margin_of(size: int) -> int:
    """Pixels by which stored photos are larger than the model's, for random crops."""
    return size // 8


def render(
    size: int,
    train: str,
    val: str,
    photos: int,
    classes: Sequence[str] = (),
    mask_classes: Sequence[str] = (),
    captions: bool = False,
) -> str:
    """A configuration for `python -m mmdiff.train`; a modality whose classes are empty is left out.

    Args:
        size: pixels a side of the model's pictures. photos: number of training photos.
    """
    modalities = [_modality("image", "", 1.0)]
    if mask_classes:
        modalities.append(_modality("mask", "lead = 0.2 # decided before the photo\n", 0.1, mask_classes))
    if classes:
        modalities.append(_modality("label", "scale = 0.25\nlead = 0.5 # decided first\n", 0.02, classes))
    if captions:
        modalities.append(EMBEDDING)
    data = f"""\
[data]
train = {_quoted(train)}
val = {_quoted(val)}
margin = {margin_of(size)} # photos are stored larger by this and cut at random
margin_from = "resize"
flip = true # false if left and right matter, as in writing
"""
    return "\n".join([_model(size, captions), *modalities, data, TASKS, _optim(photos)])


def _model(size: int, captions: bool) -> str:
    embedder = '# embedder = "embedder" # see the embedding below\n' if captions else ""
    return f"""\
# Photos of one's own; written by `python -m mmdiff.folder`, see docs/your-data.md.
[model]
core = "levels"
image_size = {size} # pixels; cost grows with its square
patch_size = {PATCH} # 16 is four times cheaper and coarser
width = 320
depth = 8
heads = 5
refiner_width = 64
stem_depth = 1
route = 0.5 # of the patches go round most blocks in training, which makes a step a third shorter
schedule_shift = 0.67
dropout = 0.1 # small sets are learned by heart without it
{embedder}"""


def _modality(name: str, scale: str, loss_weight: float, classes: Sequence[str] = ()) -> str:
    lines = "".join(f"  {_quoted(name)},\n" for name in classes)
    options = f"[model.modalities.options]\nclasses = [\n{lines}]\n" if classes else ""
    return f"""\
[[model.modalities]]
name = "{name}"
kind = "{name}"
{scale}loss_weight = {loss_weight}
{options}"""


def _optim(photos: int) -> str:
    budget = min(max(PASSES * photos, FEWEST), MOST)
    return f"""\
[optim]
images = {budget:_} # examples seen in all; --images changes it
batch_size = 64
lr = 8e-4
warmup_images = {budget // 20:_}
ema_decay = 0.9995
save_every_images = {budget // 10:_}
sample_every_images = {budget // 10:_}
"""


def _quoted(text: str) -> str:
    """A TOML string; its escapes are those of JSON, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
