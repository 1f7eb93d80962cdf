"""Picture files in, classes out: asks a registered or an exported model."""

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run
from lineup.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from lineup.serving.classifier import Classifier

BATCH = 256
MOST_EXPLAINED = 12  # pictures in one --explain


def main(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURE...", help="Files, folders, or - for stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME, or a folder or .onnx file that export made; "
            "the champion of params.yaml's dataset by default.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name per picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print CSV: one row per picture and class.")
    ] = False,
    explain: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="Draw what the model sees and how probable it finds each class."
        ),
    ] = None,
) -> None:
    """Say what PICTURES show: PNG, JPEG and other formats, any size, grey or colour.

    Each picture is prepared exactly as the model's training pictures were; how is kept with the model. Of a data set
    that declares a framing, as MNIST does, pictures of another size are inverted, cropped and centred likewise. Given a
    folder with a sub-folder per class, the last line says how many are right.
    """
    if as_json and as_csv:
        raise UserError("choose one of --json and --csv")
    sources = [source for picture in pictures for source in expand(picture)]

    from lineup.serving.classifier import open_classifier

    classifier = open_classifier(model)
    if classifier.is_outdated:
        typer.echo(
            f"warning: {model or 'the champion'} was made before models kept how their pictures are prepared; only "
            "pictures of its own size are surely read right. To renew it: dvc repro",
            err=True,
        )
    errors: list[str] = []
    answers, seen, labels = [], [], []
    for source, image, probabilities in classify(classifier, sources, errors):
        answers.append(answer(source.name, probabilities, classifier.classes, top_k))
        labels.append(source.label(classifier.classes))
        if explain and len(seen) < MOST_EXPLAINED:
            seen.append((source.name, image, probabilities))

    if answers:
        (print_json if as_json else print_csv if as_csv else print_table)(answers)
    if explain and seen:
        from lineup.evaluation.plots import draw_answers

        draw_answers(seen, classifier.classes, explain)
        typer.echo(f"{explain} shows what the model sees", err=True)
    if labels and all(labels):
        right = sum(found["class"] == label for found, label in zip(answers, labels, strict=True))
        typer.echo(f"{right} of {len(labels)} right", err=as_json or as_csv)
    if errors:
        raise UserError("\n       ".join(errors))


class Source(NamedTuple):
    """A picture to classify, and the folder it was found in."""

    name: str  # - for standard input
    folder: Path | None = None

    def open(self) -> Path | BinaryIO:
        """Return the path of the picture, or the bytes on standard input."""
        return io.BytesIO(sys.stdin.buffer.read()) if self.name == "-" else Path(self.name)

    def label(self, classes: list[str]) -> str | None:
        """Return the class that the picture's folders name, if they do."""
        from lineup.data.folder_listing import class_of

        return class_of(Path(self.name), self.folder, classes) if self.folder else None


def expand(picture: str) -> list[Source]:
    """Return a folder's pictures, at any depth, or else the name itself; UserError if nothing is there."""
    if picture == "-":
        return [Source(picture)]
    path = Path(picture)
    if not path.exists():
        raise UserError(f"there is no file or folder '{picture}'")
    if not path.is_dir():
        return [Source(picture)]
    from lineup.data.folder_listing import describe_left_out, list_tree

    listing = list_tree(path)
    if not listing.pictures:
        raise UserError(f"folder '{picture}' holds no picture")
    if line := describe_left_out(listing):
        typer.echo(f"{picture}: {line}", err=True)
    return [Source(str(file), path) for file in listing.pictures]


def classify(
    classifier: "Classifier", sources: list[Source], errors: list[str]
) -> "Iterator[tuple[Source, np.ndarray, np.ndarray]]":
    """Yield source, image as the model sees it, and probabilities; what can't be read is added to `errors`."""
    from lineup.data.image_io import UnreadablePictureError

    for start in range(0, len(sources), BATCH):
        found, images = [], []
        for source in sources[start : start + BATCH]:
            try:
                images.append(classifier.preprocess(source.open()))
                found.append(source)
            except UnreadablePictureError as error:
                errors.append(f"{source.name}: {error}")
        if images:
            yield from zip(found, images, classifier.classify(images), strict=True)


def answer(
    name: str, probabilities: "np.ndarray", classes: list[str], top_k: int
) -> dict[str, Any]:
    """Return the picture's name and its most probable classes, best first."""
    best = probabilities.argsort(kind="stable")[::-1][:top_k]
    return {
        "picture": name,
        "class": classes[best[0]],
        "probabilities": {classes[i]: round(float(probabilities[i]), 6) for i in best},
    }


def print_json(answers: list[dict[str, Any]]) -> None:
    """Print a list of answers."""
    import json

    typer.echo(json.dumps(answers, indent=2, ensure_ascii=False))


def print_csv(answers: list[dict[str, Any]]) -> None:
    """Print a row per picture and class."""
    import csv

    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["picture", "rank", "class", "probability"])
    for found in answers:
        for rank, (name, probability) in enumerate(found["probabilities"].items(), start=1):
            rows.writerow([found["picture"], rank, name, probability])


def print_table(answers: list[dict[str, Any]]) -> None:
    """Print a row per picture, its classes side by side."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    picture = Column("picture", overflow="fold")
    table = Table(picture, "class", "probability", "or", box=None, header_style="bold")
    for found in answers:
        (best, probability), *others = found["probabilities"].items()
        rest = ", ".join(f"{name} {other:.1%}" for name, other in others)
        cells = found["picture"], best, f"{probability:.1%}", rest
        table.add_row(*map(Text, cells))  # not markup: names have brackets
    Console().print(table)


if __name__ == "__main__":
    run(main)
