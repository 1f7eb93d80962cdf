"""Ranges that a search draws a setting from, as params.yaml writes them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

FORMS = "float: [low, high], log: [low, high], int: [low, high], choice: [value, value, …]"


def _check(value: Any) -> Any:  # noqa: ANN401
    is_single = isinstance(value, dict) and len(value) == 1
    if not is_single or not _is_range(*next(iter(value.items()))):
        raise PydanticCustomError("range", "must be one of {forms}", {"forms": FORMS})
    return value


def _is_range(kind: str, values: Any) -> bool:  # noqa: ANN401
    if not isinstance(values, list) or len(values) < 2:
        return False
    if kind == "choice":
        return all(value not in values[:number] for number, value in enumerate(values))
    types = {"float": (int, float), "log": (int, float), "int": (int,)}.get(kind, ())
    return (
        len(values) == 2
        and all(type(value) in types and math.isfinite(value) for value in values)
        and values[0] < values[1]
        and (kind != "log" or values[0] > 0)
    )


Range = Annotated[dict[str, list[Any]], BeforeValidator(_check)]  # of one kind
