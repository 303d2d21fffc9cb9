"""Sessions of visitors: described as Gradio describes them, but once, and apart from each other."""

import gradio as gr
import pytest
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from app.sessions import DescribedOnce


@pytest.fixture
def demo():
    with gr.Blocks() as demo:
        box, button = gr.Textbox("first", label="Words"), gr.UploadButton("A file")
        gr.State([1])
        button.upload(lambda path: path, button, box)
    return demo


def test_descriptions_are_those_of_gradio_and_made_once(demo, monkeypatch):
    plain = SessionState(demo).config_values
    demo.default_config = DescribedOnce(demo.default_config)
    made = []
    describe = BlocksConfig.config_for_block
    monkeypatch.setattr(
        BlocksConfig, "config_for_block", staticmethod(lambda *args: made.append(1) or describe(*args))
    )
    assert SessionState(demo).config_values == plain
    assert len(made) == len(plain) > 3
    assert SessionState(demo).config_values == plain
    assert len(made) == len(plain), "the second session needs none"


def test_sessions_do_not_see_each_others_values(demo):
    demo.default_config = DescribedOnce(demo.default_config)
    one, other = SessionState(demo), SessionState(demo)
    (key,) = (k for k, block in demo.blocks.items() if isinstance(block, gr.Textbox))
    one._update_value_in_config(key, "changed")
    replaced = gr.Textbox("mine", label="Other words")
    one[key] = replaced
    one._update_config(key)
    assert one.config_values[key]["props"]["label"] == "Other words"
    assert other.config_values[key]["props"]["value"] == "first"
    assert SessionState(demo).config_values[key]["props"]["label"] == "Words"
