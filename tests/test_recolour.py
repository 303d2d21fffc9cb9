"""Recoloured copies: flat colours arrive exactly, everything else follows, captions say what is seen."""

import colorsys
from collections import Counter

import pytest
import torch
from oracles import COLOURS, SIZE, WORDS, make_examples, object_colours

from benchmarks.recolour import from_hsv, recolour, recoloured_copies, with_colour
from mmdiff.evaluation.colours import Said, colour_names, hsv, hue_word, median_colour, parse


def test_hsv_and_back_is_the_identity_and_equals_colorsys():
    colours = torch.rand(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hue, saturation, value = hsv(colours)
    torch.testing.assert_close(from_hsv(hue, saturation, value), colours)
    expected = [colorsys.hsv_to_rgb(h / 360, s, v) for h, s, v in zip(hue, saturation, value, strict=True)]
    torch.testing.assert_close(from_hsv(hue, saturation, value), torch.tensor(expected).double())


def test_pictures_have_the_same_hsv_as_their_pixels():
    picture = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    pixels = hsv(picture[0].flatten(1).T)
    for part, flat in zip(hsv(picture), pixels, strict=True):
        assert torch.equal(part[0].flatten(), flat)


def test_a_flat_object_takes_exactly_the_given_colour():
    examples = make_examples(6)
    images, inside = examples.stored["image"].float() / 127.5 - 1, examples.stored["mask"] == 1
    wanted = COLOURS[[1, 2, 3, 4, 0, 1]] / 255
    moved = recolour(images[:5], inside[:5], wanted[:5])
    torch.testing.assert_close(median_colour(moved, inside[:5]), wanted[:5], atol=2e-3, rtol=0)
    outside = ~inside[:5, None].expand_as(moved)
    assert torch.equal(moved[outside], images[:5][outside])


def test_shading_survives_and_hues_turn_together():
    """Two hues 30 degrees apart stay so; brighter pixels stay brighter."""
    hue = torch.tensor([0.0, 0.0, 0.0, 30.0, 0.0])
    value = torch.tensor([0.4, 0.5, 0.6, 0.5, 0.5])
    picture = 2 * from_hsv(hue, torch.full((5,), 0.8), value).T.reshape(1, 3, 1, 5) - 1
    inside = torch.ones(1, 1, 5, dtype=torch.bool)
    target = torch.tensor([colorsys.hsv_to_rgb(120 / 360, 0.8, 0.5)])
    got_hue, got_saturation, got_value = hsv((recolour(picture, inside, target) + 1) / 2)
    centre = hsv(median_colour(picture, inside))[0]
    turned = (got_hue[0, 0] - hue + centre) % 360
    torch.testing.assert_close(turned, torch.full((5,), 120.0), atol=0.01, rtol=0)
    assert got_value[0, 0, 0] < got_value[0, 0, 1] < got_value[0, 0, 2]


def test_captions_are_rewritten_with_their_article():
    assert with_colour("a photo of a red round apple", "orange") == "a photo of an orange round apple"
    assert with_colour("a photo of an orange tall cherry", "dark red") == "a photo of a dark red tall cherry"
    assert parse(with_colour("a photo of a pale yellow wide tomato", "grey")) == Said("grey", "tomato")


def test_copies_show_every_kind_in_every_colour_with_its_caption():
    examples = make_examples(96)
    before = examples.stored["image"].clone()
    copies = recoloured_copies(examples, 96, "image", "mask", seed=0)
    assert len(copies) == 96 and torch.equal(examples.stored["image"], before)
    said = [parse(caption) for caption in copies.captions]
    counts = Counter(said)
    assert len(counts) == 2 * len(WORDS) and set(counts.values()) == {8}
    images = copies.stored["image"].float() / 127.5 - 1
    seen = [hue_word(name) for name in colour_names(object_colours(images))]
    assert seen == [one.colour for one in said]
    kinds = ["apple" if label < 4 else "pear" for label in copies.stored["label"].tolist()]
    assert kinds == [one.kind for one in said]


def test_only_wanted_combinations_are_made_and_they_are_the_same():
    examples, wanted = make_examples(60), {Said("red", "pear"), Said("blue", "apple")}
    every = recoloured_copies(examples, 48, "image", "mask", seed=3)
    some = recoloured_copies(examples, 48, "image", "mask", seed=3, wanted=wanted)
    rows = torch.tensor([k for k, caption in enumerate(every.captions) if parse(caption) in wanted])
    assert len(some) == len(rows) == 8 and some.captions == every.take(rows).captions
    for name, values in some.stored.items():
        assert torch.equal(values, every.stored[name][rows])
    assert len(recoloured_copies(examples, 48, "image", "mask", seed=3, wanted=[])) == 0


def test_the_seed_decides():
    examples = make_examples(60)
    first, same, other = (recoloured_copies(examples, 20, "image", "mask", seed=s) for s in (0, 0, 1))
    assert first.captions == same.captions and torch.equal(first.stored["image"], same.stored["image"])
    assert not torch.equal(first.stored["image"], other.stored["image"])


def test_grey_photos_are_used_for_their_colour_but_not_recoloured():
    examples = make_examples(60)
    black = torch.tensor([c.split()[4] == "black" for c in examples.captions])
    examples.captions = [
        c.replace(" pear", " plum") if b else c for c, b in zip(examples.captions, black, strict=True)
    ]
    copies = recoloured_copies(examples, 60, "image", "mask", seed=0).captions
    assert not any("plum" in caption for caption in copies) and any("black" in caption for caption in copies)


def test_data_without_masks_or_colours_is_refused():
    examples = make_examples(12)
    examples.captions = ["the sea"] * 12
    with pytest.raises(ValueError, match="captions such as"):
        recoloured_copies(examples, 12, "image", "mask", seed=0)
    streets = make_examples(12)
    streets.stored["mask"] = torch.full((12, SIZE, SIZE), 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match="two classes"):
        recoloured_copies(streets, 12, "image", "mask", seed=0)
