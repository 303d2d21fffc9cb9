"""What stands between the network and Gradio: who may call, how much may be sent, and errors in words."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from anyio import to_thread
from gradio.route_utils import FnIndexInferError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import NO_SPACE, UNEXPECTED, in_words, log_unexpected

log = logging.getLogger(__name__)

API = "/gradio_api"
DIRECT = (f"{API}/run/", f"{API}/api/")  # calls of endpoints whose answer is the result
CALLS = (*DIRECT, f"{API}/call/", f"{API}/queue/join")
UPLOAD = f"{API}/upload"
UNUSED = (
    f"{API}/deep_link",
    f"{API}/process_recording",
    "/monitoring",
)  # Gradio's, which store or tell things
MAX_UPLOAD = 21 * 2**20  # bytes: a file of 20 MB and the form around it
MAX_BODY = 24 * 2**20  # bytes of any other request: settings may be 16 MB of text
MAX_UPLOADS = 4  # of one visitor at a time; more take turns
SPACES = ("https://huggingface.co", "https://*.hf.space")  # which show the pages of Spaces in frames
MALFORMED = (LookupError, ValueError, TypeError, AttributeError, AssertionError, RecursionError)

NO_ENDPOINT = "There is no such endpoint; there are {names}, and /gradio_api/info says what they take."
UNREADABLE = "The server can make nothing of this request: of its address, its parameters or its body."
TOO_LARGE = f"That is too large: a file may have 20 MB, and any other request {MAX_BODY >> 20} MB."
FOREIGN = "Pages of {origin} may not use this server; who runs it can allow them with --origin."


class TooLarge(Exception):
    """More was sent than a request may have."""


class Guard:
    """ASGI middleware.

    Args:
        names: of the endpoints.
        origins: of web pages that may call the server and show it in frames, beside its own. None named:
            pages of any origin may call it, and those of Hugging Face show it in frames.
        tidy: called before anything is stored; keeps the temporary files few.
    """

    def __init__(
        self, app: ASGIApp, names: Sequence[str], origins: Sequence[str], tidy: Callable[[], None]
    ) -> None:
        self._app, self._origins, self._tidy = app, origins, tidy
        self._names = ", ".join(f"/{name}" for name in sorted(names))
        self._frames = f"frame-ancestors 'self' {' '.join(origins or SPACES)}"
        self._uploads: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).setdefault("content-security-policy", self._frames)
                if message["status"] == 500 and scope["path"].startswith(DIRECT):
                    message["status"] = 422  # Gradio's for any error, also those of the inputs
            await send(message)

        try:
            answer = self._refused(scope) or await self._passed(scope, receive, send_on)
        except Exception as error:
            if started:  # a stream, which has said what there is to say
                if not isinstance(error.__cause__, HTTPException):
                    log_unexpected(error)
                return await send({"type": "http.response.body", "body": b""})
            answer = self._explained(error, scope["path"])
        if answer is not None:
            await answer(scope, receive, send_on)

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        origin, length = headers.get("origin"), headers.get("content-length", "")
        own = origin is not None and urlsplit(origin).netloc == headers.get("host")
        if origin is not None and self._origins and not own and origin not in self._origins:
            return JSONResponse({"detail": FOREIGN.format(origin=origin)}, 403)
        if scope["path"].startswith(UNUSED):
            return JSONResponse({"detail": "Not Found"}, 404)
        if length.isdigit() and int(length) > _most(scope):
            return _answer(scope["path"], 413, TOO_LARGE)
        return None

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        received, most = 0, _most(scope)

        async def receive_on() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise TooLarge
            return message

        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        await to_thread.run_sync(self._tidy)
        if scope["path"] != UPLOAD:
            return await self._app(scope, receive_on, send)
        visitor = (scope.get("client") or ("",))[0]
        turns = self._uploads.setdefault(visitor, asyncio.Semaphore(MAX_UPLOADS))
        async with turns:
            await self._app(scope, receive_on, send)

    def _explained(self, error: Exception, path: str) -> Response:
        """The answer to a request that Gradio has not expected."""
        if isinstance(error, TooLarge):
            return _answer(path, 413, TOO_LARGE)
        unknown = isinstance(error, FnIndexInferError) or (isinstance(error, KeyError) and path != UPLOAD)
        if unknown and path.startswith(CALLS):
            return _answer(path, 404, NO_ENDPOINT.format(names=self._names))
        if isinstance(error, MALFORMED):
            log.warning("a request that cannot be read: %s", type(error).__name__)
            return _answer(path, 400, UNREADABLE)
        words = in_words(error)
        return _answer(path, {NO_SPACE: 507, UNEXPECTED: 500}.get(words, 503), words)


def _most(scope: Scope) -> int:
    """Bytes that the body of a request may have."""
    return MAX_UPLOAD if scope["path"] == UPLOAD else MAX_BODY


def _answer(path: str, status: int, words: str) -> Response:
    """As Gradio's own: text for uploads, which the page shows, and JSON for everything else."""
    return PlainTextResponse(words, status) if path == UPLOAD else JSONResponse({"detail": words}, status)
