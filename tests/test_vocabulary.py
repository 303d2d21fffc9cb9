"""Words for embeddings: what is read from captions, the file, nearest texts on vectors known by hand."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from synthetic import CLASSES, DIM, lively_model, tiny_config

from mmdiff import sample
from mmdiff.checkpoint import load_config, save_checkpoint
from mmdiff.clip.captions import read_caption
from mmdiff.clip.separation import weighted_auc
from mmdiff.clip.vocabulary import MAX_CAPTIONS, MAX_PROBES, Vocabulary, Words, main, prompt_centres
from mmdiff.pipeline import Pipeline

CAPTIONS = ["a photo of a red disc"] * 3 + ["a photo of an old blue disc"] * 2 + ["a photo of a red square"]
LABELS = [0, 0, 1, 1, -1, None]
SMALL = Vocabulary.from_captions(CAPTIONS, LABELS, ("Disc 7", "Thing 9", "Never seen"))


class PlaneEmbedder:
    """Each text is a known direction in the plane, in degrees."""

    dim = 2
    angles = {
        "a photo of a red disc": 0,
        "a photo of an old blue disc": 90,
        "a photo of a red square": 30,
        "a photo of a disc": 45,
        "a photo of a square": 180,
        "a photo of a blue disc": 100,
        "a photo of a blue square": 120,
        "a photo of an old disc": 200,
        "a photo of an old square": 220,
    }

    def __init__(self):
        self.asked = []

    def embed_texts(self, texts):
        self.asked += texts
        return torch.tensor([direction(self.angles[text]) for text in texts])


def direction(degrees):
    return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]


def cosine(degrees):
    return pytest.approx(math.cos(math.radians(degrees)), abs=1e-6)


# -- reading captions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "probes"),
    [
        ("a photo of a dark red round apple", ["dark red", "round", "apple"]),
        ("a photo of an orange round apple", ["orange", "round", "apple"]),
        (
            "a dark photo of the sea with blue above, grey below",
            ["sea", "with blue above", "with grey below", "dark photo"],
        ),
        ("a black and white photo of buildings", ["buildings", "black and white photo"]),
        ("a photo of pale blue sky", ["pale blue", "sky"]),
        ("a red disc", ["red", "disc"]),
        ("disc", ["disc"]),
        ("a photo of trees with a road, a road", ["trees", "with a road"]),
        ("a photo of ", []),
        (
            "a photo of a red and dark brown butterfly, a monarch with open wings on a plain grey background",
            ["red and dark brown", "butterfly", "with open wings", "on a plain grey background"],
        ),
        ("a photo of a butterfly, an eighty-eight among mixed colours", ["butterfly", "among mixed colours"]),
        ("line\nand the next, on its own", ["line and the", "next,", "on its own"]),
    ],
)
def test_captions_are_read(caption, probes):
    assert list(read_caption(caption).probes()) == probes


def test_what_a_vocabulary_is_made_of():
    assert SMALL.captions == dict(zip(dict.fromkeys(CAPTIONS), (3, 2, 1), strict=True))
    assert SMALL.labels == {
        "Disc 7": {"a photo of a red disc": 2},
        "Thing 9": {"a photo of a red disc": 1, "a photo of an old blue disc": 1},
    }
    assert set(SMALL.probes) == {"disc", "red", "old", "blue", "square"}
    assert SMALL.probes[:2] == ("disc", "red")  # five and four times


def test_only_the_commonest_are_kept():
    captions = [f"a photo of a {'x' * k} thing" for k in range(1, 1000) for _ in range(2 if k > 400 else 1)]
    vocabulary = Vocabulary.from_captions(captions, [0] * len(captions), ("All",))
    assert len(vocabulary.captions) == MAX_CAPTIONS and set(vocabulary.captions.values()) == {2}
    assert len(vocabulary.probes) == MAX_PROBES and vocabulary.probes[0] == "thing"
    assert len(vocabulary.labels["All"]) < MAX_CAPTIONS


def test_data_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="the data has no captions"):
        Vocabulary.from_captions([None, ""], [0, 0], ("A",))
    with pytest.raises(ValueError, match="class number 2, but the checkpoint has 2 classes"):
        Vocabulary.from_captions(["a"], [2], ("A", "B"))


# -- nearest texts ---------------------------------------------------------------------------------------


def test_the_nearest_texts_are_those_of_the_plane():
    (found,) = Words(PlaneEmbedder(), SMALL).describe(np.array([direction(20)]) * 3, count=3)
    assert found.captions == (
        ("a photo of a red square", cosine(10)),
        ("a photo of a red disc", cosine(20)),
        ("a photo of an old blue disc", cosine(70)),
    )
    # once at 0 and once at 90 degrees makes 45; twice at 0 makes 0
    assert found.labels == (("Disc 7", cosine(20)), ("Thing 9", cosine(25)))


def test_probes_count_by_what_they_add_to_the_mean_caption():
    # red: of a disc at 0, of a square at 30; blue: at 100 and 120; old: at 200 and 220
    probes = {"red": 15, "blue": 110, "old": 210, "disc": 45, "square": 180}
    captions = np.array([direction(angle) for angle in (0, 0, 0, 90, 90, 30)])
    added = {name: np.array(direction(angle)) - captions.mean(0) for name, angle in probes.items()}
    added = {name: own / np.linalg.norm(own) for name, own in added.items()}
    expected = {name: own @ direction(20) for name, own in added.items()}
    (found,) = Words(PlaneEmbedder(), SMALL).describe([direction(20)])
    del expected["disc"]  # no direction tells discs, at 0 and 90, from the square between them
    kept = sorted((n for n in expected if expected[n] > 0), key=lambda n: -expected[n])
    assert [name for name, _ in found.probes] == kept and "old" not in kept
    assert dict(found.probes) == {name: pytest.approx(expected[name], abs=1e-6) for name in kept}


# Captions of a red disc lie at 0 degrees, of a blue one at 90, whether they are old or not.
ASTRAY = {"a photo of a red disc": 0, "a photo of an old red disc": 1, "a photo of a blue disc": 90}
ASTRAY |= {"a photo of an old blue disc": 89, "a photo of an old disc": 20, "a photo of a disc": 45}


def test_probes_that_do_not_tell_captions_apart_are_left_out():
    embedder, counts = PlaneEmbedder(), [4, 1, 4, 4]
    embedder.angles = ASTRAY
    captions = [c for c, count in zip(ASTRAY, counts, strict=False) for _ in range(count)]
    words = Words(embedder, Vocabulary.from_captions(captions, [None] * len(captions), ()))
    assert set(words.vocabulary.probes) == {"disc", "old", "red", "blue"}
    shown = {name for angle in (0, 20, 90) for name, _ in words.describe([direction(angle)])[0].probes}
    assert shown == {"red", "blue"}  # every caption says disc, and old ones lie where the others do
    embedder.angles = ASTRAY | {"a photo of a shiny disc": 5}
    own = Words(embedder, replace(words.vocabulary, probes=("old", "disc", "shiny")))
    assert [name for name, _ in own.describe([direction(5)])[0].probes] == ["shiny"]  # no caption says it


def test_what_tells_captions_apart_is_weighed_by_how_often_they_occur():
    says, counts = np.array([True, True, False, False]), np.array([3, 1, 1, 1])
    nearness = np.array([0.9, 0.1, 0.5, 0.1])
    # three times above both others; once below one of them and level with the other
    assert weighted_auc(nearness, says, counts) == pytest.approx((3 * 2 + 0.5) / 8)
    assert weighted_auc(-nearness, says, counts) == pytest.approx(1 - (3 * 2 + 0.5) / 8)
    assert weighted_auc(nearness, says | True, counts) == weighted_auc(nearness, says & False, counts) == 0.5


def test_every_vector_is_described_by_itself_and_texts_are_embedded_once():
    embedder = PlaneEmbedder()
    words = Words(embedder, SMALL)
    angles = [0, 90, 215]
    together = words.describe(torch.tensor([direction(angle) for angle in angles]))
    assert [d.captions[0][0] for d in together] == [
        "a photo of a red disc",
        "a photo of an old blue disc",
        "a photo of an old blue disc",
    ]
    asked = len(embedder.asked)
    assert together == [words.describe(torch.tensor([direction(angle)]))[0] for angle in angles]
    assert len(embedder.asked) == asked


def test_clauses_and_styles_are_said_of_every_kind():
    captions = ["a photo of the sea with blue above", "a dark photo of trees", "a photo of an old sea"]
    words = Words(None, Vocabulary.from_captions(captions, [None] * 3, ()))
    assert words.prompts("sea") == ["a photo of the sea"]
    assert words.prompts("with blue above") == [
        "a photo of the sea with blue above",
        "a photo of trees with blue above",
    ]
    assert words.prompts("dark photo") == ["a dark photo of the sea", "a dark photo of trees"]
    assert words.prompts("old") == ["a photo of the old sea", "a photo of old trees"]
    assert Words(None, Vocabulary({"x": 1}, {}, ("odd",))).prompts("odd") == ["a photo of an odd thing"]


def test_centres_weigh_their_prompts():
    prompts = {"a photo of a red disc": 3, "a photo of an old blue disc": 4}
    centres = prompt_centres(PlaneEmbedder(), [prompts])
    torch.testing.assert_close(centres, torch.tensor([[0.6, 0.8]]))


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 1, 2)])
def test_vectors_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected \(B, 2\)"):
        Words(PlaneEmbedder(), SMALL).describe(np.ones(shape))


def test_a_vocabulary_without_labels_or_probes_has_none():
    (found,) = Words(PlaneEmbedder(), Vocabulary(SMALL.captions, {}, ())).describe([direction(0)])
    assert len(found.captions) == 3 and found.labels == found.probes == ()
    assert found.as_dict()["captions"]["a photo of a red square"] == 0.866


# -- the file ------------------------------------------------------------------------------------------


def test_a_vocabulary_survives_the_file(tmp_path):
    assert Vocabulary.load(tmp_path) is None
    SMALL.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded == SMALL and list(loaded.captions) == list(SMALL.captions)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "Expecting property name"),
        ("[]", "an object with captions, labels and probes"),
        ('{"captions": {}, "labels": {}}', "an object with captions, labels and probes"),
        ('{"captions": {}, "labels": {}, "probes": []}', "captions: expected texts"),
        ('{"captions": {"a": 0}, "labels": {}, "probes": []}', "captions: expected texts"),
        ('{"captions": {"a": true}, "labels": {}, "probes": []}', "captions: expected texts"),
        ('{"captions": {"a": 1}, "labels": [], "probes": []}', "labels is no object"),
        ('{"captions": {"a": 1}, "labels": {"A": {}}, "probes": []}', "captions of the label 'A'"),
        ('{"captions": {"a": 1}, "labels": {"A": "a"}, "probes": []}', "captions of the label 'A'"),
        ('{"captions": {"a": 1}, "labels": {}, "probes": "a"}', "probes is no list of texts"),
        ('{"captions": {"a": 1}, "labels": {}, "probes": [" "]}', "probes is no list of texts"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, problem):
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(ValueError, match=f"vocabulary.json cannot be used: .*{problem}.*clip.vocabulary"):
        Vocabulary.load(tmp_path)


# -- checkpoints and commands --------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A folder of a tiny model without an embedder, and data that describes its classes."""
    save_checkpoint(lively_model(tiny_config(embedder="")), tmp_path / "tiny")
    captions = [f"a {name}" for name in CLASSES] + [None]
    pq.write_table(pa.table({"caption": captions, "label": [0, 1, 2, 3, 0]}), tmp_path / "train.parquet")
    return tmp_path / "tiny"


