"""Tensors on disk: safetensors, never pickle; and rows of those that are larger than the memory."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lineup.files import replacing
from lineup.paths import state_dir

CHUNK_VALUES = 2**20  # of a tensor, gathered at once


class Rows:
    """Some rows of a tensor, gathered when they are asked for: a mapped file stays on the disk."""

    def __init__(self, tensor: Tensor, index: Tensor) -> None:
        """Take a tensor (N, …) and the rows that count, int64 (n,)."""
        self.tensor, self.index = tensor, index
        self.shape = torch.Size([len(index), *tensor.shape[1:]])
        self.dtype, self.device = tensor.dtype, tensor.device

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def __getitem__(self, key: int | slice | Tensor) -> Tensor:
        """Return rows by their numbers here."""
        return self.tensor[self.index[key]]

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield `size` rows at a time, as a tensor's split returns."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> Rows | Tensor:
        """Return the rows as a tensor on another device; on their own they stay as they are."""
        return self if device == self.device else self._copy_to(self._empty(device))

    def on_disk(self) -> Tensor:
        """Return the rows as one tensor: neighbours as they lie, others in a nameless file."""
        first, last = (int(self.index[0]), int(self.index[-1])) if len(self) else (0, -1)
        is_whole = torch.equal(self.index, torch.arange(first, last + 1))
        if is_whole:
            return self.tensor[first : last + 1]
        if self.dtype != torch.uint8:
            return self[:]
        return self._copy_to(scratch_tensor(self.shape))

    def _empty(self, device: torch.device) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)

    def _copy_to(self, target: Tensor) -> Tensor:
        start = 0
        for chunk in chunks(self):
            target[start : start + len(chunk)] = chunk
            start += len(chunk)
        return target


def chunks(rows: Tensor | Rows) -> Iterator[Tensor]:
    """Yield some rows at a time, few enough to compute with them."""
    return iter(rows.split(max(1, CHUNK_VALUES // math.prod(rows.shape[1:]))))


def scratch_tensor(shape: tuple[int, ...]) -> Tensor:
    """Return a uint8 tensor that lies in a file without a name; OSError where it has no room."""
    size = max(1, math.prod(shape))
    state_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=state_dir()) as file:
        _reserve(file.fileno(), size)
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(shape)


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    """Write tensors atomically as safetensors, without a copy in memory."""
    whole = {
        name: tensor.on_disk() if isinstance(tensor, Rows) else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            _reserve(file.fileno(), sum(tensor.nbytes for tensor in whole.values()))
        try:
            save_file(whole, temporary)
        except SafetensorError as error:
            raise OSError(errno.ENOSPC, str(error), str(path)) from None


def _reserve(file: int, size: int) -> None:
    """Give a file its room, as writing to a mapping of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, memory-mapped, on the CPU."""
    return load_file(path)
