"""The page: a header that says what runs where, a tab per task, and runs that come from files and links."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.routes import INTERNAL_ROUTES
from starlette.middleware import Middleware

from app import api, opening, theme
from app.controls.examples import opening_request
from app.controls.inputs import QUIET
from app.errors import Blocks, plain_errors
from app.export import settings_file
from app.export.link import HOLE, from_query, is_link
from app.export.settings_file import SavedRun
from app.first_paint import FirstPaint
from app.guard import Guard
from app.knowledge import knowledge
from app.run.service import Service
from app.run.visitors import MAX_RUNS
from app.sessions import DescribedOnce
from app.tabs import how_it_works
from app.tabs.run_panel import RunPanel
from app.tabs.tab import build_tab
from app.task import TASKS
from app.wording import escaped, listed
from mmdiff.modalities import Modality
from mmdiff.request import Request

CACHE_SECONDS = 24 * 3600
MAX_SESSIONS = 50  # of visitors whose photos and runs are kept, each some megabytes
MAX_THREADS = MAX_RUNS + 48  # so that everything but runs always has some; Gradio's own pages have others
MAX_EVENTS, MAX_OF_A_KIND = 300, 4  # that may wait for Gradio, and of each button that it serves at a time


class Demo(Blocks):
    """The pages; `services` are the models by the path of their page, "" for the first."""

    services: Mapping[str, Service]


def build_demo(services: Sequence[Service]) -> Demo:
    """The whole page, and one of its own for each further model; `launch` serves them."""
    first, *others = services
    routes = routes_of([service.name for service in services])
    with Demo(title="mmdiff", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as demo:
        demo.services = {"": first} | {routes[service.name]: service for service in others}
        _page(demo, first, services)
        api.build(services)
    for service in others:
        with demo.route(service.name, routes[service.name]):
            _page(demo, service, services)
    demo.default_config = DescribedOnce(demo.default_config)
    return demo.queue(max_size=MAX_EVENTS, default_concurrency_limit=MAX_OF_A_KIND)


def routes_of(names: Sequence[str]) -> dict[str, str]:
    """Where the page of each model is below the root, the first one's at the root itself.

    A name's own route if it can be one; otherwise what is left of it, made unique.
    """
    routes = {names[0]: ""}
    for name in names[1:]:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
        taken = {*routes.values(), *INTERNAL_ROUTES, *(other for other in names[1:] if other != name)}
        free = (route for route in (plain, *(f"{plain}-{k}" for k in range(2, 99))) if route not in taken)
        routes[name] = next(free)
    return routes


def _page(demo: gr.Blocks, service: Service, services: Sequence[Service]) -> None:
    """The page of one of the models."""
    with gr.Row(elem_classes="top"):
        theme.html(_header(service, services), elem_id="header")
        looks = {"size": "sm", "scale": 0, "min_width": 120, "elem_id": "restore"}
        restore = gr.UploadButton("Restore a run", file_types=[".json", ".png", ".zip"], **looks)
    theme.html(knowledge(service.modalities), elem_id="knows")
    message = theme.html("", elem_id="message")
    with gr.Tabs() as tabs:
        models = [service, *(other for other in services if other is not service)]
        built = [build_tab(t, models) for t in TASKS if t.fits(service.modalities)]
        how_it_works.build(service)
    titles = {task.name: task.title for task in TASKS} | {how_it_works.NAME: how_it_works.TITLE}
    told = escaped(json.dumps(titles))
    theme.html(f'<section id="runs" data-tabs="{told}" hidden></section>')  # runs.js fills it
    Restorer(service, built, tabs, message).connect(demo, restore)


class Restorer:
    """Fills in the form of a task and runs it, as a file or the link of this page says."""

    def __init__(self, service: Service, built: Sequence[RunPanel], tabs: gr.Tabs, message: gr.HTML) -> None:
        self._service, self._tabs, self._message = service, tabs, message
        self._by_name: Mapping[str, RunPanel] = {tab.task.name: tab for tab in built}
        self._request, self._task = gr.State(None), gr.State("")
        self._outputs = [tabs, message, self._request, self._task]
        for tab in built:
            self._outputs += tab.form.outputs
        self._opened_outputs = [output for tab in built for output in tab.opened]

    def connect(self, demo: gr.Blocks, button: gr.UploadButton) -> None:
        """Restores the file that is uploaded with `button`, and the link in the page's own address."""
        # A message on an earlier file would seem to be on the next.
        button.click(lambda: "", None, self._message, queue=False, **QUIET)
        # What it says is of the first run.
        begun = [event for tab in self._by_name.values() for event in tab.begins]
        gr.on(begun, None, None, self._message, js="() => ''", **QUIET)
        uploaded = button.upload(self._from_file, button, self._outputs, **QUIET)
        opened = demo.load(self._open, None, [*self._outputs, *self._opened_outputs], **QUIET)
        for tab in self._by_name.values():
            tab.after(uploaded.success, [self._task, self._request], tab.replay)
            tab.after(opened.success, [self._task, self._request], tab.replay, js=None)

    def _from_file(self, path: str | None) -> list[Any]:
        with plain_errors():
            try:
                if not path:
                    raise ValueError("There is no file. Choose one that this page has saved.")
                saved = settings_file.read(path, self._service.modalities)
                self._check_checkpoint(saved.checkpoint)
            except (
                ValueError
            ) as error:  # replaces a note on the last file, which would seem to be on this one
                return self._updates(gr.skip(), _problem("file", error))
            return self._shown(saved, _note("The run is restored and starts again."))

    def _open(self, visitor: gr.Request) -> list[Any]:
        """The page as its link says, with what the warm-up makes; waits for that."""
        updates = self._from_link(visitor)
        return updates + [value for tab in self._by_name.values() for value in tab.open()]

    def _from_link(self, visitor: gr.Request) -> list[Any]:
        params = dict(visitor.query_params)
        if not is_link(params):
            return self._opened()
        try:
            saved = from_query(params, self._service.modalities)
            self._check_checkpoint(saved.checkpoint)
        except ValueError as error:
            return self._opened(_problem("link", error))
        if "want" not in params:
            saved = replace(saved, request=self._within(saved.task, saved.request))
        if not saved.missing:
            return self._shown(saved, _note("This run came from a link."))
        things = listed([f"the {name}" for name in saved.missing])
        note = _note(
            f"The settings came from a link, but {things} did not fit into it. Add what is missing, then "
            "press Run; “Lock seed” is ticked, so the seed is the same.",
            "problem",
        )
        return self._shown(saved, note)

    def _within(self, name: str, request: Request) -> Request:
        """The request with only the task's modalities wanted."""
        own = self._modalities(name) or self._service.modalities
        return replace(request, wanted=tuple(n for n in request.wanted if n in own) or request.wanted)

    def _modalities(self, name: str) -> Mapping[str, Modality]:
        """Those of a task; none if there is no task of this name."""
        tab = self._by_name.get(name)
        return tab.task.modalities(self._service.modalities) if tab else {}

    def _check_checkpoint(self, name: str) -> None:
        if name and name != self._service.name:
            raise ValueError(
                f"The run was made with the checkpoint “{name}”, this page shows “{self._service.name}”. "
                "Choose the other one in the menu above, if it is there, and try again."
            )

    def _shown(self, saved: SavedRun, note: str) -> list[Any]:
        """The form of the task filled in, and, if nothing is missing, its run to come."""
        name, request = saved.task, saved.request
        if not {*request.given, *request.wanted, *saved.missing} - {HOLE} <= self._modalities(name).keys():
            name = "any_to_any"
        form = {name: self._by_name[name].form.show(request, missing=saved.missing)}
        run = (None, "") if saved.missing else (request, name)
        return self._updates(gr.update(selected=name), note, run, **form)

    def _opened(self, note: str = "") -> list[Any]:
        """The page at first: forms that need something given have something."""
        requests = {name: opening_request(tab.task, self._service) for name, tab in self._by_name.items()}
        forms = {n: self._by_name[n].form.show(r, False) for n, r in requests.items() if r is not None}
        return self._updates(gr.skip(), note, **forms)

    def _updates(
        self, tabs: Any, note: str, run: tuple[Request | None, str] = (None, ""), **forms: list[Any]
    ) -> list[Any]:
        """Updates of all outputs; forms of tasks that are not named stay as they are."""
        updates = [tabs, note, *run]
        for name, tab in self._by_name.items():
            updates += forms.get(name) or [gr.skip() for _ in tab.form.outputs]
        return updates