def test_the_command_writes_what_the_pipeline_reads(checkpoint, capsys):
    main([str(checkpoint), "--data", str(checkpoint.parent / "train.parquet")])
    assert "4 captions, 4 labels, 4 probes" in capsys.readouterr().out
    pipe = Pipeline.from_pretrained(checkpoint, device="cpu")
    assert not pipe.can_describe  # words need an embedder, too
    vocabulary = Vocabulary.load(checkpoint)
    assert vocabulary.labels["blue disc"] == {"a blue disc": 1}
    assert set(vocabulary.probes) == {"red", "blue", "disc", "square"}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"label": [0]}, "lacks the columns ['caption"),
        ({"caption": [None], "label": [0]}, "no captions"),
        ({"caption": [["a disc", "a round thing"]], "label": [0]}, "has captions of type list"),
    ],
)
def test_the_command_refuses_data_without_captions(checkpoint, capsys, columns, problem):
    pq.write_table(pa.table(columns), checkpoint.parent / "bare.parquet")
    folder = checkpoint.parent
    for target, data in ((checkpoint, "bare.parquet"), (checkpoint, "missing.parquet"), (folder, "x")):
        with pytest.raises(SystemExit):
            main([str(target), "--data", str(folder / data)])
    errors = capsys.readouterr().err
    for words in (problem, "missing.parquet is not a file", "is not a checkpoint"):
        assert words in errors


