"""The page: a header that says what runs where, a tab per task, and runs that come from files and links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from html import escape
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from app import api, theme
from app.controls.examples import opening
from app.controls.inputs import QUIET
from app.errors import plain_errors
from app.export import settings_file as recipe
from app.export.link import HOLE, from_query, is_link
from app.first_script import FirstScript
from app.run.job import Job
from app.run.service import Service
from app.tabs import how_it_works, task
from app.tabs.task import Tab
from app.tabs.tasks import TASKS
from app.wording import listed

CACHE_SECONDS = 24 * 3600
# Pages of other models are below the first one's, wherever that is.
MENU = (
    "const own = this.dataset.own, path = location.pathname.replace(/\\/$/, '');"
    "location.assign((own ? path.slice(0, -own.length - 1) : path) + '/' + this.value)"
)


def build_demo(services: Sequence[Service]) -> gr.Blocks:
    """The whole page, and one of its own for each further model; `launch` serves them."""
    first, *others = services
    with gr.Blocks(title="mmdiff", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as demo:
        _page(demo, first, services)
        api.build(services)
    for service in others:
        with demo.route(service.name, service.name):
            _page(demo, service, services)
    return demo.queue()


def _page(demo: gr.Blocks, service: Service, services: Sequence[Service]) -> None:
    """The page of one of the models."""
    with gr.Row(elem_classes="top"):
        theme.html(_header(service, services), elem_id="header")
        restore = gr.UploadButton(
            "Restore a run",
            file_types=[".json", ".png", ".zip"],
            size="sm",
            scale=0,
            min_width=120,
            elem_id="restore",
        )
    message = theme.html("", elem_id="message")
    with gr.Tabs() as tabs:
        models = [service, *(other for other in services if other is not service)]
        built = [task.build(t, models) for t in TASKS if t.fits(service.modalities)]
        how_it_works.build(service)
    Restorer(service, built, tabs, message).connect(demo, restore)


class Restorer:
    """Fills in the form of a task and runs it, as a file or the link of this page says."""

    def __init__(self, service: Service, built: Sequence[Tab], tabs: gr.Tabs, message: gr.HTML) -> None:
        self._service, self._tabs, self._message = service, tabs, message
        self._by_name: Mapping[str, Tab] = {tab.task.name: tab for tab in built}
        self._job, self._task = gr.State(None), gr.State("")
        self._outputs = [tabs, message, self._job, self._task]
        for tab in built:
            self._outputs += tab.form.outputs

    def connect(self, demo: gr.Blocks, button: gr.UploadButton) -> None:
        """Restores what is uploaded with `button`, and what the page's own address asks for."""
        # What is said of an earlier file would seem to be said of the next.
        button.click(lambda: "", None, self._message, queue=False, **QUIET)
        for event in (
            button.upload(self._from_file, button, self._outputs, **QUIET),
            demo.load(self._from_link, None, self._outputs, **QUIET),
        ):
            for tab in self._by_name.values():
                tab.stage.after(event.success, [self._task, self._job], _replay(tab))

    def _from_file(self, path: str) -> list[Any]:
        with plain_errors():
            try:
                job, checkpoint, name = recipe.read(path, self._service.modalities)
                self._check_checkpoint(checkpoint)
            except (
                ValueError
            ) as error:  # said where the last success was, which would seem to be of this file
                words = escape(str(error), quote=False)
                return self._unchanged(_note(f"This file cannot be restored. {words}", "problem"))
            return self._shown(name, job, job, _note("The run is restored and starts again."))

    def _from_link(self, request: gr.Request) -> list[Any]:
        params = dict(request.query_params)
        if not is_link(params):
            return self._opened()
        try:
            linked = from_query(params, self._service.modalities)
            self._check_checkpoint(linked.checkpoint)
        except ValueError as error:
            note = _note(f"This link cannot be restored. {escape(str(error), quote=False)}", "problem")
            return self._opened(note)
        job = linked.job if "want" in params else self._within(linked.task, linked.job)
        if not linked.missing:
            return self._shown(linked.task, job, job, _note("This run came from a link."))
        things = listed([f"the {name}" for name in linked.missing])
        note = _note(
            f"The settings came from a link, but {things} did not fit into it. Add what is missing, then "
            "press Run; Keep is ticked, so the seed is the same.",
            "problem",
        )
        return self._shown(linked.task, job, None, note, linked.missing)

    def _within(self, name: str, job: Job) -> Job:
        """The job with only those wanted that belong to the task."""
        if name not in self._by_name:
            return job
        own = self._by_name[name].task.modalities(self._service.modalities)
        return replace(job, wanted=tuple(n for n in job.wanted if n in own) or job.wanted)

    def _check_checkpoint(self, name: str) -> None:
        if name and name != self._service.name:
            raise ValueError(
                f"The run was made with the checkpoint “{name}”, this page shows “{self._service.name}”. "
                "Choose the other one in the menu above, if it is there, and try again."
            )

    def _shown(self, name: str, job: Job, runs: Any, note: str, missing: tuple[str, ...] = ()) -> list[Any]:
        """The form of the task filled in, and a run of `runs` to come."""
        if not self._has_room(name, {*job.given, *job.wanted, *missing} - {HOLE}):
            name = "any_to_any"
        updates: list[Any] = [gr.update(selected=name), note, runs, name if runs else ""]
        for other, tab in self._by_name.items():
            updates += tab.form.show(job, missing=missing) if other == name else _skipped(tab)
        return updates

    def _has_room(self, name: str, modalities: Set[str]) -> bool:
        """Whether there is a task of this name whose form has a row for each of these."""
        tab = self._by_name.get(name)
        return tab is not None and modalities <= set(tab.task.modalities(self._service.modalities))

    def _unchanged(self, note: str) -> list[Any]:
        """Everything as it is, but for what is said."""
        updates: list[Any] = [gr.skip(), note, None, ""]
        for tab in self._by_name.values():
            updates += _skipped(tab)
        return updates

    def _opened(self, note: str = "") -> list[Any]:
        """How the page begins: forms that need something given have something."""
        updates: list[Any] = [gr.skip(), note, None, ""]
        for tab in self._by_name.values():
            job = opening(tab.task, self._service)
            updates += _skipped(tab) if job is None else tab.form.show(job, False)
        return updates


