"""Films have a frame per step that shows the record's own pictures, in files that players open."""

import time
from dataclasses import replace

import av
import gradio as gr
import numpy as np
import pytest
from fakes import LABELS, FakePipeline
from PIL import Image
from test_app_zip_file import record_of

from app.export import film
from app.export.download import Downloads
from app.export.film import FILM_MS, LAST_MS, MAX_SAMPLES, frames, overlaid, write_gif, write_mp4
from app.run.history import Record, Track
from app.task import TASKS
from mmdiff.request import Request

SIZE, STEPS = 64, 12
TILE = 256  # 4 x 64, the multiple nearest to what a single sample is shown at
SMALL_TILE = 192
PIPE = FakePipeline(SIZE, modalities=("image", "mask", "label", "embedding"))
EVERYTHING = ("image", "mask", "label", "embedding")


@pytest.fixture(scope="module")
def record() -> Record:
    return record_of(Request(wanted=EVERYTHING, steps=STEPS, seed=7, num_samples=5), pipe=PIPE)


@pytest.fixture(scope="module")
def single() -> Record:
    return record_of(Request(wanted=EVERYTHING, steps=STEPS, seed=7), pipe=PIPE)


def film_of(record: Record) -> list[tuple[str, Record]]:
    return [("", record)]


def silenced(record: Record) -> Record:
    """The same run of a model without words."""
    return replace(record, describe=lambda vectors: [])


def found(frame: Image.Image, picture: np.ndarray, side: int) -> tuple[float, tuple[int, int]]:
    """Where in a frame a picture is shown: the least mean difference of its inner part, and its corner.

    It is sought everywhere, by sixty of its pixels, so that this knows nothing of the layout.
    """
    large = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
    wanted, pixels = (np.asarray(p.convert("RGB")).astype(np.float32) for p in (large, frame))
    height, width = (n - side + 1 for n in pixels.shape[:2])
    cost = np.zeros((height, width), dtype=np.float32)
    for y, x in np.random.default_rng(0).integers(8, side - 8, (60, 2)):
        cost += np.abs(pixels[y : y + height, x : x + width, 0] - wanted[y, x, 0])
    y, x = np.unravel_index(cost.argmin(), cost.shape)
    inner = slice(4, side - 4)
    shown = pixels[y : y + side, x : x + side][inner, inner]
    return float(np.abs(shown - wanted[inner, inner]).mean()), (int(x), int(y))


