"""The tab that explains: it shows the tables of docs, its picture is XML, and it needs no network."""

import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from fakes import FakePipeline

from app import theme
from app.tabs import how_it_works
from mmdiff.evaluate import parse_arguments
from mmdiff.first_edition.schedule import WeightSchedule as NoiseSchedule
from mmdiff.forward_process import q_posterior, signal

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium")
ALL = ("image", "mask", "label", "embedding")
BLOCK = "## {title}\n\nText.\n\n<!-- results {name} -->\n{tables}<!-- end -->\n\n"
TABLE = "**Table**\n\n| Measured | Value |\n|---|---|\n| {} | 50.0% |\n\n5 examples.\n"


def rows(page):
    """Cells of all tables in Markdown, by the first cell of their row."""
    found = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("|")]
    return {first.strip(): [cell.strip() for cell in rest] for first, *rest in found}


@pytest.fixture
def docs(tmp_path):
    """A folder of docs with tables of “toy”, “toy-holes”, “toyish”, and of a study on other data."""
    names = ("evidence-fruit", "toyish", "toy-holes", "toy")
    blocks = [BLOCK.format(title=f"About {name}", name=name, tables=TABLE.format(name)) for name in names]
    command = "python -m mmdiff.evaluate checkpoints/toy --data toy.parquet \\\n  --out docs/results/toy.json"
    (tmp_path / "a.md").write_text("# Page\n\n" + "".join(blocks))
    (tmp_path / "b.md").write_text(f"Text.\n\n```sh\nls\n{command}\npython next.py\n```\n")
    return tmp_path


def test_the_page_shows_the_tables_of_its_checkpoint_and_folds_all_but_the_main_ones(docs):
    page = how_it_works.measured("toy", docs)
    assert [name for name in rows(page) if name.endswith(("toy", "holes", "ish", "fruit"))] == [
        *("toy", "toy-holes", "evidence-fruit"),
    ]
    main, *folded = page.split("<details>")
    assert TABLE.format("toy") in main and "From docs/a.md." in main
    assert [text.split("</summary>")[0] for text in folded] == [
        *("<summary>About toy-holes", "<summary>About evidence-fruit"),
    ]
    (docs / "a.md").write_text((docs / "a.md").read_text().replace("50.0%", "62.5%"))
    assert rows(how_it_works.measured("toy", docs))["toy"] == ["62.5%"]


@pytest.mark.parametrize("checkpoint", ["orchard", "scenes"])
def test_the_page_shows_the_very_tables_of_docs(checkpoint):
    page, shown = how_it_works.measured(checkpoint), set()
    for path in (ROOT / "docs").glob("*.md"):
        for name, tables in how_it_works.TABLES.findall(path.read_text(encoding="utf-8")):
            if name.startswith((checkpoint, "evidence-")):
                assert tables in page
                shown.add(name)
    assert {checkpoint, f"{checkpoint}-subsets", "evidence-orchard-many_in_one"} <= shown
    assert page.count("Reproduce this") == len(shown) == page.count("<details>") + 1
    assert "skipped" not in page


def test_values_of_the_shipped_checkpoint_are_those_of_its_files():
    page = how_it_works.measured("orchard")
    found, folder = rows(page), ROOT / "docs/results"
    tasks = json.loads((folder / "orchard.json").read_text())["tasks"]
    following = json.loads((folder / "orchard-following.json").read_text())["tasks"]
    texts = json.loads((folder / "orchard-texts.json").read_text())["tasks"]
    subsets = json.loads((folder / "orchard-subsets.json").read_text())["subsets"]["subsets"]
    assert found["Mask from photo: IoU of “fruit”"][0] == f"{tasks['mask_from_image']['iou']['fruit']:.4f}"
    for measured in (tasks["joint"], following["joint"]):  # in both files, with other settings
        together = (
            f"| Photo and mask together: their IoU | {measured['mask_rule_iou']:.4f} | {measured['n']} |"
        )
        assert together in page
    followed = found["The label followed: that classifier agrees"]
    assert followed[0] == f"{following['joint_following_label']['judge_agreement']:.1%}"
    assert found["Photo from text: in the colour of the text"][:2] == [
        f"{texts['prompts']['overall']['colour']:.1%}",
        str(texts["prompts"]["overall"]["n"]),
    ]
    assert float(found["L3"][1]) == pytest.approx(tasks["bound"]["bits_per_dimension"]["L3"], abs=1e-4)
    holes = next(s for s in subsets if s["given"] == "image with holes")["metrics"]
    assert f"{-holes['image.negative_lpips']['mean']:.3f}" in found["image with holes"]
    given = [s["given"] for s in subsets]
    assert len(given) == 23 and all(name in found for name in given)


