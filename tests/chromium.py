"""The real browser of several test modules: where it is, how it starts, what its tests are marked with."""

import importlib.util
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.flaky(reruns=1),  # a real browser on a machine that others use, too
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium as the command `chromium`"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
