"""Leads: by how much each modality is ahead of the others while a run decides them; see `mmdiff.schedule`."""

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real

MAX_LEAD = 4.0  # the others then have a fifth of the steps


def checked_leads(leads: Mapping[str, float] | None, modalities: Sequence[str]) -> dict[str, float]:
    """A lead for every modality, 0 where none is given. Raises ValueError for other names and numbers."""
    if leads is not None and not isinstance(leads, Mapping):
        raise ValueError(
            f"leads is {leads!r}; give a mapping from names to numbers, such as {{'label': 0.5}}."
        )
    checked = dict.fromkeys(modalities, 0.0)
    for name, lead in (leads or {}).items():
        check_name(name, modalities, "leads")
        checked[name] = checked_number(lead, f"leads[{name!r}]", high=MAX_LEAD)
    return checked


def counting(leads: Mapping[str, float], made: Collection[str]) -> dict[str, float]:
    """Leads of which only those of what is generated count, so that no steps pass in which nothing is.

    What is given or ignored all along has the least of them: nothing waits for it.
    """
    least = min((leads[name] for name in made), default=0.0)
    return {name: lead if name in made else least for name, lead in leads.items()}


def check_name(name: object, modalities: Sequence[str], what: str) -> None:
    if name not in modalities:
        raise ValueError(f"{what} names {name!r}; name one of {', '.join(modalities)}, or leave it out.")


def checked_number(value: object, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number above ``low``, if that is set, or from 0 to ``high``."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if high < math.inf and not (number and 0 <= value <= high):
        raise ValueError(f"{what} is {value!r}; give a number from 0 to {high:g}.")
    if not number or not value > low:
        raise ValueError(f"{what} is {value!r}; give a finite number above {low:g}; 1.0 changes nothing.")
    return float(value)
