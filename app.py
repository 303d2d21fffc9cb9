"""The demo: `python app.py`, then open the address it prints."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.run import address
from app.run.memory import give_back, limit_arenas
from app.run.temporary import Folder, claim

CHECKPOINT = "folder of the checkpoint to show first; the page offers those beside it, too (%(default)s)"
ORIGIN = (
    "origin of web pages, such as https://example.org, that may call this server and show it in a frame; may "
    "be repeated. Without it all may call, and those of Hugging Face may show it"
)
UNWRITABLE = (
    "uploads and results cannot be stored: %s. Name a folder that can be written with GRADIO_TEMP_DIR."
)
CLOSING_SECONDS = 1.5  # for answers that are on their way when the server is ended
ENDING_SECONDS = 4.5  # after which it ends in any case; `docker stop` kills after ten
PRECISION = "of the network; auto is bfloat16 where the processor has instructions for it (%(default)s)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the mmdiff demo page.")
    parser.add_argument("--checkpoint", default="checkpoints/orchard", help=CHECKPOINT)
    # Set by hosts; taken away, as Gradio would look at them, too.
    host, port = os.environ.pop("GRADIO_SERVER_NAME", ""), os.environ.pop("GRADIO_SERVER_PORT", "")
    parser.add_argument(
        "--host", default=host or "127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)"
    )
    parser.add_argument(
        "--port", type=address.port, default=port or "7860", help="port to listen on (%(default)s)"
    )
    parser.add_argument("--origin", action="append", default=[], help=ORIGIN)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "bfloat16"), help=PRECISION
    )
    arguments = parser.parse_args()
    places = [Path(arguments.checkpoint), Path(__file__).parent / arguments.checkpoint]
    found = [place for place in places if (place / "config.json").is_file()]
    if not found:
        parser.error(
            f"there is no checkpoint in {arguments.checkpoint!r}: no config.json. Train one with "
            "'python -m mmdiff.train', or name its folder with --checkpoint."
        )
    arguments.checkpoint = found[0]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is reported to anybody
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(2**62)  # nor computed after every event
    if "SPACE_ID" in os.environ:  # all requests come through the proxy of Hugging Face, which names visitors
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    # OpenMP threads that wait give way soon: a browser may well use the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    limit_arenas()
    try:
        address.check(arguments.host, arguments.port)
        folder = claim()
    except ValueError as error:
        raise SystemExit(f"app.py: error: {error}") from None
    except OSError as error:
        raise SystemExit(f"app.py: error: {UNWRITABLE % error}") from None
    end_on_signals(folder)
    try:
        serve(arguments, folder)
    finally:
        folder.delete()


def end_on_signals(folder: Folder) -> None:
    """Makes SIGTERM (`docker stop`) and SIGINT (Ctrl-C) an orderly end, or a quick one if that takes long."""
    signals = (signal.SIGTERM, signal.SIGINT)

    def end(*_: Any) -> None:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        later(ENDING_SECONDS, lambda: leave(folder))
        sys.exit(0)

    for number in signals:
        signal.signal(number, end)


def leave(folder: Folder) -> None:
    """Ends the process at once, without the seconds in which Python would clear up its memory."""
    folder.delete()
    sys.stdout.flush()
    os._exit(0)


def later(seconds: float, action: Callable[[], None]) -> None:
    """Calls `action` after so long, unless the process has ended by then."""
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def serve(arguments: argparse.Namespace, folder: Folder) -> None:
    """Loads the models and serves the page until the process is ended."""
    # Here, so that --help and a wrong argument answer at once; first what must come before torch.
    import app.run.zero_gpu  # noqa: F401
    from app.run.checkpoints import load_all, warm_up
    from app.ui import build_demo, launch

    try:
        services = load_all(arguments.checkpoint, arguments.device, arguments.precision)
        demo = build_demo(services)
        give_back()
        host, options = address.in_url(arguments.host), {"prevent_thread_lock": True, "quiet": True}
        _, url, _ = launch(demo, host, arguments.port, arguments.origin, folder.tidy, **options)
    except (ValueError, OSError) as error:
        raise SystemExit(f"app.py: error: {error}") from None
    warm_up(services)  # not before the page is served, which is what people wait for
    names = ", ".join(service.name for service in services)
    print(f"{names} on {services[0].device}: open {url}", flush=True)
    try:
        demo.block_thread()
    finally:
        later(CLOSING_SECONDS, lambda: setattr(demo.server, "force_exit", True))
        demo.close(verbose=False)
        leave(folder)


if __name__ == "__main__":
    main()
