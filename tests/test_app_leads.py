"""Leads come back from links, settings files and programs as they were; older files have none."""

import json
from dataclasses import replace

import pytest
import torch
from synthetic import lively_model, tiny_config
from test_app_link import opened

from app.export.code import library_program
from app.export.link import from_query, to_query
from app.export.settings_file import from_dict, to_dict
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pipe(embedder) -> Pipeline:
    return Pipeline(lively_model(tiny_config(core="levels")), torch.device("cpu"), embedder)


@pytest.fixture(params=[None, {}, {"label": 0.5, "mask": 0.25}, {"image": 1.0}], ids=str)
def request_with_leads(request, pipe) -> Request:
    asked = Request({}, ("image", "label"), steps=4, seed=3, leads=request.param)
    return asked.checked(pipe.modalities, 1000)


def test_links(request_with_leads, pipe):
    query, left_out = to_query(request_with_leads, "tiny", "image-label")
    assert not left_out
    assert from_query(opened(query), pipe.modalities).request.leads == request_with_leads.leads


def test_settings_files(request_with_leads, pipe):
    data = json.loads(json.dumps(to_dict(request_with_leads, "tiny", "image-label")))
    assert from_dict(data, pipe.modalities).request == request_with_leads
    if request_with_leads.leads is None:
        older = {name: value for name, value in data.items() if name != "leads"} | {"version": 2}
        assert from_dict(older, pipe.modalities).request == request_with_leads


def test_guidance_by_what_is_generated(pipe):
    asked = Request({}, ("image", "label"), guidance_scale={"label": 2.0}, seed=3).checked(
        pipe.modalities, 1000
    )
    query, _ = to_query(asked, "tiny", "image-label")
    assert from_query(opened(query), pipe.modalities).request == asked
    assert from_dict(to_dict(asked, "tiny", "image-label"), pipe.modalities).request == asked


def test_programs(request_with_leads):
    program = library_program(request_with_leads, "checkpoints/tiny")
    called = {}

    class Pipe:
        @staticmethod
        def from_pretrained(_):
            return lambda **options: called.update(options)

    source = program.split("import mmdiff\n")[1]
    with pytest.raises((AttributeError, TypeError)):  # what it does with the output needs a real one
        exec(source, {"mmdiff": type("mmdiff", (), {"Pipeline": Pipe})})
    assert called.get("leads") == request_with_leads.leads


def test_checkpoints_without_leads_refuse_them(model):
    specs = dict(model.modalities.items())
    with pytest.raises(ValueError, match="together"):
        Request(leads={"label": 0.5}).checked(specs, 1000)
    assert Request(leads={}).checked(specs, 1000).leads == dict.fromkeys(specs, 0.0)


@pytest.mark.parametrize("text", ["soon", "-1", "99", ""])
def test_a_damaged_lead_in_a_link_is_refused_in_words(pipe, text):
    query = {"want": "image", "lead.label": text}
    with pytest.raises(ValueError, match="lead"):
        from_query(query, pipe.modalities)


def test_a_change_on_the_way_keeps_the_leads_of_its_run(pipe, request_with_leads):
    later = replace(request_with_leads, leads=None, changes=())
    from mmdiff.request import Change

    whole = replace(request_with_leads, changes=(Change(2, later),)).checked(pipe.modalities, 1000)
    assert whole.changes[0].request.leads == request_with_leads.leads
