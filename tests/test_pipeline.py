"""The pipeline: what comes out, what must be exact, what must not matter, and what is refused and how."""

import copy
import os
import pickle
import subprocess
import sys
from itertools import chain, combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import CLASSES, DIM, SIZE, WordEmbedder, draw_shape, lively_model, mask_of, tiny_config

from mmdiff import Pipeline as PublicPipeline
from mmdiff.checkpoint import save_checkpoint
from mmdiff.device import choose_device
from mmdiff.evaluation.holes import random_blocks
from mmdiff.images import to_uint8
from mmdiff.pipeline import Output, Pipeline
from mmdiff.request import Change, Limits, Request
from mmdiff.samplers import SAMPLERS, SampleNoise

NAMES = ("image", "mask", "label", "embedding")
PHOTO = Image.fromarray(draw_shape(0, 0))
MASK = mask_of(draw_shape(0, 0)).astype(np.int64)
GIVEN = {"image": PHOTO, "mask": MASK, "label": "blue disc", "embedding": "a blue disc"}
KNOWN = random_blocks(1, SIZE, seed=0)[0].numpy()
SETTINGS = [{}, {"eta": 0.7}, {"sampler": "ancestral"}, {"sampler": "dpmpp_2m"}]
SUBSETS = [set(names) for names in chain.from_iterable(combinations(NAMES, n) for n in range(4))]


def given(*names: str) -> dict:
    return {name: GIVEN[name] for name in names}


def arrays(output: Output) -> dict[str, np.ndarray]:
    """Everything in an output as arrays."""
    values = {name: getattr(output, name) for name in NAMES}
    return {name: np.stack(value) for name, value in values.items() if value is not None}


def assert_same(one: Output, two: Output) -> None:
    one, two = arrays(one), arrays(two)
    assert set(one) == set(two)
    assert [name for name in one if not np.array_equal(one[name], two[name])] == []


def difference(one: Output, two: Output) -> float:
    """The largest difference between the label probabilities and embeddings of two outputs."""
    return max(abs(getattr(one, n) - getattr(two, n)).max() for n in ("label", "embedding"))


# -- what comes out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "nothing")
def test_every_subset_can_be_given(pipe, names):
    out = pipe(given(*names), steps=2, num_samples=2, seed=3)
    assert (out.steps, out.seed) == (2, 3) and out.seconds > 0
    assert len(out.image) == 2 and all(p.size == (SIZE, SIZE) and p.mode == "RGB" for p in out.image)
    assert out.mask.shape == (2, SIZE, SIZE) and out.mask.dtype == np.int64 and out.mask.max() <= 1
    assert out.label.shape == (2, len(CLASSES))
    np.testing.assert_allclose(out.label.sum(1), 1, atol=1e-5)
    assert out.embedding.shape == (2, DIM)
    np.testing.assert_allclose(np.linalg.norm(out.embedding, axis=1), 1, atol=1e-5)


def test_what_is_given_comes_back_as_it_is(pipe):
    out = pipe(given("mask", "label", "embedding"), num_samples=2, steps=2)
    assert (out.mask == MASK).all()
    assert (out.label == np.eye(len(CLASSES))[2]).all()
    np.testing.assert_array_equal(out.embedding, WordEmbedder().embed_texts(["a blue disc"] * 2))
    out = pipe(given("image"), num_samples=2, steps=2)
    assert all(np.array_equal(np.asarray(photo), np.asarray(PHOTO)) for photo in out.image)


def test_what_is_neither_given_nor_wanted_is_none(pipe):
    out = pipe(given("image"), wanted=("label",), steps=2)
    assert out.mask is None and out.embedding is None
    assert out.image is not None and out.label is not None
    out = pipe(given("label"), wanted="mask", steps=2)  # a single name may stand alone
    assert out.image is None and out.mask is not None


def test_no_arguments_mean_everything_is_wanted(pipe):
    assert set(arrays(pipe(steps=1))) == set(NAMES)


