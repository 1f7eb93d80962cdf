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
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from lineup.errors import DamagedError
from lineup.files import REPRO, replacing
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
        first = int(self.index[0]) if len(self) else 0
        if torch.equal(self.index, torch.arange(first, first + len(self))):
            return self.tensor[first : first + len(self)]
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
        try:
            _reserve(file.fileno(), size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(state_dir())) from None
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(shape)


def write_tensors(path: Path, tensors: Mapping[str, Tensor | Rows]) -> None:
    """Write tensors atomically as safetensors; where some are Rows, without a copy in memory."""
    whole = {
        name: tensor.on_disk() if isinstance(tensor, Rows) else tensor.contiguous()
        for name, tensor in tensors.items()
    }
    is_large = any(isinstance(tensor, Rows) for tensor in tensors.values())
    with replacing(path) as temporary:
        if is_large:
            _stream(temporary, whole)
        else:
            temporary.write_bytes(save(whole))


def _stream(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file piece by piece, which safetensors does in a file .tmp… beside it."""
    for leftover in path.parent.glob(".tmp*"):  # of a process that was killed
        leftover.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode  # as any new file has it; safetensors lets nobody else read
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(errno.ENOSPC, str(error), str(path)) from None
    path.chmod(mode)


def _reserve(file: int, size: int) -> None:
    """Give a file its room, as writing to a mapping of a full disk would kill the process."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read every tensor of a safetensors file, memory-mapped, on the CPU; DamagedError."""
    path.open("rb").close()  # says what is wrong with a folder or a missing file
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DamagedError(path, error, REPRO, "is not a safetensors file") from None
