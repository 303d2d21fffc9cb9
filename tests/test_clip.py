"""The CLIP space: captions, loss, measurements, and a whole training on pictures of four colours."""

import io
import json
import math
import random
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

from mmdiff.clip import ClipEmbedder
from mmdiff.clip.captions import vary
from mmdiff.clip.card import extension
from mmdiff.clip.data import SIDE, CaptionTexts, read_pairs
from mmdiff.clip.embedder import CONFIG_NAME, WEIGHTS_NAME, resize_square
from mmdiff.clip.evaluate import caption_prompts, colour_pairs, evaluate, retrieval
from mmdiff.clip.loss import PairLoss
from mmdiff.clip.train import Recipe, augment, train

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 50, 210), "white": (245, 245, 245)}
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_squares(path, count, seed):
    """A parquet file of noisy one-colour pictures; the class is the colour."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = i % len(COLOURS)
        name, colour = list(COLOURS.items())[label]
        pixels = np.clip(np.array(colour) + rng.normal(0, 12, (40, 56, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "label": label,
                "caption": f"a photo of a {name} {('round', 'wide')[i // 4 % 2]} square",
                "source": "squares",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(checkpoint folder, data folder) after a few seconds of training."""
    data, out = tmp_path_factory.mktemp("squares"), tmp_path_factory.mktemp("checkpoint")
    write_squares(data / "train.parquet", 64, seed=1)
    write_squares(data / "val.parquet", 32, seed=2)
    (data / "classes.txt").write_text("\n".join(COLOURS) + "\n")
    config = data / "config.json"
    config.write_text(json.dumps(CONFIG))
    command = [sys.executable, "-m", "mmdiff.clip.train", "--data", data / "train.parquet", "--val"]
    command += [data / "val.parquet", "--out", out, "--config", config, "--images", 6400, "--batch", 64]
    subprocess.run([str(part) for part in [*command, "--lr", 3e-3, "--device", "cpu"]], check=True)
    return out, data


def test_learns_what_captions_say(trained):
    out, data = trained
    result = evaluate(ClipEmbedder(out), data / "val.parquet")
    assert result["zero_shot"]["prompts"] == "class names"
    assert result["zero_shot"]["accuracy"] > 0.9
    assert result["zero_shot"]["chance"] == 0.25
    # The shape word is meaningless here, so the best possible recall@1 is about a half.
    assert 0.3 < result["retrieval"]["image_to_text_distinct"]["recall@1"] < 0.8


def test_short_prompts_work(trained):
    embedder = ClipEmbedder(trained[0])
    pictures = torch.stack(
        [torch.tensor(c).view(3, 1, 1) / 127.5 - 1 + torch.zeros(3, 50, 50) for c in COLOURS.values()]
    )
    texts = embedder.embed_texts([f"{name} square" for name in COLOURS])
    assert (embedder.embed_images(pictures) @ texts.T).argmax(1).tolist() == [0, 1, 2, 3]


class ColourEmbedder:
    """A sentence is the sum of its colours' axes."""

    dim = 3
    axes = {name: axis for name, axis in zip(("red", "black", "white"), torch.eye(3), strict=True)}

    def embed_texts(self, texts):
        said = [sum(self.axes[word] for word in text.split() if word in self.axes) for text in texts]
        return F.normalize(torch.stack(said), dim=1)


def test_colour_pairs_are_told_apart_only_by_those_who_see_both():
    captions = [
        "a photo of a red and black moth, a tiger",
        "a photo of a black and red moth on a grey background",
        "a photo of a red moth",
        "a photo of a red and white moth",
        "a photo of a white moth",
    ]
    photos = F.normalize(torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 1.0]]), dim=1)
    found = colour_pairs(ColourEmbedder(), photos, captions)
    assert found == {"both_above_one": 1.0, "chance": 0.5, "pairs": 2}
    # Photos in the colours of another: both sentences now point to them, and away from the right ones.
    wrong = photos[[2, 2, 0, 4, 3]]
    assert colour_pairs(ColourEmbedder(), wrong, captions)["both_above_one"] < 0.5
    assert colour_pairs(ColourEmbedder(), photos[2:3], captions[2:3]) == {}


