"""Residual networks (He et al., 2016) as torchvision has them, from scratch or from ImageNet."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision import models

from lineup.architectures import Pretrained, image_shape
from lineup.errors import UserError
from lineup.files import has_own_digest, sha256
from lineup.paths import state_dir
from lineup.tensors import read_tensors, write_tensors

SMALL = 64  # pixels a side below which the stem must not halve twice
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # what torchvision's were trained with


def build(
    shape: tuple[int, ...],
    outputs: int,
    *,
    depth: Literal[18, 34, 50] = 18,
) -> nn.Module:
    """Return torchvision's resnet of `depth`; small images keep their size in a 3×3 stem."""
    channels, height, width = image_shape("resnet", shape, smallest=8)
    model = models.get_model(f"resnet{depth}", num_classes=outputs)
    if min(height, width) < SMALL:
        model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        return model
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return model


def imagenet(channels: int, *, depth: int = 18) -> Pretrained:
    """Return torchvision's weights, trained on ImageNet, and its normalisation.

    Grey images get the sum of the colours' filters. UserError where the file can't be had.
    """
    file = _imagenet_file(depth)
    tensors = read_tensors(file)
    mean, std = MEAN, STD
    if channels == 1:
        tensors["conv1.weight"] = tensors["conv1.weight"].sum(1, keepdim=True)
        mean, std = [sum(MEAN) / 3], [sum(STD) / 3]
    del tensors["fc.weight"], tensors["fc.bias"]  # its thousand classes are not ours
    statistics = torch.tensor(mean), torch.tensor(std)
    return Pretrained(file.stem, sha256(file), tensors, statistics)


def _imagenet_file(depth: int) -> Path:
    """Return torchvision's weights as safetensors, converted once from its file in torch's cache.

    That file's name ends with the first digits of its SHA-256, which are compared.
    """
    url = models.get_model_weights(f"resnet{depth}").IMAGENET1K_V1.url
    source = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
    target = state_dir() / "pretrained" / f"{source.stem}.safetensors"
    if target.exists():
        return target
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {source.name}", flush=True)
        try:
            torch.hub.download_url_to_file(url, str(source), progress=True)
        except OSError as error:
            hint = f"download {url} elsewhere and save it as {source}"
            raise UserError(f"weights: no {source.name} ({error}); {hint}") from None
    if not has_own_digest(source):
        raise UserError(f"{source} is not what its name says; remove it and try again")
    write_tensors(target, _read_checkpoint(source))
    return target


def _read_checkpoint(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of torch.save; UserError where it holds code."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(f"{file} holds more than tensors; it is not used") from None
