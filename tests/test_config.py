"""Configurations survive the way through TOML and JSON, and every mistake in one is named."""

import dataclasses
import json
from pathlib import Path

import pytest
from synthetic import tiny_config

from mmdiff.config import (
    RETIRED,
    DataConfig,
    ModalityConfig,
    ModelConfig,
    TaskConfig,
    TrainConfig,
    from_dict,
    load_train_config,
    saved_model,
    to_dict,
)
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.toml"))

MINIMAL = """
[model]
image_size = 32
patch_size = 8

[[model.modalities]]
name = "image"
kind = "image"

[[model.modalities]]
name = "label"
kind = "label"
scale = 0.25
options = { classes = ["a", "b"] }

[data]
margin = 4

[optim]
betas = [0.9, 0.99]
lr = 1
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_overrides_the_defaults_and_nothing_else(tmp_path):
    config = load_train_config(write(tmp_path, MINIMAL))
    label = config.model.modalities[1]
    assert (label.name, label.scale, label.weights) == ("label", 0.25, "joint")
    assert label.options == {"classes": ["a", "b"]}
    assert config.optim.betas == (0.9, 0.99) and config.optim.lr == 1
    assert config.data == DataConfig(margin=4)
    assert config.optim.batch_size == TrainConfig(config.model).optim.batch_size


def test_json_gives_back_the_same_configuration():
    config = tiny_config(schedule_shift=0.5)
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(config)))) == config


def test_sources_and_maps_are_read_from_toml(tmp_path):
    text = MINIMAL.replace(
        "margin = 4",
        'train = "hub:a/b"\nval = "hub:a/b:test"\nprepared = "data/b"\nstream = true\n'
        'columns = { image = "jpg", caption = "txt" }\nclass_map = { label = { 255 = 0, "*" = 1 } }',
    )
    data = load_train_config(write(tmp_path, text)).data
    assert (data.column("image"), data.column("caption"), data.column("label")) == ("jpg", "txt", "label")
    assert data.class_map == {"label": {"255": 0, "*": 1}} and data.stream
    ready = data.ready()
    assert (ready.train, ready.val) == ("data/b/train-*.parquet", "data/b/val-*.parquet")
    assert (ready.columns, ready.class_map, ready.prepared, ready.stream) == ({}, {}, "", True)
    assert ready.ready() == ready
    assert dataclasses.replace(data, val="").ready().val == ""


def test_classes_can_stand_in_a_file_or_be_those_of_imagenet(tmp_path):
    (tmp_path / "names.txt").write_text("one\n two \n\nthree\n", encoding="utf-8")
    for said, expected in (("names.txt", ["one", "two", "three"]), ("imagenet", None)):
        config = load_train_config(write(tmp_path, MINIMAL.replace('["a", "b"]', f'"{said}"')))
        classes = config.model.modalities[1].options["classes"]
        assert expected in (None, classes)
        assert MultiModalDiffusion(config.model).modalities["label"].classes == tuple(classes)
    assert (len(classes), classes[0], classes[999]) == (1000, "tench", "toilet paper")
    with pytest.raises(ValueError, match="no file of class names at .*other.txt; give a list of names"):
        load_train_config(write(tmp_path, MINIMAL.replace('["a", "b"]', '"other.txt"')))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_can_be_built(path):
    config = load_train_config(path)
    model = MultiModalDiffusion(config.model)
    assert model.names[0] == "image"
    assert model.make_schedule().modalities == model.names


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().width = 5


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[data]", "[data]\nflips = true", r"DataConfig has no option flips; it knows .*flip"),
        ("[model]", "[model]\nwidht = 3", "ModelConfig has no option widht"),
        ("[data]", "[extra]\nx = 1\n[data]", "TrainConfig has no option extra"),
        ('kind = "image"', 'kind = "image"\nweight = "joint"', "ModalityConfig has no option weight"),
        ('kind = "image"', "", "missing .*'kind'"),
        ("margin = 4", 'margin = "4"', r"DataConfig\.margin is '4'; expected int"),
        ("margin = 4", "margin = 4.0", r"DataConfig\.margin is 4\.0; expected int"),
        ("margin = 4", "margin = true", r"DataConfig\.margin is True; expected int"),
        ("margin = 4", "flip = 1", r"DataConfig\.flip is 1; expected bool"),
        ("margin = 4", 'margin_from = "crop"', "'crop'; use 'pad' or 'resize'"),
        ("margin = 4", "columns = 3", r"DataConfig\.columns is 3; expected dict"),
        ("margin = 4", "columns = { image = 3 }", r"DataConfig\.columns\.image is 3; expected str"),
        ("margin = 4", "class_map = { label = 3 }", r"DataConfig\.class_map\.label is 3"),
        ("margin = 4", 'class_map = { label = { 0 = "a" } }', r"class_map\.label\.0 is 'a'; expected int"),
        ("margin = 4", "shuffle_rows = 0", r"DataConfig\.shuffle_rows is 0"),
        ("margin = 4", "workers = 0", r"DataConfig\.workers is 0"),
        ("lr = 1", 'lr = "fast"', r"OptimConfig\.lr is 'fast'; expected float"),
        ("[0.9, 0.99]", "[0.9]", r"OptimConfig\.betas is \[0\.9\]"),
        ("[0.9, 0.99]", '[0.9, "high"]', r"OptimConfig\.betas is 'high'"),
        ("[0.9, 0.99]", "0.9", r"OptimConfig\.betas is 0\.9"),
        ("lr = 1", "batch_size = 0", r"OptimConfig\.batch_size is 0; it must be at least 1"),
        ("lr = 1", "save_every_images = 0", r"save_every_images is 0"),
        ('options = { classes = ["a", "b"] }', "options = 3", r"ModalityConfig\.options is 3"),
        ("patch_size = 8", "patch_size = 0", r"ModelConfig\.patch_size is 0"),
        ("patch_size = 8", "patch_size = 12", "multiple of patch_size .* 32 and 12"),
        ("image_size = 32\npatch_size = 8", "image_size = 33\npatch_size = 11", "patch_size even"),
        ("patch_size = 8", "patch_size = 8\nheads = 3", r"multiple of heads \(3\)"),
        ('name = "label"', 'name = "image"', r"names must differ.*\['image', 'image'\]"),
        ("[model]", "[model", "not valid TOML"),
    ],
)
def test_mistakes_are_named(tmp_path, old, new, message):
    assert MINIMAL.count(old) == 1
    with pytest.raises(ValueError, match=message):
        load_train_config(write(tmp_path, MINIMAL.replace(old, new)))


def test_a_value_in_place_of_a_table(tmp_path):
    with pytest.raises(ValueError, match="ModelConfig is 5; give a table"):
        load_train_config(write(tmp_path, "model = 5"))
    with pytest.raises(ValueError, match="ModalityConfig is 'image'; give a table"):
        load_train_config(write(tmp_path, '[model]\nmodalities = ["image"]'))
    with pytest.raises(ValueError, match="modalities is empty"):
        load_train_config(write(tmp_path, "[model]\nmodalities = []"))
    with pytest.raises(ValueError, match="'model'"):
        load_train_config(write(tmp_path, "[data]\nmargin = 1"))


def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no configuration file at .*run.toml; see configs/"):
        load_train_config(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "sound"}, "'label' has unknown kind 'sound'; known: image, mask, label, embedding"),
        ({"options": {"clases": ["a", "b"]}}, "'label': .*clases"),
        ({"options": {}}, "'label': .*classes"),
        ({"options": {"classes": ["a"]}}, "two or more different classes"),
        ({"options": {"classes": ["a", "a"]}}, "two or more different classes"),
        ({"weights": "sometimes"}, "'sometimes'.*joint.*ramp.*none"),
    ],
)
def test_modalities_that_cannot_be_built(options, message):
    config = tiny_config(("image", "label"))
    label = dataclasses.replace(config.modalities[1], **options)
    config = dataclasses.replace(config, modalities=(config.modalities[0], label))
    with pytest.raises(ValueError, match=message):
        MultiModalDiffusion(config).make_schedule()


def test_the_anchor_must_be_an_image():
    with pytest.raises(ValueError, match="the first modality is called 'label'.* call it 'image'"):
        tiny_config(("label", "image"))
    label = ModalityConfig("image", "label", options={"classes": ["a", "b"]})
    with pytest.raises(ValueError, match="must be an image, not a label"):
        MultiModalDiffusion(ModelConfig((label,), 16, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": "levels", "in_place": True}, "model.in_place is True, which only model.core = 'flags'"),
        ({"core": "levels", "channels": "shared"}, "model.channels is 'shared', which only .* 'flags'"),
        ({"core": "flags", "route": 0.5, "depth": 2}, "model.route is 0.5, which only model.core = 'levels'"),
    ],
)
def test_options_of_the_other_core_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**options)


def test_leads_of_the_other_core_are_refused():
    config = tiny_config(core="flags")
    leading = dataclasses.replace(config.modalities[1], lead=0.2)
    with pytest.raises(ValueError, match="mask.lead is 0.2, which only model.core = 'levels'"):
        dataclasses.replace(config, modalities=(config.modalities[0], leading))
    with pytest.raises(ValueError, match="tasks.other_leads is 0.5, which only model.core = 'levels'"):
        TrainConfig(config, tasks=TaskConfig(other_leads=0.5))


def test_saved_models_that_name_no_core_have_flags():
    saved = to_dict(tiny_config(core="flags"))
    assert saved_model({k: v for k, v in saved.items() if k != "core"}).core == "flags"
    assert from_dict(ModelConfig, {"modalities": saved["modalities"]}).core == "levels"


def test_retired_options_are_accepted_at_their_defaults(tmp_path):
    model = "[model]\nflags = true\nself_conditioning = false\nseparate_times = false"
    tasks = '[tasks]\none_call = false\nmasking = "mixed"\nalways = []\nnever = []\n\n[data]'
    text = MINIMAL.replace("[model]", model).replace("[data]", tasks)
    config = load_train_config(write(tmp_path, text))
    assert config == load_train_config(write(tmp_path, MINIMAL))
    written = to_dict(config)
    for key in RETIRED:
        section, name = key.split(".")
        assert name not in written["model" if section == "ModelConfig" else "tasks"]


@pytest.mark.parametrize(
    "section, line, said",
    [
        ("model", "flags = false", "ModelConfig.flags is False"),
        ("model", "self_conditioning = true", "ModelConfig.self_conditioning is True"),
        ("model", "separate_times = true", "ModelConfig.separate_times is True"),
        ("tasks", "one_call = true", "TaskConfig.one_call is True"),
        ("tasks", 'masking = "patches"', "TaskConfig.masking is 'patches'"),
        ("tasks", 'always = ["image"]', r"TaskConfig.always is \['image'\]"),
        ("tasks", 'never = ["label"]', r"TaskConfig.never is \['label'\]"),
    ],
)
def test_retired_options_with_other_values_are_refused(tmp_path, section, line, said):
    text = MINIMAL.replace("[data]", "[tasks]\n\n[data]").replace(f"[{section}]", f"[{section}]\n{line}")
    with pytest.raises(ValueError, match=f"{said}, but this option was retired .* use commit 279370b"):
        load_train_config(write(tmp_path, text))
