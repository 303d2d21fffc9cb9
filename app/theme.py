"""How the page looks: one theme, a style sheet, system fonts only."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils.colors import Color

STATIC = Path(__file__).parent / "static"
STYLES = sorted(STATIC.glob("*.css"))
# Scripts of the whole page, in this order one script; those of a component come with it.
SCRIPTS = ("page.js", "keys.js", "drop.js", "chips.js", "runs.js")
HEAD = f"<script>{''.join((STATIC / name).read_text(encoding='utf-8') for name in SCRIPTS)}</script>"
LEAF = Color(
    name="leaf",
    c50="#f1f6f3", c100="#dfebe4", c200="#c0d8cb", c300="#97bdaa", c400="#6b9d86", c500="#4b826a",
    c600="#3a6955", c700="#305546", c800="#29453a", c900="#233a31", c950="#11201a",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """Quiet greens on warm grey."""
    return gr.themes.Base(
        primary_hue=LEAF,
        secondary_hue=LEAF,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        font=["ui-sans-serif", "system-ui", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_border_width="0px",
        block_shadow="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_500",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_title_text_weight="600",
        block_title_text_color="*body_text_color",
    )


def html(value: str, **options: Any) -> gr.HTML:
    """HTML that only our own style sheet dresses."""
    return gr.HTML(value, apply_default_css=False, **options)
