"""The line-up: each architecture is one file here, and the file's name is its name in params.yaml.

A file holds `build(shape, outputs, *, …hyperparameters)`: a module from float32 (N, *shape) to (N, outputs), whose last
layer is registered last.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError, validate_call
from torch import nn

from lineup.errors import UserError


def complete(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Return `hyperparameters` with the defaults of the others."""
    parameters = inspect.signature(builder(name)).parameters
    defaults = {
        key: value.default for key, value in parameters.items() if value.kind == value.KEYWORD_ONLY
    }
    given = defaults | hyperparameters
    return {key: value for key, value in given.items() if value is not inspect.Parameter.empty}


def build(
    name: str, shape: Sequence[int], outputs: int, hyperparameters: dict[str, Any]
) -> nn.Module:
    """Return `name` for inputs of `shape` and `outputs` classes or targets; UserError names a bad hyperparameter."""
    given = complete(name, hyperparameters)
    try:
        return validate_call(builder(name))(tuple(shape), outputs, **given)
    except ValidationError as error:
        raise UserError("\n".join(describe(name, mistake) for mistake in error.errors())) from None


def builder(name: str) -> Callable[..., nn.Module]:
    """Return the `build` of an architecture's file."""
    return importlib.import_module(f"{__name__}.{name}").build


def describe(name: str, mistake: dict[str, Any]) -> str:
    """Return one line for one of pydantic's errors."""
    key = ".".join(str(part) for part in ("models", name, *mistake["loc"]))
    if mistake["type"] == "missing_keyword_only_argument":
        return f"params.yaml: key '{key}' is missing"
    return f"params.yaml: {key} = {mistake['input']!r}: {mistake['msg']}"


def image_shape(name: str, shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """Return `shape` as (C, H, W); UserError if the data are no images, or too small for `name`."""
    if len(shape) != 3:
        raise UserError(
            f"{name} takes images (C, H, W), but this dataset has inputs of shape {tuple(shape)}"
        )
    if min(shape[1:]) < smallest:
        raise UserError(
            f"{name} takes images of {smallest}×{smallest} pixels and more, not {shape[1]}×{shape[2]}"
        )
    return tuple(shape)
