"""Checkpoint folders: what is saved is what is loaded, and nothing else ever is."""

import json
import os
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import SIZE, lively_model, tiny_config

from mmdiff.checkpoint import load_checkpoint, resolve, save_checkpoint
from mmdiff.files import write_tensors
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.network.conditioning import UNKNOWN
from mmdiff.pipeline import Pipeline


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_checkpoint(model, folder, card="# A tiny model\n")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the checkpoint to damage."""
    return shutil.copytree(saved, tmp_path / "tiny")


def test_weights_come_back_to_half_precision(saved, model):
    loaded = load_checkpoint(saved)
    assert loaded.config == model.config and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    original = model.state_dict()
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, original[name].half().float()), name


def test_outputs_come_back(saved, model):
    loaded = load_checkpoint(saved)
    z = torch.randn(2, *model.z_shape)
    flags, known = torch.full((2, 4), UNKNOWN), torch.zeros(2, 1, SIZE, SIZE)
    one, two = (m(z, torch.zeros(2), m.condition({}, flags, known)) for m in (model, loaded))
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=0.02, rtol=0.02)


def test_the_folder_is_small_and_complete(saved):
    assert sorted(p.name for p in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    tensors = load_file(saved / "model.safetensors")
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    config = json.loads((saved / "config.json").read_text())
    assert config["format"] == "mmdiff" and config["model"]["image_size"] == SIZE
    assert (saved / "README.md").read_text() == "# A tiny model\n"


def test_saving_again_keeps_the_card(folder, model):
    save_checkpoint(model, folder)
    assert (folder / "README.md").exists() and not list(folder.glob("*.part"))


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors({"a": torch.zeros(2)}, path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors({"a": torch.ones(2)}, path)
    assert torch.equal(load_file(path)["a"], torch.zeros(2))


# -- checkpoints from before ----------------------------------------------------------------------------


def block(name: str, skip: bool, width: int = 32, head: int = 16) -> dict[str, tuple[int, ...]]:
    shapes = {
        "modulation": (6, width),
        "qkv.weight": (3 * width, width),
        "qkv.bias": (3 * width,),
        "query_norm.weight": (head,),
        "key_norm.weight": (head,),
        "out.weight": (width, width),
        "out.bias": (width,),
        "up.weight": (4 * width, width),
        "up.bias": (4 * width,),
        "down.weight": (width, 4 * width),
        "down.bias": (width,),
    }
    if skip:
        shapes |= {"skip.weight": (width, 2 * width), "skip.bias": (width,)}
    return {f"backbone.{name}.{key}": shape for key, shape in shapes.items()}


Z = 48 + 16 + 3 + 8  # channels of image, mask, label and embedding
# written out, because a checkpoint that is no longer loaded is worse than a long table
WEIGHTS = {
    "modalities.mask.codes": (2, 1),
    "modalities.label.codes": (4, 3),
    "modalities.embedding.projection": (8, 8),
    "backbone.embed.weight": (32, 2 * Z + 16),
    "backbone.embed.bias": (32,),
    "backbone.positions": (16, 32),
    "backbone.registers": (4, 32),
    "backbone.time.0.weight": (32, 32),
    "backbone.time.0.bias": (32,),
    "backbone.time.2.weight": (32, 32),
    "backbone.time.2.bias": (32,),
    "backbone.flags": (4, 3, 32),
    "backbone.pooled.weight": (32, 2 * Z),
    "backbone.pooled.bias": (32,),
    "backbone.modulation.weight": (192, 32),
    "backbone.modulation.bias": (192,),
    "backbone.norm.weight": (32,),
    "backbone.norm.bias": (32,),
    "backbone.refiner.expand.weight": (32, 32),
    "backbone.refiner.expand.bias": (32,),
    "backbone.refiner.enter.weight": (8, 8 + 4 * 9, 3, 3),
    "backbone.refiner.enter.bias": (8,),
    "backbone.refiner.middle.weight": (8, 8, 3, 3),
    "backbone.refiner.middle.bias": (8,),
    "backbone.refiner.leave.weight": (8, 8, 3, 3),
    "backbone.refiner.leave.bias": (8,),
    "backbone.refiner.modulate.weight": (16, 32),
    "backbone.refiner.modulate.bias": (16,),
    "heads.image.conv.weight": (12, 8, 3, 3),
    "heads.image.conv.bias": (12,),
    "heads.mask.conv.weight": (8, 8, 3, 3),
    "heads.mask.conv.bias": (8,),
    "heads.label.mlp.0.weight": (32, 32),
    "heads.label.mlp.0.bias": (32,),
    "heads.label.mlp.2.weight": (4, 32),
    "heads.label.mlp.2.bias": (4,),
    "heads.embedding.mlp.0.weight": (32, 32),
    "heads.embedding.mlp.0.bias": (32,),
    "heads.embedding.mlp.2.weight": (8, 32),
    "heads.embedding.mlp.2.bias": (8,),
}


def test_a_model_has_the_weights_of_trained_checkpoints():
    expected = WEIGHTS | block("early.0", skip=False) | block("early.1", skip=False)
    expected |= block("late.0", skip=True)
    state = MultiModalDiffusion(tiny_config()).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


def test_retired_options_at_their_defaults_are_accepted_and_not_written(folder, model):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    retired = {"flags": True, "self_conditioning": False, "separate_times": False}
    assert not retired.keys() & values["model"].keys()
    values["model"] |= retired
    path.write_text(json.dumps(values))
    assert load_checkpoint(folder).config == model.config
    values["model"]["self_conditioning"] = True
    path.write_text(json.dumps(values))
    message = "config.json cannot be used: ModelConfig.self_conditioning is True.* retired .* commit 279370b"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


# -- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", r"config.json cannot be used: .*Download"),
        ("[]", "was not written by mmdiff"),
        ('{"architectures": ["UNet2DModel"]}', "was not written by mmdiff"),
        ('{"format": "mmdiff"}', "'model'"),
        ('{"format": "mmdiff", "model": {"widht": 3}}', "ModelConfig has no option widht"),
        ('{"format": "mmdiff", "model": {"width": "wide", "modalities": []}}', "ModelConfig.width is 'wide'"),
        ('{"format": "mmdiff", "model": {"width": 64}}', "missing .*'modalities'"),
        ('{"format": "mmdiff", "model": 7}', "ModelConfig is 7"),
        ("\udcff", "config.json cannot be used"),
    ],
)
def test_a_damaged_configuration(folder, text, message):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_a_missing_configuration(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="is not a checkpoint: it has no config.json"):
        load_checkpoint(folder)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_damaged_weights(folder, keep):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.safetensors is damaged or not a safetensors file"):
        load_checkpoint(folder)


def test_weights_of_another_architecture(folder):
    save_checkpoint(lively_model(tiny_config(width=64)), folder.parent / "other")
    shutil.copy(folder.parent / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="model.safetensors does not fit config.json beside it"):
        load_checkpoint(folder)


def test_further_files_take_the_place_of_weights(folder, model):
    name = "heads.label.mlp.2.bias"
    for number, file in enumerate(("model-1.safetensors", "model-2.safetensors")):
        save_file({name: torch.full_like(model.state_dict()[name], number + 0.5).half()}, folder / file)
    loaded = load_checkpoint(folder).state_dict()
    assert loaded.pop(name).eq(1.5).all()
    for other, value in loaded.items():
        assert torch.equal(value, model.state_dict()[other].half().float()), other
    save_checkpoint(model, folder)
    assert not list(folder.glob("model-*")), "they would hide what was saved"


def test_a_further_file_that_is_damaged_is_named(folder):
    (folder / "model-head.safetensors").write_bytes(b"1234")
    with pytest.raises(ValueError, match=r"model-head\.safetensors is damaged or not a safetensors file"):
        load_checkpoint(folder)


def test_weights_that_miss_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("backbone.embed.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match="backbone.embed.weight"):
        load_checkpoint(folder)


class Malicious:
    """Runs code of the sender's choice when it is unpickled: here, it makes a folder."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self):
        return (os.mkdir, (str(self.crater),))