def test_checkpoint_is_a_plain_open_clip_folder(trained):
    out, _ = trained
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    embedder = ClipEmbedder(out)
    texts = ["a red square", "something else entirely"]
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((400, 500), Image.Resampling.BICUBIC))
    with torch.no_grad():
        text_vectors = model.eval().encode_text(tokenizer(texts), normalize=True)
        image_vector = model.encode_image(preprocess(Image.fromarray(pixels))[None], normalize=True)
    torch.testing.assert_close(embedder.embed_texts(texts), text_vectors)
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    assert F.cosine_similarity(embedder.embed_images(images), image_vector).item() > 0.999
    with safe_open(out / WEIGHTS_NAME, "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}


def test_the_card_describes_the_added_combinations():
    found = {
        "combinations": ["red cherry"],
        "new_cosine": {"before": 0.4, "after": 0.99},
        "kept_cosine": 0.995,
    }
    text = extension(found)
    assert "red cherry" in text and "0.99, before\n0.40" in text and "0.995" in text


def test_card_reports_the_measurements(trained):
    out, data = trained
    results_file = out / "results.json"
    command = [sys.executable, "-m", "mmdiff.clip.evaluate", out, "--data", data / "val.parquet"]
    command += ["--out", results_file, "--device", "cpu"]
    subprocess.run([str(part) for part in command], check=True)
    (result,) = json.loads(results_file.read_text())
    card = (out / "README.md").read_text()
    assert f"**{result['zero_shot']['accuracy']:.3f}**" in card
    assert "64 pictures with 8 distinct captions" in card
    assert "squares (terms unknown)" in card
    header, *rows = (out / "metrics.csv").read_text().splitlines()
    assert header == "images,seconds,loss,val_loss,logit_scale,lr"
    assert rows[-1].startswith("6400,") and "nan" not in rows[-1]


def test_embeddings_are_unit_length_and_independent_of_the_batch(trained):
    embedder = ClipEmbedder(trained[0])
    images = torch.rand(3, 3, 70, 90) * 2 - 1
    vectors = embedder.embed_images(images)
    assert vectors.shape == (3, embedder.dim) == (3, 16)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embedder.embed_images(images[1:2])[0], vectors[1])


def test_resize_agrees_with_pillow():
    # Grey enough that Pillow, which rounds and clips between its two passes, never has to clip.
    pixels = np.random.default_rng(3).integers(80, 176, (90, 120, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels[:, 15:105]).resize((64, 64), Image.Resampling.BICUBIC))
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    resized = (resize_square(images, 64)[0].permute(1, 2, 0) + 1) * 127.5
    assert np.abs(resized.numpy() - expected).max() < 2


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_bad_images_are_refused(trained, images):
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        ClipEmbedder(trained[0]).embed_images(images)


@pytest.mark.parametrize("texts", ["a red apple", [], [3]])
def test_bad_texts_are_refused(trained, texts):
    with pytest.raises(ValueError, match="list of texts"):
        ClipEmbedder(trained[0]).embed_texts(texts)