def test_outputs_are_plain_values(pipe):
    out = pipe(steps=1)
    assert_same(out, copy.deepcopy(out))
    assert_same(out, pickle.loads(pickle.dumps(out)))
    with pytest.raises(AttributeError, match="sound"):
        out.sound  # noqa: B018


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_step_is_streamed(pipe, sampler):
    steps = list(pipe.stream(given("label"), ("image", "mask"), steps=5, num_samples=2, sampler=sampler))
    assert [step.index for step in steps] == [1, 2, 3, 4, 5] and {step.total for step in steps} == {5}
    times = [step.t for step in steps]
    assert times[0] == pipe.schedule.num_steps and times == sorted(set(times), reverse=True)
    assert [step.output is None for step in steps] == [True] * 4 + [False]
    for step in steps:
        assert set(step.x_hat) == {"image", "mask", "label"}
        assert step.x_hat["image"].shape == (2, SIZE, SIZE, 3) and step.x_hat["image"].dtype == np.uint8
        assert step.x_hat["mask"].shape == (2, 2, SIZE, SIZE)
        assert step.x_hat["label"].shape == (2, len(CLASSES))
    assert (steps[0].x_hat["image"] != steps[-1].x_hat["image"]).any()
    last = steps[-1]
    assert np.array_equal(np.stack(last.output.image), last.x_hat["image"])
    assert np.array_equal(last.output.mask, last.x_hat["mask"].argmax(1))
    assert_same(last.output, pipe(given("label"), ("image", "mask"), steps=5, num_samples=2, sampler=sampler))


@pytest.mark.parametrize("core", ["flags", "levels"])
def test_the_state_that_every_step_starts_from_can_be_seen(core):
    pipe = Pipeline(lively_model(tiny_config(core=core)), torch.device("cpu"))
    steps = list(pipe.stream(wanted=("image", "mask"), steps=30, seed=2, num_samples=2))
    for before, step in pairwise(steps):
        seen = pipe.model.decoded(before.z)
        assert np.array_equal(step.noisy["image"], to_uint8(seen["image"]))
        assert np.array_equal(step.noisy["mask"], seen["mask"].numpy())
    first, last = steps[0], steps[-1]
    noise = SampleNoise([2, 3])(pipe.model.z_shape)  # what sampling begins with
    assert np.array_equal(first.noisy["image"], to_uint8(pipe.model.decoded(noise)["image"]))
    apart = [np.abs(s.noisy["image"] - last.x_hat["image"].astype(float)).mean() for s in (first, last)]
    assert apart[1] < 0.5 * apart[0]
    assert set(first.noisy) == {"image", "mask"}  # nothing else is a picture


def test_states_are_decoded_for_those_who_look(pipe, monkeypatch):
    asked = []
    monkeypatch.setattr(
        pipe.modalities["image"], "decode", lambda z: asked.append(1) or torch.zeros(1, 3, 16, 16)
    )
    steps = list(pipe.stream(steps=3))
    assert not asked
    assert (
        steps[1].noisy["image"].shape == steps[1].noisy["image"].shape == (1, 16, 16, 3) and len(asked) == 1
    )


def test_a_stream_takes_the_fields_of_a_request(pipe):
    request = Request(given("label"), ("image", "mask"), steps=3, seed=5, guidance_scale=2.0)
    options = {"steps": 3, "seed": 5, "guidance_scale": 2.0}
    *_, last = pipe.start(request)
    assert_same(last.output, pipe(given("label"), ("image", "mask"), **options))
    with pytest.raises(TypeError, match="there is no option step; a request has given, wanted, .* changes"):
        pipe.stream(given("label"), step=3)


def test_what_is_given_matters(pipe):
    """With random weights every given modality changes what is generated."""
    nothing = pipe(wanted=("label", "embedding"), steps=3)
    for name in ("image", "mask"):
        assert difference(pipe(given(name), ("label", "embedding"), steps=3), nothing) > 1e-4


# -- what must be exact --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_seed_makes_the_same_pixels(pipe, sampler):
    one, two, other = (pipe(given("label"), steps=4, seed=s, sampler=sampler) for s in (7, 7, 8))
    assert_same(one, two)
    assert difference(pipe(steps=4, seed=7, sampler=sampler), pipe(steps=4, seed=8, sampler=sampler)) > 0
    assert (np.asarray(one.image[0]) != np.asarray(other.image[0])).any()


def test_seeds_do_not_depend_on_what_ran_before(pipe):
    one = pipe(steps=3, eta=1.0)
    torch.manual_seed(99)
    torch.randn(7)
    assert_same(one, pipe(steps=3, eta=1.0))


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("names", [(), ("label",), ("image",)], ids=str)
def test_samples_do_not_depend_on_the_batch(pipe, names, options):
    batch = pipe(given(*names), steps=5, seed=20, num_samples=8, **options)
    for k in (0, 3, 7):
        alone = pipe(given(*names), steps=5, seed=20 + k, num_samples=1, **options)
        levels = np.asarray(alone.image[0]).astype(int) - np.asarray(batch.image[k]).astype(int)
        assert abs(levels).max() <= 1
        for name in ("label", "embedding"):
            np.testing.assert_allclose(getattr(alone, name)[0], getattr(batch, name)[k], atol=1e-5)
        assert (alone.mask[0] != batch.mask[k]).mean() < 0.01