def _skipped(tab: Tab) -> list[Any]:
    return [gr.skip() for _ in tab.form.outputs]


def _replay(tab: Tab) -> Any:
    """Runs the job if it is of this tab's task."""

    def replay(request: gr.Request, name: str, job: Any) -> Any:
        if name == tab.task.name and job is not None:
            yield from tab.stage.replay(request, job)
        else:
            yield {tab.stage.status: gr.skip()}

    return replay


def _note(text: str, kind: str = "calm") -> str:
    return f'<p class="message {kind}" role="status">{text}</p>'


def launch(
    demo: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any
) -> tuple[Any, str, str]:
    """`demo.launch` with this page's looks, nothing shared, nothing fetched from elsewhere."""
    return demo.launch(
        server_name=host,
        server_port=port,
        theme=theme.theme(),
        css_paths=theme.STYLES,
        app_kwargs={"middleware": [Middleware(FirstScript)]},
        share=False,
        ssr_mode=False,
        footer_links=["api"],
        max_file_size="20mb",
        **options,
    )


def _header(service: Service, services: Sequence[Service]) -> str:
    facts = [*_sizes(service), service.device]
    if service.left_out:
        facts.append(f"{listed(list(service.left_out))} not shown: no controls for this kind")
    chips = _menu(service, services) + "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        '<header class="masthead"><div><h1>mmdiff</h1>'
        "<p>One diffusion model for "
        f"{listed(list(service.modalities))}: any of them from any others.</p></div>"
        f'<div class="facts" aria-label="Checkpoint and device">{chips}</div></header>'
    )


def _menu(service: Service, services: Sequence[Service]) -> str:
    """The name of the checkpoint; a menu if there are several."""
    if len(services) == 1:
        return f"<span>{escape(service.name)}</span>"
    routes = {other.name: "" if other is services[0] else other.name for other in services}
    chosen = {service.name: " selected"}
    options = "".join(
        f'<option value="{escape(route)}"{chosen.get(name, "")}>{escape(name)}</option>'
        for name, route in routes.items()
    )
    own = escape(routes[service.name])
    return f'<select aria-label="Checkpoint" data-own="{own}" onchange="{MENU}">{options}</select>'


def _sizes(service: Service) -> list[str]:
    sizes = [f"{s.shape[-1]} × {s.shape[-2]} px" for s in service.modalities.values() if s.kind == "image"]
    return sizes + ([f"{service.size_mb:.0f} MB"] if service.size_mb else [])