def test_a_pipeline_describes_embeddings(model, embedder, tmp_path):
    vocabulary = Vocabulary.from_captions([f"a {name}" for name in CLASSES], range(4), CLASSES)
    pipe = Pipeline(model, torch.device("cpu"), embedder, vocabulary)
    assert pipe.can_describe
    described = pipe.describe(pipe.embed_text(["a blue disc", "a red square"]))
    assert [d.captions[0] for d in described] == [
        ("a blue disc", pytest.approx(1)),
        ("a red square", pytest.approx(1)),
    ]
    assert described[0].labels[0][0] == "blue disc"

    out = pipe(wanted=("image", "embedding"), steps=2, num_samples=2)
    sample.write(out, pipe, tmp_path, {})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["nearest"] == [d.as_dict() for d in pipe.describe(out.embedding)]
    assert set(written["nearest"][0]) == {"captions", "labels", "probes"}


def test_a_pipeline_without_words_says_how_to_get_them(model, pipe, tmp_path):
    vector = np.ones((1, DIM))
    with pytest.raises(ValueError, match="no vocabulary.json.*mmdiff.clip.vocabulary CHECKPOINT --data"):
        pipe.describe(vector)
    vocabulary = Vocabulary({"x": 1}, {}, ())
    with pytest.raises(ValueError, match="this checkpoint has no embedder"):
        Pipeline(model, torch.device("cpu"), None, vocabulary).describe(vector)
    sample.write(pipe(wanted=("embedding",), steps=1), pipe, tmp_path, {})
    assert "nearest" not in json.loads((tmp_path / "results.json").read_text())


def test_the_shipped_vocabulary_is_that_of_its_checkpoint():
    folder = Path(__file__).parents[1] / "checkpoints" / "orchard"
    vocabulary = Vocabulary.load(folder)
    (label,) = (m for m in load_config(folder).modalities if m.kind == "label")
    assert list(vocabulary.labels) == list(label.options["classes"])
    assert {"round", "dark red", "apple"} <= set(vocabulary.probes)


@pytest.mark.parametrize("name", ["orchard", "scenes"])
def test_the_shipped_probes_all_tell_captions_apart(name):
    words = Pipeline.from_pretrained(Path(__file__).parents[1] / "checkpoints" / name, "cpu").words
    assert tuple(words._tables[2][0]) == words.vocabulary.probes


def test_a_black_cherry_is_rather_black_than_grey():
    pipe = Pipeline.from_pretrained(Path(__file__).parents[1] / "checkpoints" / "orchard", "cpu")
    (said,) = pipe.describe(pipe.embed_text(["a photo of a black round cherry"]), count=20)
    near = dict(said.probes)
    assert near["black"] > 1.1 * near.get("grey", 0) and near["cherry"] > near.get("apple", 0)