@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_known_pixels_are_bit_exact(pipe, options, guidance_scale):
    out = pipe(
        given("image", "label"),
        steps=4,
        num_samples=2,
        known_pixels=KNOWN,
        guidance_scale=guidance_scale,
        **options,
    )
    for photo in map(np.asarray, out.image):
        assert np.array_equal(photo[KNOWN], np.asarray(PHOTO)[KNOWN])
        assert (photo[~KNOWN] != np.asarray(PHOTO)[~KNOWN]).any()


def test_what_numpy_makes_is_taken_as_it_is_meant(pipe):
    mirrored = {"wanted": ("image",), "known_pixels": np.fliplr(KNOWN)}
    plain = mirrored | {"known_pixels": np.fliplr(KNOWN).copy()}
    numbers = {"steps": np.int64(3), "seed": np.int64(5), "num_samples": np.int64(2)}
    numbers |= {"guidance_scale": np.float32(2)}
    assert_same(
        pipe(given("image"), **mirrored, **numbers),
        pipe(given("image"), **plain, steps=3, seed=5, num_samples=2, guidance_scale=2.0),
    )


def test_known_pixels_are_exact_at_every_step(pipe):
    for step in pipe.stream(given("image"), steps=4, known_pixels=KNOWN):
        assert np.array_equal(step.x_hat["image"][0][KNOWN], np.asarray(PHOTO)[KNOWN])


def test_hidden_pixels_do_not_matter(pipe):
    """What lies in the hole must not reach the network."""
    other = np.where(KNOWN[..., None], np.asarray(PHOTO), 255 - np.asarray(PHOTO))
    one, two = (pipe({"image": photo}, steps=3, known_pixels=KNOWN) for photo in (PHOTO, other))
    assert_same(one, two)


def test_a_map_of_all_pixels_is_the_whole_photo(pipe):
    whole = np.ones((SIZE, SIZE), dtype=bool)
    assert_same(pipe(given("image"), steps=3, known_pixels=whole), pipe(given("image"), steps=3))


def test_a_map_of_no_pixels_is_no_photo(pipe):
    nothing = np.zeros((SIZE, SIZE), dtype=bool)
    out, free = pipe(given("image"), steps=3, known_pixels=nothing), pipe(steps=3)
    assert difference(out, free) < 1e-5 and np.array_equal(out.mask, free.mask)


def test_holes_are_filled_even_if_other_modalities_are_wanted(pipe):
    out = pipe(given("image"), wanted=("image", "mask"), steps=2, known_pixels=KNOWN)
    assert np.array_equal(np.asarray(out.image[0])[KNOWN], np.asarray(PHOTO)[KNOWN])
    assert set(arrays(out)) == {"image", "mask"}


def test_what_is_ignored_is_absent_not_unknown(pipe):
    """A modality that nobody wants takes no part, so the others differ from when it is wanted."""
    alone, together = pipe(wanted=("image",), steps=3), pipe(wanted=NAMES, steps=3)
    assert (np.asarray(alone.image[0]) != np.asarray(together.image[0])).any()


# -- guidance ------------------------------------------------------------------------------------------


def test_guidance_of_one_is_off(pipe):
    plain = pipe(given("label"), steps=4)
    assert_same(pipe(given("label"), steps=4, guidance_scale=1), plain)
    stronger = pipe(given("label"), steps=4, guidance_scale=4.0)
    assert (np.asarray(stronger.image[0]) != np.asarray(plain.image[0])).any()


def test_guidance_needs_something_to_be_guided_by(pipe):
    """The anchor cannot be dropped, so with only a photo or nothing given there is nothing to exaggerate."""
    for names in ((), ("image",)):
        assert_same(pipe(given(*names), steps=3, guidance_scale=5.0), pipe(given(*names), steps=3))


def test_guidance_keeps_what_is_given(pipe):
    out = pipe(given("mask", "label"), steps=3, guidance_scale=5.0)
    assert (out.mask == MASK).all() and out.label[0, 2] == 1


# -- embeddings ----------------------------------------------------------------------------------------


