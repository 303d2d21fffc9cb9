"""A mapping whose values are computed when they are first looked at."""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class LazyMapping(Mapping[str, T]):
    """name -> what the function of that name returns; it is called once at most."""

    def __init__(self, functions: Mapping[str, Callable[[], T]]) -> None:
        self._functions = dict(functions)
        self._values: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name not in self._values:
            self._values[name] = self._functions[name]()
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._functions  # `Mapping` would look at the value

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)