def test_a_folder_is_read_when_something_is_embedded(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    embedder = ClipEmbedder(tmp_path)
    assert embedder.dim == ClipEmbedder(trained[0]).embed_texts(["a red apple"]).shape[1]
    (tmp_path / WEIGHTS_NAME).write_bytes(b"damaged")
    with pytest.raises(Exception, match="(?i)header"):
        embedder.embed_texts(["a red apple"])


def test_unknown_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a folder nor"):
        ClipEmbedder("ViT-B-32/no_such_weights")
    (tmp_path / CONFIG_NAME).write_text("{}")
    with pytest.raises(ValueError, match=f"{WEIGHTS_NAME} is missing"):
        ClipEmbedder(tmp_path)


def test_failed_download_names_the_offline_option(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(RuntimeError, match="no route to host.*checkpoints/clip-tiny"):
        ClipEmbedder("ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize(
    "caption, atoms",
    [
        ("a photo of an orange dark red round apple", {"orange", "dark red", "round"}),
        ("a bright photo of the sea with blue above, dark grey below", {"blue above", "dark grey below"}),
    ],
)
def test_variants_leave_out_but_never_change(caption, atoms):
    rng = random.Random(0)
    variants = {vary(caption, rng) for _ in range(300)}
    noun = "apple" if "apple" in caption else "sea"
    for variant in variants:
        assert noun in variant
        rest = variant
        for atom in atoms:
            rest = rest.replace(atom, "")
        # Every attribute is there in full or not at all.
        assert set(rest.replace(",", "").split()) <= {"a", "an", "the", "photo", "of", "bright", "with", noun}
        assert "a apple" not in variant and "a orange" not in variant
    assert noun in variants and len(variants) > 10


def test_variants_of_a_named_kind_keep_its_colours_together_and_may_say_the_name_alone():
    rng = random.Random(0)
    caption = "a photo of an orange and black butterfly, a monarch with open wings on a green background"
    variants = {vary(caption, rng) for _ in range(500)}
    parts = "orange and black", "butterfly", "monarch", "with open wings", "on a green background", "photo of"
    for variant in variants:
        rest = variant
        for part in parts:
            rest = rest.replace(part, "")
        assert set(rest.replace(",", "").split()) <= {"a", "an"}
        assert "butterfly" in variant or "monarch" in variant
    assert {"monarch", "a monarch", "a photo of a monarch", caption} <= variants


def test_distractors_are_only_added():
    rng = random.Random(0)
    variants = [vary("a photo of a red apple", rng, ["zebra"]) for _ in range(300)]
    share = sum("zebra" in variant for variant in variants) / len(variants)
    assert 0.05 < share < 0.3
    assert all("apple" in variant for variant in variants)


def test_equal_captions_match():
    captions = ["a photo of a red apple", "a photo of a red cherry", "a photo of a red apple"]
    texts = CaptionTexts(captions, context_length=16, seed=0, device=torch.device("cpu"))
    tokens, matches = texts.sample(torch.arange(3))
    assert tokens.shape == (3, 16)
    assert matches.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_loss_without_repeats_is_the_clip_loss():
    images, texts = (F.normalize(torch.randn(6, 8), dim=1) for _ in range(2))
    scale = torch.tensor(10.0)
    expected = open_clip.ClipLoss()(images, texts, scale)
    torch.testing.assert_close(PairLoss()(images, texts, scale, torch.eye(6).bool()), expected)


def test_loss_of_repeats_is_least_where_matches_share_the_probability():
    matches = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # At a large scale each softmax is the uniform distribution over the matches: its entropy is left.
    loss = PairLoss()(vectors, vectors, torch.tensor(100.0), matches)
    assert loss.item() == pytest.approx(2 / 3 * math.log(2), abs=1e-5)


def test_recall_of_a_perfect_and_of_a_constant_model():
    captions = [f"caption {i % 7}" for i in range(50)]
    one_hot = F.one_hot(torch.arange(50) % 7, 7).float()
    perfect = retrieval(one_hot, one_hot, captions)
    assert perfect["image_to_text_distinct"]["recall@1"] == pytest.approx(1)
    assert perfect["text_to_image_distinct"]["recall@1"] == pytest.approx(1)
    constant = torch.ones(50, 1)
    for name, recalls in retrieval(constant, constant, captions).items():
        if name != "text_to_image_distinct":  # one relevant item: a tie is worth exactly chance
            for k in (1, 5, 10):
                assert recalls[f"recall@{k}"] == pytest.approx(min(recalls[f"chance@{k}"], 1), abs=1e-6)


def test_chance_counts_several_relevant_items():
    captions = ["a"] * 3 + ["b"] * 9
    vectors = torch.randn(12, 4)
    chance = retrieval(vectors, vectors, captions)["text_to_image_distinct"]["chance@5"]
    expected = np.mean([1 - math.comb(12 - r, 5) / math.comb(12, 5) for r in (3, 9)])
    assert chance == pytest.approx(expected, abs=1e-6)


def test_caption_prompts_weigh_by_frequency():
    prompts = caption_prompts(2, ["red", "red", "green", "blue", "unknown"], [0, 0, 0, 1, -1])
    assert prompts == [{"red": 2, "green": 1}, {"blue": 1}]
    with pytest.raises(ValueError, match="no training caption"):
        caption_prompts(3, ["red", "blue"], [0, 1])


def test_augmentation_keeps_colours():
    colour = torch.tensor([250, 10, 128], dtype=torch.uint8)
    images = colour.view(1, 3, 1, 1).expand(8, 3, SIDE, SIDE)
    torch.manual_seed(0)
    result = augment(images, torch.arange(8), 64, random.Random(0))
    assert result.shape == (8, 3, 64, 64)
    visible = result.abs().sum(1, keepdim=True) > 0
    assert 0.5 < visible.float().mean() < 0.95
    for picture, mask in zip(result, visible, strict=True):
        assert (picture[:, mask[0]].mean(1) - (colour / 127.5 - 1)).abs().max() < 0.15


def test_training_input_is_checked(trained, tmp_path):
    with pytest.raises(ValueError, match="--max-minutes"):
        Recipe()
    with pytest.raises(ValueError, match="not a file"):
        read_pairs([tmp_path / "missing.parquet"])
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "short.parquet")
    with pytest.raises(ValueError, match="lacks the columns"):
        read_pairs([tmp_path / "short.parquet"])
    pairs = read_pairs([trained[1] / "val.parquet"])
    with pytest.raises(ValueError, match="lower --batch"):
        train(pairs, None, CONFIG, tmp_path, Recipe(images=10), torch.device("cpu"))


def test_loading_the_pipeline_does_not_load_open_clip():
    code = "import sys, mmdiff.pipeline, mmdiff.clip.vocabulary; assert 'open_clip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
