"""The server under attack: limits, fairness, sentences instead of raw errors, nothing kept or logged."""

import errno
import http.client
import json
import logging
import threading
import time
from urllib.parse import urlsplit

import pytest
from fakes import FakePipeline, served

from app.guard import MAX_BODY, MAX_UPLOAD
from app.run.service import MAX_WAITING_OF_ONE, Service
from app.ui import MAX_SESSIONS, build_demo, launch
from benchmarks.serving import API, Client, file

MARK = "zq9private"


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(modalities=("image", "mask", "label", "embedding")), "fake")


@pytest.fixture(scope="module")
def address(service):
    with served(service) as address:
        yield address


@pytest.fixture
def client(address):
    return Client(address, seconds=20)


def values(**own):
    names = ("image", "hole", "mask", "label", "text", "embedding_image", "wanted", "steps", "seed")
    names += ("num_samples", "guidance_scale", "sampler", "checkpoint", "sample_first")
    given = dict.fromkeys(names) | {"wanted": ["label"], "steps": 1, "seed": 1} | own
    assert set(given) == set(names)
    return list(given.values())


@pytest.mark.parametrize("path", ["call/gone", "call/v2/gone", "run/gone", "api/gone"])
def test_an_unknown_endpoint_is_not_found_and_the_known_ones_are_named(client, path):
    answer = client.send(f"{API}/{path}", {"data": []})
    assert answer.status == 404 and "/describe, /generate, /run_settings" in answer.error


@pytest.mark.parametrize("number", [-1, 10**6, 10**30])
def test_an_unknown_event_is_not_found(client, number):
    answer = client.send(f"{API}/queue/join", {"data": [], "fn_index": number, "session_hash": "a"})
    assert answer.status == 404 and answer.error


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/monitoring/summary",
        f"{API}/runs",
        f"{API}/run-history/records",
        f"{API}/deep_link?x=1",
    ],
)
def test_nobody_can_watch_the_others(client, path):
    assert client.send(path).status == 404


@pytest.mark.parametrize(
    "own, words",
    [
        ({"steps": "abc"}, "steps is 'abc'"),
        ({"steps": {}}, "steps is {}"),
        ({"steps": True}, "steps is True"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"num_samples": [1]}, "num_samples is [1]"),
        ({"num_samples": 10**30}, "num_samples is 1000"),
        ({"guidance_scale": "much"}, "guidance_scale is 'much'"),
        ({"sampler": 3}, "no sampler is called 3"),
        ({"checkpoint": {"a": 1}}, "There is no checkpoint"),
        ({"wanted": "image"}, "wanted is a list"),
        ({"wanted": {"image": 1}}, "wanted is a list"),
        ({"sample_first": 5}, "sample_first is a list"),
        ({"label": {"a": 1}, "wanted": ["image"]}, "label is {'a': 1}"),
        ({"text": ["a"], "wanted": ["image"]}, "text is ['a']"),
        ({"image": 5}, "“image” cannot be read: give a file"),
        ({"image": "/etc/passwd"}, "“image” cannot be read: give a file"),
        ({"mask": file("/etc/passwd")}, "“mask” cannot be read: give a file"),
        ({"hole": {"path": "/etc/passwd"}}, "“hole” cannot be read: give a file"),
    ],
)
def test_values_of_the_wrong_kind_are_explained(client, own, words):
    answer = client.call("generate", values(**own))
    assert not answer.ok and words in answer.error


def test_values_that_are_left_out_have_their_defaults_and_whole_floats_are_whole(client):
    assert client.call("generate", []).body[2]["steps"] == 30
    assert client.call("generate", values(steps=None, num_samples=None)).body[2]["steps"] == 30
    assert client.call("generate", values(steps=2.0)).body[2]["steps"] == 2


@pytest.mark.parametrize("settings", [None, 5, {"a": 1}, "", '{"a":' * 10_000, "[" * 900 + "]" * 900])
def test_settings_that_are_none_are_explained(client, settings):
    answer = client.call("run_settings", [settings])
    assert not answer.ok and "settings" in answer.error


