"""A page on this computer: draw or drop a picture, see what every registered architecture says."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError

if TYPE_CHECKING:
    from lineup.serving.classifier import Classifier


def main(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="URIs, folders or files; by default all that are registered and take pictures of "
            "the newest one's size.",
        ),
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65_535, help="The page is at http://127.0.0.1:PORT.")
    ] = 7860,
) -> None:
    """Serve the page until Ctrl-C, to this computer only."""
    from lineup.serving.classifier import champion_uri, open_classifier

    if models:
        named = {Path(model).stem: model for model in models}
        if len(named) < len(models):
            named = {model: model for model in models}  # their short names coincide
    else:
        from lineup.tracking.catalog import registered_architectures

        name = champion_uri().removeprefix("models:/").partition("@")[0]
        named = registered_architectures(name)
    classifiers = {name: open_classifier(model) for name, model in named.items()}
    if not models:
        classifiers = _choose_one_size(classifiers)
    if len({tuple(classifier.metadata["shape"]) for classifier in classifiers.values()}) > 1:
        raise UserError("these models take pictures of different sizes; name models of one dataset")

    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        from lineup.serving.demo_page import serve
    except ImportError:
        raise UserError("the page needs Gradio; run: make demo (or: pip install gradio)") from None
    typer.echo(f"Open http://127.0.0.1:{port} (Ctrl-C ends it)")
    serve(classifiers, port)


def _choose_one_size(classifiers: "dict[str, Classifier]") -> "dict[str, Classifier]":
    """Return those that take pictures of the newest one's size, and name the others."""
    newest = max(classifiers.values(), key=lambda one: int(one.version))
    kept = {
        name: one
        for name, one in classifiers.items()
        if one.metadata["shape"] == newest.metadata["shape"]
    }
    if others := sorted(classifiers.keys() - kept.keys()):
        typer.echo(f"left out, of another size of pictures: {', '.join(others)}; renew: dvc repro")
    return kept


if __name__ == "__main__":
    run(main)
