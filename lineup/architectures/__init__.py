"""The line-up: each architecture is one file here; its name is its name in params.yaml.

A file holds `build(shape, outputs, *, …hyperparameters)`: a module from float32 (N, *shape) to
(N, outputs), whose last layer is registered last. One whose weights are published has a function
`imagenet(channels, *, …hyperparameters)` too. Images are channels-last: `nn.Flatten` and `reshape`
flatten them, `view` fails.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError, validate_call
from torch import Tensor, nn

from lineup.errors import UserError
from lineup.params import describe_errors

Count = Annotated[int, Field(ge=1)]
Widths = Annotated[list[Count], Field(min_length=1)]  # a layer each
Dropout = Annotated[float, Field(ge=0, lt=1)]
Switch = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class Pretrained:
    """What a training starts from instead of random weights."""

    name: str
    sha256: str  # of the file
    weights: dict[str, Tensor]
    statistics: tuple[Tensor, Tensor] | None = None  # mean and std (C,) that its images had


def published_weights(
    name: str, shape: Sequence[int], hyperparameters: dict[str, Any]
) -> Pretrained | None:
    """Return what the authors of `name` published, trained on ImageNet; None if they have not."""
    find = getattr(importlib.import_module(f"{__name__}.{name}"), "imagenet", None)
    return find(shape[0], **hyperparameters) if find else None


def complete(name: str, hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Return `hyperparameters` with the defaults of the others; UserError if JSON has no such."""
    parameters = inspect.signature(_builder(name)).parameters.values()
    defaults = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind == parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
    for key, value in defaults.items():
        try:
            json.dumps(value)
        except TypeError:
            hint = "take a number, a text, a list or a dictionary, such as the name of what it is"
            raise UserError(f"{_file(name)}: the default of '{key}' is {value!r}; {hint}") from None
    return defaults | hyperparameters


def build(
    name: str, shape: Sequence[int], outputs: int, hyperparameters: dict[str, Any]
) -> nn.Module:
    """Return `name` for inputs of `shape` and `outputs` classes or targets.

    UserError names a bad hyperparameter, or what is wrong with the outputs.
    """
    given = complete(name, hyperparameters)
    try:
        model = validate_call(_builder(name))(tuple(shape), outputs, **given)
    except ValidationError as error:
        text = describe_errors(error, prefix=f"models.{name}")
        raise UserError(f"params.yaml: {text}") from None
    _try_out(name, model, shape, outputs)
    return model


def _try_out(name: str, model: nn.Module, shape: Sequence[int], outputs: int) -> None:
    """Run two inputs through a new model, which gives lazy layers their shapes; UserError.

    A copy of it runs them as trainings do, images channels-last.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"{_file(name)}: build returns {model!r}, no nn.Module")
    inputs = torch.zeros(2, *shape)
    model.eval()
    try:
        with torch.no_grad():
            found = model(inputs)
            if len(shape) == 3:
                twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
                twin(inputs.contiguous(memory_format=torch.channels_last))
    except UserError:
        raise
    except Exception as error:  # of somebody's code
        hint = "; images are channels-last, flatten them by nn.Flatten or reshape"
        hint = hint if "view" in str(error) else ""
        what = f"{_file(name)} can't be tried out on inputs {tuple(inputs.shape)}"
        raise UserError(f"{what}: {error}{hint}") from None
    model.train()
    made = tuple(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
    if made != (2, outputs):
        wrong = f"makes {made} of inputs {tuple(inputs.shape)}, not {(2, outputs)}"
        raise UserError(f"{_file(name)} {wrong}; its last layer needs `outputs` outputs")


def _file(name: str) -> str:
    return f"lineup/architectures/{name}.py"


def _builder(name: str) -> Callable[..., nn.Module]:
    return importlib.import_module(f"{__name__}.{name}").build


def count_parameters(model: nn.Module) -> int:
    """Return how many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def with_head(
    layers: list[nn.Module], features: int, outputs: int, dropout: float, mirror: bool
) -> nn.Module:
    """Return `layers` and a linear layer behind their `features`, as one model."""
    head = [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else []), nn.Linear(features, outputs)]
    model = nn.Sequential(*layers, *head)
    return average_mirror(model) if mirror else model


def average_mirror(model: nn.Module) -> nn.Module:
    """Make `model` return, outside training, the mean of its outputs for images and their mirrors.

    A hook, so that the names of its weights stay.
    """

    def average(model: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> Tensor:
        if model.training:
            return outputs
        (images,) = inputs
        return (outputs + model.forward(images.flip(-1))) / 2

    model.register_forward_hook(average)
    return model


def image_shape(name: str, shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """Return `shape` as (C, H, W); UserError if it is of no images, or too small for `name`."""
    if len(shape) != 3:
        raise UserError(
            f"{name} takes images (C, H, W), but this dataset has inputs of shape {tuple(shape)}"
        )
    _, height, width = shape
    if min(height, width) < smallest:
        wanted = f"{name} takes images of {smallest}×{smallest} pixels and more"
        raise UserError(f"{wanted}, not {height}×{width}")
    return tuple(shape)
