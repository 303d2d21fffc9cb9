"""What is put at the head of pages; test_app_browser.py sees what it does there."""

from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from app.first_script import SCRIPT, FirstScript

PAGE = "<!doctype html><html><head><title>é</title></head><body></body></html>"


def answer(endpoint, path="/"):
    app = Starlette(routes=[Route(path, endpoint)])
    return TestClient(FirstScript(app)).get(path)


def test_a_page_begins_with_the_script():
    response = answer(lambda request: HTMLResponse(PAGE))
    assert response.content == PAGE.encode().replace(b"<head>", b"<head>" + SCRIPT)
    assert int(response.headers["content-length"]) == len(response.content)


def test_everything_else_passes_as_it_is(tmp_path):
    assert answer(lambda request: PlainTextResponse("<head>")).text == "<head>"
    streamed = answer(lambda request: StreamingResponse(iter(["<head>", "</head>"]), media_type="text/html"))
    assert streamed.text == "<head></head>"
    large = tmp_path / "large.html"
    large.write_text(PAGE + "x" * 300_000)  # sent in several pieces
    response = answer(lambda request: FileResponse(large))
    assert response.content == large.read_bytes()
    assert int(response.headers["content-length"]) == large.stat().st_size