def decoded(path) -> tuple[list[Image.Image], float]:
    """The frames of an MP4 and its seconds."""
    with av.open(str(path)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
        return pictures, container.duration / av.time_base


def test_a_frame_per_step_of_one_even_size(single):
    pictures = frames(film_of(single))
    assert len(pictures) == STEPS
    (size,) = {picture.size for picture in pictures}
    assert size[0] % 2 == size[1] % 2 == 0 and size[0] > 2 * TILE
    assert {picture.mode for picture in pictures} == {"RGB"}


def test_every_frame_shows_its_own_step(single):
    pictures = frames(film_of(single))
    for index in (0, STEPS // 2, STEPS - 1):
        off, corner = found(pictures[index], single.frames[index].x["image"][0], TILE)
        assert off == 0
        mask = np.asarray(overlaid(single, single.frames[index], single.modalities["mask"], 0, TILE))
        off, other = found(pictures[index], mask, TILE)
        assert off == 0 and other[1] == corner[1] and other[0] >= corner[0] + TILE
    assert found(pictures[0], single.frames[-1].x["image"][0], TILE)[0] > 10


def test_progress_grows_with_the_steps(single):
    accent = []
    for picture in frames(film_of(single)):
        pixels = np.asarray(picture)[:74]
        accent.append(int((pixels == (58, 105, 85)).all(-1).sum(1).max()))
    assert np.all(np.diff(accent) > 0)
    assert accent[-1] / accent[0] == pytest.approx(STEPS, rel=0.1)


def test_each_of_up_to_four_samples_is_shown(record):
    pictures = frames([("", record)])
    places = set()
    for k in range(MAX_SAMPLES):
        off, place = found(pictures[-1], record.last.x["image"][k], SMALL_TILE)
        assert off == 0
        places.add(place)
    assert len(places) == MAX_SAMPLES
    assert found(pictures[-1], record.last.x["image"][4], SMALL_TILE)[0] > 1


def test_two_tracks_are_side_by_side_and_the_shorter_one_waits(single):
    short = record_of(
        Request({"label": LABELS[1]}, ("image", "mask"), steps=STEPS, seed=7), stop=5, pipe=PIPE
    )
    pictures = frames([("Original", single), ("Fork: “label” given", short)])
    assert len(pictures) == STEPS
    off, left = found(pictures[-1], single.last.x["image"][0], SMALL_TILE)
    assert off == 0
    off, right = found(pictures[-1], short.frames[4].x["image"][0], SMALL_TILE)
    assert off == 0 and right[1] == left[1] and right[0] > left[0] + 2 * SMALL_TILE
    assert found(pictures[1], short.frames[1].x["image"][0], SMALL_TILE) == (0, right)


@pytest.mark.parametrize(
    "wanted", [("image",), ("label",), ("mask",), ("embedding",), ("label", "embedding")]
)
def test_any_heads_can_be_shown(wanted):
    run = record_of(Request(wanted=wanted, steps=3), pipe=PIPE)
    pictures = frames(film_of(run))
    assert len(pictures) == 3
    assert not np.array_equal(np.asarray(pictures[0])[74:], np.asarray(pictures[2])[74:])


def test_the_likeliest_label_is_read_off_its_bar(single):
    """Bars are as long as the probabilities: count accent pixels in the rows of the label's panel."""
    for index in (3, STEPS - 1):
        pixels = np.asarray(frames(film_of(single))[index])[100:]
        lengths = (pixels == (58, 105, 85)).all(-1).sum(1)
        assert lengths.max() == pytest.approx(236 * single.frames[index].x["label"][0].max(), abs=4)


def test_the_words_of_an_embedding_change_the_frame(single):
    silent = np.asarray(frames(film_of(silenced(single)))[-1]).astype(int)
    spoken = np.asarray(frames(film_of(single))[-1]).astype(int)
    assert silent.shape == spoken.shape
    rows = np.flatnonzero((silent != spoken).any((1, 2)))
    assert len(rows) and rows.min() > 74


def test_each_track_is_described_by_its_own_model(single):
    """The numbers of a track look like nothing to the other's model: words here, a strip there."""
    silent = silenced(single)
    both, neither, left, right = (
        np.asarray(frames([("a", a), ("b", b)])[-1]).astype(int)
        for a, b in ((single, single), (silent, silent), (single, silent), (silent, single))
    )
    middle = both.shape[1] // 2
    assert not np.array_equal(both[:, :middle], neither[:, :middle])
    assert not np.array_equal(both[:, middle:], neither[:, middle:])
    assert np.array_equal(left, np.hstack([both[:, :middle], neither[:, middle:]]))
    assert np.array_equal(right, np.hstack([neither[:, :middle], both[:, middle:]]))


def test_the_gif_has_no_bands_in_soft_shadows(single, tmp_path):
    """What an eye sees from afar, the mean over 8 x 8 pixels, is nearer to the film than in flat colours."""
    write_gif(tmp_path / "a.gif", film_of(single))
    exact = frames(film_of(single))
    flat = exact[-1].quantize(palette=film._palette(exact), dither=Image.Dither.NONE)
    with Image.open(tmp_path / "a.gif") as gif:
        gif.seek(STEPS - 1)
        shown = gif.convert("RGB")
    _, (x, y) = found(exact[-1], single.last.x["image"][0], TILE)
    box = (x + 90, y + 90, x + 170, y + 170)  # inside the disc
    afar = [
        np.asarray(picture.convert("RGB").crop(box).reduce(8)).astype(int)
        for picture in (exact[-1], shown, flat)
    ]
    assert np.abs(afar[1] - afar[0]).mean() < 0.7 * np.abs(afar[2] - afar[0]).mean()


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_films_to_download_ask_the_model_of_each_track(single, kind, tmp_path, monkeypatch):
    tracks = [Track("a", "one", single), Track("b", "other", silenced(single))]
    shown = []

    def write(path, runs):
        shown.extend(frames(runs))
        path.touch()

    monkeypatch.setattr(film, f"write_{kind}", write)
    with gr.Blocks():
        downloads = Downloads(TASKS[-1], gr.State(None), tracks[:1])
    make = downloads._file_maker(kind, str(tmp_path))
    make(tracks[0].id, tracks)
    with pytest.raises(gr.Error, match="no longer has the run"):
        make("another", tracks)
    expected = frames([(t.title, t.record) for t in tracks])
    assert np.array_equal(shown[-1], expected[-1])


def test_the_gif_has_every_step_and_holds_the_last(single, tmp_path):
    write_gif(tmp_path / "a.gif", film_of(single))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == STEPS and gif.info["loop"] == 0
        shown, times = [], []
        for index in range(STEPS):
            gif.seek(index)
            shown.append(gif.convert("RGB"))
            times.append(gif.info["duration"])
    assert times == [250] * (STEPS - 1) + [LAST_MS]
    assert shown[0].size == frames(film_of(single))[0].size
    for index in (0, 5, STEPS - 1):
        assert found(shown[index], single.frames[index].x["image"][0], TILE)[0] < 8
    exact = [np.asarray(picture).astype(int) for picture in frames(film_of(single))]
    paper = (exact[0] == exact[-1]).all(-1)
    first, last = (np.asarray(picture).astype(int) for picture in (shown[0], shown[-1]))
    assert np.array_equal(first[paper], last[paper])  # nothing flickers
    assert np.abs(last - exact[-1]).mean() < 4
    assert not np.array_equal(first, last)


def test_the_mp4_has_every_step_and_holds_the_last(single, tmp_path):
    write_mp4(tmp_path / "a.mp4", film_of(single))
    shown, seconds = decoded(tmp_path / "a.mp4")
    expected = frames(film_of(single))
    held = LAST_MS // 250
    assert len(shown) == STEPS - 1 + held
    assert seconds == pytest.approx((STEPS - 1) * 0.25 + LAST_MS / 1000, abs=0.05)
    assert shown[0].size == expected[0].size
    for index in (0, 5, STEPS - 1):
        assert found(shown[index], single.frames[index].x["image"][0], TILE)[0] < 10
    assert np.abs(np.asarray(shown[-1], float) - np.asarray(expected[-1], float)).mean() < 2
    assert np.abs(np.asarray(shown[0], float) - np.asarray(shown[-1], float)).mean() > 5


def test_the_mp4_plays_in_browsers(single, tmp_path):
    write_mp4(tmp_path / "a.mp4", film_of(single))
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1 and stream.codec_context.color_primaries == 1
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is all there


@pytest.mark.parametrize("steps", [1, 2, 100])
def test_short_and_long_runs_make_films(steps, tmp_path):
    run = record_of(Request(wanted=("label",), steps=steps), pipe=PIPE)
    write_gif(tmp_path / "a.gif", film_of(run))
    write_mp4(tmp_path / "a.mp4", film_of(run))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == steps
        gif.seek(steps - 1)
        assert gif.info["duration"] == LAST_MS
    _, seconds = decoded(tmp_path / "a.mp4")
    assert LAST_MS / 1000 - 0.3 <= seconds <= (FILM_MS + LAST_MS) / 1000 + 1.1


@pytest.mark.parametrize("text", ["Äpfel, très mûrs — 柿", "x" * 400, "", "un\ndeux"])
def test_any_text_fits_the_frame(text, single):
    run = replace(single, checkpoint=text, frames=single.frames[-1:])
    size = frames([(text, run)])[0].size
    assert size == frames([("a", run)])[0].size or not text


def test_nothing_to_show_is_said_in_words(single):
    empty = Record(single.request, "orchard", single.modalities)
    for tracks in (film_of(empty), [], [("a", single), ("b", empty)]):
        with pytest.raises(ValueError, match="no step to show"):
            frames(tracks)


def test_a_usual_run_is_filmed_quickly(tmp_path):
    run = record_of(Request(wanted=EVERYTHING, steps=30), pipe=FakePipeline(96, modalities=EVERYTHING))
    for write in (write_gif, write_mp4):
        started = time.process_time()
        write(tmp_path / "film", film_of(run))
        assert time.process_time() - started < 6  # of all cores together; half of it is usual
