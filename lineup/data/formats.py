"""Readers of file formats; sources.READERS and dataset_yaml.FORMATS name them."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from lineup.data.dataset_yaml import Noise, RowTable
from lineup.data.tables import read_csv
from lineup.errors import UserError

Pair = tuple[Tensor, Tensor]  # images uint8 (N, C, H, W) and labels int64 (N,); or float32 rows
CIFAR_SIDE = 32  # pixels


def read_idx(contents: Mapping[str, bytes]) -> tuple[Pair, Pair]:
    """Return the training and the test split from the four files of the MNIST family."""
    arrays = {name.removesuffix(".gz"): _parse_idx(content) for name, content in contents.items()}
    kinds = ("images-idx3", "labels-idx1")
    wanted = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in kinds]
    if missing := [name for name in wanted if name not in arrays]:
        found = ", ".join(arrays)
        raise UserError(f"dataset.yaml names no {' and no '.join(missing)}; found: {found}")
    train_images, train_labels, test_images, test_labels = (arrays[name] for name in wanted)
    train = train_images.unsqueeze(1), train_labels.long()
    return train, (test_images.unsqueeze(1), test_labels.long())


def _parse_idx(content: bytes) -> Tensor:
    """Return the uint8 array of an IDX file, plain or compressed.

    It holds a magic number, sizes in 32-bit big endian, then the values.
    """
    is_compressed = content.startswith(b"\x1f\x8b")
    content = bytearray(gzip.decompress(content) if is_compressed else content)
    dimensions = content[3]
    start = 4 + 4 * dimensions
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    return torch.frombuffer(content, dtype=torch.uint8, offset=start).reshape(sizes)


def read_cifar(contents: Mapping[str, bytes]) -> tuple[Pair, Pair]:
    """Return the training and the test split from CIFAR-10's binary archive."""
    (content,) = contents.values()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        members = [member for member in archive if member.isfile()]
        batches = {
            PurePosixPath(member.name).name: archive.extractfile(member).read()
            for member in members
        }
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    train = b"".join(batches[name] for name in names)
    return _parse_cifar(train), _parse_cifar(batches["test_batch.bin"])


def _parse_cifar(content: bytes) -> Pair:
    """Return images and labels; a row is the label, then the red, green and blue plane."""
    pixels = 3 * CIFAR_SIDE**2
    rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 1 + pixels)
    return rows[:, 1:].reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE), rows[:, 0].long()


def make_noise(settings: Noise) -> tuple[Pair, list[str], list[str]]:
    """Return rows of independent standard normal numbers, no inputs' names, the targets' names."""
    generator = torch.Generator().manual_seed(settings.seed)
    inputs = torch.randn(settings.rows, settings.inputs, generator=generator)
    targets = torch.randn(settings.rows, settings.targets, generator=generator)
    names = [f"target {number + 1}" for number in range(settings.targets)]
    return (inputs, targets), [], names


def read_table(folder: Path, settings: RowTable) -> tuple[Pair, list[str], list[str]]:
    """Return the rows of a CSV file with a header, and the names of inputs and targets."""
    table = read_csv(folder / settings.table)
    targets = [table.position(name) for name in settings.targets]
    inputs = [number for number in range(len(table.header)) if number not in targets]
    if not inputs:
        raise UserError(f"{table.path} needs a column that is no target")
    values = torch.tensor(
        [
            [table.number(row, column) for column in range(len(table.header))]
            for row in range(len(table.rows))
        ]
    )
    names = [table.header[number] for number in inputs]
    return (values[:, inputs], values[:, targets]), names, settings.targets