def _problem(what: str, error: ValueError) -> str:
    return _note(f"This {what} cannot be restored. {escaped(error)}", "problem")


def _note(text: str, kind: str = "calm") -> str:
    return f'<p class="message {kind}" role="status">{text}</p>'


def launch(
    demo: Demo,
    host: str = "127.0.0.1",
    port: int | None = None,
    origins: Sequence[str] = (),
    tidy: Callable[[], None] = lambda: None,
    **options: Any,
) -> tuple[Any, str, str]:
    """`demo.launch` with this page's looks, nothing shared, nothing fetched from elsewhere.

    `origins` and `tidy` are as of `Guard`.
    """
    names = [fn.api_name for fn in demo.fns.values() if fn.api_visibility == "public"]
    guard = Middleware(Guard, names=names, origins=origins, tidy=tidy)
    return demo.launch(
        server_name=host,
        server_port=port,
        theme=theme.theme(),
        css_paths=theme.STYLES,
        head=theme.HEAD,
        app_kwargs={
            "middleware": [guard, Middleware(FirstPaint, services=demo.services)],
            "routes": opening.routes(list(demo.services.values())),
        },
        share=False,
        ssr_mode=False,
        footer_links=["api"],
        max_file_size="20mb",
        max_threads=MAX_THREADS,
        state_session_capacity=MAX_SESSIONS,
        enable_monitoring=False,
        run_history=False,
        **options,
    )


def _header(service: Service, services: Sequence[Service]) -> str:
    facts = [*([f"{service.size_mb:.0f} MB"] if service.size_mb else []), service.device]
    chips = _menu(service, services) + "".join(f"<span>{escaped(fact)}</span>" for fact in facts)
    return f'<div class="facts" role="group" aria-label="Checkpoint and device">{chips}</div>'


def _menu(service: Service, services: Sequence[Service]) -> str:
    """The name of the checkpoint; a menu if there are several, which runs.js follows."""
    if len(services) == 1:
        return f"<span>{escaped(service.name)}</span>"
    routes, chosen = routes_of([other.name for other in services]), {service.name: " selected"}
    options = "".join(
        f'<option value="{escaped(routes[other.name])}"{chosen.get(other.name, "")}>'
        f"{escaped(other.name)}</option>"
        for other in services
    )
    own = escaped(routes[service.name])
    return f'<select aria-label="Checkpoint" data-own="{own}">{options}</select>'
