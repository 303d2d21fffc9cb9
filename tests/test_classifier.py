"""The classifier learns, is saved and loaded unchanged, and its augmentation has the stated form."""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PIL
from scipy.ndimage import gaussian_filter

from mmdiff.evaluation.observers import classifier as module
from mmdiff.evaluation.observers.augmentation import blur
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.observers.observer import Photos, read_annotated
from mmdiff.modalities.label import LabelModality

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 190)}


def write_photos(path, count, seed):
    """Coloured discs on white, every tenth without a label."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    rows = []
    for k in range(count):
        photo = np.full((32, 32, 3), 255, np.uint8)
        centre, radius = rng.integers(12, 20, 2), rng.integers(6, 11)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        photo[disc] = np.clip(list(COLOURS.values())[k % 3] + rng.normal(0, 12, 3), 0, 255).astype(np.uint8)
        rows.append({"image": PIL.fromarray(photo), "label": -1 if k % 10 == 9 else k % 3})
    Dataset.from_list(rows, Features({"image": Image(), "label": Value("int64")})).to_parquet(str(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of a classifier trained through the command on a toy set."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("judge")
    write_photos(folder / "train.parquet", 150, 0)
    write_photos(folder / "val.parquet", 60, 1)
    (folder / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    command = [
        "--data",
        f"{folder}/train.parquet",
        "--val",
        f"{folder}/val.parquet",
        "--out",
        f"{folder}/out",
    ]
    module.main([*command, "--epochs", "6", "--size", "32", "--device", "cpu"])
    return folder


def test_training_learns_and_records_what_it_measured(trained):
    classifier = Classifier.from_pretrained(trained / "out")
    assert classifier.facts["val_top1"] >= 0.95 and classifier.facts["val_top1_blurred"] >= 0.95
    assert (classifier.facts["train_examples"], classifier.facts["val_examples"]) == (135, 54)
    assert classifier.classes == tuple(COLOURS)
    assert f"{classifier.facts['val_top1']:.4f}" in (trained / "out" / "README.md").read_text()
    label = LabelModality("label", classifier.size, patch_size=2, classes=classifier.classes)
    found = classifier.measure(read_annotated(trained / "val.parquet", label))
    assert found["val_top1"] == pytest.approx(
        classifier.facts["val_top1"], abs=0.02
    )  # half precision on disk


def test_it_names_plain_colours_at_another_size(trained):
    classifier = Classifier.from_pretrained(trained / "out")
    discs = torch.ones(3, 3, 80, 80)
    y, x = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 22**2
    for k, colour in enumerate(COLOURS.values()):
        discs[k, :, inside] = torch.tensor(colour)[:, None] / 127.5 - 1
    probabilities = classifier.probabilities(discs, batch=2)
    assert probabilities.argmax(1).tolist() == [0, 1, 2]
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3))
    assert classifier.probabilities(discs[:0]).shape == (0, 3)


def test_saved_and_loaded_it_says_the_same(tmp_path):
    torch.manual_seed(0)
    classifier = Classifier(["a", "b"], size=32).eval()
    classifier.facts = {"val_top1": 0.5}
    classifier.save(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(again(pictures), classifier(pictures), atol=2e-2, rtol=0)
    assert again.facts == classifier.facts and not again.training
    assert next(again.parameters()).dtype == torch.float32


def test_the_default_size_is_small():
    classifier = Classifier([str(k) for k in range(49)])
    assert sum(p.numel() for p in classifier.parameters()) <= 600_000


def test_weak_classes_are_named():
    class Constant(Classifier):
        def forward(self, images):
            return torch.tensor([1.0, 0.0, 0.0]).expand(len(images), -1)

    photos = Photos(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 2]))
    found = Constant(["a", "b", "c"], size=8).measure(photos)
    assert found["val_top1"] == 0.5 and found["val_weak_classes"] == {"b": 0, "c": 0}


def test_the_shipped_classifier_is_small_and_knows_its_classes():
    folder = Path(__file__).parent.parent / "benchmarks" / "judges" / "orchard"
    classifier = Classifier.from_pretrained(folder)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 2.5e6
    assert len(classifier.classes) == 49 and classifier.facts["val_top1"] >= 0.97
    assert classifier.probabilities(torch.zeros(2, 3, 96, 96)).shape == (2, 49)


def test_a_folder_without_a_classifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="config.json is missing"):
        Classifier.from_pretrained(tmp_path)
    Classifier(["a", "b"]).save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="cannot be read"):
        Classifier.from_pretrained(tmp_path)
    Classifier(["a", "b"]).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"classes": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match="cannot be read"):
        Classifier.from_pretrained(tmp_path)


def test_missing_inputs_end_with_a_plain_message(trained, tmp_path, capsys):
    for command, message in (
        (["--data", "nowhere.parquet", "--val", "x", "--classes", f"{trained}/classes.txt"], "no data at"),
        (["--data", f"{tmp_path}/train.parquet", "--val", "x"], "no class list"),
    ):
        with pytest.raises(SystemExit):
            module.main([*command, "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err


def test_blur_is_a_gaussian_of_each_pictures_own_width():
    images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = blur(images, torch.tensor([0.0, 0.8, 1.2]))
    assert torch.equal(blurred[0], images[0])
    for k, sigma in ((1, 0.8), (2, 1.2)):
        expected = gaussian_filter(images[k].numpy(), (0, sigma, sigma), mode="nearest", radius=4)
        torch.testing.assert_close(blurred[k], torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_augmentation_is_seeded_varied_and_in_range():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, again, other = (module.augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == images.shape and first.abs().max() <= 1
    flat = module.augment(torch.zeros(64, 3, 32, 32), torch.Generator().manual_seed(0))
    assert flat.mean((1, 2, 3)).abs().max() < 0.08  # brightness moves by a few per cent only


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_the_commands_read_the_arguments_of_the_process(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        import_module(f"mmdiff.evaluation.observers.{name}").main()
    assert f"python -m mmdiff.evaluation.observers.{name}" in capsys.readouterr().out
