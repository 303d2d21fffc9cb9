"""The demo: `python app.py`, then open the address it prints."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the mmdiff demo page.")
    parser.add_argument("--checkpoint", default="checkpoints/orchard", help="checkpoint folder (%(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    arguments = parser.parse_args()
    if not (Path(arguments.checkpoint) / "config.json").is_file():
        parser.error(
            f"there is no checkpoint in {arguments.checkpoint!r}: no config.json. Train one with "
            "'python -m mmdiff.train', or name its folder with --checkpoint."
        )
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is reported to anybody
    # Here, so that --help and a wrong argument answer at once.
    from app.service import Service
    from app.ui import build_demo, launch

    try:
        service = Service.from_checkpoint(arguments.checkpoint, arguments.device)
    except (ValueError, OSError) as error:
        raise SystemExit(f"app.py: error: {error}") from None
    demo = build_demo(service)
    try:
        _, address, _ = launch(demo, arguments.host, arguments.port, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise SystemExit(f"app.py: error: {error}") from None
    print(f"{service.name} on {service.device}: open {address}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