@pytest.fixture
def bomb(tmp_path):
    """A pickle that must not go off; the folder `crater` beside it would tell."""
    path = tmp_path / "bomb"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "crater")))
    yield path
    assert not (tmp_path / "crater").exists(), "the pickle was executed"


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "model.ckpt", "weights.pth", "model.pkl"])
def test_pickled_weights_are_not_loaded(folder, bomb, name):
    (folder / "model.safetensors").unlink()
    shutil.copy(bomb, folder / name)
    with pytest.raises(ValueError, match=f"no model.safetensors. It has {name}, but pickled weights can run"):
        load_checkpoint(folder)


def test_a_pickle_under_a_safe_name_is_not_loaded(folder, bomb):
    shutil.copy(bomb, folder / "model.safetensors")
    with pytest.raises(ValueError, match="damaged or not a safetensors file"):
        load_checkpoint(folder)
    shutil.copy(bomb, folder / "config.json")
    with pytest.raises(ValueError, match="config.json cannot be used"):
        load_checkpoint(folder)


def test_a_pickle_beside_good_weights_is_ignored(folder, bomb):
    shutil.copy(bomb, folder / "model.pt")
    load_checkpoint(folder)


def test_the_bomb_would_go_off(bomb):
    """The tests above mean something: this pickle does run code when it is loaded."""
    pickle.loads(bomb.read_bytes())
    (bomb.parent / "crater").rmdir()


