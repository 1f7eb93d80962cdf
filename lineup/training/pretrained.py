"""What a training starts from instead of random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lineup.architectures import Pretrained, published_weights
from lineup.errors import DamagedError, UserError
from lineup.files import has_own_digest, sha256
from lineup.paths import repository
from lineup.tensors import read_tensors


def find_pretrained(
    weights: str, architecture: str, shape: Sequence[int], hyperparameters: dict[str, Any]
) -> Pretrained | None:
    """Return what `weights` of params.yaml names: none, imagenet, or a safetensors file.

    A file's name ends with digits of its SHA-256, so that params.yaml, which DVC compares, stands
    for its content. UserError where it does not, and where there is no such thing.
    """
    if weights == "none":
        return None
    if weights == "imagenet":
        published = published_weights(architecture, shape, hyperparameters)
        if published is None:
            raise UserError(f"params.yaml: {architecture} has no weights of imagenet; resnet has")
        return published
    path = Path(weights)
    if not path.is_file():  # DVC's copies of the repository lack what Git ignores
        path = repository() / weights
    if not path.is_file():
        raise UserError(f"params.yaml: weights: there is no file {weights}")
    digest = sha256(path)
    if not has_own_digest(path):
        name = path.with_name(f"{path.stem}-{digest[:8]}{path.suffix}")
        raise UserError(
            f"params.yaml: weights: the name of {path} does not say what it holds; rename it, and "
            f"set weights to: {name}"
        )
    try:
        return Pretrained(path.stem, digest, read_tensors(path))
    except DamagedError as error:
        raise UserError(f"{path} is not a safetensors file ({error.problem})") from None


def load_fitting(model: nn.Module, pretrained: Pretrained) -> list[str]:
    """Give `model` those weights that fit by name and shape; return the names that stay random.

    UserError if there are none.
    """
    own = model.state_dict()
    fitting = {
        name: tensor
        for name, tensor in pretrained.weights.items()
        if name in own and own[name].shape == tensor.shape
    }
    if not any(tensor.ndim > 1 for tensor in fitting.values()):
        raise UserError(
            f"{pretrained.name} has no layer of this network, which begins with {next(iter(own))}; "
            "is it of the same architecture and size?"
        )
    model.load_state_dict(own | fitting)
    return [name for name in own if name not in fitting]
