"""Where the page listens: checked before anything is loaded, which takes a while."""

import argparse
import socket


def port(text: str) -> int:
    """A port number, for argparse."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) < 2**16):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no port; give a number from 1 to 65535.")
    return int(text)


def check(host: str, number: int) -> None:
    """Raises ValueError, saying how to mend it, if nothing can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)  # two may bind the same address, but only one listens
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"cannot listen on {host} port {number}: {why}. Give another address with --host or --port."
        ) from None


def in_url(host: str) -> str:
    """The host as addresses of pages have it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
