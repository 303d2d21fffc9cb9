"""The reader of known pixels: what it sees, what it must not see, and where its answer goes."""

from dataclasses import replace

import pytest
import torch
from synthetic import SIZE, lively_model, read_shapes, tiny_config, tiny_train_config
from test_model import NAMES, draw, flags_of, normal, pixels

from mmdiff.config import TaskConfig
from mmdiff.model import ABSENT, KNOWN, UNKNOWN, MultiModalDiffusion
from mmdiff.network.reader import Reader
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def reading():
    return lively_model(tiny_config(reader_depth=1))


@pytest.fixture(scope="module")
def examples(shapes, embedder):
    return read_shapes(shapes, tiny_train_config(), embedder)


def half_known() -> torch.Tensor:
    known = pixels()
    known[:, :, :, : SIZE // 2] = 1
    return known


def given(model: MultiModalDiffusion, photo: torch.Tensor, known: torch.Tensor):
    """A condition whose encodings say nothing of the photo, so that only the reader can tell."""
    return model.condition({}, flags_of(), known, photo)


def test_a_reader_begins_by_adding_nothing():
    plain = lively_model(tiny_config())
    reading = MultiModalDiffusion(tiny_config(reader_depth=2)).eval()
    lacking, unknown = reading.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and {name.split(".")[0] for name in lacking} == {"reader", "backbone"}
    z, known = normal(4, *plain.z_shape), half_known()
    before, after = (m(z, torch.zeros(4), given(m, draw()["image"], known)) for m in (plain, reading))
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


@pytest.mark.parametrize("way", ["tokens", "cells", "pooled"])
def test_each_way_in_reaches_the_outputs(reading, way):
    z, known = normal(4, *reading.z_shape), half_known()
    only = MultiModalDiffusion(reading.config).eval()
    only.load_state_dict(reading.state_dict())
    for other in {"tokens", "cells", "pooled"} - {way}:
        torch.nn.init.zeros_(getattr(only.backbone.readings, other).weight)
    one, two = (only(z, torch.zeros(4), given(only, draw(seed=s)["image"], known)) for s in (0, 1))
    reached = {name for name in NAMES if not torch.allclose(one[name], two[name])}
    assert reached == ({"image", "mask"} if way == "cells" else set(NAMES))


def test_it_sees_every_known_pixel_and_no_other(reading):
    known, photo = half_known(), draw()["image"]
    read = reading.read(given(reading, photo, known))
    beside = torch.where(known == 1, photo, draw(seed=1)["image"])
    assert torch.equal(read, reading.read(given(reading, beside, known)))
    leaf = photo.clone().requires_grad_()
    reading.read(given(reading, leaf, known)).square().sum().backward()
    assert torch.equal(leaf.grad.abs().amax(1, keepdim=True) > 0, known == 1)


def test_black_pixels_differ_from_unknown_ones(reading):
    grey = torch.zeros(4, 3, SIZE, SIZE)
    one, two = (reading.read(given(reading, grey, known)) for known in (half_known(), 1 - half_known()))
    assert not torch.allclose(one, two)


def test_photos_without_a_known_pixel_read_as_nothing(reading):
    known = half_known()
    known[1] = 0
    read = reading.read(given(reading, draw()["image"], known))
    assert read.flatten(1).abs().amax(1).gt(0).tolist() == [True, False, True, True]
    assert reading.read(reading.condition({}, flags_of(), pixels())) is None
    nothing = given(reading, draw()["image"], pixels())
    z = normal(4, *reading.z_shape)
    told, untold = (
        reading(z, torch.zeros(4), c) for c in (nothing, reading.condition({}, flags_of(), pixels()))
    )
    for name in NAMES:
        torch.testing.assert_close(told[name], untold[name])


def test_a_reader_without_the_photo_is_an_error(reading):
    with pytest.raises(ValueError, match="give condition\\(\\) the photo"):
        reading.condition({}, flags_of(), half_known())


def test_what_is_seen_in_a_place_is_seen_in_another():
    """A picture that moves by two cells moves its features by two: nothing depends on the place."""
    torch.manual_seed(0)
    reader = Reader(cell=4, width=32, depth=1).eval()
    photo = torch.zeros(1, 4, 96, 96)
    photo[:, 3] = 1
    photo[:, :3, 40:48, 44:52] = normal(1, 3, 8, 8)
    read, moved = reader(photo), reader(photo.roll((8, 8), (2, 3)))
    torch.testing.assert_close(moved[:, :, 8:18, 8:18], read[:, :, 6:16, 6:16], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(moved[:, :, 8:18, 8:18], read[:, :, 8:18, 8:18], atol=1e-2)


@pytest.mark.parametrize(("cell", "width"), [(6, 32), (8, 40), (2, 12)])
def test_impossible_readers_are_refused(cell, width):
    with pytest.raises(ValueError, match="powers of two and refiner_width a multiple of"):
        Reader(cell, width, 1)


def test_a_negative_depth_is_refused():
    with pytest.raises(ValueError, match="reader_depth is -1"):
        tiny_config(reader_depth=-1)


def test_sampling_asks_the_reader_once(reading, monkeypatch):
    asked = []
    forward = Reader.forward
    monkeypatch.setattr(Reader, "forward", lambda self, seen: asked.append(1) or forward(self, seen))
    condition = given(reading, draw()["image"], half_known())
    z, schedule = normal(4, *reading.z_shape), reading.make_schedule()
    denoise = reading.denoiser(schedule, condition)
    predictions = [denoise(z, torch.full((4,), t)) for t in (1000, 500, 1)]
    assert len(asked) == 1
    raw = reading(z, denoise.log_snr[torch.full((4,), 500)].float(), condition)  # asks it anew
    assert len(asked) == 2
    torch.testing.assert_close(predictions[1].x["label"], reading.modalities["label"].predict(raw["label"]))


def test_queries_with_and_without_pixels_share_a_call(reading):
    schedule, z = reading.make_schedule(), normal(4, *reading.z_shape)
    t = torch.full((4,), 400)
    conditions = [
        given(reading, draw()["image"], half_known()),
        reading.condition({}, flags_of(), pixels()),
        given(reading, draw(seed=1)["image"], pixels(value=1.0)),
    ]
    queries = [reading.denoiser(schedule, condition).query(z, t) for condition in conditions]
    for query, together in zip(queries, reading.answer(queries), strict=True):
        alone = reading(query.z_t, query.log_snr, query.seen)
        for name in NAMES:
            torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-4)


def test_guidance_takes_other_modalities_away_and_leaves_the_pixels(reading):
    x, known = draw(), half_known()
    condition = reading.condition(reading.encode(x), flags_of(label=KNOWN), known, x["image"])
    blind = reading.unconditional_denoiser(reading.make_schedule(), condition)
    assert torch.equal(blind.seen.read, reading.read(condition))
    assert (blind.seen.flags[:, 2] == ABSENT).all()


# -- cells of 8 pixels, of which the reader keeps finer features ------------------------------------------


def coarse_config(**options):
    """Masks in cells of 8 pixels, and so a refiner that works in such cells."""
    config = tiny_config(patch_size=8, refiner_width=32, reader_depth=1, **options)
    mask = replace(config.modalities[1], options={**config.modalities[1].options, "stride": 8})
    return replace(config, modalities=(config.modalities[0], mask, *config.modalities[2:]))


@pytest.fixture(scope="module")
def coarse():
    return lively_model(coarse_config())


def test_finer_features_are_those_of_a_quarter_of_the_size():
    reader = Reader(cell=8, width=32, depth=1).eval()
    assert (reader.fold, reader.detail) == (2, 16)
    seen = torch.cat([normal(2, 3, 48, 48), torch.ones(2, 1, 48, 48)], dim=1)
    cells, detail = reader.parts(reader(seen))
    assert cells.shape == (2, 32, 6, 6) and detail.shape == (2, 16, 12, 12)
    kept = []
    reader.layers[3].register_forward_hook(lambda layer, inputs, output: kept.append(output))
    torch.testing.assert_close(cells, reader.layers(seen))
    assert torch.equal(detail, kept[0])


@pytest.mark.parametrize(("cell", "width"), [(2, 8), (4, 16)])
def test_small_cells_need_no_finer_features(cell, width):
    reader = Reader(cell, width, 1)
    read = reader(torch.ones(1, 4, 16, 16))
    assert reader.detail == 0 and read.shape[1] == width
    assert reader.parts(read)[0] is read and reader.parts(read)[1] is None


def test_details_begin_by_adding_nothing_and_are_of_what_is_finer_than_cells(coarse):
    assert set(coarse.details) == {"image", "mask"}
    fresh = MultiModalDiffusion(coarse.config).eval()
    z, condition = normal(4, *fresh.z_shape), given(fresh, draw()["image"], pixels(value=1.0))
    before = fresh(z, torch.zeros(4), condition)
    for name in fresh.details:
        torch.nn.init.normal_(fresh.details[name].mix.weight)
    assert all(torch.equal(before[n], after) for n, after in fresh(z, torch.zeros(4), condition).items())


def test_a_mask_follows_pixels_within_a_cell(coarse):
    """Through the finer features alone; the cells' own are taken away."""
    only = MultiModalDiffusion(coarse.config).eval()
    only.load_state_dict(coarse.state_dict())
    for way in (only.backbone.readings.tokens, only.backbone.readings.cells, only.backbone.readings.pooled):
        torch.nn.init.zeros_(way.weight)
    z, known, photo = normal(4, *only.z_shape), pixels(value=1.0), draw()["image"]
    mirrored = photo.clone()
    mirrored[:, :, :8, :8] = photo[:, :, :8, :8].flip(3)
    one, two = (only(z, torch.zeros(4), given(only, x, known))["mask"] for x in (photo, mirrored))
    assert not torch.allclose(one[:, :, :8, :8], two[:, :, :8, :8], atol=1e-3)
    untold = only(z, torch.zeros(4), only.condition({}, flags_of(), pixels()))["mask"]
    assert not torch.allclose(one, untold, atol=1e-3)


def test_without_a_photo_finer_features_are_zeros(coarse):
    z, schedule, t = normal(4, *coarse.z_shape), coarse.make_schedule(), torch.full((4,), 400)
    conditions = [
        given(coarse, draw()["image"], half_known()),
        coarse.condition({}, flags_of(), pixels()),
        given(coarse, draw()["image"], pixels()),
    ]
    queries = [coarse.denoiser(schedule, condition).query(z, t) for condition in conditions]
    answers = coarse.answer(queries)
    for query, together in zip(queries, answers, strict=True):
        alone = coarse(query.z_t, query.log_snr, query.seen)
        for name in NAMES:
            torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers[1]["mask"], answers[2]["mask"])


