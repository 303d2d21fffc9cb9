"""The comparison of systems: each is trained for its own task, and comparisons follow from single photos."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import bootstrap
from synthetic import CLASSES, read_shapes, tiny_config, tiny_train_config

from benchmarks import evidence
from benchmarks.evidence import REMEDIES, SYSTEMS, compare, run
from benchmarks.report import build
from benchmarks.study import Bench, fingerprint, optim_with, study
from benchmarks.systems import MaskedAutoencoder, OneCall, draw_known_patches
from benchmarks.tables.studies import CLAIMS, LONGER
from mmdiff.config import load_train_config
from mmdiff.evaluation.holes import HOLES
from mmdiff.evaluation.observers.classifier import Classifier
from mmdiff.evaluation.settings import EvaluationSettings
from mmdiff.network.conditioning import KNOWN, UNKNOWN
from mmdiff.training.trainer import Trainer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base():
    config = tiny_train_config(images=16)
    return evidence.dataclasses.replace(config, model=tiny_config(in_place=True, reader_depth=1))


@pytest.fixture(scope="module")
def bench(base, shapes, embedder):
    examples, judge = read_shapes(shapes, base, embedder), Classifier(CLASSES, 16).eval()
    settings = EvaluationSettings(
        steps=2,
        filling_steps=3,
        filling_guidance=1.5,
        samples=4,
        limit=12,
        batch=8,
        holes=("blocks", "box"),
    )
    return Bench(examples, examples, judge, embedder, settings)


@pytest.fixture(scope="module")
def report(base, bench, tmp_path_factory):
    """All systems with one seed; the photos are too small for AlexNet, so LPIPS is put in by hand."""
    out = tmp_path_factory.mktemp("evidence") / "out.json"
    return study(SYSTEMS, base, bench, 1, out, {"photos_judged": 0.5}, run)


def test_every_system_is_trained_for_its_own_task(report):
    figures = {name: set(entry["figures"]) for name, entry in report["variants"].items()}
    assert figures["segmenter"] == {"mask_iou", "pixel_accuracy"}
    assert figures["classifier"] == {"label_top1", "label_nll", "label_ece"}
    assert figures["embedding regression"] == {"embedding_cosine", "embedding_recall@5"}
    holes = {f"{kind}_{metric}" for kind in ("blocks", "box") for metric in ("psnr", "ssim")}
    for name in ("reconstruction only", "masked autoencoder", "diffusion for holes only"):
        assert figures[name] == holes
    everything = set.union(*(figures[name] for name in figures)) | {"judge_from_label", "judge_joint"}
    assert figures["ours"] == everything == figures[LONGER]


def test_costs_are_equal_but_for_calls(report):
    runs = {name: entry["runs"]["0"] for name, entry in report["variants"].items()}
    images = {name: one["images"] for name, one in runs.items()}
    assert images.pop(LONGER) == 4 * images["ours"] and len(set(images.values())) == 1
    calls = {name: one["calls"] for name, one in runs.items() if SYSTEMS[name].fills}
    assert calls == {
        "ours": 6,  # guidance asks twice
        LONGER: 6,
        "reconstruction only": 1,
        "masked autoencoder": 1,
        "diffusion of photos, RePaint": 20,
        "diffusion for holes only": 3,
        "diffusion of photos, holes as augmentation": 6,
    }


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_systems_see_their_task_alone(base, bench, name):
    trainer = SYSTEMS[name].trainer(SYSTEMS[name].change(base), bench.train, CPU)
    rows = torch.arange(24).repeat(20)
    draw = trainer.draw(trainer.batches.examples, rows, trainer.generator(0), augment=True)
    shares = draw.known.mean((1, 2, 3))
    one_call = bool((draw.t == trainer.schedule.num_steps).all())
    if not SYSTEMS[name].fills:
        assert (shares == 1).all() and (draw.flags[:, 1][draw.present[:, 1]] == UNKNOWN).all() and one_call
    elif name in ("reconstruction only", "masked autoencoder", "diffusion for holes only"):
        assert draw.flags.shape[1] == 1 and (draw.flags == UNKNOWN).all()
        assert (shares > 0).double().mean() > 0.95 and (shares < 1).double().mean() > 0.95
        assert one_call == (name != "diffusion for holes only")
        assert (shares == 0.25).all() == (name == "masked autoencoder")
    elif name == "diffusion of photos, RePaint":
        assert draw.flags.shape[1] == 1 and (shares == 0).all()
    elif name == "diffusion of photos, holes as augmentation":
        assert draw.flags.shape[1] == 1 and 0.05 < (shares == 0).double().mean() < 0.95
    else:
        assert draw.flags.shape[1] == 4 and (draw.flags == KNOWN).any(0).all() and not one_call


def test_a_masked_autoencoder_sees_a_quarter_of_the_patches():
    known = draw_known_patches(400, 32, 8, torch.Generator().manual_seed(0))
    patches = known.view(400, 4, 8, 4, 8).transpose(2, 3).flatten(3)
    assert known.shape == (400, 1, 32, 32) and (patches == patches[..., :1]).all()  # whole or not at all
    assert (patches[..., 0].sum((1, 2)) == 4).all()
    # each of the 16 is shown in a quarter of 400 photos: 100, standard deviation 8.7
    assert (patches[..., 0].sum(0) - 100).abs().max() < 40


def with_lpips(values: dict[str, list[list[int]]], classical: list[int]) -> dict:
    """Variants as a study has them, from thousandths of LPIPS of half-hidden photos a seed."""
    fixed = {"blocks": dict.fromkeys(("mean", "telea", "navier_stokes"), classical)}
    return {
        name: {"runs": {str(k): {"lpips": {"blocks": one}, "classical": fixed} for k, one in enumerate(runs)}}
        for name, runs in values.items()
    }


def test_comparisons_pair_the_photos():
    rng = np.random.default_rng(0)
    truth = rng.integers(100, 400, 60)  # of photos: some are hard for everyone
    ours = [truth + rng.integers(-10, 10, 60) for _ in range(2)]
    theirs = [truth + 50 + rng.integers(-10, 10, 60) for _ in range(2)]
    lists = {"ours": [v.tolist() for v in ours], "b": [v.tolist() for v in theirs], "segmenter": []}
    found = compare(with_lpips(lists, (2 * truth).tolist()))
    assert set(found) == {"b", "mean", "telea", "navier_stokes"}
    pair = found["b"]["blocks"]
    difference = (np.mean(ours, 0) - np.mean(theirs, 0)) / 1000
    assert pair["difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-4)
    assert pair["ratio"] == pytest.approx(np.mean(ours) / np.mean(theirs), abs=1e-3)
    # scipy's interval of the paired differences is far narrower than the spread over photos
    expected = bootstrap((difference,), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = expected.confidence_interval
    assert pair["difference"]["low"] == pytest.approx(low, abs=1e-3)
    assert pair["difference"]["high"] == pytest.approx(high, abs=1e-3)
    assert found["telea"]["blocks"]["ratio"] == pytest.approx(np.mean(ours) / np.mean(2 * truth), abs=1e-3)


def test_only_kinds_that_all_seeds_have_are_compared():
    variants = with_lpips({"ours": [[100, 200]], "b": [[100, 200], [100, 200]]}, [300, 300])
    variants["b"]["runs"]["1"]["lpips"] = {"box": [1, 2]}
    assert set(compare(variants)) == {"mean", "telea", "navier_stokes"}


def test_claims_are_checked_both_ways(report):
    filled = {name: system for name, system in SYSTEMS.items() if system.fills}

    def tables(ours: int) -> str:
        lpips = {name: [[ours if name.startswith("ours") else 200] * 3] for name in filled}
        found = json.loads(json.dumps(report))
        variants = with_lpips(lpips, [300, 300, 300])
        found |= {"comparisons": compare(variants), "longer_comparisons": compare(variants, LONGER)}
        for name, entry in found["variants"].items():
            if name in filled:
                entry["figures"]["blocks_lpips"] = {"mean": 0.2, "std": 0.0}
            for key in ("precision", "recall", "mask_iou", "label_top1"):
                best = name.startswith("ours") == (ours < 200)
                entry["figures"][key] = {"mean": 0.9 if best else 0.5, "std": 0.0}
        return build(found).to_markdown()

    good, bad = tables(100), tables(300)
    assert good.count("| yes |") == bad.count("| no |") == 2 * len(CLAIMS)  # of both of ours
    assert "| Telea | 0.300 | – | – | 0 | × 0.33" in good and "20 | × 0.50" in good
    divided = good.split("| LPIPS divided by that of |")[1].split("**")[0]
    assert "| reconstruction only | 0.50 |" in divided and "Telea" not in divided and "ours" not in divided


def test_the_report_has_every_comparison(report):
    found = json.loads(json.dumps(report))
    found["comparisons"] = compare(with_lpips({"ours": [[100]], "segmenter": []}, [200]))
    text = build(found).to_markdown()
    assert "hoped for and measured" in text and "Telea" in text and "One run of each" in text


def test_the_plot_has_a_line_for_every_filling(report, tmp_path):
    filled = {name: [[200, 300]] for name, system in SYSTEMS.items() if system.fills}
    found = report | {"comparisons": compare(with_lpips(filled, [300, 300]))}
    evidence.plot(found, tmp_path / "plot.png")
    colours = Image.open(tmp_path / "plot.png").convert("RGB").getcolors(1 << 24)
    # lines are drawn in colours of their own; blends at their edges are rarer
    strong = [c for n, c in colours if n > 60 and max(c) - min(c) > 60]
    assert len(strong) >= len(filled)


def test_a_plot_without_blocks_is_empty(report, tmp_path):
    pair = {"ours": 0.1, "theirs": 0.2}
    evidence.plot(report | {"comparisons": {"telea": {"box": pair}}}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_what_was_not_measured_is_said_so(report):
    found = report | {"comparisons": {}}
    found["variants"] = {name: report["variants"][name] for name in ("ours", "segmenter")}
    assert build(found).to_markdown().count("| not measured |") == len(CLAIMS) - 1
    del found["variants"]["segmenter"]  # without a comparison there is no claim
    text = build(found).to_markdown()
    assert "Reached" not in text and "Reading photos" in text


@pytest.mark.parametrize("name", ["orchard", "scenes"])
def test_a_remedy_changes_what_its_name_says(name):
    config = load_train_config(f"configs/evidence-{name}.toml")
    for title, remedy in list(REMEDIES.items())[1:]:
        changed = remedy.change(config)
        times = 4 if "four times the images" in title else 1
        assert changed.optim.images == times * config.optim.images
        changed = evidence.optim_with(images=config.optim.images)(changed)
        parts = [
            part for part in ("model", "data", "tasks") if getattr(changed, part) != getattr(config, part)
        ]
        named = {"four times the images": 0, "four times the images, a sixteenth, and holes in 58 %": 2}
        changes = named.get(title, 1 + (", and" in title))
        assert len(parts) + (changed.optim != config.optim) == changes
    longest = REMEDIES["four times the images, a sixteenth, and holes in 58 %"].change(config)
    assert longest == evidence.SYSTEMS[evidence.LONGER].change(config)  # the row above is this one


@pytest.mark.parametrize(
    ("remedy", "share"), [("ours", 0.20), ("holes in 58 % of the examples, not 20", 0.58)]
)
def test_shares_of_holes_are_as_named(base, bench, remedy, share):
    tasks = load_train_config("configs/evidence-orchard.toml").tasks
    config = REMEDIES[remedy].change(evidence.dataclasses.replace(base, tasks=tasks))
    trainer = Trainer(config, bench.train, CPU)
    rows = torch.arange(24).repeat(200)
    known = trainer.draw(trainer.batches.examples, rows, trainer.generator(0), augment=True).known.mean(
        (1, 2, 3)
    )
    holed = ((known > 0) & (known < 1)).double().mean()
    assert abs(holed - share) < 0.02


@pytest.mark.parametrize("name", ["orchard", "scenes"])
def test_shipped_sizes_can_be_built(name):
    config = load_train_config(f"configs/evidence-{name}.toml")
    for system in SYSTEMS.values():
        changed = system.change(config)
        same = optim_with(images=config.optim.images)(changed) if system is SYSTEMS[LONGER] else changed
        assert same.optim == config.optim and changed.model.width == config.model.width


def test_the_command(shapes, tmp_path, monkeypatch, capsys):
    Classifier(CLASSES, 16).save(tmp_path / "judge")
    config = tmp_path / "tiny.toml"
    entry = '[[model.modalities]]\nname = "{0}"\nkind = "{0}"\n'
    classes = f"options = {{ classes = {list(CLASSES)} }}\n"
    sizes = "[model]\nimage_size = 32\npatch_size = 8\nwidth = 32\ndepth = 2\nin_place = true\n"
    config.write_text(sizes + entry.format("image") + entry.format("label") + classes)
    threads = str(torch.get_num_threads())
    arguments = [
        str(config),
        *("--train", str(shapes), "--val", str(shapes), "--out", str(tmp_path / "out.json")),
        *("--judge", str(tmp_path / "judge"), "--systems", "ours", "classifier", "--holes", *list(HOLES)[:2]),
        *("--images", "32", "--samples", "4", "--steps", "2", "--seeds", "2", "--threads", threads),
    ]
    evidence.main(arguments)
    assert "| classifier |" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["variants"]["ours"]["runs"]) == 2 and "comparisons" in found
    evidence.main([*arguments, "--remedies", "--seeds", "1", "--out", str(tmp_path / "remedies.json")])
    found = json.loads((tmp_path / "remedies.json").read_text())
    assert list(found["variants"]) == list(REMEDIES)
    with pytest.raises(SystemExit, match="error: .*nowhere"):
        evidence.main([*arguments, "--val", str(tmp_path / "nowhere.parquet")])


def test_kept_models_are_measured_again_without_training(base, bench, tmp_path, monkeypatch):
    kept = evidence.dataclasses.replace(bench, kept=tmp_path / "kept")
    config = optim_with(seed=3)(base)
    first = run(SYSTEMS["segmenter"], SYSTEMS["segmenter"].change(config), kept)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lambda self: pytest.fail("it was trained again"))
        again = run(SYSTEMS["segmenter"], SYSTEMS["segmenter"].change(config), kept)
    same = ("figures", "validation", "images", "parameters", "train_cpu_seconds")
    assert {name: first[name] for name in same} == {name: again[name] for name in same}
    assert len(list(kept.kept.glob("*.safetensors"))) == 1


def test_what_is_trained_otherwise_has_another_fingerprint(base, bench):
    relabelled = bench.train.take(torch.arange(len(bench.train)))
    relabelled.stored["label"] = relabelled.stored["label"].roll(1)
    runs = [
        (Trainer, base, bench.train),
        (OneCall, base, bench.train),
        (MaskedAutoencoder, base, bench.train),
        (Trainer, optim_with(seed=1)(base), bench.train),
        (Trainer, base, bench.train.take(torch.arange(1, len(bench.train)))),
        (Trainer, base, relabelled),
    ]
    assert len({fingerprint(*run) for run in runs}) == 6 and fingerprint(*runs[0]) == fingerprint(*runs[0])
