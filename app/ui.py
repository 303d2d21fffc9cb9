"""The page: a header that says what runs where, and a tab per task."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app import api, theme
from app.service import Service
from app.tabs import any_to_any
from app.views import listed

TABS = (any_to_any,)
CACHE_SECONDS = 24 * 3600


def build_demo(service: Service) -> gr.Blocks:
    """The whole page; `launch` serves it."""
    with gr.Blocks(title="mmdiff", analytics_enabled=False, delete_cache=(3600, CACHE_SECONDS)) as demo:
        theme.html(_header(service), elem_id="header")
        with gr.Tabs():
            for tab in TABS:
                tab.build(service)
        api.build(service)
    return demo.queue()


def launch(
    demo: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, **options: Any
) -> tuple[Any, str, str]:
    """`demo.launch` with this page's looks, nothing shared, nothing fetched from elsewhere."""
    return demo.launch(
        server_name=host,
        server_port=port,
        theme=theme.theme(),
        css_paths=theme.STYLE,
        share=False,
        ssr_mode=False,
        footer_links=["api"],
        max_file_size="20mb",
        **options,
    )


def _header(service: Service) -> str:
    facts = [service.name, *_sizes(service), service.device]
    chips = "".join(f"<span>{escape(fact)}</span>" for fact in facts)
    return (
        '<header class="masthead"><div><h1>mmdiff</h1>'
        "<p>One diffusion model for "
        f"{listed(list(service.pipe.modalities))}: any of them from any others.</p></div>"
        f'<div class="facts" aria-label="Checkpoint and device">{chips}</div></header>'
    )


def _sizes(service: Service) -> list[str]:
    sizes = [
        f"{s.shape[-1]} × {s.shape[-2]} px" for s in service.pipe.modalities.values() if s.kind == "image"
    ]
    return sizes + ([f"{service.size_mb:.0f} MB"] if service.size_mb else [])
