"""What a page shows before Gradio is there, and keeps above it: its name, and recorded runs that play."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template

from starlette.requests import Request as Visit
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from app.run.defaults import MAX_SEED
from app.run.service import Service
from app.run.showcase import folder_of, play, recorded
from app.run.visitors import address_of
from app.wording import escaped, gloss, glossed, listed
from mmdiff.modalities import Modality

STATIC = Path(__file__).parent / "static" / "opening"
TEMPLATE = Template((STATIC / "opening.html").read_text(encoding="utf-8"))
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
CACHE = {"Cache-Control": "public, max-age=3600"}
BASE = "showcase"  # of addresses, below the page's own


def title(service: Service) -> str:
    """What the model does, one sentence."""
    count = len(service.modalities)
    return f"One model. Pin any one of the {COUNTS.get(count, count)}; it makes the rest."


def about(service: Service) -> str:
    """The same to somebody who asks what."""
    names = listed(list(map(glossed, service.modalities.values())))
    return f"A diffusion model that makes {names} together, in agreement, and any of them from any others."


def opening(service: Service, linked: bool) -> str:
    """The HTML: with recorded runs, or only the words for a link to a run and where nothing was recorded."""
    scenes = len(recorded(service))
    return TEMPLATE.substitute(
        kind="whole" if scenes and not linked else "",
        title=escaped(title(service)),
        about=escaped(about(service)),
        stage=_stage(service, scenes),
    )


@cache
def style_and_script() -> tuple[str, str]:
    """Of what `opening` gives, as HTML: one for the head, one to follow it."""
    styles = "".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.css")))
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted(STATIC.glob("*.js")))
    return f"<style>\n{styles}</style>", f"<script>\n{scripts}</script>"


def head(service: Service, address: str) -> str:
    """The card of a link to the page, Open Graph; `address` of the page without a slash at its end."""
    card = {"og:type": "website", "og:url": address, "og:title": f"mmdiff: {title(service)}"}
    card |= {"og:description": about(service), "twitter:card": "summary_large_image"}
    if (folder := folder_of(service)) and (folder / "card.jpg").is_file():
        card["og:image"] = f"{address}/{BASE}/{service.name}/card.jpg"
        card |= {"og:image:width": "1200", "og:image:height": "630", "og:image:alt": about(service)}
    return "".join(f'<meta property="{name}" content="{escaped(text)}" />' for name, text in card.items())


def routes(services: Sequence[Service]) -> list[Route]:
    """Where the browser finds the recordings and the card."""
    by_name: Mapping[str, Service] = {service.name: service for service in services}

    def found(visit: Visit, file: str) -> Response:
        service = by_name.get(visit.path_params["name"])
        folder = service and folder_of(service)
        if not folder or not (folder / file).is_file():
            return JSONResponse({"detail": f"There is no {file} of that checkpoint."}, 404)
        return FileResponse(folder / file, headers=CACHE)

    def new(visit: Visit) -> Response:
        """Two scenes with this seed: out of noise, and one after it in which a modality is pinned."""
        service, seed = by_name.get(visit.path_params["name"]), visit.query_params.get("seed", "")
        if service is None or not seed.isdecimal() or int(seed) > MAX_SEED:
            return JSONResponse({"detail": f"Give a checkpoint and a seed from 0 to {MAX_SEED}."}, 404)
        names = list(service.modalities)
        pins = ["", names[int(seed) % len(names)]]
        try:
            return JSONResponse(list(play(service, pins, int(seed), owner=address_of(visit))))
        except ValueError as error:  # too many are waiting
            return JSONResponse({"detail": str(error)}, 503)

    return [
        Route(f"/{BASE}/{{name}}/new", new),
        Route(f"/{BASE}/{{name}}/card.jpg", lambda visit: found(visit, "card.jpg")),
        Route(
            f"/{BASE}/{{name}}/{{number:int}}.json",
            lambda visit: found(visit, f"scene_{visit.path_params['number']}.json"),
        ),
    ]


def _stage(service: Service, scenes: int) -> str:
    figures = "".join(map(_figure, service.modalities.values()))
    columns = 2 if len(service.modalities) <= 4 else 3
    names = listed(list(service.modalities))
    label = f"A recorded run: {names} come out of noise together; then one is pinned and the others follow."
    return (
        f'<div class="stage"><div class="constellation" style="--columns:{columns}" data-scenes="{scenes}" '
        f'data-base="{BASE}/{escaped(service.name)}" role="group" aria-label="{escaped(label)}">'
        f'<svg class="lines" aria-hidden="true"></svg>{figures}</div>{TOLD}</div>'
    )


def _figure(spec: Modality) -> str:
    drawn = '<canvas class="drawn"></canvas>' if spec.dense else '<p class="said"></p>'
    return (
        f'<figure data-name="{escaped(spec.name)}" data-form="{spec.form}">'
        f"<figcaption><b>{escaped(spec.name.capitalize())}</b>{_gloss(spec)}"
        '<span class="pin">pinned</span></figcaption>'
        f'<div class="plate">{drawn}'
        '<canvas class="noise" aria-hidden="true"></canvas></div></figure>'
    )


def _gloss(spec: Modality) -> str:
    plain = gloss(spec)
    return f'<span class="gloss">{escaped(plain)}</span>' if plain else ""


TOLD = (
    '<div class="told"><button type="button" aria-label="Pause"><svg viewBox="0 0 16 16" aria-hidden="true">'
    '<path class="start" d="M4.5 2.5v11l9-5.5z"/><path class="pause" d="M4 3h3v10H4zM9 3h3v10H9z"/></svg>'
    "</button><p><b></b><span></span><small></small></p></div>"
)
