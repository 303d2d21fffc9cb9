"""What pages have before Gradio's own scripts; test_app_first_browser.py sees what it does there."""

import pytest
from fakes import FakePipeline
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.first_paint import SCRIPT, FirstPaint
from app.run.service import Service

PAGE = (
    '<!doctype html><html><head><title>é</title><meta property="og:title" content="Gradio" />'
    '<meta\n name="twitter:title" content="Gradio" />'
    '<script>window.gradio_config = {"big": 1};</script><script type="module" src="a.js"></script>'
    '<link rel="stylesheet" href="a.css"></head><body style="x"><gradio-app></gradio-app></body></html>'
)
PLAIN = "<!doctype html><html><head><title>é</title></head><body></body></html>"


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(), "fake")


def answer(service, endpoint, path="/", **headers):
    app = Starlette(routes=[Route("/", endpoint), Route("/large", endpoint)])
    client = TestClient(FirstPaint(app, {"": service}), base_url="https://example.org")
    return client.get(path, headers={"accept-encoding": "identity", **headers})


def test_what_can_be_read_comes_before_gradios_settings_and_scripts(service):
    page = answer(service, lambda request: HTMLResponse(PAGE)).text
    order = [
        "<head>" + SCRIPT,
        "<style>",
        "a.css",
        "</head>",
        "<body",
        "<h1>",
        "gradio_config",
        "a.js",
        "<gradio-app",
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places) and page.count("gradio_config") == page.count("</head>") == 1
    assert "One model. Pin any one of the three; it makes the rest." in page


def test_a_shared_link_has_a_card_of_its_own(service, tmp_path, monkeypatch):
    (tmp_path / "showcase").mkdir()
    (tmp_path / "showcase" / "card.jpg").write_bytes(b"jpeg")
    monkeypatch.setattr(service, "folder", tmp_path)
    page = answer(service, lambda request: HTMLResponse(PAGE)).text
    assert 'content="Gradio"' not in page and page.count("og:title") == 1
    assert '"og:image" content="https://example.org/showcase/fake/card.jpg"' in page


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_pages_are_compressed(service, encoding):
    whole = answer(service, lambda request: HTMLResponse(PAGE))
    small = answer(service, lambda request: HTMLResponse(PAGE), **{"accept-encoding": f"deflate, {encoding}"})
    assert small.headers["content-encoding"] == encoding and small.text == whole.text  # decoded by the client
    assert int(small.headers["content-length"]) < len(whole.content) / 2


def test_everything_else_passes_as_it_is(service, tmp_path):
    assert answer(service, lambda request: HTMLResponse(PLAIN)).text == PLAIN.replace(
        "<head>", "<head>" + SCRIPT
    )
    assert answer(service, lambda request: PlainTextResponse("<head>")).text == "<head>"
    pieces = StreamingResponse(iter(["<head>", "</head>"]), media_type="text/html")
    assert answer(service, lambda request: pieces).text == "<head></head>"
    large = tmp_path / "large.html"
    large.write_text(PLAIN + "x" * 300_000)  # sent in several pieces
    response = answer(service, lambda request: FileResponse(large))
    assert response.content == large.read_bytes()
    assert int(response.headers["content-length"]) == large.stat().st_size


def test_people_get_a_page_where_there_is_none_and_programs_get_what_they_got(service):
    missing = lambda request: JSONResponse({"detail": "Not Found"}, 404)  # noqa: E731
    page = answer(service, missing, accept="text/html,*/*")
    assert page.status_code == 404 and "There is no page here" in page.text
    assert answer(service, missing, accept="*/*").json() == {"detail": "Not Found"}
