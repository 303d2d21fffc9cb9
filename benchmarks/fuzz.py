"""Odd input for every way into the demo: is each answered with a result or a sentence, and does it go on?

    python benchmarks/fuzz.py checkpoints/orchard --out docs/results/orchard-fuzz.json

The ways are the endpoints (values, files and settings), links, the page's own events, and raw HTTP. Which
input comes is drawn from the seed. Counted as unexplained: no answer, an answer without a word, a server
error, the text of an exception. The log must not have anything of what was sent.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import API, Answer, Client, file, served  # noqa: E402

MARK = "zq9private"  # in everything that is sent and has room for it
WORKERS = 4
MOST_OF_THE_LOG = 10_000  # characters at its end that are shown where something was not explained
RAW = re.compile(
    r"Traceback|\w(Error|Exception)\b|object has no|not supported between|unexpected|0x[0-9a-f]{6}"
    r"|positional argument|errors\.pydantic|^\s*$"
)
DEEP = '["x"]'
for _ in range(300):
    DEEP = f"[{DEEP}]"

ODD_NUMBERS: list[Any] = [0, -1, 1, 2, 0.5, 1e308, -1e-9, 2**31, 2**63, 2**70, 10**30, True, False]
ODD_TEXTS: list[Any] = [
    "", " ", MARK, "0", "1e3", "NaN", "null", "\x00", "\ud800", "ﬁ", "İ", "e\u0301", "\u202e", "😀" * 50,
    f"<img src=x onerror=alert('{MARK}')>", "../../etc/passwd", "{{value}}", "${1+1}", "%s%n", "a" * 5000,
    f"Apple {MARK}", "image", "mask", "label", "ddim",
]  # fmt: skip
ODD_VALUES: list[Any] = [
    None, [], {}, [[]], [None], ["image"], ["image", "image"], ["mask", MARK], {"": 1}, {"label": 2},
    {"image": -1}, {MARK: MARK}, {"path": "/etc/passwd"}, {"path": None}, file("/etc/passwd"),
    file("../../x"), file(MARK), json.loads(DEEP), float("nan"), float("inf"), [1] * 2000,
    {"path": MARK, "url": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}},
]  # fmt: skip
PARAMETERS = (
    "image", "hole", "mask", "label", "text", "embedding_image", "wanted", "steps", "seed", "num_samples",
    "guidance_scale", "sampler", "checkpoint", "sample_first", "leads",
)  # fmt: skip
FILES = ("image", "hole", "mask", "embedding_image")
PLAIN = {"steps": 1, "seed": 1, "num_samples": 1, "wanted": ["label"]}
SETTINGS = {
    "format": "mmdiff settings", "version": 3, "checkpoint": "", "task": "any_to_any", "steps": 2, "seed": 1,
    "num_samples": 1, "sampler": "ddim", "given": {}, "wanted": ["image"], "known_pixels": None,
    "guidance_scale": 1.0, "sample_first": [], "leads": None, "changes": [],
}  # fmt: skip
CHANGE = {key: SETTINGS[key] for key in ("given", "wanted", "known_pixels", "guidance_scale", "sample_first")}


def odd_value(draw: random.Random) -> Any:
    """A JSON value that may be of any kind."""
    return draw.choice(draw.choice((ODD_NUMBERS, ODD_TEXTS, ODD_VALUES)))


def odd_file(draw: random.Random) -> tuple[str, bytes]:
    """Name and content of a file that may be a picture."""
    name = draw.choice(
        (f"{MARK}.png", "a.jpg", "mask.tif", "b.webp", "c.gif", "x", "settings.json", "run.zip", ".png")
    )
    make = draw.choice((_noise, _text, _picture, _picture, _picture, _truncated, _changed))
    return name, make(draw)


def _noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 30, 5000)))


def _text(draw: random.Random) -> bytes:
    return json.dumps(mutated(SETTINGS, draw)).encode() if draw.random() < 0.5 else MARK.encode()


def _picture(draw: random.Random) -> bytes:
    mode, form = draw.choice(
        (
            ("RGB", "PNG"),
            ("RGB", "JPEG"),
            ("L", "PNG"),
            ("1", "PNG"),
            ("P", "PNG"),
            ("LA", "PNG"),
            ("RGBA", "WEBP"),
        )
        + (("CMYK", "JPEG"), ("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF"), ("RGBA", "PNG"), ("P", "GIF"))
    )
    width, height = (draw.choice((1, 2, 16, 64, 96, 97, 300, 2000)) for _ in range(2))
    random_numbers = np.random.default_rng(draw.randrange(2**32))
    if mode == "F":
        values = random_numbers.normal(size=(height, width)).astype(np.float32)
        values[0, 0] = draw.choice((np.nan, np.inf, 0.5))
        picture = Image.fromarray(values)
    else:
        top = draw.choice((2, 256))
        picture = Image.fromarray(random_numbers.integers(0, top, (height, width), dtype=np.uint8)).convert(
            mode
        )
    data = io.BytesIO()
    picture.save(data, form)
    return data.getvalue()


def _truncated(draw: random.Random) -> bytes:
    data = _picture(draw)
    return data[: draw.randrange(len(data))]


def _changed(draw: random.Random) -> bytes:
    data = bytearray(_picture(draw))
    for _ in range(draw.randint(1, 8)):
        data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
    return bytes(data)


def mutated(value: Any, draw: random.Random) -> Any:
    """JSON values with something in them changed, removed or added."""
    if not isinstance(value, (dict, list)) or not value or draw.random() < 0.1:
        return odd_value(draw)
    if isinstance(value, list):
        spot = draw.randrange(len(value))
        return [mutated(v, draw) if k == spot else v for k, v in enumerate(value)]
    key, what = draw.choice(list(value)), draw.random()
    if what < 0.15:
        return {k: v for k, v in value.items() if k != key}
    if what < 0.25:
        return value | {draw.choice(ODD_TEXTS): odd_value(draw)}
    return value | {key: mutated(value[key], draw)}


# -- the ways in ---------------------------------------------------------------------------------------


def generate(client: Client, draw: random.Random) -> Answer:
    """/generate with some odd values, some of them files."""
    values: dict[str, Any] = dict.fromkeys(PARAMETERS) | PLAIN
    for name in draw.sample(PARAMETERS, draw.randint(1, 3)):
        if name in FILES and draw.random() < 0.8:
            values[name] = client.upload(*odd_file(draw))
        else:
            values[name] = odd_value(draw)
    data = list(values.values())
    return client.call("generate", data[: draw.choice((len(data), len(data), 3))])


def settings(client: Client, draw: random.Random) -> Answer:
    """/run_settings with settings in which something is odd."""
    whole = SETTINGS | {"changes": [{"after": 1} | CHANGE]} if draw.random() < 0.5 else SETTINGS
    text = json.dumps(mutated(whole, draw))
    if draw.random() < 0.2:
        text = draw.choice((text[: len(text) // 2], '{"a":' * 100_000, DEEP, f"[{text}]", ""))
    return client.call("run_settings", [text])


def link(client: Client, draw: random.Random) -> Answer:
    """The page opened by an odd link."""
    keys = (
        "task",
        "model",
        "seed",
        "steps",
        "samples",
        "sampler",
        "want",
        "first",
        "guide",
        "guide.label",
        "hole",
    )
    keys += (
        "give.label",
        "give.mask",
        "give.text",
        "give.image",
        "missing",
        "fork1.after",
        "fork2.want",
        MARK,
    )
    chosen = {key: str(odd_value(draw)) for key in draw.sample(keys, draw.randint(1, 4))}
    query = urllib.parse.urlencode(chosen, errors="replace")
    index = next(d["id"] for d in client.config()["dependencies"] if ("load" in (t[1] for t in d["targets"])))
    return client.event(index, [], f"?{query[:6000]}")


def page(client: Client, draw: random.Random) -> Answer:
    """An event of the page, some of whose inputs are odd."""
    config = client.config()
    values = {c["id"]: c["props"].get("value") for c in config["components"]}
    events = [d for d in config["dependencies"] if d["backend_fn"] and d["api_visibility"] != "public"]
    event = draw.choice(events)
    data = [values.get(number) for number in event["inputs"]]
    for spot in draw.sample(range(len(data)), min(len(data), draw.randint(1, 3))):
        data[spot] = client.upload(*odd_file(draw)) if draw.random() < 0.2 else odd_value(draw)
    return client.event(event["id"], data)


def raw(client: Client, draw: random.Random) -> Answer:
    """A request that no client of ours would make."""
    path = draw.choice(
        (
            "/",
            "/nothing",
            f"/{MARK}",
            "/config",
            "/monitoring",
            f"{API}/info",
            f"{API}/upload",
            f"{API}/run/generate",
        )
        + (f"{API}/call/generate", f"{API}/call/{MARK}", f"{API}/call/v2/generate", f"{API}/queue/join")
        + (f"{API}/queue/data", f"{API}/file=/etc/passwd", f"{API}/file=%00", f"{API}/component_server")
        + (f"{API}/cancel", f"{API}/reset", f"{API}/stream/{MARK}", f"{API}/heartbeat", f"{API}/vibe-edit")
    )
    body = draw.choice(
        (
            None,
            b"",
            b"{",
            b"\xff\xfe",
            DEEP.encode(),
            b"[" * 100_000,
            {"data": [MARK]},
            {"data": odd_value(draw)},
        )
        + (
            {"data": [], "fn_index": draw.choice((-1, 0, 10**6, 10**30, MARK))},
            {"session_hash": odd_value(draw)},
        )
        + ({"data": [None] * 14, "fn_index": 0, "session_hash": MARK, "trigger_id": odd_value(draw)},)
    )
    kinds = ("application/json", "text/plain", "multipart/form-data; boundary=b", "multipart/form-data", "x")
    headers = {
        "Content-Type": draw.choice(kinds),
        "Origin": "https://example.org",
        "Referer": f"http://{MARK}/",
    }
    method = draw.choice(("GET", "POST", "POST", "PUT", "DELETE", "OPTIONS"))
    return client.send(path, body, method=method, headers=headers)


WAYS: dict[str, Callable[[Client, random.Random], Answer]] = {
    way.__name__: way for way in (generate, settings, link, page, raw)
}


# -- what becomes of it --------------------------------------------------------------------------------


def verdict(answer: Answer) -> str:
    """ "result", "explained" or "unexplained"."""
    if answer.ok:
        return "result"
    bad = not 0 < answer.status < 500 or not isinstance(answer.error, str) or RAW.search(answer.error)
    return "unexplained" if bad else "explained"


def one(address: str, seed: int, number: int) -> dict[str, Any]:
    """Sends input `number` of the seed."""
    draw, names = random.Random(f"{seed}/{number}"), list(WAYS)
    name, start = names[number % len(names)], time.perf_counter()
    try:
        answer = WAYS[name](Client(address), draw)
    except Exception as error:  # of this program, or a connection that broke
        answer = Answer(0, None, False, f"{type(error).__name__}: {error}")
    facts = {"number": number, "way": name, "verdict": verdict(answer), "status": answer.status}
    return facts | {"error": answer.error, "seconds": time.perf_counter() - start}


def fuzz(address: str, count: int, seed: int) -> dict[str, Any]:
    """Sends so many inputs; what became of them."""
    with ThreadPoolExecutor(WORKERS) as senders:
        results = list(senders.map(lambda number: one(address, seed, number), range(count)))
    bad = [
        {k: r[k] for k in ("number", "way", "status", "error")}
        for r in results
        if r["verdict"] == "unexplained"
    ]
    return {
        "inputs": count,
        "seed": seed,
        "verdicts": dict(Counter(result["verdict"] for result in results)),
        "by_way": {w: dict(Counter(r["verdict"] for r in results if r["way"] == w)) for w in WAYS},
        "slowest_seconds": round(max(result["seconds"] for result in results), 2),
        "unexplained": bad,
        "answers_afterwards": Client(address).call("generate", [None] * 6 + [["label"], 1]).ok,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--count", type=int, default=500, help="inputs (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="what they are drawn from (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    arguments = parser.parse_args()
    with served(arguments.checkpoint) as server:
        result = fuzz(server.address, arguments.count, arguments.seed)
        log = server.log()
    result |= {"checkpoint": Path(arguments.checkpoint).name, "inputs_in_the_log": log.count(MARK)}
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if result["unexplained"]:
        print(log[-MOST_OF_THE_LOG:], file=sys.stderr)
    if arguments.out:
        arguments.out.write_text(text)
    if result["unexplained"] or not result["answers_afterwards"] or result["inputs_in_the_log"]:
        raise SystemExit("there are inputs that were not explained, or that the log has; see above.")


if __name__ == "__main__":
    main()