def test_texts_and_photos_are_embedded(pipe):
    assert pipe.has_text
    assert torch.equal(pipe.embed_text(["a", "b"]), WordEmbedder().embed_texts(["a", "b"]))
    vectors = pipe.embed_image([PHOTO, PHOTO.rotate(90)])
    assert vectors.shape == (2, DIM)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))
    forms = ("a blue disc", pipe.embed_text(["a blue disc"]))
    assert_same(*(pipe({"embedding": form}, ("label",), steps=2) for form in forms))


def test_without_an_embedder():
    plain = Pipeline(lively_model(tiny_config(("image", "label"))), torch.device("cpu"))
    assert not plain.has_text
    for call in (lambda: plain.embed_text(["a"]), lambda: plain.embed_image([PHOTO])):
        with pytest.raises(ValueError, match="this checkpoint has no embedder"):
            call()


# -- checkpoints ---------------------------------------------------------------------------------------


def test_a_checkpoint_makes_the_same_pixels_every_time(pipe, tmp_path):
    save_checkpoint(pipe.model, tmp_path / "tiny")
    one, two = (PublicPipeline.from_pretrained(tmp_path / "tiny", device="cpu") for _ in range(2))
    assert set(one.modalities) == set(NAMES) and one.modalities["label"].classes == CLASSES
    assert one.device.type == "cpu"
    assert_same(one(given("label"), steps=3), two(given("label"), steps=3))


@pytest.mark.parametrize("place", ["beside", "inside", "checkpoints"])
def test_an_embedder_is_found_where_it_may_lie(tmp_path, monkeypatch, place):
    folder = tmp_path / "runs" / "tiny"
    save_checkpoint(lively_model(tiny_config(embedder="words")), folder)
    where = {"beside": folder.parent, "inside": folder, "checkpoints": tmp_path / "checkpoints"}[place]
    (where / "words").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    loaded = []

    def load(name, device):
        loaded.append(Path(name).resolve())
        return WordEmbedder()

    monkeypatch.setattr("mmdiff.clip.embedder.ClipEmbedder", load)
    assert Pipeline.from_pretrained(folder, "cpu").embedder is not None
    assert loaded == [where / "words"]


def test_a_checkpoint_without_its_embedder(tmp_path):
    save_checkpoint(lively_model(tiny_config(embedder="no-such-clip")), tmp_path / "tiny")
    with pytest.raises(ValueError, match="tiny needs the embedder 'no-such-clip': .*neither a folder nor"):
        Pipeline.from_pretrained(tmp_path / "tiny", device="cpu")


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{name}' cannot be used .*; try 'auto' or 'cpu'"):
            choose_device(name)


# -- the interface on tensors ----------------------------------------------------------------------------


def test_a_batch_agrees_with_a_call(pipe):
    values = {name: pipe.modalities[name].parse(GIVEN[name]) for name in ("image", "label")}
    batch = {name: torch.stack([value] * 3) for name, value in values.items()}
    known = torch.from_numpy(KNOWN).expand(3, -1, -1)
    steps = list(pipe.run_batch(Request(batch, ("image", "mask"), known, steps=3), seeds=[5, 6, 7]))
    options = {"known_pixels": KNOWN, "steps": 3, "seed": 5, "num_samples": 3}
    out = pipe(given("image", "label"), ("image", "mask"), **options)
    assert [step.index for step in steps] == [1, 2, 3]
    last = steps[-1].x_hat
    assert np.array_equal(last["mask"].argmax(1), out.mask)
    assert torch.equal(last["image"].movedim(1, -1)[known], batch["image"].movedim(1, -1)[known])
    assert torch.equal(last["label"], torch.nn.functional.one_hot(batch["label"], len(CLASSES)).float())


def test_every_sample_of_a_batch_has_values_of_its_own(pipe):
    labels = torch.tensor([0, 1, 2])
    known = random_blocks(3, SIZE, seed=1)
    photos = torch.stack([pipe.modalities["image"].parse(draw_shape(k, k)) for k in range(3)])
    whole = Request({"label": labels, "image": photos}, ("mask",), known, steps=3)
    *_, last = pipe.run_batch(whole, [4, 4, 4])
    for k in range(3):
        own = {"label": labels[k : k + 1], "image": photos[k : k + 1]}
        *_, alone = pipe.run_batch(Request(own, ("mask",), known[k : k + 1], steps=3), [4])
        torch.testing.assert_close(alone.x_hat["mask"][0], last.x_hat["mask"][k], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.x_hat["image"][0], last.x_hat["image"][k], atol=1e-5, rtol=0)


# -- what is refused: values here, all else in test_request.py ---------------------------------------------

