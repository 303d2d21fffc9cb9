"""What a browser gets for an address that the page does not have: words and a way back, instead of JSON."""

from fastapi.exception_handlers import http_exception_handler
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from app.wording import escaped

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Not found · mmdiff</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ max-width: 34rem; margin: 18vh auto 0; padding: 0 24px;
    font: 16px/1.5 ui-sans-serif, system-ui, sans-serif; }}
</style></head>
<body><h1>There is no page here</h1>
<p>The address <b>{path}</b> leads nowhere: a checkpoint may have been renamed, or the link was cut off.</p>
<p><a href="{home}">Go to the demo</a></p></body></html>
"""


async def not_found(request: Request, error: HTTPException) -> Response:
    """A page for those who asked for one; programs get the JSON that they expect."""
    if "text/html" not in request.headers.get("accept", ""):
        return await http_exception_handler(request, error)
    home = escaped(request.scope.get("root_path", "").rstrip("/") + "/")
    return HTMLResponse(PAGE.format(path=escaped(request.url.path), home=home), status_code=404)
