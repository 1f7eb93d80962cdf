"""Tensors on disk: safetensors, never pickle."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from lineup.files import replacing


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically as safetensors."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, memory-mapped, on the CPU."""
    return load_file(path)
