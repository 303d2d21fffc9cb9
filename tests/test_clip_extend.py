"""Extending a text tower: new combinations arrive where their photos are, everything else stays."""

import json
import random

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

from mmdiff.clip import extend as module
from mmdiff.clip.card import extension
from mmdiff.clip.colours import Said, parse
from mmdiff.clip.embedder import ClipEmbedder
from mmdiff.clip.extend import extend, kept_texts, mean_cosine, new_texts, photos_with_masks, text_tower
from mmdiff.clip.train import save
from tests.synthetic import png, write_parquet

CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
FRUIT = {"red apple": (200, 30, 30), "green apple": (60, 160, 60), "blue cherry": (40, 80, 200)}
RARE = {Said("red", "cherry"), Said("green", "cherry"), Said("blue", "apple")}


@pytest.fixture(scope="module")
def fruit(tmp_path_factory):
    """Photos of two kinds in three colours, each kind in its own."""
    rows = []
    for k in range(36):
        name = list(FRUIT)[k % 3]
        colour, kind = name.split()
        picture = np.full((48, 48, 3), 255, np.uint8)
        picture[8 + k % 5 : 40, 10 : 30 + k % 7] = FRUIT[name]
        mask = (picture != 255).any(2).astype(np.uint8)
        caption = f"a photo of a {colour} {('round', 'tall')[k % 2]} {kind}"
        rows.append({"image": png(picture), "mask": png(mask), "label": k % 3, "caption": caption})
    return write_parquet(tmp_path_factory.mktemp("fruit") / "train.parquet", rows)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    save(open_clip.CLIP(**CONFIG), CONFIG, {"pairs": 36}, tmp_path)
    return tmp_path


def texts_of(checkpoint, fruit):
    embedder = ClipEmbedder(checkpoint)
    photos = photos_with_masks(fruit)
    new, rare = new_texts(embedder, photos, random.Random(0))
    return embedder, photos, new, rare


def read(embedder, tokens):
    """The texts behind tokens."""
    return [embedder.tokenizer.decode(row[1 : row.argmax()].tolist()).strip() for row in tokens]


def test_the_text_tower_is_what_gradients_of_texts_reach():
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    model.encode_text(torch.randint(1, 1000, (4, 16)), normalize=True)[:, 0].sum().backward()
    reached = {id(p) for p in model.parameters() if p.grad is not None}
    assert {id(p) for p in text_tower(model)} == reached


def test_new_texts_are_of_the_rare_combinations_only(checkpoint, fruit):
    embedder, _, new, rare = texts_of(checkpoint, fruit)
    assert set(rare) == RARE
    texts = read(embedder, new.tokens)
    assert len(texts) == len(set(texts)) >= 3 * len(RARE)
    for text in texts:
        assert any(f"{said.colour} " in text and text.endswith(said.kind) for said in rare), text
    torch.testing.assert_close(new.targets.norm(dim=1), torch.ones(len(texts)))


def test_targets_are_mean_embeddings_of_matching_photos(checkpoint, fruit):
    """Against embeddings of photos whose objects are painted over by hand."""
    embedder, photos, new, _ = texts_of(checkpoint, fruit)
    texts = read(embedder, new.tokens)
    kinds = [parse(caption).kind for caption in photos.captions]
    for said in RARE:
        name = next(name for name in FRUIT if name.startswith(said.colour))
        own = torch.tensor([kind == said.kind for kind in kinds])
        inside = (photos.stored["mask"][own] == 1)[:, None]
        paint = torch.tensor(FRUIT[name], dtype=torch.uint8).view(1, 3, 1, 1)
        painted = torch.where(inside, paint, photos.stored["image"][own])
        mean = F.normalize(embedder.embed_images(painted.float() / 127.5 - 1).mean(0), dim=0)
        for text, target in zip(texts, new.targets, strict=True):
            if f"{said.colour} " in text and text.endswith(said.kind):
                assert target @ mean > 0.97


def test_new_texts_reach_their_targets_and_others_stay(checkpoint, fruit):
    embedder, photos, new, rare = texts_of(checkpoint, fruit)
    kept = kept_texts(embedder, photos.captions, rare, random.Random(1))
    model = embedder.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert mean_cosine(model, new) < 0.97 and mean_cosine(model, kept) == pytest.approx(1, abs=1e-3)
    torch.manual_seed(0)
    extend(model, new, kept, steps=150, lr=3e-3)
    assert mean_cosine(model, new) > 0.97 and mean_cosine(model, kept) > 0.97
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and not any(name.startswith("visual.") or name == "logit_scale" for name in changed)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_kept_texts_leave_out_the_rare(checkpoint):
    captions = ["a photo of a red round cherry", "a photo of a red round apple", "", None]
    kept = kept_texts(ClipEmbedder(checkpoint), captions, list(RARE), random.Random(0))
    texts = read(ClipEmbedder(checkpoint), kept.tokens)
    assert any("apple" in text for text in texts) and not any("cherry" in text for text in texts)


def test_the_command_writes_a_model_that_loads_and_its_facts(checkpoint, fruit, tmp_path):
    out = tmp_path / "new"
    run = [str(checkpoint), "--data", str(fruit), "--keep", str(fruit), "--out", str(out)]
    module.main([*run, "--steps", "20", "--device", "cpu"])
    record = json.loads((out / "open_clip_config.json").read_text())["training"]
    assert record["pairs"] == 36 and set(record["extended"]["combinations"]) == {" ".join(s) for s in RARE}
    new, old = ClipEmbedder(out), ClipEmbedder(checkpoint)
    picture = torch.rand(1, 3, 40, 40)
    assert torch.equal(new.embed_images(picture), old.embed_images(picture))
    assert not torch.equal(new.embed_texts(["a red cherry"]), old.embed_texts(["a red cherry"]))
    found = record["extended"]["new_cosine"]
    assert found["after"] > found["before"]


def test_the_card_describes_the_extension():
    found = {
        "combinations": ["red cherry"],
        "new_cosine": {"before": 0.4, "after": 0.99},
        "kept_cosine": 0.995,
    }
    text = extension(found)
    assert "red cherry" in text and "0.99, before\n0.40" in text and "0.995" in text


def test_captions_without_missing_combinations_are_refused(checkpoint, tmp_path, fruit, capsys):
    rows = [{"image": png(np.zeros((8, 8, 3), np.uint8)), "mask": None, "caption": "the sea"}] * 3
    for data, message in (
        (write_parquet(tmp_path / "sea.parquet", rows), "so there is nothing to add"),
        (tmp_path / "none.parquet", "no data at"),
    ):
        with pytest.raises(SystemExit) as stopped:
            module.main([str(checkpoint), "--data", str(data), "--out", str(tmp_path / "new")])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
