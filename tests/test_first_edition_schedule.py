"""The tables of NoiseSchedule against their definitions, written out here as plain recursions."""

import math

import pytest
import torch

from mmdiff.first_edition.schedule import FAMILIES, KINDS
from mmdiff.first_edition.schedule import WeightSchedule as NoiseSchedule

torch.set_num_threads(1)

LENGTHS = [1, 2, 7, 1000]
SHIFTS = [1.0, 64 / 96, 1.5]


def three_modalities(**settings) -> NoiseSchedule:
    weights = {"mask": "ramp", "label": "none"}
    return NoiseSchedule(modalities=("image", "mask", "label", "embedding"), weights=weights, **settings)


@pytest.mark.parametrize("num_steps", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_tables_are_float64_and_start_at_data(num_steps, kind, shift):
    schedule = three_modalities(num_steps=num_steps, kind=kind, shift=shift)
    for table in (
        schedule.a,
        schedule.abar,
        schedule.log_abar,
        *schedule.w.values(),
        *schedule.wbar.values(),
    ):
        assert table.dtype == torch.float64 and table.shape == (num_steps + 1,)
        assert table.isfinite().all()
    assert schedule.abar[0] == 1 and schedule.log_abar[0] == 0
    assert all(table[0] == 0 for table in (*schedule.w.values(), *schedule.wbar.values()))


@pytest.mark.parametrize("num_steps", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_abar_is_the_product_of_the_steps(num_steps, kind, shift):
    schedule = NoiseSchedule(num_steps, kind=kind, shift=shift)
    product = 1.0
    for t in range(1, num_steps + 1):
        assert 0 < schedule.a[t] < 1
        product *= schedule.a[t].item()
        assert schedule.abar[t].item() == pytest.approx(product, rel=1e-12)
        assert schedule.log_abar[t].item() == pytest.approx(math.log(product), rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", SHIFTS)
def test_accumulated_weights_follow_their_recursion(family, kind, shift):
    schedule = NoiseSchedule(
        300, ("image", "mask"), kind, weights={"mask": family}, scales={"mask": -0.7}, shift=shift
    )
    w, accumulated = schedule.w["mask"], 0.0
    for t in range(1, 301):
        accumulated = math.sqrt(schedule.a[t].item()) * (accumulated + w[t].item())  # (2)
        assert schedule.wbar["mask"][t].item() == pytest.approx(accumulated, abs=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_families_have_the_stated_closed_forms(kind):
    weights = {"mask": "joint", "label": "ramp", "embedding": "none"}
    modalities = ("image", *weights)
    schedule = NoiseSchedule(500, modalities, kind, weights, scales={"mask": 0.5, "label": 3.0})
    root = schedule.abar[1:].sqrt()
    torch.testing.assert_close(schedule.wbar["mask"][1:], 0.5 * root)
    torch.testing.assert_close(schedule.wbar["label"][1:], 3.0 * root * (1 - root) * 4)
    assert (schedule.wbar["embedding"] == 0).all() and (schedule.wbar["image"] == 0).all()
    assert schedule.w["mask"][1] == 0.5 and (schedule.w["mask"][2:] == 0).all()


def test_the_anchor_has_no_weight_and_the_others_are_joint_unless_asked():
    schedule = NoiseSchedule(10, ("image", "mask", "label"))
    assert schedule.families == {"image": "none", "mask": "joint", "label": "joint"}
    assert NoiseSchedule(10, weights={"image": "joint"}).families == {"image": "joint"}


@pytest.mark.parametrize("num_modalities", [1, 2, 4])
def test_alpha_over_n_plus_one_is_the_signal_factor(num_modalities):
    schedule = NoiseSchedule(100, [f"m{i}" for i in range(num_modalities)])
    torch.testing.assert_close(schedule.alpha / (num_modalities + 1), schedule.a)
    assert (schedule.alpha[1:] > 0).all() and (schedule.alpha[1:] < num_modalities + 1).all()
    # why alpha may exceed 1: with alpha_t <= 1 the signal would be gone after a few dozen steps
    assert schedule.alpha[1] > 1


def test_cosine_schedule_is_the_published_curve_with_capped_steps():
    schedule = NoiseSchedule(1000)

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 10, 500, 990, 999):
        assert schedule.abar[t].item() == pytest.approx(f(t) / f(0), rel=1e-9)
    assert 1 - schedule.a[1000].item() == pytest.approx(0.999, rel=1e-12)


def test_linear_schedule_is_the_published_one_at_1000_steps():
    schedule = NoiseSchedule(1000, kind="linear")
    betas = [1e-4 + (0.02 - 1e-4) * k / 999 for k in range(1000)]
    torch.testing.assert_close(
        1 - schedule.a[1:], torch.tensor(betas, dtype=torch.float64), atol=1e-15, rtol=1e-9
    )


@pytest.mark.parametrize("kind", KINDS)
def test_shift_multiplies_the_signal_to_noise_ratio(kind):
    plain, shifted = (NoiseSchedule(400, kind=kind, shift=shift) for shift in (1.0, 64 / 96))
    ratio = (shifted.abar / (1 - shifted.abar))[1:] / (plain.abar / (1 - plain.abar))[1:]
    torch.testing.assert_close(ratio, torch.full_like(ratio, (64 / 96) ** 2), rtol=1e-10, atol=0)


def test_log_abar_keeps_what_float32_loses():
    schedule = NoiseSchedule(4000, kind="linear", shift=1e-25)
    assert schedule.abar[-1].float() == 0
    assert schedule.log_abar[-1].isfinite() and schedule.a[1:].log().isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "bound"), [("none", 0.0), ("joint", 0.007), ("ramp", 0.026)])
def test_z_T_is_standard_normal_up_to_a_bound(kind, family, bound):
    """Encodings have unit RMS, so KL( q(z_T | X) || N(0, I) ) per dimension is
    (mean^2 + var - 1 - log var) / 2 with |mean| <= sqrt(abar_T) + |wbar_T| and var = 1 - abar_T."""
    schedule = NoiseSchedule(1000, ("image", "mask"), kind, weights={"mask": family})
    assert schedule.abar[-1].sqrt() <= 0.0064
    assert schedule.wbar["mask"][-1].abs() <= bound
    mean, variance = schedule.abar[-1].sqrt() + schedule.wbar["mask"][-1], 1 - schedule.abar[-1]
    assert (mean**2 + variance - 1 - variance.log()) / 2 < 6e-4  # nats per dimension


def test_moving_a_schedule_copies_it():
    schedule = three_modalities(num_steps=5)
    moved = schedule.to("cpu")
    moved.w["mask"] = torch.zeros(6)
    assert moved is not schedule and schedule.w["mask"].abs().sum() > 0
    assert schedule.to("meta").abar.device.type == "meta" and schedule.abar.device.type == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0, expected a whole number of at least 1"),
        ({"num_steps": 10.0}, "num_steps is 10.0"),
        ({"modalities": ()}, "at least one name"),
        ({"modalities": "image"}, "expected a tuple"),
        ({"modalities": ("image", "image")}, "no name twice"),
        ({"kind": "sigmoid"}, "kind is 'sigmoid', expected one of 'cosine', 'linear'"),
        ({"weights": {"mask": "joint"}}, "'mask', expected one of 'image'"),
        ({"weights": {"image": "rampp"}}, "'rampp', expected one of 'joint', 'ramp', 'none'"),
        ({"scales": {"mask": 1.0}}, "'mask', expected one of 'image'"),
        ({"scales": {"image": math.nan}}, "expected a finite number"),
        ({"shift": 0.0}, "shift is 0.0, expected a finite number above 0"),
        ({"shift": "64/96"}, "shift is '64/96'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule(**settings)
