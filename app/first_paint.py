"""What a page has before Gradio's own scripts are there: something to see, and a script that runs first.

A page of Gradio is empty until a megabyte of settings and a hundred scripts have come. `FirstPaint` puts the
opening (app/opening.py) before all of that, compresses the page, which Gradio does not, and gives visitors
of addresses that do not exist a page, not JSON.

The script stops an invisible clock of Gradio's: its loading indicator counts the seconds in every animation
frame, and goes on counting when it has left the page, which keeps the visitor's browser busy for good. It
keeps the `requestAnimationFrame` that it finds at first, so it is given one that becomes slow as soon as the
page is there; what comes later finds the true one.
"""

import gzip
import os
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from urllib.parse import parse_qsl

import brotli
from gradio.route_utils import get_root_url
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request as Visit
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import opening
from app.export.link import is_link
from app.run.service import Service

STATIC = Path(__file__).parent / "static"
SCRIPT = f"<script>\n{(STATIC / 'first_script.js').read_text(encoding='utf-8')}</script>"
MISSING = Template((STATIC / "opening" / "missing.html").read_text(encoding="utf-8"))
CARD = re.compile(r'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')  # Gradio's own
HEAD, SETTINGS, HEAD_END = "<head>", "<script>window.gradio_config", "</head>"
BODY, SHEET = re.compile(r"<body[^>]*>"), re.compile(r'<link rel="stylesheet"[^>]*>')
COMPRESS = {"br": lambda body: brotli.compress(body, quality=5), "gzip": lambda body: gzip.compress(body, 6)}


class FirstPaint:
    """ASGI middleware that rewrites HTML pages that come in one piece; all else passes as it is.

    `services` are the models by the path of their page, "" for the first.
    """

    def __init__(self, app: ASGIApp, services: Mapping[str, Service]) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request."""
        start: Message | None = None  # of what is to be rewritten, held back until its body is there

        async def send_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and self._rewrites(scope, message):
                start = message
                return
            if start is not None:
                if not message.get("more_body"):
                    message = {**message, "body": self._rewritten(Visit(scope), start, message["body"])}
                await send(start)
                start = None
            await send(message)

        await self._app(scope, receive, send_on)

    def _rewrites(self, scope: Scope, start: Message) -> bool:
        headers = Headers(raw=start["headers"])
        if "content-encoding" in headers:
            return False
        if start["status"] == 404:
            return scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
        return headers.get("content-type", "").startswith("text/html") and "content-length" in headers

    def _rewritten(self, visit: Visit, start: Message, body: bytes) -> bytes:
        if start["status"] == 404:
            page = MISSING.substitute(home=_address(visit) + "/")
        else:
            page = self._painted(visit, body.decode())
        body, headers = page.encode(), MutableHeaders(scope=start)
        encoding = next((name for name in COMPRESS if name in visit.headers.get("accept-encoding", "")), None)
        if encoding:
            body = COMPRESS[encoding](body)
            headers["content-encoding"] = encoding
        headers["content-type"], headers["vary"] = "text/html; charset=utf-8", "Accept-Encoding"
        headers["content-length"] = str(len(body))
        return body

    def _painted(self, visit: Visit, page: str) -> str:
        service = self._services.get(visit.url.path.removeprefix(visit.scope.get("root_path", "")).strip("/"))
        page = page.replace(HEAD, HEAD + SCRIPT, 1)
        if service is None or SETTINGS not in page:
            return page
        style, script = opening.style_and_script()
        shown = opening.opening(service, is_link(dict(parse_qsl(visit.url.query)))) + script
        head, late = CARD.sub("", page).split(SETTINGS, 1)
        late, body = late.split(HEAD_END, 1)
        tag, sheets = BODY.search(body)[0], "".join(SHEET.findall(late))  # those come before all others
        # Gradio's settings and scripts after what can be read at once
        body = body.replace(tag, f"{tag}{shown}{SETTINGS}{SHEET.sub('', late)}", 1)
        return f"{head}{opening.head(service, _address(visit))}{style}{sheets}{HEAD_END}{body}"


def _address(visit: Visit) -> str:
    """Of the start of the page, as its visitors see it, without a slash at the end."""
    return get_root_url(visit, visit.url.path, os.environ.get("GRADIO_ROOT_PATH"))