# -- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_config(reader_depth=1), coarse_config()])
def test_training_reaches_every_weight_of_the_reader(examples, model):
    trainer = Trainer(replace(tiny_train_config(), model=model), examples, CPU)
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if "read" in n or "detail" in n}
    for _ in range(3):  # in the first step only the ways in, which are zero, have a gradient
        trainer.train_step()
    after = dict(trainer.model.named_parameters())
    assert before and not any(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_examples_that_are_only_read(examples, share):
    tasks = TaskConfig(only_reading=share, joint=1.0, absent=0.0, given=0.0)
    trainer = Trainer(replace(tiny_train_config(), tasks=tasks), examples, CPU)
    rows = torch.arange(24).repeat(40)
    draw = trainer.draw(trainer.batches.examples, rows, trainer.generator(0), augment=False)
    read = draw.flags[:, 0] == KNOWN
    assert abs(read.float().mean() - share) < 0.06
    assert (draw.flags[read][:, 1:] != KNOWN).all() and (draw.known[read] == 1).all()
    assert (draw.t[read] == trainer.schedule.num_steps).all()
    others = draw.flags[~read]
    assert (others[:, 0] == UNKNOWN).all()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_outside_of_0_and_1_are_refused(share):
    with pytest.raises(ValueError, match=f"tasks.only_reading is {share}"):
        TaskConfig(only_reading=share)
