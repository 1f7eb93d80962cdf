"""A set's dataset.yaml: typed settings, one kind for each format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from lineup.errors import UserError, nearest
from lineup.params import Channels, Count, Pattern, Section, Seed, Size, describe_errors
from lineup.yaml_file import read_yaml


def _bare_name(name: str) -> str:
    if name in ("", ".", "..") or set(name) & set("/\\:"):
        raise PydanticCustomError("file_name", "must be the name of a file, without a folder")
    return name


Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, AfterValidator(_bare_name)]


class Wheel(Section):
    """A copy on the Python package index."""

    project: str
    file: FileName
    sha256: Digest


class Folder(Section):
    """A copy that a system package installs."""

    path: str
    install: str


class DeclaredFraming(Section):
    """What all pictures of a set have in common; `content` is `none` where they are not centred."""

    background: Literal["dark", "light"]
    content: Count | Literal["none"]  # pixels of the longer side of what is shown


class Files(Section):
    """A classification whose files have official mirrors."""

    task: Literal["classification"]
    format: Literal["idx", "cifar"]
    classes: Annotated[list[str], Field(min_length=2)]
    mirror: str
    sha256: Annotated[dict[FileName, Digest], Field(min_length=1)]
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


class RowTable(Section):
    """A regression on the rows of a CSV file."""

    task: Literal["regression"]
    format: Literal["table"]
    table: FileName
    targets: Annotated[list[str], Field(min_length=1)]


class Images(Section):
    """Pictures of one's own: a sub-folder per class, or a table of files and labels."""

    task: Literal["classification"] = "classification"
    format: Literal["images"] = "images"
    size: Size = "auto"  # these three hold where params.yaml leaves them open
    channels: Channels = "auto"
    group: Pattern | None = None
    table: FileName | None = None
    file: str | None = None  # the table's column of files
    label: str | None = None  # and of labels


DATASET_YAML = "dataset.yaml"
FORMATS: dict[str, type[Section]] = {
    "idx": Files,
    "cifar": Files,
    "images": Images,
    "noise": Noise,
    "table": RowTable,
}


def read_dataset_yaml(path: Path) -> Files | Images | Noise | RowTable:
    """Read and validate a dataset.yaml; UserError with a line per error.

    Without a format it is about images.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold lines such as 'size: 64'")
    form = str(content.get("format", "images"))
    if form not in FORMATS:
        raise UserError(f"{path}: format = {form}; {nearest(form, FORMATS)}")
    try:
        return FORMATS[form].model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {describe_errors(error, FORMATS[form])}") from None
