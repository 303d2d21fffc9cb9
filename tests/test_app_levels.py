"""The page with a checkpoint whose modalities have levels: its forms, and a run with leads."""

import pytest
import torch
from synthetic import lively_model, tiny_config

from app.run.defaults import first_sampled, from_nothing
from app.run.service import Service
from app.ui import build_demo
from mmdiff.checkpoint import save_checkpoint
from mmdiff.request import Request

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Service:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(lively_model(tiny_config(("image", "mask", "label"), core="levels")), folder)
    return Service.from_checkpoint(folder, precision="float32")


def test_nothing_is_sampled_first_where_leads_decide(service):
    assert first_sampled(service.modalities) is None
    assert from_nothing(service.modalities) == {"guidance_scale": {}}
    assert service.example.finished and service.filled.finished


def test_a_run_has_the_leads_of_its_request(service):
    record = service.run(Request(steps=5, leads={"label": 0.5}, guidance_scale={"label": 2.0}, seed=1))
    own = service.run(Request(steps=5, seed=1))
    assert record.finished and record.request.leads == {"image": 0, "mask": 0, "label": 0.5}
    assert not (record.last.x["image"] == own.last.x["image"]).all()


def test_the_page_is_built(service):
    assert build_demo([service]).fns