def test_errors_reach_clients_as_they_are_and_the_page_as_html(client, service):
    answer = client.call("generate", values(checkpoint="<b>’'\"&"))
    assert "“<b>’'\"&”" in answer.error
    uploads = [d for d in client.config()["dependencies"] if "upload" in {event for _, event in d["targets"]}]
    sent = client.upload("<img src=x>.json", b"dear diary")
    restored = next(d for d in uploads if len(d["outputs"]) > 20)
    message = json.dumps(client.event(restored["id"], [sent]).body)
    assert "cannot be restored" in message and "<img" not in message


def test_a_failed_call_that_was_made_directly_is_no_failure_of_the_server(client):
    answer = client.send(f"{API}/run/generate", {"data": values(steps="abc")})
    assert answer.status == 422 and "steps is 'abc'" in answer.error


@pytest.mark.parametrize("body", [b"{", b"[" * 100_000, b'{"data": ' + b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json_is_refused(client, body):
    answer = client.send(f"{API}/call/generate", body)
    assert 400 <= answer.status < 500 and answer.error


def test_what_is_too_large_is_refused_before_it_is_read(client):
    def declared(path, size):
        where = urlsplit(client.address)
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        return connection.getresponse()

    for path, most in ((f"{API}/upload", MAX_UPLOAD), (f"{API}/call/generate", MAX_BODY)):
        refused = declared(path, most + 1)
        assert refused.status == 413 and b"20 MB" in refused.read()


def test_what_does_not_say_how_large_it_is_is_read_no_further_than_the_limit(client):
    where = urlsplit(client.address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=20)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
    parts = (b"x" * 2**20 for _ in range(MAX_UPLOAD // 2**20 + 5))
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        connection.request("POST", f"{API}/upload", (p for p in (head, *parts)), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has answered and gone before all was sent
    assert client.call("generate", values()).ok


def test_pages_of_other_origins_may_be_kept_out(service):
    with served(service, origins=["https://friend.example"]) as address:
        client = Client(address)
        for origin, status in ((None, 200), (address, 200), ("https://friend.example", 200)):
            headers = {} if origin is None else {"Origin": origin}
            answer = client.send("/config", headers=headers)
            assert answer.status == status
        foreign = client.send("/config", headers={"Origin": "https://other.example"})
        assert foreign.status == 403 and "https://other.example" in foreign.error
        assert header(address, "content-security-policy") == "frame-ancestors 'self' https://friend.example"


def test_by_default_pages_show_it_in_frames_only_where_spaces_are_shown(address):
    frames = header(address, "content-security-policy")
    assert frames == "frame-ancestors 'self' https://huggingface.co https://*.hf.space"


def header(address, name):
    where = urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
    connection.request("GET", "/")
    return connection.getresponse().headers[name]


def test_a_full_disk_is_named(client, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("app.api.save_pil_to_cache", full)
        assert "no space left" in client.call("generate", values(wanted=["image"])).error
    with monkeypatch.context() as patch:
        patch.setattr("gradio.routes.upload_fn", full)
        answer = client.send(
            f"{API}/upload", b"x", headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert answer.status == 507 and "no space left" in answer.error


def test_the_log_has_nothing_of_what_visitors_sent(client, service, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    sent = client.upload(f"{MARK}.png", MARK.encode())
    assert not client.call("generate", values(image=sent)).ok
    assert not client.call("generate", values(image={MARK: MARK}, steps=MARK)).ok
    assert not client.call("generate", [MARK] * 14).ok
    with monkeypatch.context() as patch:
        patch.setattr(service.pipe, "broken", KeyError(MARK))
        assert "unexpected" in client.call("generate", values()).error
    assert "unexpected KeyError" in caplog.text and MARK not in caplog.text


def test_calls_leave_no_session_behind_and_pages_not_more_than_there_is_room_for(service):
    demo = build_demo([service])
    address = launch(demo, prevent_thread_lock=True, quiet=True)[1].rstrip("/")
    holder, client = demo.state_holder, Client(address)
    try:
        for name in "abc":
            client.call("describe", [])
            client.call("generate", values())
            client.send(f"{API}/run/describe", {"data": [], "session_hash": name})
        assert not holder.session_data and not holder.time_last_used
        estimate = next(d for d in client.config()["dependencies"] if not d["queue"] and d["backend_fn"])
        body = {"data": [None] * len(estimate["inputs"]), "fn_index": estimate["id"]}
        for k in range(MAX_SESSIONS + 5):
            client.send(f"{API}/run/predict", body | {"session_hash": f"page{k}"})
        assert len(holder.session_data) == MAX_SESSIONS
    finally:
        demo.close(verbose=False)


def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_leaves_frees_its_run():
    slow = Service(FakePipeline(step_seconds=0.01), "slow")
    engine = slow.pipe.engine
    slow.pipe.step_seconds = 0.1
    with served(slow) as address:
        client = Client(address)
        joined = client.send(f"{API}/call/generate", {"data": values(steps=100)})
        until(lambda: engine._running)
        where = urlsplit(address)
        stream = http.client.HTTPConnection(where.hostname, where.port, timeout=10)
        stream.request("GET", f"{API}/call/generate/{json.loads(joined.body)['event_id']}")
        time.sleep(0.3)
        stream.close()
        until(lambda: not engine._running)
        slow.pipe.step_seconds = 0
        assert client.call("generate", values()).ok


def test_forty_runs_of_one_visitor_keep_neither_the_page_nor_other_visitors_waiting():
    slow = Service(FakePipeline(step_seconds=0.01, capacity=8), "slow")
    slow.pipe.step_seconds = 0.3
    errors = []
    with served(slow) as address:
        client = Client(address, seconds=60)

        def ask(seed):
            errors.append(client.call("generate", values(steps=100, seed=seed)).error)

        greedy = [threading.Thread(target=ask, args=(seed,), daemon=True) for seed in range(40)]
        for thread in greedy:
            thread.start()
        until(lambda: len(errors) == 40 - 8 - MAX_WAITING_OF_ONE)
        assert all(f"{MAX_WAITING_OF_ONE} of your runs are waiting" in error for error in errors)
        start = time.monotonic()
        assert client.send("/").ok and client.upload("a.png", b"x") and client.call("describe", []).ok
        assert time.monotonic() - start < 10
        headers = {"X-Forwarded-For": "203.0.113.7"}  # as a proxy on the same machine says
        body = {"data": values(steps=4), "session_hash": "other"}
        joined = client.send(f"{API}/call/generate", body, headers=headers)
        assert client._heard(f"{API}/call/generate/{json.loads(joined.body)['event_id']}").ok
        assert time.monotonic() - start < 25 and slow.pipe.engine.waiting == MAX_WAITING_OF_ONE
        slow.pipe.step_seconds = 0


def test_a_painting_a_fork_and_a_restored_file_may_be_anything(client):
    config = client.config()
    components = {c["id"]: c for c in config["components"]}
    ids = {c["props"].get("elem_id"): number for number, c in components.items()}

    def event(elem_id, kind="click"):
        target = [ids[elem_id], kind]
        return next(d for d in config["dependencies"] if target in d["targets"] and d["backend_fn"])

    def sent(event, **changed):
        names = [components[number]["props"].get("elem_id") for number in event["inputs"]]
        defaults = [components[number]["props"].get("value") for number in event["inputs"]]
        data = [changed.get(str(n).replace("-", "_"), v) for n, v in zip(names, defaults, strict=True)]
        return client.event(event["id"], data)

    run = event("any_to_any-run")
    for painting in ({"a": 1}, [1], 5, True, "x"):
        answer = sent(run, any_to_any_mask_role="I provide", any_to_any_mask_painter=painting)
        assert "painting is damaged" in json.dumps(answer.body)
    for step in (None, "x", {}):  # "x" cannot even be a number
        fork = event("any_to_any-fork")
        data = [components[number]["props"].get("value") for number in fork["inputs"]]
        answer = json.dumps(client.event(fork["id"], [step, *data[1:]]).body)
        assert "After step" in answer or "cannot be read" in answer
    restored = client.event(event("restore", "upload")["id"], [None])
    assert "There is no file" in json.dumps(restored.body)
