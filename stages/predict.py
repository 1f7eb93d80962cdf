"""Picture files in, classes out: asks a registered or an exported model."""

from pathlib import Path
from typing import Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError

MAX_DRAWN = 12  # pictures in one --explain
OUTDATED = (
    "warning: {model} was made before models kept how their pictures are prepared; only pictures "
    "of its own size are surely read right. To renew it: dvc repro"
)
OTHER_DATA = "it was trained on another split of the data than data/split/ holds"
STAYS = (
    "and stays champion, as scores on different pictures can't be compared. To move on: "
    "dvc exp run -S export.promote=always, and then -S export.promote=gate again"
)


def main(
    pictures: Annotated[
        list[str], typer.Argument(metavar="PICTURE...", help="Files, folders, or - for stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID/NAME, or a folder or .onnx "
            "file that export made; the champion of params.yaml's dataset by default.",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name per picture.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row per picture and class.")] = False,
    explain: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Draw what the model sees, and each class's probability."),
    ] = None,
) -> None:
    """Say what PICTURES show: PNG, JPEG and other formats, any size, grey or colour.

    Each picture is prepared exactly as the model's training pictures were; how is kept with the
    model. Of a data set that declares a framing, as MNIST does, pictures of another size are
    inverted, cropped and centred likewise. Given a folder with a sub-folder per class, the last
    line says how many are right.
    """
    if as_json and as_csv:
        raise UserError("choose one of --json and --csv")

    from lineup.serving.answers import classify, count_correct, print_csv, print_json, print_table
    from lineup.serving.classifier import open_classifier
    from lineup.serving.sources import find_sources

    sources, notes = find_sources(pictures)
    classifier = open_classifier(model)
    notes.append(classifier.title)
    if classifier.is_outdated:
        notes.append(OUTDATED.format(model=model or "the champion"))
    if classifier.is_of_other_data:
        notes.append(OTHER_DATA if model else f"{OTHER_DATA}, {STAYS}")
    for note in notes:
        typer.echo(note, err=True)
    answers, errors = classify(classifier, sources, MAX_DRAWN if explain else 0)
    if answers:
        printer = print_json if as_json else print_csv if as_csv else print_table
        printer(answers, top_k)
    if explain and answers:
        from lineup.evaluation.image_plots import draw_classifications

        drawn = [(answer.name, answer.image, answer.probabilities) for answer in answers]
        draw_classifications(drawn[:MAX_DRAWN], classifier.classes, explain)
        typer.echo(f"{explain} shows what the model sees", err=True)
    if correct := count_correct(answers):
        typer.echo(correct, err=as_json or as_csv)
    if errors:
        raise UserError("\n       ".join(errors))


if __name__ == "__main__":
    run(main)
