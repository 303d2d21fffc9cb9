"""The evidence from training to tables: every question, its tuning, its comparisons, and what is kept."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from synthetic import CLASSES, make_rows, read_shapes, tiny_config, tiny_train_config, write_parquet

from benchmarks import budgets, evidence
from benchmarks.evidence import GROUPS, Stage, chosen, compared, differences, run, tune
from benchmarks.questions import QUESTIONS, Setting
from benchmarks.report import build
from benchmarks.study import Bench, study, write
from benchmarks.systems import EveryExample
from benchmarks.tables.questions import FIGURES, TABLES, lower_is_better, named, parts
from mmdiff.config import load_train_config
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings

SIZE = 32  # large enough for AlexNet
RAN = [(question, name) for question, systems in QUESTIONS.items() for name in systems]


@pytest.fixture(scope="module")
def base():
    config = tiny_train_config(images=16)
    return dataclasses.replace(config, model=tiny_config(core="levels", image_size=SIZE))


@pytest.fixture(scope="module")
def stage(base, tmp_path_factory, embedder):
    rows = make_rows(24, SIZE)
    path = write_parquet(tmp_path_factory.mktemp("evidence") / "shapes.parquet", rows)
    examples, judge = read_shapes(path, base, embedder), Classifier(CLASSES, 16).eval()
    settings = EvaluationSettings(steps=2, filling_steps=2, samples=16, limit=12, batch=16, guidance=1.5)
    return Stage.of(Bench(examples, examples, judge, embedder, settings), base)


def answer(question, base, stage, out, names=None, images=16, seeds=1):
    """The report of a question, of all of its systems or of some."""
    systems = {name: QUESTIONS[question][name] for name in names or QUESTIONS[question]}
    variants = {named(name, images): system.configured(images, Setting()) for name, system in systems.items()}
    facts = {"question": question, "photos_judged": 0.5, "tuning": None}
    report = study(variants, base, stage, seeds, out, facts, run)
    compared(report, systems, [images])
    return report


@pytest.fixture(scope="module")
def reports(base, stage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    return {q: answer(q, base, stage, folder / f"{q}.json") for q in QUESTIONS}


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_system_is_measured_on_what_it_is_for(reports, question):
    entries = reports[question]["variants"]
    for name, system in QUESTIONS[question].items():
        figures = set(entries[named(name, 16)]["figures"])
        assert set(system.aims) <= figures and figures <= set(FIGURES), name
        assert set(entries[named(name, 16)]["runs"]["0"]["each"]) <= figures
    told = {figure for by_figure in reports[question]["against"].values() for figure in by_figure}
    assert {"holes_lpips", "label_top1"} & told and len(reports[question]["against"]) >= 4


def test_systems_see_as_many_images(reports):
    for report in reports.values():
        seen = {name: entry["runs"]["0"]["images"] for name, entry in report["variants"].items()}
        assert seen.pop(named("Telea", 16), 0) == 0
        tenth = seen.pop(named("reading without pre-training", 16), 8)
        assert set(seen.values()) == {16} and tenth == 8, "a tenth of 16 is a batch of 8"
        sizes = {entry["runs"]["0"]["parameters"] for entry in report["variants"].values()}
        assert len(sizes - {2 * min(sizes)}) == 1, "classifier guidance has two networks"


def test_calls_that_fill_a_hole(reports):
    entries = reports["masked_pretraining"]["variants"]
    calls = {parts(name)[0]: entry["runs"]["0"]["calls"] for name, entry in entries.items()}
    assert calls["ours"] == calls["diffusion for holes only"] == calls["RePaint, as many calls"] == 2
    assert calls["RePaint, ten times as many"] == 20 and calls["Telea"] == 0
    assert calls["reconstruction only"] == calls["masked autoencoder"] == 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_tables_have_every_system(reports, question):
    text = build(reports[question]).to_markdown()
    for name in QUESTIONS[question]:
        assert f"| {name} | 16 |" in text or name == "Telea"
    assert "One run of each" in text and "ours less each of the others, at equal images" in text
    titles = [title for title in TABLES if f"**{title}**" in text]
    assert len(titles) >= 3 and "Bounds on" not in text


def test_a_file_is_small_even_with_three_seeds_and_budgets(reports, tmp_path):
    """Nine times the runs of one seed and budget, with as many values as of thousands of photos."""
    for report in reports.values():
        found = json.loads(json.dumps(report)) | {"variants": {}}
        for name, entry in report["variants"].items():
            run = entry["runs"]["0"]
            full = run | {"each": {n: (v * 32)[:GROUPS] for n, v in run["each"].items()}}
            for images in (16, 64, 256):
                found["variants"][named(parts(name)[0], images)] = entry | {
                    "runs": dict.fromkeys("012", full)
                }
        compared(found, QUESTIONS[report["question"]], (16, 64, 256))
        write(found, tmp_path / "out.json")
        assert json.loads((tmp_path / "out.json").read_text()) == found
        assert (tmp_path / "out.json").stat().st_size < 190_000, report["question"]


# -- tuning ----------------------------------------------------------------------------------------------


def test_the_best_setting_has_the_best_mean_rank():
    settings = (Setting(), Setting(rate=0.5), Setting(rate=2.0))
    tried = {
        "rate 1, others 1": {"frechet": 10.0, "label_top1": 0.2},
        "rate 0.5, others 1": {"frechet": 11.0, "label_top1": 0.5},
        "rate 2, others 1": {"frechet": 30.0, "label_top1": 0.4},
    }
    assert chosen(settings, tried, ("frechet",)).rate == 1.0, "less is better"
    assert chosen(settings, tried, ("label_top1",)).rate == 0.5
    assert chosen(settings, tried, ("frechet", "label_top1")).rate == 0.5  # ranks 1 and 0 against 0 and 2
    assert chosen(settings, {name: {"frechet": 1.0} for name in tried}, ("frechet",)) == settings[0]


def test_figures_of_which_less_is_better():
    less = {name for name in FIGURES if lower_is_better(name)}
    assert {"holes_lpips", "judge_frechet", "kernel", "label_nll", "photo_bits", "mask_nats"} <= less
    assert not less & {"holes_psnr", "recall", "class_precision", "mask_iou", "embedding_together"}


def test_every_system_is_tuned_among_three_settings_on_photos_held_out(base, stage, tmp_path, monkeypatch):
    beside = stage.for_tuning(base)
    assert len(beside.train) + len(beside.val) == len(stage.train) and len(beside.val) == 2
    photos = [bench.stored["image"] for bench in (beside.train, beside.val)]
    assert not (photos[0][:, None] == photos[1]).flatten(2).all(2).any()
    made = []

    def counted(system, config, bench):
        made.append((config.optim.images, config.optim.lr, bench is beside))
        return {"figures": dict.fromkeys(system.aims, float(config.optim.lr)), "cpu_seconds": 1.0}

    monkeypatch.setattr(evidence, "run", counted)
    systems, report = QUESTIONS["masked_pretraining"], {}
    best = tune(systems, base, beside, 300, report, tmp_path / "out.json")
    assert len(made) == 3 * (len(systems) - 1) and "Telea" not in best
    assert {images for images, _, _ in made} == {100, 10} and all(held for *_, held in made)
    assert best["diffusion for holes only"].rate == 0.5, "the lowest LPIPS is that of the lowest rate"
    again = tune(systems, base, beside, 300, report, tmp_path / "out.json")
    assert again == best and len(made) == 3 * (len(systems) - 1), "what was tried is kept"
    assert report["tuned"][named("ours", 300)]["chosen"] == best["ours"].name


# -- comparisons -----------------------------------------------------------------------------------------


def test_differences_pair_photos_and_seeds():
    random = np.random.default_rng(0)
    truth = random.integers(100, 400, 32)  # of photos: some are hard for everyone

    def runs(shift, seeds):
        return {
            "runs": {
                str(s): {"each": {"holes_lpips": (truth + shift + random.integers(-9, 9, 32)).tolist()}}
                for s in range(seeds)
            }
        }

    variants = {"ours": runs(0, 3), "b": runs(50, 2), "c": {"runs": {"0": {"each": {}}}}}
    found = differences(variants, {"b": "ours", "c": "ours"})
    assert set(found) == {"b"}
    one = found["b"]["holes_lpips"]
    ours, theirs = (
        np.mean([variants[n]["runs"][s]["each"]["holes_lpips"] for s in "01"]) for n in ("ours", "b")
    )
    assert one["mean"] == pytest.approx((ours - theirs) / 1e4, abs=1e-5)
    assert one["low"] < -0.005 < one["high"] < -0.004 and one["low"] > -0.006, (
        "narrower than the photos differ"
    )


def test_ours_is_also_compared_at_the_cost_of_the_sum():
    made = {
        named(n, i): {"runs": {"0": {"each": {"recall": [v] * 4}}}}
        for n, i, v in (("ours", 10, 1), ("ours", 40, 2), ("b", 10, 1), ("b", 40, 5))
    }
    report = {"variants": made}
    compared(report, ["ours", "b"], [10, 40])
    assert {n: f["recall"]["mean"] for n, f in report["against"].items()} == {
        named("b", 10): 0,
        named("b", 40): pytest.approx(-3e-4, abs=1e-5),
    }
    assert {n: f["recall"]["mean"] for n, f in report["against_sum"].items()} == {
        named("b", 10): pytest.approx(1e-4, abs=1e-5)
    }


def test_the_verdict_follows_the_interval(reports):
    report = json.loads(json.dumps(reports["many_in_one"]))
    found = {"mean": -0.02, "low": -0.03, "high": -0.01}
    report["against"] = {named("photos alone", 16): {"holes_lpips": found, "recall": found}}
    report["against_sum"] = {named("segmenter", 16): {"mask_iou": {"mean": 0.0, "low": -0.1, "high": 0.1}}}
    text = build(report).to_markdown()
    assert (
        text.count("-0.0200 (-0.0300 to -0.0100): better")
        == 1
        == text.count("-0.0200 (-0.0300 to -0.0100): worse")
    )
    assert "not told apart" in text and "the cost of the sum" in text


def test_the_plot_has_a_line_for_every_system(reports, tmp_path):
    report = json.loads(json.dumps(reports["many_in_one"]))
    variants = report["variants"]
    for name in list(variants):
        variants[named(parts(name)[0], 64)] = variants[name]
    budgets.plot(report, tmp_path / "plot.png")
    colours = Image.open(tmp_path / "plot.png").convert("RGB").getcolors(1 << 24)
    strong = [colour for n, colour in colours if n > 60 and max(colour) - min(colour) > 60]
    assert len(strong) >= 7  # of eight systems, one of which is grey


# -- the command -----------------------------------------------------------------------------------------


def test_kept_models_are_measured_again_without_training(base, stage, tmp_path, monkeypatch):
    kept = dataclasses.replace(stage, kept=tmp_path / "kept")
    system = QUESTIONS["image_and_label"]["classifier guidance"].configured(16, Setting())
    first = run(system, system.change(base), kept)
    with monkeypatch.context() as patch:
        patch.setattr(EveryExample, "train_step", lambda self: pytest.fail("it was trained again"))
        again = run(system, system.change(base), kept)
    same = ("figures", "each", "images", "parameters", "train_cpu_seconds")
    assert {name: first[name] for name in same} == {name: again[name] for name in same}
    assert len(list(kept.kept.glob("*.safetensors"))) == 2, "of the diffusion and of the classifier"


def test_systems_of_two_questions_share_a_model(base, stage, tmp_path):
    kept = dataclasses.replace(stage, kept=tmp_path / "kept")
    for question, name in (("many_in_one", "classifier"), ("image_and_label", "classifier")):
        system = QUESTIONS[question][name].configured(16, Setting())
        run(system, system.change(base), kept)
    assert len(list(kept.kept.glob("*.safetensors"))) == 1


def test_the_shipped_configuration_can_be_trained_for_every_question():
    config = load_train_config("configs/butterflies-small.toml")
    for question, name in RAN:
        changed = QUESTIONS[question][name].configured(40_000, Setting()).change(config)
        images = {"reading without pre-training": 4_000, "classifier guidance": 20_000}.get(name, 40_000)
        assert changed.optim.images == images and changed.optim.lr == config.optim.lr
        reader = QUESTIONS[question][name].configured(40_000, Setting()).reader
        assert reader is None or reader.change(config).optim.images == 20_000
        assert changed.model.width == config.model.width and len(changed.model.modalities) == 4


def test_the_command(shapes, tmp_path, capsys):
    Classifier(CLASSES, 16).save(tmp_path / "judge")
    config = tmp_path / "tiny.toml"
    entry = '[[model.modalities]]\nname = "{0}"\nkind = "{0}"\n'
    classes = f"options = {{ classes = {list(CLASSES)} }}\n"
    sizes = "image_size = 16\npatch_size = 4\nwidth = 32\ndepth = 2\nrefiner_width = 8\n"
    tail = "[optim]\nbatch_size = 8\n"
    config.write_text(
        f'[model]\ncore = "levels"\n{sizes}' + entry.format("image") + entry.format("label") + classes + tail
    )
    threads = str(torch.get_num_threads())
    arguments = [
        *(str(config), "--question", "image_and_label"),
        *("--train", str(shapes), "--val", str(shapes), "--out", str(tmp_path / "out.json")),
        *(
            "--judge",
            str(tmp_path / "judge"),
            "--systems",
            "ours",
            "class-conditional diffusion",
            "classifier",
        ),
        *("--images", "24", "48", "--samples", "4", "--steps", "2", "--seeds", "2", "--threads", threads),
        *("--plot", str(tmp_path / "plot.png"), "--tune"),
    ]
    evidence.main(arguments)
    assert "| classifier | 48 |" in capsys.readouterr().out and (tmp_path / "plot.png").is_file()
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["variants"]) == 6 and all(len(e["runs"]) == 2 for e in found["variants"].values())
    assert set(found["tuned"]) == set(found["variants"])
    with pytest.raises(SystemExit, match="another tuning"):
        evidence.main(arguments[:-1])
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        evidence.main([*arguments, "--val", str(tmp_path / "nowhere.parquet")])
    with pytest.raises(SystemExit, match="no system segmenter"):
        evidence.main([*arguments, "--systems", "segmenter"])
    with pytest.raises(SystemExit, match="first edition"):
        evidence.main(["configs/scenes.toml", *arguments[1:]])