def test_the_commands_are_the_ones_that_were_run():
    """They are read from pages; the parser of `mmdiff.evaluate` reads them back, or the file says them."""
    found = re.findall(r"```sh\n(.*?)\n```", how_it_works.measured("orchard"), re.DOTALL)
    split = (shlex.split(command.replace("\\\n", " ")) for command in found)
    commands = {words[words.index("--out") + 1]: words for words in split}
    files = {source: json.loads((ROOT / source).read_text()) for source in commands}
    written = {source: found["command"] for source, found in files.items() if "command" in found}
    assert written and all(commands[source] == shlex.split(said) for source, said in written.items())
    evaluated = {source: words for source, words in commands.items() if "mmdiff.evaluate" in words}
    assert len(evaluated) == 4
    for source, words in evaluated.items():
        arguments, found = vars(parse_arguments(words[3:])), files[source]
        assert arguments["out"] == source and Path(arguments["data"]).name == found["data"]
        for name, value in found["settings"].items():
            # With --all-subsets the limit has its own default; RePaint and prompts are benchmarks now.
            if name not in ("limit", "repaint", "prompts"):
                assert arguments[name] == value, (source, name)
        assert set(found.get("tasks", ())) <= set(arguments["tasks"])


def test_a_model_card_links_to_nothing_that_the_page_does_not_serve(tmp_path):
    card = "See [the page](../../docs/page.md), [ours](#top) and [theirs](https://example.org/x)."
    (tmp_path / "README.md").write_text(card)
    assert how_it_works.model_card(tmp_path) == ("See the page, ours and [theirs](https://example.org/x).")
    assert not how_it_works.INSIDE.search(how_it_works.model_card(ROOT / "checkpoints/scenes"))


def test_a_command_is_cut_out_of_its_page(docs):
    (command,) = re.findall(r"```sh\n(.*?)\n```", how_it_works.measured("toy", docs), re.DOTALL)
    assert command.startswith("python -m mmdiff.evaluate") and command.endswith("--out docs/results/toy.json")
    (docs / "b.md").unlink()
    assert "```" not in how_it_works.measured("toy", docs)


def test_what_is_missing_is_said_in_words(docs):
    for name in ("other", "<b>"):
        page = how_it_works.measured(name, docs)
        assert "no measured results for the checkpoint" in page and "toy" not in page and "<b>" not in page
    assert "no measured results" in how_it_works.measured("toy", docs / "nowhere")
    (docs / "a.md").write_text(BLOCK.format(title="About", name="toy", tables=""))
    assert "`python benchmarks/report.py` has not made these tables yet" in how_it_works.measured("toy", docs)


def test_a_page_that_cannot_be_read_is_named_and_the_others_are_shown(docs):
    (docs / "damaged.md").write_bytes(b"\xff\xfe")
    (docs / "folder.md").mkdir()
    page = how_it_works.measured("toy", docs)
    assert "docs/damaged.md cannot be read" in page and "docs/folder.md cannot be read" in page
    assert rows(page)["toy"] == ["50.0%"]


def test_the_pictures_are_xml_and_say_what_they_show():
    seen = set()
    for path in how_it_works.PICTURES:
        tree = ElementTree.parse(path).getroot()
        space = {"s": tree.tag.partition("}")[0].strip("{")}
        ids = {node.get("id") for node in tree.iter() if node.get("id")}
        assert not ids & seen  # both stand in one page
        seen |= ids
        named = tree.get("aria-labelledby").split()
        texts = {
            node.get("id"): node.text
            for node in tree.findall("s:title", space) + tree.findall("s:desc", space)
        }
        assert set(named) == set(texts) and all(texts.values())
        used = {
            re.fullmatch(r"url\(#(.*)\)", node.get("marker-end"))[1]
            for node in tree.iter()
            if node.get("marker-end")
        }
        assert used <= ids
        kinds = [node.get("data-kind") for node in tree.iter() if node.get("data-kind")]
        assert kinds == list(how_it_works.DRAWN.values())
        assert not any("http" in value for node in tree.iter() for value in node.attrib.values())


def test_what_a_model_lacks_is_faint_and_its_tabs_are_not_listed():
    specs = FakePipeline(64, modalities=("image", "label")).modalities
    assert 'class="architecture without-mask without-embedding"' in how_it_works._picture(specs)
    assert "64 × 64 px" in how_it_works._picture(specs) and "7 classes" in how_it_works._picture(specs)
    page = how_it_works._page(specs)
    assert "<dt>Image + label</dt>" in page and "<dt>Image + mask</dt>" not in page
    assert "<b>Image</b>: the clean picture" in page and "likeliest class of every pixel" not in page


def test_a_model_with_levels_is_told_these_and_no_flags():
    with_flags, with_levels = (
        how_it_works._picture(FakePipeline(64, leads=leads).modalities) for leads in (None, {"label": 0.5})
    )
    assert with_flags.count("flags: wanted") == 2 and "level" not in with_flags
    assert with_levels.count("a level of each") == 2 and "flag" not in with_levels


def test_a_second_modality_of_a_form_is_explained_with_the_first():
    specs = FakePipeline(64, modalities=("image",)).modalities
    depth = SimpleNamespace(name="depth", kind="depth", form="picture", classes=(), shape=(1, 8, 8))
    specs = {**specs, "depth": depth}
    assert "<b>Image, depth</b>: the clean picture" in how_it_works._page(specs)
    assert "64 × 64 px" in how_it_works._picture(specs) and "8 × 8 px" not in how_it_works._picture(specs)


