"""The cost of many in one: what is compared, and that quality is measured at the steps it says."""

import json

import pytest
from PIL import Image
from synthetic import CLASSES, lively_model, tiny_config

from app.controls import settings
from benchmarks import efficiency
from benchmarks.efficiency import Pass, passes
from benchmarks.report import build
from benchmarks.study import only
from mmdiff.checkpoint import save_checkpoint
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.first_edition.model import FirstEdition as MultiModalDiffusion
from mmdiff.samplers import SAMPLERS


def test_a_model_for_one_thing_is_the_same_network():
    config = tiny_config()
    photos, masks = only(config), only(config, "mask")
    assert [m.name for m in photos.modalities] == ["image"]
    assert [m.name for m in masks.modalities] == ["image", "mask"]
    for option in ("width", "depth", "image_size", "patch_size"):
        assert getattr(photos, option) == getattr(config, option)
    blocks = [
        sum(p.numel() for p in MultiModalDiffusion(c).backbone.early.parameters()) for c in (config, photos)
    ]
    assert blocks[0] == blocks[1]


def test_passes_compare_sums():
    config = tiny_config(width=64, depth=4)
    found = passes(config, 2, 3)
    single = found["single"]
    assert list(single) == found["modalities"] == ["image", "mask", "label", "embedding"]
    together = sum(one["parameters"] for one in single.values())
    assert found["parameters_against_all_single"] == pytest.approx(
        found["joint"]["parameters"] / together, abs=1e-3
    )
    assert found["operations_against_photos"] == pytest.approx(
        found["joint"]["operations"] / single["image"]["operations"], abs=1e-3
    )
    assert found["joint"]["parameters"] > single["mask"]["parameters"] > single["image"]["parameters"]
    # four networks cost more than one, whatever the machine does
    assert (
        found["joint_against_all_single"]["ratio"] < 1
        and len(found["joint_against_photos"]["ratio_range"]) == 2
    )


def test_holes_are_filled_as_on_the_page():
    assert settings.FILLING.sampler == efficiency.FILLING_SAMPLER
    assert settings.FILLING.guidance == efficiency.FILLING_GUIDANCE


@pytest.mark.parametrize("core", ["flags", "levels"])
def test_a_pass_predicts_everything(core):
    one = Pass(tiny_config(core=core), 3)
    out = one.model(one.z, one.levels, one.condition)
    assert set(out) == {"image", "mask", "label", "embedding"} and all(len(v) == 3 for v in out.values())


def test_the_command(shapes, tmp_path, monkeypatch):
    save_checkpoint(lively_model(tiny_config(("image", "label"))), tmp_path / "tiny")
    Classifier(CLASSES, 16).save(tmp_path / "judge")
    seen = []
    evaluate = efficiency.evaluate
    monkeypatch.setattr(
        efficiency, "evaluate", lambda ev, tasks: seen.append(ev.settings) or evaluate(ev, tasks)
    )
    arguments = ["--data", str(shapes), "--judge", str(tmp_path / "judge"), "--samples", "4", "--rounds", "2"]
    outputs = ["--out", str(tmp_path / "out.json"), "--plot", str(tmp_path / "plot.png")]
    efficiency.main([str(tmp_path / "tiny"), *arguments, *outputs, "--steps", "2", "3"])
    report = json.loads((tmp_path / "out.json").read_text())
    asked = [(s.sampler, s.steps) for s in seen]
    assert asked == [(sampler, steps) for sampler in (*SAMPLERS, "ancestral") for steps in (2, 3)]
    assert [s.filling_guidance for s in seen] == [1] * 6 + [1.5] * 2
    names = [*SAMPLERS, "ancestral, guided"]
    assert [(p["sampler"], p["steps"]) for p in report["quality"]] == [(n, k) for n in names for k in (2, 3)]
    assert all({"judge_from_label", "judge_joint"} <= set(point) for point in report["quality"][:6])
    assert not any("judge_joint" in point for point in report["quality"][6:])  # it is of holes alone
    picture = Image.open(tmp_path / "plot.png")
    assert picture.width > 2 * picture.height  # the photos are too small for LPIPS: two panels
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        efficiency.main([str(tmp_path / "tiny"), *arguments, *outputs, "--data", str(tmp_path / "nowhere")])
    text = build(report).to_markdown()
    assert "| Steps | 2 | 3 |" in text and text.count("| ddim |") == 2
    first = report["quality"][0]
    assert f"| ddim | {first['judge_joint']:.1%} |" in text
    parameters = report["passes"]["joint"]["parameters"] / sum(
        one["parameters"] for one in report["passes"]["single"].values()
    )
    assert "Cost of many in one" in text and f"× {parameters:.2f} |" in text
