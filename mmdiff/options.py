"""Dataclasses whose fields are also the options of a command: --max-minutes sets `max_minutes`."""

import argparse
from dataclasses import Field, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


def option(default: Any, text: str, **details: Any) -> Any:
    """A field with its help text; details: further arguments of `add_argument`."""
    return field(default=default, metadata={"help": text, **details})


def add_options(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add an option for every field of a dataclass, and --device."""
    for one in fields(settings):
        parser.add_argument(f"--{one.name.replace('_', '-')}", **_argument(one))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def _argument(one: Field) -> dict[str, Any]:
    """Arguments of `add_argument` for a field."""
    kind = type(one.default)
    how: dict[str, Any] = {"type": kind, "default": one.default}
    if kind is bool:
        how = {"action": argparse.BooleanOptionalAction, "default": one.default}
    elif kind is tuple:
        how = {"nargs": "+", "default": list(one.default)}
    return how | one.metadata


def from_options(settings: type[T], args: argparse.Namespace) -> T:
    """The dataclass with the values of the options. Raises ValueError where it refuses one."""
    values = {one.name: getattr(args, one.name) for one in fields(settings)}
    return settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
