"""Picture files in, classes out: asks a registered or an exported model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from stages.lib.terminal import UserError, run

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from stages.lib.classifier import Classifier

SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm"}
BATCH = 256
MOST_EXPLAINED = 12  # pictures in one --explain


def main(
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE...", help="Files, folders, or - for stdin.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME, or a folder or .onnx file that export made; "
            "the champion of params.yaml's dataset by default.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to name per picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: one row per picture and class.")] = False,
    explain: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Draw what the model sees and how probable it finds each class.")
    ] = None,
) -> None:
    """Say what PICTURES show: PNG, JPEG and other formats, any size, grey or colour.

    A picture that has the model's size already is taken as it is. Any other is scaled in proportion and, if the model's
    grey training images have a dark background and the picture a bright one (or the reverse), inverted. If the training
    images show things of one size, centred by mass, as MNIST's digits are, the picture is cropped, scaled and centred
    likewise. What training images look like was measured when the model was trained and is kept with it.
    """
    if as_json and as_csv:
        raise UserError("choose one of --json and --csv")
    names = [name for picture in pictures for name in expand(picture)]

    from stages.lib.classifier import open_classifier

    classifier = open_classifier(model)
    mistakes: dict[str, str] = {}
    answers, seen = [], []
    for name, image, probabilities in classify(classifier, names, mistakes):
        answers.append(answer(name, probabilities, classifier.classes, top_k))
        if explain and len(seen) < MOST_EXPLAINED:
            seen.append((name, image, probabilities))

    if answers:
        (print_json if as_json else print_csv if as_csv else print_table)(answers)
    if explain and seen:
        from stages.lib.figures import draw_answers

        draw_answers(seen, classifier.classes, explain)
        typer.echo(f"{explain} shows what the model sees", err=True)
    if mistakes:
        raise UserError("\n       ".join(f"{name}: {reason}" for name, reason in mistakes.items()))


def expand(picture: str) -> list[str]:
    """Return a folder's picture files, at any depth, or else the name itself; UserError if nothing is there."""
    if picture == "-":
        return [picture]
    path = Path(picture)
    if not path.exists():
        raise UserError(f"there is no file or folder '{picture}'")
    if not path.is_dir():
        return [picture]
    found = sorted(str(file) for file in path.rglob("[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"folder '{picture}' holds no picture ({', '.join(sorted(SUFFIXES))})")
    return found


def classify(
    classifier: "Classifier", names: list[str], mistakes: dict[str, str]
) -> "Iterator[tuple[str, np.ndarray, np.ndarray]]":
    """Yield name, image as the model sees it, and probabilities; what can't be read is put into `mistakes`."""
    from stages.lib.pictures import UnreadablePictureError

    for start in range(0, len(names), BATCH):
        images = {}
        for name in names[start : start + BATCH]:
            try:
                images[name] = classifier.see(open_picture(name))
            except UnreadablePictureError as error:
                mistakes[name] = str(error)
        if images:
            yield from zip(images, images.values(), classifier.classify(list(images.values())), strict=True)


def open_picture(name: str) -> Any:  # noqa: ANN401
    """Return the path of a picture, or the bytes on standard input."""
    import io

    return io.BytesIO(sys.stdin.buffer.read()) if name == "-" else Path(name)


def answer(name: str, probabilities: "np.ndarray", classes: list[str], top_k: int) -> dict[str, Any]:
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
