"""A script that the page runs before Gradio's own: it stops an invisible clock of Gradio's.

The loading indicator of Gradio counts the seconds in every animation frame, and goes on counting when it
has left the page, which keeps the visitor's browser busy for good. It keeps the `requestAnimationFrame` that
it finds at first, so it is given one that becomes slow as soon as the page is there; what comes later finds
the true one.
"""

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SCRIPT = b"<script>\n%b</script>" % (Path(__file__).parent / "static/first_script.js").read_bytes()
HEAD = b"<head>"


class FirstScript:
    """ASGI middleware that puts `SCRIPT` at the head of HTML pages; everything else passes as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request."""
        start: Message | None = None  # of an HTML page, held back until its body is there

        async def send_on(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html") and "content-length" in headers:
                    start = message
                    return
            elif start is not None:
                if not message.get("more_body"):  # Gradio's page comes in one piece
                    message = {**message, "body": message["body"].replace(HEAD, HEAD + SCRIPT, 1)}
                    MutableHeaders(scope=start)["content-length"] = str(len(message["body"]))
                await send(start)
                start = None
            await send(message)

        await self._app(scope, receive, send_on)