def test_the_model_card_comes_without_its_front_matter(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# toy\n\n---\n\nText.\n")
    assert how_it_works.model_card(tmp_path) == "# toy\n\n---\n\nText.\n"
    (tmp_path / "README.md").write_text("# toy\n")
    assert how_it_works.model_card(tmp_path) == "# toy\n"
    for folder in (None, tmp_path / "nowhere"):
        assert "no model card" in how_it_works.model_card(folder)


def test_the_posterior_in_the_page_is_the_one_of_the_code():
    """(4) as the page writes it, with numpy, against `q_posterior`."""
    s = NoiseSchedule(50, ("image", "mask"), weights={"mask": "ramp"}, scales={"mask": 0.7})
    z_t, z0, e = (torch.randn(3, 2, 2, 2, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([2, 17, 50])
    mean, variance = q_posterior(s, z_t, t, z0, {"mask": e})
    for k, time in enumerate(t.tolist()):
        a, abar, before = (float(v) for v in (s.a[time], s.abar[time], s.abar[time - 1]))
        A, B = np.sqrt(a) * (1 - before) / (1 - abar), (1 - a) / (1 - abar)
        c = float(s.w["mask"][time]) * e[k].numpy()
        m_before = float(s.wbar["mask"][time - 1]) * e[k].numpy()
        mu = A * (z_t[k].numpy() - np.sqrt(a) * c) + B * (np.sqrt(before) * z0[k].numpy() + m_before)
        np.testing.assert_allclose(mean[k].numpy(), mu, rtol=1e-9, atol=1e-12)
        assert float(variance[k].reshape(())) == pytest.approx((1 - before) * B)
        marginal = signal(s, z0, t, {"mask": e})[k].numpy()
        wanted = np.sqrt(abar) * z0[k].numpy() + float(s.wbar["mask"][time]) * e[k].numpy()
        np.testing.assert_allclose(marginal, wanted, rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def address():
    pipe = FakePipeline(96, modalities=ALL)
    folder = ROOT / "checkpoints/orchard"
    service = SimpleNamespace(name="orchard", folder=folder, pipe=pipe, modalities=pipe.modalities)
    with gr.Blocks(analytics_enabled=False) as demo, gr.Tabs():
        how_it_works.build(service)
    options = {"ssr_mode": False, "prevent_thread_lock": True, "quiet": True}
    yield demo.launch(theme=theme.theme(), css_paths=theme.STYLES, **options)[1].rstrip("/")
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium as the command `chromium`")
@pytest.mark.parametrize(("width", "scheme", "shown"), [(1440, "light", "wide"), (390, "dark", "narrow")])
def test_the_page_in_a_browser(browser, address, width, scheme, shown):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, errors = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.goto(address)
    page.locator(".takeaway").wait_for()
    assert not page.locator(".katex").count() or not page.locator(".katex").first.is_visible()
    top = page.locator(f"svg.{shown}").bounding_box()["y"]
    assert top < page.get_by_text("The idea", exact=True).bounding_box()["y"]
    page.get_by_text("For researchers").click()
    formulas = how_it_works.EQUATIONS.read_text(encoding="utf-8").count("\n$$")
    page.locator(".katex-display").nth(formulas - 1).wait_for()
    assert page.locator(".katex-display").count() == formulas and page.locator(".katex-error").count() == 0
    page.wait_for_function(
        "[...document.fonts].some(f => f.family === 'KaTeX_Math' && f.status === 'loaded')"
    )

    visible = [
        p.get_attribute("class").split()[1] for p in page.locator("svg.picture").all() if p.is_visible()
    ]
    assert visible == [shown]
    scale = page.locator(f"svg.{shown}").evaluate("svg => svg.getScreenCTM().a")
    sizes = page.locator(f"svg.{shown} text").evaluate_all(
        "all => all.map(t => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) * scale >= 10
    assert inside(page, f"svg.{shown}")

    tables = page.locator("#measured table")
    assert tables.first.is_visible() and not tables.last.is_visible()  # the last one is folded
    page.evaluate("document.querySelectorAll('.how details').forEach(d => d.open = true)")
    assert tables.last.is_visible() and page.locator("#measured").evaluate(
        "e => e.scrollWidth <= e.clientWidth"
    )
    page.locator("#model-card").get_by_text("Model card").click()
    page.get_by_text("4.81 M examples").wait_for()
    assert "license:" not in page.locator("#model-card").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    away = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not away and not errors
    page.close()


def inside(page, picture):
    """Whether all texts that stand in a box of the picture are within its drawn area and none overlap."""
    return page.locator(picture).evaluate(
        """svg => {
          const all = svg.getBoundingClientRect();
          const boxes = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
          const within = boxes.every(b =>
            b.left >= all.left && b.right <= all.right && b.bottom <= all.bottom);
          const apart = boxes.every((a, i) => boxes.slice(i + 1).every(b =>
            a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 3 || b.bottom <= a.top + 3));
          return within && apart;
        }"""
    )
