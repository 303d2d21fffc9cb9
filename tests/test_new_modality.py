"""A modality of one's own: the page quotes code that runs, works from outside the package, and learns."""

import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from synthetic import CLASSES, draw_shape, lively_model, png

from mmdiff import evaluate, sample, train
from mmdiff.config import ModalityConfig, ModelConfig, load_train_config
from mmdiff.data import precompute
from mmdiff.data.augment import draw_batch
from mmdiff.data.parquet import read_parquet
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.losses import Weights, training_losses
from mmdiff.modalities import IMPORTS, KINDS, Modality, build_modality, register
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from mmdiff.training import dry_run

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs/examples/depth.py"
PAGE = (ROOT / "docs/new-modality.md").read_text(encoding="utf-8")
SIZE, CPU = 16, torch.device("cpu")
SMALLER = {  # what the page's configuration becomes, so that it trains in seconds
    "image_size = 64": f"image_size = {SIZE}",
    "patch_size = 8": "patch_size = 4",
    "width = 256": "width = 64",
    "depth = 6": "depth = 2",
    "refiner_width = 64": "refiner_width = 16",
    "images = 1_000_000": "images = 9_600\nwarmup_images = 960\nlr = 3e-3\nema_decay = 0.99",
}


def blocks(language: str) -> list[str]:
    """The page's fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def shrunk(config: str) -> str:
    """The page's configuration as it trains in seconds."""
    for page, smaller in SMALLER.items():
        assert config.count(f"\n{page}\n") == 1
        config = config.replace(f"\n{page}\n", f"\n{smaller}\n")
    return config


def photos(first: int, count: int) -> np.ndarray:
    """Shapes on white, (count, SIZE, SIZE, 3) uint8."""
    return np.stack([draw_shape(i % len(CLASSES), i, SIZE) for i in range(first, first + count)])


def depth_of(pixels: np.ndarray) -> np.ndarray:
    """The true depth of photos, read off their brightness: (..., H, W, 3) -> (..., H, W) uint16."""
    return (pixels.mean(-1) * 257).round().astype(np.uint16)


