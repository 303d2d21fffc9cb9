"""The demo: `python app.py`, then open the address it prints."""

import argparse
import logging
import os
from pathlib import Path

CHECKPOINT = "folder of the checkpoint to show first; the page offers those beside it, too (%(default)s)"
PRECISION = "of the network; auto is bfloat16 where the processor has instructions for it (%(default)s)"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the mmdiff demo page.")
    parser.add_argument("--checkpoint", default="checkpoints/orchard", help=CHECKPOINT)
    host, port = os.environ.get("GRADIO_SERVER_NAME"), os.environ.get("GRADIO_SERVER_PORT")  # set by hosts
    parser.add_argument(
        "--host", default=host or "127.0.0.1", help="address to listen on; 0.0.0.0 for all (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=port or 7860, help="port to listen on (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "bfloat16"), help=PRECISION
    )
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
    # OpenMP threads that wait give way soon: a browser may well use the same cores.
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")
    # Here, so that --help and a wrong argument answer at once; first what must come before torch.
    import app.run.zero_gpu  # noqa: F401
    from app.run.checkpoints import load_all, warm_up
    from app.ui import build_demo, launch

    try:
        services = load_all(arguments.checkpoint, arguments.device, arguments.precision)
    except (ValueError, OSError) as error:
        raise SystemExit(f"app.py: error: {error}") from None
    demo = build_demo(services)
    try:
        _, address, _ = launch(demo, arguments.host, arguments.port, prevent_thread_lock=True, quiet=True)
    except OSError as error:
        raise SystemExit(f"app.py: error: {error}") from None
    warm_up(services)  # not before the page is served, which is what people wait for
    names = ", ".join(service.name for service in services)
    print(f"{names} on {services[0].device}: open {address}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