REFUSED = [
    ({"given": {"mask": np.ones((8, 6), int)}}, "6 x 8 pixels; give a square one"),
    ({"given": {"mask": np.full((8, 8), 2)}}, "class number 2, but the classes are 0 = backgr"),
    ({"given": {"label": 4}}, "class 4 does not exist; the 4 classes are numbered 0 to 3"),
    ({"given": {"label": "pear"}}, "no class is called 'pear'; the classes are red disc"),
    ({"given": {"image": None}}, "no photo was given"),
    ({"given": {"image": ""}}, "no file at ''"),
    ({"given": {"image": __file__}}, "could not be read as a photo; give a PNG, JPEG or WebP file"),
    ({"given": {"embedding": "  "}}, "the text is empty"),
    ({"steps": 2, "changes": [Change(1, Request({"label": "pear"}))]}, "no class is called 'pear'"),
    ({"given": {"sound": 1}}, "no modality is called 'sound'; this checkpoint has image, mask, label, emb"),
    ({"steps": 1001}, "steps is 1001; give a whole number from 1 to 1000"),
    ({"wanted": ("image",), "guidance_scale": {"mask": 2.0}}, "'mask', which is not given"),
]


@pytest.mark.parametrize("arguments, message", REFUSED, ids=[message for _, message in REFUSED])
@pytest.mark.parametrize("method", ["stream", "__call__"])
def test_mistakes_raise_before_the_first_step(pipe, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(pipe, method)(**arguments)


def test_limits_hold_for_a_run(pipe):
    with pytest.raises(ValueError, match="steps is 5; give a whole number from 1 to 4"):
        pipe.start(Request(steps=5), Limits(steps=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "no sampler is called 'euler'; choose among ddim"),
        ({"sampler": "ancestral", "eta": 0.5}, "eta is an option of the sampler 'ddim'"),
        ({"steps": 1001}, "steps is 1001"),
        ({"guidance_scale": {"mask": 2.0}}, "'mask', which is not given"),
        ({"sample_first": ("mask",)}, "sample_first names 'mask'"),
    ],
)
def test_mistakes_in_a_batch_raise_before_the_first_step(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.run_batch(Request(wanted=("image",), **options), [0])


# -- what other code may have done ----------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_copies_sample_the_same(model, background):
    pipe = Pipeline(model, torch.device("cpu"), WordEmbedder(), background=background)
    first = pipe(given("label"), steps=2)
    for other in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert_same(first, other(given("label"), steps=2))


@pytest.mark.parametrize("background", [False, True])
def test_other_defaults_of_torch_change_nothing(model, background):
    pipe = Pipeline(model, torch.device("cpu"), WordEmbedder(), background=background)
    first = pipe(GIVEN | {"embedding": np.ones(DIM)}, steps=2, known_pixels=KNOWN)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        second = pipe(GIVEN | {"embedding": np.ones(DIM)}, steps=2, known_pixels=KNOWN)
        assert torch.get_default_dtype() == torch.float64 and torch.empty(0).device.type == "meta"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(first, second)


FORKED = """
import os, signal, sys, torch
sys.path.insert(0, "tests")
from synthetic import lively_model, tiny_config
from mmdiff.pipeline import Pipeline
torch.set_num_threads(2)
pipe = Pipeline(lively_model(tiny_config()), torch.device("cpu"), background=bool(int(sys.argv[1])))
first = pipe(wanted=("label",), steps=2).label
running = pipe.stream(wanted=("label",), steps=50)
next(running)
child = os.fork()
if child == 0:
    signal.alarm(60)
    try:
        next(running)
    except RuntimeError as error:
        assert "before the process was forked" in str(error)
        assert abs(pipe(wanted=("label",), steps=2).label - first).max() < 1e-5
        sys.exit(7)
running.close()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("background", [0, 1])
def test_a_forked_child_samples_and_never_hangs(background):
    command = [sys.executable, "-c", FORKED, str(background)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=200)
    assert done.stdout.strip() == "7", done.stderr


def test_one_text_or_photo_is_a_batch_of_one(pipe):
    assert pipe.embed_text("a red disc").shape == pipe.embed_image(PHOTO).shape == (1, DIM)
    assert torch.equal(pipe.embed_text("a red disc"), pipe.embed_text(["a red disc"]))
    for values in (None, [], 5, [1]):
        with pytest.raises(ValueError, match="give a list"):
            pipe.embed_text(values)
    for values in (None, [], 5):
        with pytest.raises(ValueError, match="give a list"):
            pipe.embed_image(values)
