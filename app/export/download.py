"""Downloads of the runs that are shown: files, settings, a link, and programs that do the same."""

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio as gr
from gradio.context import Context
from gradio.processing_utils import save_file_to_cache

from app.controls.inputs import QUIET
from app.errors import plain_errors
from app.export import film
from app.export.code import client_program, library_program
from app.export.link import to_query
from app.export.settings_file import ZIP_ENTRY, to_json
from app.export.zip_file import write_zip
from app.run.history import Track
from app.task import Task
from app.theme import html
from app.wording import escaped

# The file is ready when the hidden button knows its address, which the page learns a moment later.
# The page says which run it shows, as the server may no longer have it.
RUN_SHOWN = "(run, shown) => [document.querySelector('#%s-player [data-run]')?.dataset.run ?? '', shown]"
DOWNLOAD = "() => setTimeout(() => document.querySelector('#%s-download').click(), 150)"


class Downloads:
    """Controls made inside the current `gr.Blocks` context.

    `shown` holds the tracks in the player, None before the first run, when those of `opening()` are there.

    Attributes:
        outputs: what `update` gives updates for.
        run: for scripts, to say in it which run the page shows.
    """

    def __init__(self, task: Task, shown: gr.State, opening: Callable[[], Sequence[Track]]) -> None:
        self._task, self._opening = task, opening
        self._demo = Context.root_block
        self.run = gr.Textbox("", visible=False)
        with gr.Row(elem_classes="downloads"):
            html('<span class="hint">Download</span>')
            self._buttons(shown)
        with gr.Accordion("Link and code", open=False, elem_id=f"{task.name}-code"):
            looks = {"placeholder": "After a run, its link is here.", "elem_id": f"{task.name}-link"}
            label = "Link that repeats this run"
            self.link = gr.Textbox(label=label, buttons=["copy"], interactive=False, **looks)
            self.note = html("", elem_id=f"{task.name}-link-note")
            program = partial(gr.Code, language="python", interactive=False, max_lines=24)
            label = "The same in Python, through this page"
            self.client = program(label=label, elem_id=f"{task.name}-client-code")
            label = "The same in Python, with the library"
            self.library = program(label=label, elem_id=f"{task.name}-library-code")
        self.outputs = [self.link, self.note, self.client, self.library]

    def _buttons(self, shown: gr.State) -> None:
        name = self._task.name
        titles = {"zip": "Everything (zip)", "json": "Settings", "gif": "GIF", "mp4": "MP4"}
        small = partial(gr.Button, size="sm", scale=0, min_width=60)
        buttons = {kind: small(title, elem_id=f"{name}-{kind}") for kind, title in titles.items()}
        ready = gr.DownloadButton("", elem_id=f"{name}-download", elem_classes="unseen")
        for kind, button in buttons.items():
            done = button.click(
                self._file_maker(kind, ready.GRADIO_CACHE),
                [self.run, shown],
                ready,
                js=RUN_SHOWN % name,
                show_progress="minimal",
                api_visibility="private",
            )
            done.success(None, js=DOWNLOAD % name, **QUIET)

    def update(self, tracks: Sequence[Track], visitor: gr.Request) -> dict[Any, Any]:
        """Link and code for the last of the tracks."""
        record = tracks[-1].record
        request, checkpoint = record.request, record.checkpoint
        query, left_out = to_query(request, checkpoint, self._task.name)
        root = root_address(visitor, self.link.page)
        notes = "".join(f'<p class="hint">{escaped(words)}</p>' for words in left_out)
        return {
            self.link: root + self._route(checkpoint) + query,
            self.note: notes,
            self.client: client_program(request, root, checkpoint, self._task.name),
            self.library: library_program(request, f"checkpoints/{checkpoint}"),
        }

    def _route(self, checkpoint: str) -> str:
        """Where the page of a checkpoint is below the root: nowhere else if it is the first one's."""
        return next((route for route, name, _ in self._demo.pages[1:] if name == checkpoint), "")

    def _file_maker(self, kind: str, cache: str) -> Callable[[str, list[Track] | None], str]:
        def make(run: str, tracks: list[Track] | None) -> str:
            with plain_errors(), tempfile.TemporaryDirectory() as folder:
                tracks = tracks or self._opening()
                check_kept(run, tracks)
                record = tracks[-1].record
                path = Path(folder) / f"mmdiff_{record.checkpoint}_{record.request.seed}.{kind}"
                self._write(kind, path, tracks)
                return save_file_to_cache(path, cache)

        return make

    def _write(self, kind: str, path: Path, tracks: Sequence[Track]) -> None:
        """A file of all tracks; settings are those of the last one."""
        for track in tracks:
            track.record.complete()
        runs, last = [(track.title, track.record) for track in tracks], tracks[-1].record
        if kind == "gif":
            film.write_gif(path, runs)
        elif kind == "mp4":
            film.write_mp4(path, runs)
        elif kind == "json":
            path.write_text(to_json(last.request, last.checkpoint, self._task.name))
        elif len(runs) == 1:
            write_zip(last, path, self._task.name)
        else:
            with zipfile.ZipFile(path, "w") as together:  # a zip for each track
                together.writestr(ZIP_ENTRY, to_json(last.request, last.checkpoint, self._task.name))
                for k, (title, record) in enumerate(runs, 1):
                    part = path.with_name(f"part{k}.zip")
                    write_zip(record, part, self._task.name)
                    together.write(part, f"{k} {title}.zip".replace("/", "-"))


def check_kept(run: str | None, tracks: Sequence[Track]) -> None:
    """Raises ValueError if `run`, the id of the run that the page shows, is none of these; "" is unknown."""
    if run not in (None, "", tracks[0].id):  # forgotten, perhaps while the visitor's computer slept
        raise ValueError(
            "The server no longer has the run that is shown: it was a live draft, or is long past. "
            "Press Run; with “Lock seed” ticked it comes out the same."
        )


def root_address(visitor: gr.Request, route: str) -> str:
    """Where the visitor's browser has the first page, the only one with an API; "" if it does not say.

    `route` is the path of the visitor's page below the first one, wherever that is; "" if it is the first.
    """
    headers = visitor.headers
    page = urlsplit(headers.get("referer") or headers.get("origin") or "")
    path = page.path.rstrip("/")
    above, _, last = path.rpartition("/")
    if route and unquote(last) == route:
        path = above
    return f"{page.scheme}://{page.netloc}{path}/" if page.netloc else ""
