"""Words to click and words that are unknown."""

import pytest

from app.controls.chips import chips, slots, unknown_note, unknown_words
from mmdiff.clip.vocabulary import Vocabulary

FRUIT = Vocabulary(
    {
        "a photo of a dark red round apple": 3,
        "a photo of a black cherry": 2,
        "a photo of an orange wide apple": 1,
    },
    {"Apple Golden 2": {"a golden delicious": 1}},
    (),
)
INSECTS = Vocabulary(
    {
        "a photo of a black and brown butterfly, a banded peacock on a yellow background": 2,
        "a photo of a white butterfly, an american snout among mixed colours": 1,
    },
    {},
    (),
)
SCENES = Vocabulary(
    {"a bright photo of the sea with blue above, grey below": 1, "a photo of trees with blue above": 4},
    {},
    (),
)


def test_words_come_by_their_slot_the_commonest_first():
    assert slots(FRUIT) == {
        "colour": ["dark red", "black", "orange"],
        "shape": ["round", "wide"],
        "kind": ["apple", "cherry"],
    }
    assert slots(SCENES) == {"kind": ["trees", "sea"], "details": ["blue above", "grey below"]}


def test_species_and_surroundings_are_slots_and_a_slot_without_choice_is_left_out():
    assert slots(INSECTS) == {
        "colour": ["black and brown", "white"],
        "species": ["banded peacock", "american snout"],
        "surroundings": ["on a yellow background", "among mixed colours"],
    }


@pytest.mark.parametrize(
    "text, unknown",
    [
        ("an elephant on a bicycle", ["elephant", "bicycle"]),
        ("Dark red apples, black cherries", ["cherries"]),
        ("a golden apple and an Apple", []),
        ("", []),
        ("purple purple plum", ["purple", "plum"]),
    ],
)
def test_words_that_training_never_said_are_named(text, unknown):
    assert unknown_words(text, FRUIT) == unknown
    note = unknown_note(text, FRUIT)
    assert bool(note) == bool(unknown) and all(word in note for word in unknown)


def test_nothing_typed_becomes_markup():
    assert "<script" not in unknown_note("<script>x</script>", FRUIT)
    hostile = Vocabulary({"a photo of a <b> apple": 1, "a photo of a <i> pear": 1}, {}, ())
    assert "<i>" not in chips(slots(hostile)) and "&lt;i&gt;" in chips(slots(hostile))
