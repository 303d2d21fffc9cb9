"""Errors in words, for the page and for clients of its API."""

import errno
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from app.wording import escaped

log = logging.getLogger(__name__)

UNEXPECTED = "Something unexpected went wrong. The server goes on; its log has the details."
NO_SPACE = "The server has no space left on its disk. Please try again later, or tell who runs it."
NO_TEXT = "The text has characters that stand for nothing, such as half of a pair. Write it anew."
NO_MEMORY = "The server has not enough memory for this. Please try fewer samples, or try again later."
UNREADABLE = "What was sent to “{name}” cannot be read: {why}"
NO_FILE = "give a file that was uploaded to this server, as gradio_client’s handle_file does."
NO_VALUE = "it has another kind of value. Reload the page and try again."


def in_words(error: Exception) -> str:
    """A `ValueError` keeps its text; of what is unexpected it says only that it happened, and logs it."""
    if isinstance(error, UnicodeError):
        return NO_TEXT
    if isinstance(error, ValueError):
        return str(error) or UNEXPECTED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error(NO_SPACE)
        return NO_SPACE
    log_unexpected(error)
    return NO_MEMORY if isinstance(error, MemoryError) else UNEXPECTED


def log_unexpected(error: Exception) -> None:
    """Logs what happened where, without texts that may hold what visitors sent."""
    trace = "".join(traceback.format_tb(error.__traceback__))
    said = f": {error}" if isinstance(error, RuntimeError) else ""  # as PyTorch's; others quote values
    log.error("unexpected %s%s\n%s", type(error).__name__, said, trace)


def explain(error: Exception) -> gr.Error:
    """The error for the page, which takes its text for HTML."""
    return error if isinstance(error, gr.Error) else _error(escaped(in_words(error)))


def _error(text: str) -> gr.Error:
    return gr.Error(text, duration=5, print_exception=False)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turns any error inside into a `gr.Error` with words for the page."""
    try:
        yield
    except Exception as error:
        raise explain(error) from None


class Blocks(gr.Blocks):
    """Blocks whose errors reach page and clients as sentences, also those of Gradio itself."""

    async def process_api(self, block_fn: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Gradio's, which sends its clients “error: null” and logs the inputs."""
        try:
            return await super().process_api(block_fn, *args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            for_page = block_fn.api_visibility == "private"
            raise explain(error) if for_page else _error(in_words(error)) from None

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """As Gradio's; what clients leave out at the end has its default."""
        inputs = [*inputs, *(getattr(block, "value", None) for block in block_fn.inputs[len(inputs) :])]
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:  # of a component, which may quote the input
            raise ValueError(error.message) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("inputs that cannot be read: %s", type(error).__name__)
            raise ValueError(_unreadable(block_fn, inputs)) from None


def _unreadable(block_fn: Any, inputs: list[Any]) -> str:
    """Names the files if there are any, which are most often to blame, and otherwise all controls."""
    given = [block for block, value in zip(block_fn.inputs, inputs, strict=False) if value is not None]
    files = [block for block in given if block.get_block_name() in ("file", "uploadbutton")]
    names = [str(getattr(block, "label", None) or block.get_block_name()) for block in files or given]
    what = ", ".join(name.partition(":")[0] for name in names)
    return UNREADABLE.format(name=what or "the page", why=NO_FILE if files else NO_VALUE)
