"""Errors in words for the page."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import gradio as gr

log = logging.getLogger(__name__)


def explain(error: Exception) -> gr.Error:
    """A `ValueError` keeps its text; anything else is logged, and the page says only that it happened."""
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, ValueError):
        return gr.Error(escape(str(error), quote=False), duration=6, print_exception=False)
    log.error("unexpected error", exc_info=error)
    return gr.Error(
        "Something unexpected went wrong. The server goes on; its log has the details.",
        duration=6,
        print_exception=False,
    )


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns any error inside into a `gr.Error` with words for the page."""
    try:
        yield
    except Exception as error:
        raise explain(error) from None
