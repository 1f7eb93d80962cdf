"""Ranges that a search draws a setting from, as params.yaml writes them."""

from __future__ import annotations

import math
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

FORMS = "float: [low, high], log: [low, high], int: [low, high], choice: [value, value, …]"
NUMBERS = {"float": (int, float), "log": (int, float), "int": (int,)}
LARGEST = 2**53  # a float holds no larger whole number for certain


class _Range(NamedTuple):
    kind: str  # float, log, int, choice
    values: list[Any]  # low and high, or the choices

    def __str__(self) -> str:
        words = " or " if self.kind == "choice" else " to "
        return f"{self.kind} {words.join(map(str, self.values))}"


def _parse(value: Any) -> _Range:  # noqa: ANN401
    if isinstance(value, dict) and len(value) == 1:
        ((kind, values),) = value.items()
        if isinstance(values, list) and len(values) > 1 and _is_valid(kind, values):
            return _Range(kind, values)
    raise PydanticCustomError("range", "must be one of {forms}", {"forms": FORMS})


def _is_valid(kind: str, values: list[Any]) -> bool:
    if kind == "choice":
        return all(value not in values[:number] for number, value in enumerate(values))
    are_numbers = len(values) == 2 and all(type(one) in NUMBERS.get(kind, ()) for one in values)
    if not are_numbers or not all(-LARGEST <= one <= LARGEST for one in values):
        return False
    low, high = values
    return low < high and (kind != "log" or low > 0)


def rounded(value: float, limits: _Range) -> float:
    """Return a drawn number with as few digits as tell a thousandth of its range apart."""
    low, high = limits.values
    if limits.kind == "log":
        value = float(f"{value:.3g}")
    else:
        value = round(value, 2 - math.floor(math.log10(high - low)))
    return float(min(max(value, low), high))


Range = Annotated[_Range, BeforeValidator(_parse)]
