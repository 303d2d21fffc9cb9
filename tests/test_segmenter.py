"""The segmenter learns, is saved and loaded unchanged, and its photos and masks move together."""

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PIL

from mmdiff.evaluation.observers import segmenter as segmenting
from mmdiff.evaluation.observers.augmentation import draw_moves, moved
from mmdiff.evaluation.observers.observer import Photos, read_annotated
from mmdiff.evaluation.observers.segmenter import Segmenter
from mmdiff.modalities.mask import MaskModality

CLASSES = ("void", "sky", "ground")


def write_scenes(path, count, seed):
    """Blue above brown, the horizon anywhere; the edge of the mask is void; every fifth has no mask."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(count):
        horizon = rng.integers(8, 25)
        photo = np.empty((32, 32, 3))
        photo[:horizon], photo[horizon:] = (90, 140, 220), (110, 80, 40)
        photo = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
        mask = np.full((32, 32), 2, np.uint8)
        mask[:horizon] = 1
        mask[horizon - 1 : horizon + 1] = 0
        rows.append({"image": PIL.fromarray(photo), "mask": PIL.fromarray(mask) if k % 5 else None})
    Dataset.from_list(rows, Features({"image": Image(), "mask": Image()})).to_parquet(str(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("segmenter")
    write_scenes(folder / "train.parquet", 100, 0)
    write_scenes(folder / "val.parquet", 30, 1)
    (folder / "mask_classes.txt").write_text("\n".join(CLASSES) + "\n")
    data = ["--data", f"{folder}/train.parquet", "--val", f"{folder}/val.parquet"]
    segmenting.main([*data, "--out", f"{folder}/out", "--epochs", "6", "--size", "32", "--device", "cpu"])
    return folder


def test_training_learns_and_records_what_it_measured(trained):
    segmenter = Segmenter.from_pretrained(trained / "out")
    assert segmenter.facts["val_miou"] >= 0.95 and set(segmenter.facts["val_iou"]) == {"sky", "ground"}
    assert (segmenter.facts["train_examples"], segmenter.facts["val_examples"]) == (80, 24)
    assert f"{segmenter.facts['val_miou']:.3f}" in (trained / "out" / "README.md").read_text()
    photos = read_annotated(trained / "val.parquet", MaskModality("mask", 32, 2, CLASSES))
    images, masks = photos.batch(torch.arange(24), torch.device("cpu"))
    seen = segmenter.read(images)
    counted = masks != 0
    assert (seen[counted] == masks[counted]).double().mean() > 0.97
    assert not (seen == 0).any()  # void is never named


def test_pictures_of_another_size_are_read_at_their_own(trained):
    segmenter = Segmenter.from_pretrained(trained / "out")
    photos = read_annotated(trained / "val.parquet", MaskModality("mask", 32, 2, CLASSES))
    images, _ = photos.batch(torch.arange(2), torch.device("cpu"))
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    seen = segmenter.read(large)
    assert seen.shape == (2, 64, 64)
    assert (seen[:, ::2, ::2] == segmenter.read(images)).double().mean() > 0.97
    assert segmenter.read(images[:0]).shape == (0, 32, 32)


def test_a_mask_moves_with_its_photo():
    masks = torch.zeros(8, 32, 32)
    masks[:, :, 16:] = 1
    moves = draw_moves(8, torch.Generator().manual_seed(0))
    photos = moved(masks[:, None], moves)[:, 0]
    by_nearest = moved(masks[:, None], moves, "nearest")[:, 0]
    assert set(by_nearest.unique().tolist()) == {0.0, 1.0}
    assert ((photos > 0.5) == (by_nearest > 0.5)).double().mean() > 0.99
    assert not torch.equal(by_nearest, masks)


def test_void_has_no_part_in_training():
    images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
    void_only = Photos(images, torch.zeros(16, 32, 32, dtype=torch.uint8))
    torch.manual_seed(0)
    segmenter = Segmenter(CLASSES, 32)
    logits = segmenter(void_only.batch(torch.arange(16), torch.device("cpu"))[0])
    assert logits[:, 0].max() < -1000 and logits[:, 1:].min() > -100


@pytest.mark.parametrize(
    ("columns", "said"), [({"image": Image()}, "no photo with a mask"), ({"mask": Image()}, "no photo with")]
)
def test_unsuitable_data_is_refused(tmp_path, capsys, columns, said):
    path = tmp_path / "data.parquet"
    picture = PIL.fromarray(np.ones((32, 32), np.uint8))
    row = {name: picture.convert("RGB") if name == "image" else picture for name in columns}
    Dataset.from_list([row], Features(columns)).to_parquet(str(path))
    (tmp_path / "mask_classes.txt").write_text("\n".join(CLASSES))
    with pytest.raises(SystemExit) as exit_:
        segmenting.main(["--data", str(path), "--val", str(path), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(ValueError, match="train one with python -m mmdiff.evaluation.observers.segmenter"):
        Segmenter.from_pretrained(tmp_path)
