"""What can be taken home from what is shown: files, settings, a link, and code that does the same."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import gradio as gr
from gradio.context import Context
from gradio.processing_utils import save_file_to_cache

from app.controls.inputs import QUIET
from app.errors import plain_errors
from app.export import code as snippet
from app.export import film
from app.export import settings_file as recipe
from app.export import zip_file as bundle
from app.export.link import to_query
from app.run.player_data import Track
from app.tabs.tasks import Task
from app.theme import html

# The file is ready when the hidden button knows its address, which the page learns a moment later.
# The server is told which run the page shows, as it may have forgotten it.
RUN_SHOWN = "(run, shown) => [document.querySelector('#%s-player [data-run]')?.dataset.run ?? '', shown]"
DOWNLOAD = "() => setTimeout(() => document.querySelector('#%s-download').click(), 150)"


class TakeHome:
    """Controls made inside the current `gr.Blocks` context.

    `shown` holds the tracks on the stage, None before the first run, when those of `opening` are there.

    Attributes:
        outputs: what `update` gives updates for.
        run: for scripts, to say in it which run the page shows.
    """

    def __init__(self, task: Task, shown: gr.State, opening: Sequence[Track]) -> None:
        self._task, self._opening, name = task, opening, task.name
        self._demo = Context.root_block
        with gr.Row(elem_classes="take-home"):
            html('<span class="hint">Take home</span>')
            makers = {
                "Everything (zip)": ("zip", self._zip),
                "Settings": ("json", self._settings),
                "GIF": ("gif", film.write_gif),
                "MP4": ("mp4", film.write_mp4),
            }
            buttons = {
                kind: gr.Button(title, size="sm", scale=0, min_width=60, elem_id=f"{name}-{kind}")
                for title, (kind, _) in makers.items()
            }
        ready = gr.DownloadButton("", elem_id=f"{name}-download", elem_classes="offstage")
        self.run = gr.Textbox("", visible=False)
        for kind, write in makers.values():
            make = self._file_maker(kind, write, ready.GRADIO_CACHE)
            done = buttons[kind].click(
                make,
                [self.run, shown],
                ready,
                js=RUN_SHOWN % name,
                show_progress="minimal",
                api_visibility="private",
            )
            done.success(None, js=DOWNLOAD % name, **QUIET)
        with gr.Accordion("Link and code", open=False, elem_id=f"{name}-code"):
            self.link = gr.Textbox(
                label="Link that reproduces this run",
                buttons=["copy"],
                interactive=False,
                elem_id=f"{name}-link",
                placeholder="After a run, its link is here.",
            )
            self.note = html("", elem_id=f"{name}-link-note")
            self.client = gr.Code(
                label="The same from Python, through this page’s API",
                language="python",
                interactive=False,
                max_lines=24,
                elem_id=f"{name}-client-code",
            )
            self.library = gr.Code(
                label="The same with the library",
                language="python",
                interactive=False,
                max_lines=24,
                elem_id=f"{name}-library-code",
            )
        self.outputs = [self.link, self.note, self.client, self.library]

    def update(self, tracks: Sequence[Track], request: gr.Request) -> dict[Any, Any]:
        """Link and code for the last of the tracks."""
        record = tracks[-1].record
        query, left_out = to_query(record.job, record.checkpoint, self._task.name)
        root = root_address(request, self.link.page)
        notes = "".join(f'<p class="hint">{escape(words)}</p>' for words in left_out)
        return {
            self.link: root + self._route(record.checkpoint) + query,
            self.note: notes,
            self.client: snippet.python_snippet(record.job, root, record.checkpoint, self._task.name),
            self.library: snippet.library_snippet(record.job, f"checkpoints/{record.checkpoint}"),
        }

    def _route(self, checkpoint: str) -> str:
        """Where the page of a checkpoint is below the root: nowhere else if it is the first one's."""
        return next((route for route, name, _ in self._demo.pages[1:] if name == checkpoint), "")

    def _file_maker(self, kind: str, write: Callable, cache: str) -> Callable[[str, list[Track] | None], str]:
        def make(run: str, tracks: list[Track] | None) -> str:
            with plain_errors(), tempfile.TemporaryDirectory() as folder:
                tracks = tracks or self._opening
                check_kept(run, tracks)
                record = tracks[-1].record
                path = Path(folder) / f"mmdiff_{record.checkpoint}_{record.job.seed}.{kind}"
                if kind in ("gif", "mp4"):
                    write(path, [(t.title, t.record) for t in tracks], [t.describe for t in tracks])
                else:
                    write(path, tracks)
                return save_file_to_cache(path, cache)

        return make

    def _settings(self, path: Path, tracks: Sequence[Track]) -> None:
        """The settings of the last track."""
        record = tracks[-1].record
        path.write_text(recipe.to_json(record.job, record.checkpoint, self._task.name))

    def _zip(self, path: Path, tracks: Sequence[Track]) -> None:
        """The files of the track; of two tracks a zip each, in one, with the settings of the last."""
        if len(tracks) == 1:
            return bundle.write_zip(tracks[0].record, tracks[0].describe, path, self._task.name)
        with zipfile.ZipFile(path, "w") as together:
            record = tracks[-1].record
            settings = recipe.to_json(record.job, record.checkpoint, self._task.name)
            together.writestr(recipe.ZIP_ENTRY, settings)
            for k, track in enumerate(tracks, 1):
                part = path.with_name(f"part{k}.zip")
                bundle.write_zip(track.record, track.describe, part, self._task.name)
                together.write(part, f"{k} {track.title}.zip".replace("/", "-"))


def check_kept(run: str, tracks: Sequence[Track]) -> None:
    """Raises ValueError if the page shows another run than these, by the id that it says; "" says nothing."""
    if run not in ("", tracks[0].id):  # forgotten, perhaps while the visitor's computer slept
        raise ValueError(
            "The server no longer has the run that is shown. Tick Keep beside its seed and run it again."
        )


def root_address(request: gr.Request, route: str) -> str:
    """Where the visitor's browser has the first page, the only one with an API; "" if it does not say.

    `route` is where the visitor's page is below the first one, which itself may be below anything; "" if it
    is the first.
    """
    headers = request.headers
    page = urlsplit(headers.get("referer") or headers.get("origin") or "")
    path = page.path.rstrip("/")
    above, _, last = path.rpartition("/")
    if route and unquote(last) == route:
        path = above
    return f"{page.scheme}://{page.netloc}{path}/" if page.netloc else ""
