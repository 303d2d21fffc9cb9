"""LazyMapping mappings compute a value when it is looked at, and once."""

import pytest

from mmdiff.lazy_mapping import LazyMapping


def test_values_are_computed_when_they_are_looked_at_and_once():
    calls = []
    lazy = LazyMapping({name: lambda name=name: calls.append(name) or name.upper() for name in ("a", "b")})
    assert list(lazy) == ["a", "b"] and len(lazy) == 2 and "b" in lazy and calls == []
    assert lazy["b"] == "B" and lazy["b"] == "B" and calls == ["b"]
    assert dict(lazy) == {"a": "A", "b": "B"} and calls == ["b", "a"]


def test_names_that_are_not_there_raise():
    with pytest.raises(KeyError):
        LazyMapping({})["a"]
