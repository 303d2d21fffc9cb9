"""One sentence on how a run went, and how settled it seems meanwhile."""

import numpy as np
import pytest
from fakes import LABELS
from records import add, make_record, specs

from app.run.history import Record
from app.run.story import how_settled, settled_at, story
from mmdiff.request import Request

SIZE, STEPS = 8, 10
SPECS = specs(SIZE)


def record_with(names=("image", "mask", "label", "embedding"), steps=STEPS, **decided):
    """A run in which a modality has its final prediction from the step `decided` on, and another before."""
    request = Request(wanted=names, steps=steps)
    record = Record(request, "orchard", {name: SPECS[name] for name in names})
    values = {
        "image": (np.zeros((1, SIZE, SIZE, 3), np.uint8), np.full((1, SIZE, SIZE, 3), 200, np.uint8)),
        "mask": (hot(np.zeros((SIZE, SIZE), int)), hot(np.eye(SIZE, dtype=int))),
        "label": tuple(np.eye(len(LABELS), dtype=np.float32)[[k]] for k in (1, 4)),
        "embedding": tuple(np.eye(16, dtype=np.float32)[[k]] for k in (0, 1)),
    }
    for index in range(1, steps + 1):
        add(record, 1000 - index, **{n: values[n][index >= decided[n]].copy() for n in names})
    return record


def hot(classes):
    return np.eye(3, dtype=np.float32)[classes].transpose(2, 0, 1)[None]


def test_a_label_that_comes_first_is_named_and_the_others_follow():
    told = story(record_with(image=8, mask=4, label=2, embedding=4), 0)
    assert told == (
        f"At step 2 it settled on {LABELS[4]}; the mask and the embedding followed at step 4, "
        "the image at step 8."
    )


def test_what_is_settled_together_is_told_together():
    record = record_with(("image", "label"), image=5, label=5)
    assert story(record, 0) == f"At step 5 it settled the label ({LABELS[4]}) and the image."
    assert story(record_with(("mask",), mask=3), 0) == "At step 3 it settled the mask."


def test_a_label_that_wavers_is_settled_when_it_no_longer_does():
    record = record_with(("image", "label"), image=3, label=2)
    record.frames[5].x["label"][0] = np.eye(len(LABELS))[0]  # the sixth step
    assert settled_at(record, SPECS["label"], 0) == 7


def test_the_same_share_of_the_way_settles_every_form():
    record = record_with(image=1, mask=1, label=1, embedding=1)
    final = {name: value.copy() for name, value in record.last.x.items()}
    begin, end = np.eye(len(LABELS), dtype=np.float32)[[1, 4]]
    for k, frame in enumerate(record.frames):
        way = k / (STEPS - 1)  # a ninth of it each step
        frame.x["label"][0] = (1 - way) * begin + way * end
        frame.x["image"][0] = np.rint(way * final["image"][0])
        frame.classes["mask"][0].flat[: round((1 - way) * SIZE * SIZE)] = 2
    assert {name: settled_at(record, SPECS[name], 0) for name in ("label", "image", "mask")} == dict.fromkeys(
        ("label", "image", "mask"), STEPS
    )
    for frame in record.frames[-3:]:  # from 0.92 of the way on
        frame.x["label"][0] = 0.08 * begin + 0.92 * end
        frame.x["image"][0] = np.rint(0.92 * final["image"][0])
    record.frames[-1].x["label"][0], record.frames[-1].x["image"][0] = end, final["image"][0]
    assert {name: settled_at(record, SPECS[name], 0) for name in ("label", "image")} == {
        "label": STEPS - 2,
        "image": STEPS - 2,
    }


def test_what_hardly_changes_is_settled_from_the_first_step_on():
    record = record_with(("label",), label=1)
    for frame in record.frames[:-1]:
        frame.x["label"][0] = 0.97 * record.last.x["label"][0] + 0.03 / len(LABELS)
    assert settled_at(record, SPECS["label"], 0) == 1


def test_nothing_is_told_of_runs_that_were_stopped_or_have_no_course():
    record = record_with(image=3, mask=3, label=3, embedding=3)
    del record.frames[-1]
    assert story(record, 0) == ""
    assert story(record_with(("image",), steps=2, image=1), 0) == ""


def test_what_is_given_is_not_told():
    record = make_record(names=("image", "label"), given={"label": 3}, wanted=("image",))
    assert "label" not in story(record, 0) and "image" in story(record, 0)


@pytest.mark.parametrize("name", SPECS)
def test_what_is_settled_grows_to_all_and_is_nothing_at_first(name):
    record = make_record(steps=12)
    shares = [how_settled(record, frame, SPECS[name]) for frame in record.frames]
    assert all(0 <= share.min() and share.max() <= 1 for share in shares)
    if name in ("mask", "label"):
        assert shares[-1][0] == pytest.approx(1, abs=0.01) and shares[-1] > shares[0]
    else:
        assert shares[0] == 0
    record = record_with(image=4, mask=4, label=4, embedding=4)
    spec = SPECS[name]
    assert how_settled(record, record.frames[3], spec) == pytest.approx(float(spec.classes != ()))
    assert how_settled(record, record.frames[4], spec) == pytest.approx(1)
