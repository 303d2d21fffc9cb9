"""The reader of known pixels: what it sees, what it must not see, and where its features go."""

from dataclasses import replace

import pytest
import torch
from synthetic import SIZE, lively_model, read_shapes, tiny_config, tiny_train_config
from test_first_edition_model import NAMES, draw, flags_of, normal, pixels

from mmdiff.config import TaskConfig
from mmdiff.first_edition.convolutions import Reader
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN
from mmdiff.schedule import log_snr
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
    """Conditioning without encodings of the photo, so that only the reader shows it."""
    return model.condition({}, flags_of(), known, photo)


def features(model: MultiModalDiffusion, photo: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return model.read(given(model, photo, known)).read


def answers_alone_and_together(model: MultiModalDiffusion, conditions, t: int = 400):
    """Raw outputs of each: from a run of its own, in which the reader is run, too, and from one for all."""
    schedule, z = model.make_schedule(), normal(4, *model.z_shape)
    alone = [model(*model.call_at(schedule, z, t, condition)) for condition in conditions]
    read = [model.read(condition) for condition in conditions]
    return alone, model.answer([model.call_at(schedule, z, t, condition) for condition in read])


def test_a_new_reader_adds_nothing():
    plain = lively_model(tiny_config())
    reading = MultiModalDiffusion(tiny_config(reader_depth=2)).eval()
    lacking, unknown = reading.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and {name.split(".")[0] for name in lacking} == {"reader", "backbone"}
    z, known = normal(4, *plain.z_shape), half_known()
    before, after = (m(z, torch.zeros(4), given(m, draw()["image"], known)) for m in (plain, reading))
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


@pytest.mark.parametrize("way", ["tokens", "cells", "pooled"])
def test_features_reach_the_outputs_through_tokens_cells_and_condition(reading, way):
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
    beside = torch.where(known == 1, photo, draw(seed=1)["image"])
    assert torch.equal(features(reading, photo, known), features(reading, beside, known))
    leaf = photo.clone().requires_grad_()
    features(reading, leaf, known).square().sum().backward()
    assert torch.equal(leaf.grad.abs().amax(1, keepdim=True) > 0, known == 1)


def test_grey_pixels_which_are_zeros_differ_from_unknown_ones(reading):
    grey = torch.zeros(4, 3, SIZE, SIZE)
    one, two = (features(reading, grey, known) for known in (half_known(), 1 - half_known()))
    assert not torch.allclose(one, two)


def test_features_of_photos_without_a_known_pixel_are_zero(reading):
    known = half_known()
    known[1] = 0
    read = features(reading, draw()["image"], known)
    assert read.flatten(1).abs().amax(1).gt(0).tolist() == [True, False, True, True]
    nothing, hidden = reading.condition({}, flags_of(), pixels()), given(reading, draw()["image"], pixels())
    assert reading.read(nothing).read is None
    z = normal(4, *reading.z_shape)
    for name, value in reading(z, torch.zeros(4), hidden).items():
        torch.testing.assert_close(value, reading(z, torch.zeros(4), nothing)[name])


def test_known_pixels_without_the_photo_are_refused(reading):
    with pytest.raises(ValueError, match="give condition\\(\\) the photo"):
        reading.condition({}, flags_of(), half_known())


def test_a_reader_is_translation_equivariant():
    """A picture that moves by two cells moves its features by two: nothing depends on the position."""
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


def test_sampling_runs_the_reader_once(reading, monkeypatch):
    runs = []
    forward = Reader.forward
    monkeypatch.setattr(Reader, "forward", lambda self, seen: runs.append(1) or forward(self, seen))
    condition = given(reading, draw()["image"], half_known())
    z, schedule = normal(4, *reading.z_shape), reading.make_schedule()
    denoise = reading.denoiser(schedule, condition)
    _, (_, predictions), _ = (denoise(z, t) for t in (1000, 500, 1))
    assert len(runs) == 1
    raw = reading(z, log_snr(schedule.log_abar)[500].float().expand(4), condition)  # runs it anew
    assert len(runs) == 2
    torch.testing.assert_close(predictions["label"], reading.modalities["label"].predict(raw["label"]))


def test_reading_keeps_the_rest_of_the_conditioning(reading):
    x, known = draw(), half_known()
    before = reading.condition(reading.encode(x), flags_of(label=KNOWN), known, x["image"])
    after = reading.read(before)
    assert after.pixels is None and after.e is before.e and after.flags is before.flags
    assert after.known_pixels is known and torch.equal(after.read, reading.reader(before.pixels))
    assert reading.read(after) is after
    plain = lively_model(tiny_config())
    nothing = given(plain, x["image"], known)
    assert plain.read(nothing) is nothing and nothing.pixels is None


def test_calls_with_and_without_pixels_are_answered_together_as_alone(reading):
    conditions = [
        given(reading, draw()["image"], half_known()),
        reading.condition({}, flags_of(), pixels()),
        given(reading, draw(seed=1)["image"], pixels(value=1.0)),
    ]
    for alone, together in zip(*answers_alone_and_together(reading, conditions), strict=True):
        for name in NAMES:
            torch.testing.assert_close(together[name], alone[name], atol=1e-5, rtol=1e-4)


def test_a_guidance_branch_keeps_the_features_unless_it_is_without_the_anchor(reading):
    x, known = draw(), half_known()
    condition = reading.condition(reading.encode(x), flags_of(label=KNOWN), known, x["image"])
    condition = reading.read(condition)
    branch = reading.without(condition, ("label",))
    assert branch.read is condition.read and torch.equal(branch.known_pixels, known)
    assert (branch.flags[:, 2] == ABSENT).all()
    blind = reading.without(condition, ("image",))
    assert blind.read is None and blind.pixels is None and not blind.known_pixels.any()


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
def test_cells_of_up_to_four_pixels_have_no_finer_features(cell, width):
    reader = Reader(cell, width, 1)
    read = reader(torch.ones(1, 4, 16, 16))
    assert reader.detail == 0 and read.shape[1] == width
    assert reader.parts(read)[0] is read and reader.parts(read)[1] is None


def test_new_detail_heads_add_nothing_and_belong_to_modalities_finer_than_cells(coarse):
    assert set(coarse.details) == {"image", "mask"}
    fresh = MultiModalDiffusion(coarse.config).eval()
    z, condition = normal(4, *fresh.z_shape), given(fresh, draw()["image"], pixels(value=1.0))
    before = fresh(z, torch.zeros(4), condition)
    for name in fresh.details:
        torch.nn.init.normal_(fresh.details[name].mix.weight)
    assert all(torch.equal(before[n], after) for n, after in fresh(z, torch.zeros(4), condition).items())


def test_a_mask_depends_on_pixels_within_a_cell(coarse):
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
    blind = only(z, torch.zeros(4), only.condition({}, flags_of(), pixels()))["mask"]
    assert not torch.allclose(one, blind, atol=1e-3)


def test_without_a_photo_finer_features_are_zeros(coarse):
    conditions = [
        given(coarse, draw()["image"], half_known()),
        coarse.condition({}, flags_of(), pixels()),
        given(coarse, draw()["image"], pixels()),
    ]
    alone, together = answers_alone_and_together(coarse, conditions)
    for one, other in zip(alone, together, strict=True):
        for name in NAMES:
            torch.testing.assert_close(other[name], one[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together[1]["mask"], together[2]["mask"])


# -- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny_config(reader_depth=1), coarse_config()])
def test_training_reaches_every_weight_of_the_reader(examples, model):
    trainer = Trainer(replace(tiny_train_config(), model=model), examples, CPU)
    before = {n: p.clone() for n, p in trainer.model.named_parameters() if "read" in n or "detail" in n}
    for _ in range(3):  # in the first step only the last layers, which are zero, have a gradient
        trainer.train_step()
    after = dict(trainer.model.named_parameters())
    assert before and not any(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_examples_has_the_whole_photo_given_and_nothing_else(examples, share):
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
