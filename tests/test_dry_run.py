"""The dry run finds mistakes before a run does, and its numbers can be counted by hand."""

import dataclasses
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from synthetic import SIZE, make_rows, tiny_config, tiny_train_config, write_parquet

from mmdiff.config import DataConfig, ModalityConfig, ModelConfig, TrainConfig, load_train_config
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.modalities import KINDS
from mmdiff.training import dry_run as module
from mmdiff.training.dry_run import count, dry_run, embedder_dim, measure, parameters_by_part
from mmdiff.training.fake_source import write_fake

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))
SCENES = next(path for path in CONFIGS if path.stem == "scenes-cpu")
NAMES = ("image", "mask", "label")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_pass(path):
    config = load_train_config(path)
    report = dry_run(config)
    names = ", ".join(m.name for m in config.model.modalities)
    assert f"made-up rows like {config.data.train}: {names} come through" in report
    assert ("prepared shards of them" in report) == bool(config.data.prepared)


def hand_count(config: ModelConfig, model: MultiModalDiffusion) -> int:
    """Operations of one forward pass of one image: two for every multiplication of a matrix or a kernel."""
    w, r, n = config.width, config.refiner_width, model.grid**2
    dense = [m for m in model.modalities.values() if m.dense]
    cell = max([2] + [m.stride for m in dense])
    rows, cells = n + len(model.names), (config.image_size // cell) ** 2
    total = n * (2 * model.z_channels + config.patch_size**2) * w  # embed
    total += 2 * w * w + 2 * model.z_channels * w + 6 * w * w  # time, pooled, modulation
    total += config.depth * rows * 12 * w * w  # qkv 3, out 1, up 4, down 4
    total += config.depth // 2 * rows * 2 * w * w  # skips
    total += config.depth * 2 * rows * rows * w  # attention
    fold = (config.patch_size // cell) ** 2
    seen = sum(m.z_channels for m in dense) // fold
    total += n * w * r * fold + w * 2 * r  # expand, modulate
    total += cells * 9 * r * ((r + 2 * seen + cell**2) + 2 * r)  # three convolutions
    if config.stem_depth:
        total += cells * 9 * r * ((2 * seen + cell**2) + 2 * config.stem_depth * r)  # its convolutions
        total += w * 2 * r + n * fold * r * w  # modulate, leave
    if config.reader_depth:
        inputs, halvings = 4, cell.bit_length() - 1
        for k in range(halvings):
            outputs, places = r >> (halvings - 1 - k), (config.image_size >> (k + 1)) ** 2
            blocks = config.reader_depth if k or halvings == 1 else 0
            total += places * 9 * outputs * (inputs + 2 * blocks * outputs)
            inputs = outputs
        total += n * fold * r * w + cells * r * r + r * w  # into tokens, cells and condition
        if cell == 8:  # a quarter of the size is finer than cells
            quarter, d = (config.image_size // 4) ** 2, r // 2
            for m in dense:
                if m.head_stride <= 4:
                    total += cells * r * 4 * d + quarter * 9 * 2 * d * d  # expand, mix
                    total += quarter * 9 * d * (4 // m.head_stride) ** 2 * m.head_channels  # leave
    total += sum(cells * 9 * r * (cell // m.head_stride) ** 2 * m.head_channels for m in dense)
    total += sum(w * w + w * m.head_channels for m in model.modalities.values() if not m.dense)
    return 2 * total


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_operations_equal_a_hand_count(path):
    """Of the first edition's network, which has no U-Nets in its heads."""
    config = replace(load_train_config(path).model, shape_width=0)
    model = MultiModalDiffusion(config)
    work = measure(model)
    assert work.forward == hand_count(config, model)
    assert 2.7 * work.forward < work.total <= 3 * work.forward  # inputs need no gradient
    assert not next(model.parameters()).is_meta
    assert (work.encoding > 0) == (config.modalities[0].kind == "latent_image")


def test_operations_of_an_encoding_equal_a_hand_count():
    model = MultiModalDiffusion(load_train_config(SCENES).model)
    half, quarter = 24 * 24, 12 * 12  # positions
    total = half * 9 * (48 * 96 + 2 * 2 * 96 * 96)  # the first convolution and two residual blocks
    total += quarter * 9 * (96 * 192 + 2 * 2 * 192 * 192) + quarter * 192 * 8
    assert measure(model).encoding == 2 * total


def test_a_plain_transformer_costs_six_operations_a_weight_and_token():
    config = tiny_config(("image",), width=256, depth=8, image_size=64, patch_size=16)
    model = MultiModalDiffusion(config)
    work, blocks = measure(model).total, parameters_by_part(model)["blocks"]
    assert 6 * blocks * 17 < work < 1.25 * 6 * count(model) * 17


@pytest.mark.parametrize("options", [{}, {"reader_depth": 1, "stem_depth": 1}])
def test_parts_add_up(options):
    model = MultiModalDiffusion(tiny_config(**options))
    assert sum(parameters_by_part(model).values()) == count(model)


def test_activations_equal_what_autograd_keeps():
    """A linear layer keeps its input: checked on the numbers that the real device keeps."""
    model = MultiModalDiffusion(tiny_config()).train()
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    inputs = (torch.zeros(1, *model.z_shape), torch.zeros(1))
    flags = torch.zeros(1, len(model.names), dtype=torch.long)
    condition = model.condition({}, flags, torch.zeros(1, 1, SIZE, SIZE))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        raw = model(*inputs, condition)
    numbers = sum(t.untyped_storage().nbytes() // t.element_size() for t in kept.values())
    assert raw and measure(model).activations == pytest.approx(numbers, rel=0.35)  # attention differs


def test_the_report_states_time_and_memory():
    config = tiny_train_config(images=1_000_000, batch_size=64)
    config = dataclasses.replace(config, model=tiny_config(), data=DataConfig())
    report = dry_run(config)
    work = measure(MultiModalDiffusion(config.model))
    seconds = float(re.search(r"1 M images +([\d.]+) seconds on one H100 \(35% of 989", report)[1])
    assert seconds == pytest.approx(work.total * 1e6 / (0.35 * 989e12), abs=0.06)
    assert "activations at batch 64" in report and f"Z            {(75, 4, 4)}" in report


@pytest.mark.parametrize(
    ("hours", "words"), [(0.01, "36.0 seconds"), (0.5, "30.0 minutes"), (2.04, "2.0 hours")]
)
def test_durations_are_in_readable_units(hours, words):
    assert module._duration(hours) == words


# -- made-up sources ------------------------------------------------------------------------------------


def config_of(data: DataConfig, names=NAMES) -> TrainConfig:
    return dataclasses.replace(tiny_train_config(), model=tiny_config(names), data=data)


def test_an_unknown_torchvision_set_is_named(tmp_path):
    modalities = MultiModalDiffusion(tiny_config(NAMES)).modalities
    with pytest.raises(ValueError, match="torchvision:CIFAR10 is not known here; known: OxfordIIITPet"):
        write_fake(DataConfig("torchvision:CIFAR10"), modalities, set(), tmp_path)


def test_made_up_files_have_the_layout_of_the_source(tmp_path):
    modalities = MultiModalDiffusion(tiny_config(NAMES)).modalities
    columns = {"image": "jpg", "mask": "seg.png", "label": "cls"}
    data = DataConfig("photos/*.tar", columns=columns, class_map={"mask": {"255": 0, "0": 1}})
    write_fake(data, modalities, set(), tmp_path)
    with tarfile.open(tmp_path / "part-0.tar") as tar:
        assert {name.partition(".")[2] for name in tar.getnames()} == {"jpg", "seg.png", "cls", "caption"}
    data = DataConfig("hub:some/set", columns={"image": "photo"}, class_map={"label": {"cat": 0, "dog": 3}})
    write_fake(data, modalities, set(), tmp_path)
    table = pq.read_table(tmp_path / "part-1.parquet")
    assert table.column_names == ["photo", "mask", "label", "caption"] and len(table) == 4
    assert set(table["label"].to_pylist()) <= {"cat", "dog"}
    assert len(load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train")) == 8


@pytest.mark.parametrize("where", ["photos/*.tar", "photos/*.parquet", "hub:some/set", "photos"])
def test_every_file_layout_is_made_up_and_read(where):
    columns = {"image": "jpg", "mask": "seg.png", "label": "cls", "caption": "txt"}
    data = DataConfig(where, columns=columns, class_map={"mask": {"0": 1, "*": 0}})
    assert "image, mask, label come through" in dry_run(config_of(data))


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize(
    "class_map, message",
    [
        ({"mask": {"0": 0, "1": 2}}, "rows cannot be read; the warnings"),
        ({"label": {"0": 0, "1": 9}}, "rows cannot be read; the warnings"),
    ],
)
def test_a_mapped_class_that_does_not_exist_is_found(class_map, message):
    with pytest.raises(ValueError, match=message):
        dry_run(config_of(DataConfig("photos/*.parquet", class_map=class_map)))


def test_real_rows_are_read_on_request(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", make_rows(12))
    assert f"first rows of {path}: image, mask, label come through" in dry_run(
        config_of(DataConfig(str(path))), real=True
    )
    wrong = config_of(DataConfig(str(path), columns={"label": "cls"}))
    dry_run(wrong)
    with pytest.raises(ValueError, match="no column 'cls' for 'label'; it has image, mask, label"):
        dry_run(wrong, real=True)
    rows = [{"image": row["image"], "label": row["label"]} for row in make_rows(12)]
    path = write_parquet(tmp_path / "b.parquet", rows)
    with pytest.raises(ValueError, match="no row has mask; name its column"):
        dry_run(config_of(DataConfig(str(path))), real=True)


@pytest.mark.parametrize("like", ["mask", "label", "embedding"])
def test_a_registered_kind_is_made_up_and_prepared(tmp_path, monkeypatch, like):
    monkeypatch.setitem(KINDS, "sound", type("Sound", (KINDS[like],), {"kind": "sound", "takes_text": False}))
    modalities = tiny_config(("image", like)).modalities
    modalities = (modalities[0], dataclasses.replace(modalities[1], name="sound", kind="sound"))
    config = config_of(DataConfig("photos/*.parquet", prepared="shards"), ("image",))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, modalities=modalities))
    report = dry_run(config)
    assert "made-up rows like photos/*.parquet: image, sound come through" in report
    assert "prepared shards of them: image, sound come through" in report


def test_an_embedder_of_another_size_is_found():
    embedding = ModalityConfig("embedding", "embedding", options={"dim": 8})
    config = tiny_config(("image",), embedder="ViT-B-32/laion2b_s34b_b79k")
    config = dataclasses.replace(config, modalities=(*config.modalities, embedding))
    with pytest.raises(ValueError, match="has dim 8, but ViT-B-32/laion2b_s34b_b79k makes 512 numbers"):
        dry_run(TrainConfig(config))
    assert embedder_dim("") is None and embedder_dim("somewhere/else") is None


def test_the_command(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(
        '[model]\nimage_size = 16\npatch_size = 4\n[[model.modalities]]\nname = "image"\nkind = "image"'
    )
    module.main([str(path), "--batch-size", "3"])
    assert "activations at batch 3" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="mmdiff.training.dry_run: no configuration file"):
        module.main([str(tmp_path / "none.toml")])