def python(folder: Path, *arguments: str, imported: str = "depth") -> subprocess.CompletedProcess:
    """`python ...` in ``folder``, where the user's own module lies."""
    environment = os.environ | {IMPORTS: imported, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def depth(monkeypatch):
    """The example, imported for the length of a test."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    yield importlib.import_module("depth")
    del KINDS["depth"], sys.modules["depth"]


def build(**options) -> Modality:
    return build_modality(ModalityConfig("depth", "depth", options=options), SIZE, 4)


def with_depth(**options) -> ModelConfig:
    """A tiny model of photo, depth and label."""
    kinds = {"image": {}, "depth": {}, "label": {"classes": list(CLASSES)}}
    modalities = tuple(ModalityConfig(name, name, options=of) for name, of in kinds.items())
    sizes = {"image_size": SIZE, "patch_size": 4, "width": 32, "depth": 2, "heads": 2, "refiner_width": 8}
    return ModelConfig(modalities, **(sizes | options))


# -- the page ------------------------------------------------------------------------------------------


def test_the_page_quotes_the_example():
    assert blocks("python")[0] == EXAMPLE.read_text(encoding="utf-8")


def test_all_python_of_the_page_is_under_60_lines():
    assert sum(bool(line.strip()) for code in blocks("python") for line in code.splitlines()) < 60


# -- the kind ------------------------------------------------------------------------------------------


def test_nll_integrates_to_one(depth):
    modality = build(sigma=0.3)
    raw = torch.rand(1, 1, SIZE, SIZE) - 0.5
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    x = raw.double().repeat(len(grid), 1, 1, 1)
    x[:, 0, 3, 5] += grid  # all other pixels stay at their most likely value
    peak = SIZE**2 - 1
    log_peak = -peak * np.log(0.3 * np.sqrt(2 * np.pi))
    density = torch.exp(-modality.nll(raw.double(), x) - log_peak)
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=1e-6)


def test_files_come_back_to_the_last_bit(depth, tmp_path):
    levels = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE), dtype=np.uint16)
    levels[0, :2] = 0, 65535
    Image.fromarray(levels).save(tmp_path / "depth.png")
    modality = build()
    x = modality.parse(str(tmp_path / "depth.png"))
    assert x.shape == (1, SIZE, SIZE) and x.min() == -1 and x.max() == 1
    (picture,) = modality.present(modality.as_prediction(x[None]).numpy())
    np.testing.assert_array_equal(np.asarray(picture), levels)
    picture.save(tmp_path / "again.png")
    torch.testing.assert_close(modality.parse(str(tmp_path / "again.png")), x, rtol=0, atol=0)


def test_depths_beyond_far_become_far(depth):
    levels = np.full((SIZE, SIZE), 5000, np.uint16)
    levels[0, 0] = 2500
    x = build(far=3000).parse(Image.fromarray(levels))
    assert x[0, 1, 1] == 1 and x[0, 0, 0] == pytest.approx(2 / 3)


def test_depths_are_never_blended(depth):
    levels = np.where(np.arange(64) < 31, 100, 60_000).astype(np.uint16)
    stored = build().store(Image.fromarray(np.tile(levels, (48, 1))), SIZE)
    assert stored.shape == (1, SIZE, SIZE) and set(np.unique(stored)) == {100, 60_000}


def test_a_colour_picture_is_refused(depth):
    with pytest.raises(ValueError, match="depth: a picture of mode RGB; give a PNG of one channel"):
        build().parse(Image.new("RGB", (SIZE, SIZE)))


# -- the registry --------------------------------------------------------------------------------------


def test_an_unknown_kind_says_how_to_add_it(monkeypatch):
    monkeypatch.delenv(IMPORTS, raising=False)
    with pytest.raises(ValueError, match="unknown kind 'depth'.* import its module first.*MMDIFF_IMPORT"):
        build()


def test_a_module_that_is_missing_is_named(monkeypatch):
    monkeypatch.setenv(IMPORTS, "no_such_module")
    with pytest.raises(ValueError, match="MMDIFF_IMPORT names 'no_such_module'.*PYTHONPATH"):
        build()


def test_a_module_is_imported_for_an_unknown_kind_only(monkeypatch):
    monkeypatch.setenv(IMPORTS, "no_such_module")
    assert build_modality(ModalityConfig("image", "image"), SIZE, 4).kind == "image"


def test_a_taken_name_is_refused_but_the_same_class_may_come_again(depth):
    class Other(Modality):
        kind = "depth"

    with pytest.raises(ValueError, match="'depth' is depth.Depth already"):
        register(Other)
    again = type("Depth", (Modality,), {"kind": "depth", "__module__": "depth", "__qualname__": "Depth"})
    assert register(again) is again and KINDS["depth"] is again


# -- the model around it -------------------------------------------------------------------------------


def test_every_subset_can_be_given(depth):
    config = with_depth()
    pipe = Pipeline(lively_model(config), CPU)
    photo = photos(0, 1)[0]
    values = {"image": Image.fromarray(photo), "depth": Image.fromarray(depth_of(photo)), "label": 2}
    names = list(values)
    for count in range(len(names)):
        for subset in itertools.combinations(names, count):
            out = pipe(given={name: values[name] for name in subset}, steps=2, num_samples=2)
            assert set(out.values) == set(names)
            for picture in out.depth:
                same = np.array_equal(np.asarray(picture), depth_of(photo))
                assert picture.size == (SIZE, SIZE) and same == ("depth" in subset)


def test_a_given_depth_comes_back_and_changes_the_photo(depth):
    pipe = Pipeline(lively_model(with_depth()), CPU)
    levels = depth_of(photos(0, 1)[0])
    value = pipe.modalities["depth"].parse(Image.fromarray(levels))[None]
    *_, step = pipe.run_batch(Request({"depth": value}, ("image",), steps=3), [0])
    assert torch.equal(step.x_hat["depth"], value)
    np.testing.assert_array_equal(pipe.modalities["depth"].present(step.x_hat["depth"].numpy())[0], levels)
    *_, other = pipe.run_batch(Request({"depth": -value}, ("image",), steps=3), [0])
    assert (other.x_hat["image"] - step.x_hat["image"]).abs().max() > 1e-3


@pytest.mark.parametrize(("flag", "counts"), [(UNKNOWN, True), (KNOWN, False), (ABSENT, False)])
def test_it_has_a_loss_only_where_it_is_unknown(depth, flag, counts):
    model = lively_model(with_depth())
    x = {"image": torch.zeros(2, 3, SIZE, SIZE), "depth": torch.rand(2, 1, SIZE, SIZE)}
    x["label"] = torch.zeros(2, dtype=torch.long)
    flags = torch.tensor([[UNKNOWN, flag, UNKNOWN]] * 2)
    condition = model.condition(model.encode(x), flags, torch.zeros(2, 1, SIZE, SIZE))
    raw = model(torch.randn(2, *model.z_shape), torch.zeros(2, 3), condition)
    supervised, z0 = flags == UNKNOWN, model.encode(x)["image"]
    terms = training_losses(model, raw, x, z0, condition, Weights(torch.ones(2, 3)), supervised)
    assert (terms["L2/depth"] > 0) == counts and terms["L2/label"] > 0


# -- the commands --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which the page was followed, with a smaller model and a fifth of the depths missing."""
    folder = tmp_path_factory.mktemp("mine")
    shutil.copy(EXAMPLE, folder)
    cells: dict[str, list[str | None]] = {"image": [], "depth": []}
    for i, photo in enumerate(photos(0, 400)):
        cells["image"].append(f"{folder}/photo-{i:04}.png")  # lossless, or the depths would be others
        cells["depth"].append(None if i % 5 == 4 else f"{folder}/{i:04}.png")
        Image.fromarray(photo).save(cells["image"][-1])
        if cells["depth"][-1]:
            Image.fromarray(depth_of(photo)).save(cells["depth"][-1])
    before, rows, after = re.split(r"^(rows = .*)$", blocks("python")[1], flags=re.MULTILINE)
    assert "None" in rows
    (folder / "data.py").write_text(f"{before}rows = {cells!r}{after}")
    (folder / "depth.toml").write_text(shrunk(blocks("toml")[0]))
    for arguments in (["data.py"], "-m mmdiff.train depth.toml --out runs/depth --device cpu".split()):
        done = python(folder, *arguments)
        assert done.returncode == 0, done.stderr
    return folder


def write_rows(folder: Path, count: int) -> np.ndarray:
    """Rows of photo and depth as `train.parquet`, every third without a depth; returns the depths."""
    pixels = photos(0, count)
    levels = depth_of(pixels)
    rows = [{"image": png(pixels[i]), "depth": png(levels[i]) if i % 3 < 2 else None} for i in range(count)]
    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", picture), ("depth", picture)])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "train.parquet")
    return levels


def test_every_command_works_with_it(depth, tmp_path, monkeypatch, capsys):
    """Tried out, prepared to the last bit, trained from the shards, sampled into files and evaluated."""
    monkeypatch.chdir(tmp_path)
    levels = write_rows(tmp_path, 12)
    text = shrunk(blocks("toml")[0]).replace("[data]", '[data]\nprepared = "shards"\nmargin = 2')
    (tmp_path / "depth.toml").write_text(text)
    config = load_train_config("depth.toml")

    dry_run.main(["depth.toml", "--real"])
    said = capsys.readouterr().out
    for rows in ("made-up rows like train.parquet", "prepared shards of them", "first rows of train.parquet"):
        assert f"{rows}: image, depth come through" in said

    precompute.main(["depth.toml", "--rows", "5"])
    data = config.data.ready()
    modalities = MultiModalDiffusion(config.model).modalities
    examples = read_parquet(data.train, modalities.values(), data)
    there = torch.arange(12) % 3 < 2
    assert torch.equal(examples.present["depth"], there) and examples.present["image"].all()
    x, _ = draw_batch(examples, modalities, torch.arange(12), None, flip=False)
    truth = torch.stack([modalities["depth"].parse(Image.fromarray(level)) for level in levels])
    assert torch.equal(x["depth"][there], truth[there])

    train.main("depth.toml --out run --images 8 --batch-size 4 --device cpu".split())
    photo = Image.fromarray(photos(0, 1)[0])
    photo.save("photo.png")
    sample.main("run --given image=photo.png --wanted depth --steps 2 --num-samples 1 --out made".split())
    assert Image.open("made/00_depth.png").mode == "I;16"

    evaluate.main("run --data train.parquet --out report.json --steps 2 --bound-draws 1".split())
    tasks = json.loads(Path("report.json").read_text())["tasks"]
    assert tasks["bound"]["nats"]["L2/depth"] > 0
    assert all("skipped" in figures or "seconds" in figures for figures in tasks.values())


@pytest.mark.slow
def test_depth_from_a_photo_is_far_better_than_the_mean(trained, depth):
    pipe = Pipeline.from_pretrained(trained / "runs/depth", "cpu")
    modality, unseen = pipe.modalities["depth"], photos(400, 40)
    truth = torch.stack([modality.parse(Image.fromarray(d)) for d in depth_of(unseen)])
    image = torch.stack([pipe.modalities["image"].parse(photo) for photo in unseen])
    *_, step = pipe.run_batch(Request({"image": image}, ("depth",), steps=5), list(range(40)))
    seen = torch.stack([modality.parse(Image.fromarray(d)) for d in depth_of(photos(0, 400))])
    error = (step.x_hat["depth"] - truth).square().mean().sqrt()
    of_mean = (seen.mean(0) - truth).square().mean().sqrt()  # the best that knows no photo
    assert error < 0.5 * of_mean


@pytest.mark.slow
def test_the_commands_of_the_page_run(trained, depth, monkeypatch):
    """`mmdiff.sample` writes 16-bit files, and the Python of the page runs as it stands."""
    shutil.copy(trained / "photo-0001.png", trained / "photo.jpg")
    command = next(line for line in blocks("sh")[0].splitlines() if "mmdiff.sample" in line)
    done = python(trained, *command.removeprefix("python ").split(), "--steps", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert Image.open(trained / "samples/00_depth.png").mode == "I;16"
    monkeypatch.chdir(trained)
    exec(blocks("python")[2], {})
    assert Image.open("photo-depth.png").mode == "I;16" and Image.open("another.png").mode == "RGB"


@pytest.mark.slow
def test_without_the_module_the_checkpoint_is_refused(trained):
    done = python(trained, "-m", "mmdiff.sample", "runs/depth", "--out", "none", imported="")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "unknown kind 'depth'" in done.stderr and IMPORTS in done.stderr
