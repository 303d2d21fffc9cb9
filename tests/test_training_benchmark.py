"""The benchmark of training runs, and what it counts is right."""

import json

import pytest
from synthetic import CLASSES

from benchmarks import training
from mmdiff.network.transformer import LEVEL_WAVES

SIZE, PATCH, WIDTH, DEPTH, REFINER = 16, 4, 32, 3, 8
CONFIG = f"""
[model]
image_size = {SIZE}
patch_size = {PATCH}
width = {WIDTH}
depth = {DEPTH}
heads = 2
refiner_width = {REFINER}

[[model.modalities]]
name = "image"
kind = "image"

[[model.modalities]]
name = "mask"
kind = "mask"
options = {{ classes = ["background", "shape"] }}

[[model.modalities]]
name = "label"
kind = "label"
options = {{ classes = {list(CLASSES)} }}

[[model.modalities]]
name = "embedding"
kind = "embedding"
options = {{ dim = 8 }}

[optim]
batch_size = 8
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What a quick run writes."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.toml").write_text(CONFIG)
    out = folder / "speed.json"
    training.main([str(folder / "tiny.toml"), "--quick", "--device", "cpu", "--out", str(out)])
    return json.loads(out.read_text())


def products_by_hand() -> int:
    """Multiplications of one image, forward and backward, layer by layer."""
    tokens, cells = (SIZE // PATCH) ** 2, (SIZE // 2) ** 2
    seen = 4 * (3 + 1 + 1)  # pixels of a cell: photo, mask and level map
    n = tokens + 4  # with a register for each modality
    waves = 4 * 2 * LEVEL_WAVES
    # inputs of these need no gradient: cells, known pixels, waves of the levels, codes of label and embedding
    first = cells * REFINER * (seen + 4 * 4) + WIDTH * (waves + 3 + 8)  # 4 classes have codes of 3 numbers
    reader = cells * REFINER**2
    blocks = DEPTH * (n * 12 * WIDTH**2 + 2 * n**2 * WIDTH) + DEPTH // 2 * n * 2 * WIDTH**2
    condition = WIDTH**2 + 6 * WIDTH**2 + 2 * REFINER * WIDTH  # levels, modulation of blocks and refiner
    patches = 2 * tokens * WIDTH * REFINER * (PATCH // 2) ** 2  # in and out
    across = cells * REFINER**2
    convolutions = 9 * cells * REFINER * (2 * REFINER + 4 * (3 + 2))  # the last are the heads'
    heads = 2 * WIDTH**2 + WIDTH * (4 + 8)
    return 2 * first + 3 * (reader + blocks + condition + patches + across + convolutions + heads)


def test_flops_agree_with_a_count_by_hand(found):
    assert found["mflop_per_image"]["total"] == pytest.approx(2 * products_by_hand() / 1e6, rel=0.02)


def test_figures_are_there_and_make_sense(found):
    assert found["config"] == "tiny" and found["batch_size"] == 8 and found["precision"] == "float32"
    for name in ("square", "model"):
        assert 0 < found["share_of_matmul"][name]["median"] < 1.2
        assert found["matmul_gflops"][name]["median"] > 0
    for name in ("images_per_second", "training_gflops", "draw_images_per_second"):
        spread = found[name]
        assert 0 < spread["low"] <= spread["median"] <= spread["high"]
    assert found["parquet_rows_per_second"] > 0 and found["peak_memory_mb"] > 10
    # GFLOP/s is images/s times the FLOPs of one
    rate = found["images_per_second"]["high"] * found["mflop_per_image"]["total"] / 1e3
    assert found["training_gflops"]["high"] == pytest.approx(rate, rel=0.01)


def test_the_table_has_a_line_for_each_figure(found):
    lines = training.table(found).splitlines()
    assert lines[0].startswith("tiny, batch 8, float32") and len(lines) == 12


def test_a_configuration_that_is_missing_is_named():
    with pytest.raises(SystemExit, match="training.py: no configuration file at none.toml"):
        training.main(["none.toml"])
