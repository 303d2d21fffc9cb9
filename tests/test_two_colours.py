"""Two colours in a photo: the finder against patches of known colours, and the task against known makers."""

import random
from types import SimpleNamespace

import pytest
import torch

from benchmarks.two_colours import (
    COMMON,
    ColourFinder,
    common_pairs,
    said_colours,
    shares,
    two_colours,
    write_texts,
)
from mmdiff.evaluation.skip import Skip

COLOURS = {"red": (200, 30, 30), "blue": (30, 40, 200), "green": (30, 160, 50), "black": (10, 10, 10)}
SIZE = 24
COUNT = 900


def photo(colours, rng):
    """(3, SIZE, SIZE) in [-1, 1]: half of an object in each colour, on grey; and where the object is."""
    image = torch.full((3, SIZE, SIZE), 0.1)
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[4:20, 4:20] = True
    values = [torch.tensor(COLOURS[c]) / 127.5 - 1 for c in (colours * 2)[:2]]
    for columns, value in zip((slice(4, 12), slice(12, 20)), values, strict=True):
        shade = 0.1 * torch.tensor([rng.gauss(0, 1) for _ in range(3)])
        image[:, 4:20, columns] = (value + shade).clamp(-1, 1)[:, None, None]
    return image, inside


@pytest.fixture(scope="module")
def drawn():
    """Photos, masks and captions of one or two random colours."""
    rng, rows = random.Random(0), []
    for _ in range(COUNT):
        colours = rng.sample(sorted(COLOURS), rng.choice((1, 2)))
        rows.append(
            (*photo(colours, rng), f"a photo of a {' and '.join(colours)} moth, an io on a green ground")
        )
    images, masks, captions = zip(*rows, strict=True)
    return torch.stack(images), torch.stack(masks), list(captions)


def test_colours_are_read_off_captions():
    assert said_colours("a photo of an orange and pale blue moth, a monarch among red") == (
        "orange",
        "pale blue",
    )
    assert said_colours("a moth on a red ground") == ()


def test_shares_are_of_the_pixels_inside():
    images = torch.full((1, 3, 4, 4), -1.0)
    images[:, :, :2] = 1.0
    inside = torch.ones(1, 4, 4, dtype=torch.bool)
    assert shares(images, inside)[0][[0, -1]].tolist() == pytest.approx([0.5**0.5] * 2)
    inside[:, 3] = False
    assert (shares(images, inside)[0][[0, -1]] ** 2).tolist() == pytest.approx([1 / 3, 2 / 3])
    assert shares(images, ~inside & False).sum() == 0


def test_colours_are_found_in_new_photos(drawn):
    images, masks, captions = drawn
    features = shares(images, masks)
    finder = ColourFinder.fitted(features[:600], captions[:600])
    assert set(finder.colours) == set(COLOURS)
    says = torch.tensor([[colour in said_colours(c) for colour in finder.colours] for c in captions[600:]])
    assert (finder.find(features[600:]) == says).double().mean() > 0.98


def test_too_few_colours_are_refused(drawn):
    images, masks, captions = drawn
    with pytest.raises(Skip, match="fewer than two colours"):
        ColourFinder.fitted(shares(images[:40], masks[:40]), captions[:40])


def test_texts_join_common_pairs_in_both_orders():
    captions = ["a red and blue moth"] * COMMON + ["a blue and red moth", "a green and red moth"]
    assert common_pairs(captions, ("red", "blue", "green")) == [("blue", "red")]
    assert common_pairs(captions, ("red", "green")) == []
    texts = [text for text, _ in write_texts([("blue", "red")], "moth", 3)]
    assert texts[0] == "a photo of a red and blue moth" and texts[1] == "a blue and red moth"


class Maker:
    """An evaluation whose pictures show the colours that ``obey`` leaves of a text's."""

    def __init__(self, drawn, obey):
        self.images, self.masks, self.train_captions = drawn
        self.train_photos = ((self.images + 1) * 127.5).round().to(torch.uint8)
        self.obey = obey
        self.examples = SimpleNamespace(captions=self.train_captions)

    def require(self, *names):
        assert names == ("embedding", "mask")

    def embed_texts(self, texts):
        return texts

    def images_from(self, title, count, embedding):
        rng = random.Random(1)
        return torch.stack([photo(self.obey(list(said_colours(text))), rng)[0] for text in embedding])

    def segment(self, images):
        return self.masks[:1].expand(len(images), -1, -1).long()

    def rows_with(self, name):
        return torch.arange(COUNT)

    def with_captions(self, rows):
        return rows, self.train_captions

    def read(self, rows):
        return {"image": self.images[rows]}

    def picture(self, images):
        return images


@pytest.mark.parametrize(
    ("obey", "both", "each"),
    [(lambda colours: colours, 1.0, 1.0), (lambda colours: colours[:1], 0.0, 0.5)],
    ids=["both", "one of them"],
)
def test_the_task_counts_photos_with_both_colours(drawn, obey, both, each):
    figures = two_colours(Maker(drawn, obey)).figures
    assert figures["n"] == 200 and figures["pairs"] == 6 and figures["colours"] == 4
    assert figures["both"] == pytest.approx(both, abs=0.03)
    assert figures["each"] == pytest.approx(each, abs=0.03)
    assert figures["photos"]["both"] > 0.97 and figures["another_text"]["both"] < 0.03