# -- what would allocate too much, or is of another time ----------------------------------------------------


def rewrite(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        (config if name in config else config["model"])[name] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 2}, "is of version 2, but this mmdiff reads 1 to 1"),
        ({"version": "1"}, "is of version 1, but"),
        ({"num_steps": 10**12}, "model.num_steps is 1,000,000,000,000; at most 1,000,000"),
        ({"width": 2**13, "heads": 2}, "does not fit config.json beside it, whose model has more than"),
        ({"depth": 500}, "does not fit config.json beside it"),
        ({"image_size": 4096, "patch_size": 2}, "2048 tokens a side; at most .* 256 are possible"),
        ({"schedule_shift": float("nan")}, "schedule_shift nan"),
        ({"dropout": float("inf")}, "model.dropout is inf"),
    ],
)
def test_configurations_out_of_bounds_are_refused_before_anything_is_built(
    folder, changes, message, monkeypatch
):
    monkeypatch.setattr("mmdiff.checkpoint.MultiModalDiffusion", lambda config: pytest.fail("was built"))
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("embedding", {"dim": 10**9}),
        ("embedding", {"dim": 8, "kappa": 1e15}),
        ("label", {"classes": "letters"}),
        ("label", {"classes": [str(k) for k in range(5000)]}),
        ("label", {"classes": [1, 2]}),
        ("mask", {"classes": ["a", "a"]}),
        ("mask", {"classes": {"a": 1}}),
        ("latent_image", {"latent_widths": [10**6] * 3}),
        ("image", {"sigma": -1}),
    ],
)
def test_options_out_of_bounds_are_refused(folder, kind, options):
    config = json.loads((folder / "config.json").read_text())
    rewrite(
        folder,
        modalities=[*config["model"]["modalities"], {"name": "more", "kind": kind, "options": options}],
    )
    with pytest.raises(ValueError, match="config.json cannot be used: more: "):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["<script>", "a b", "1st", "", "x" * 41, "keys", "training"])
def test_names_of_modalities_are_plain(folder, name):
    config = json.loads((folder / "config.json").read_text())
    rewrite(folder, modalities=[*config["model"]["modalities"], {"name": name, "kind": "image"}])
    with pytest.raises(ValueError, match="letters, digits and underscores|a name that torch uses"):
        load_checkpoint(folder)


def test_nested_json_is_refused(folder):
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="config.json cannot be used"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=f"numbers that are not finite, in {name}"):
        load_checkpoint(folder)


# -- names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nowhere", "/nowhere/at/all", "./one/two", "a/b/c", "../x", "checkpoints/orchard", ""]
)
def test_a_folder_that_is_not_there(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    if name == "":  # the current folder, which is no checkpoint
        with pytest.raises(ValueError, match="it has no config.json"):
            load_checkpoint(name)
        return
    with pytest.raises(ValueError, match="no checkpoint folder at .*; give a folder with config.json"):
        load_checkpoint(name)


def test_a_hub_id_is_downloaded_without_pickles(saved, monkeypatch):
    asked = {}

    def snapshot_download(name, allow_patterns):
        asked.update(name=name, patterns=allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve("somebody/tiny") == saved
    assert asked["name"] == "somebody/tiny"
    assert set(asked["patterns"]) == {"*.json", "*.safetensors", "*.md"}


def test_a_hub_id_without_network(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = r"'somebody/tiny' is no local folder and could not .* Hub \(LocalEntry.*Check the name"
    with pytest.raises(ValueError, match=message):
        Pipeline.from_pretrained("somebody/tiny", device="cpu")


def test_a_local_folder_goes_before_the_hub(saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    shutil.copytree(saved, tmp_path / "checkpoints" / "tiny")
    assert load_checkpoint("checkpoints/tiny").config.image_size == SIZE
