"""A page on this computer: draw or drop a picture, and see what every registered architecture says."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if not __package__:  # run as a script: its own root comes first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from lineup.cli import run
from lineup.errors import UserError

if TYPE_CHECKING:
    from gradio import Blocks
    from PIL.Image import Image

    from lineup.serving.classifier import Classifier

CANVAS = 320  # pixels, height and width
BRUSH = 12  # pixels, radius: about what a felt pen is to a handwritten digit
SHOWN = 4  # classes per architecture
MAGNIFIED = 224  # pixels, of the picture as the models see it
FONT = ["system-ui", "sans-serif"]  # of this computer: others would be fetched from elsewhere


def main(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="URIs, folders or files; every registered architecture by default.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The page is at http://127.0.0.1:PORT.")] = 7860,
) -> None:
    """Serve the page until Ctrl-C, to this computer only."""
    from lineup.serving.classifier import open_classifier, registered_architectures

    named = {Path(model).stem: model for model in models} if models else registered_architectures()
    if models and len(named) < len(models):
        named = {model: model for model in models}  # their short names coincide
    classifiers = {name: open_classifier(model) for name, model in named.items()}
    if len({tuple(classifier.description["shape"]) for classifier in classifiers.values()}) > 1:
        raise UserError("these models take pictures of different sizes; name models of one dataset")

    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        from gradio.themes import Base
    except ImportError:
        raise UserError("the page needs Gradio; run: make demo (or: pip install gradio)") from None
    page = build_page(classifiers)
    typer.echo(f"Draw at http://127.0.0.1:{port} (Ctrl-C ends it)")
    try:
        page.launch(
            server_name="127.0.0.1",
            server_port=port,
            quiet=True,
            footer_links=[],
            theme=Base(font=FONT, font_mono=FONT),
        )
    except OSError:
        raise UserError(f"port {port} is taken; try --port {port + 1}") from None


def build_page(classifiers: "dict[str, Classifier]") -> "Blocks":
    """Return the page: a canvas, the picture as the models see it, and bars of probabilities for each of them."""
    import gradio

    models = list(classifiers.values())
    dataset = models[0].description["dataset"]
    has_framing = models[0].preprocessing.framing is not None
    invitation = "Draw a picture or drop one" if has_framing else "Drop a picture"
    with gradio.Blocks(
        title=f"Lineup: {dataset}", analytics_enabled=False, fill_width=True
    ) as page:
        gradio.Markdown(f"# {dataset}\n{invitation}, and see what each architecture makes of it.")
        with gradio.Row():
            with gradio.Column(scale=0, min_width=CANVAS + 60):
                with gradio.Tab("Draw", visible=has_framing):
                    canvas = gradio.Sketchpad(
                        type="pil",
                        format="png",
                        canvas_size=(CANVAS, CANVAS),
                        fixed_canvas=True,
                        brush=gradio.Brush(
                            default_size=BRUSH, colors=["#000000"], color_mode="fixed"
                        ),
                        layers=False,
                        transforms=(),
                        buttons=[],
                        placeholder="Take the brush on the left, and draw here",
                        show_label=False,
                        elem_id="canvas",
                    )
                with gradio.Tab("Drop"):
                    file = gradio.Image(
                        type="filepath",
                        image_mode=None,
                        sources=["upload", "clipboard"],
                        elem_id="file",
                    )
                seen = gradio.Image(
                    label="As the models see it", height=MAGNIFIED + 30, buttons=[], elem_id="seen"
                )
            with gradio.Column(), gradio.Row():
                bars = [
                    gradio.Label(
                        label=name, num_top_classes=SHOWN, min_width=260, elem_id=f"says-{name}"
                    )
                    for name in classifiers
                ]
        quiet = {"outputs": [seen, *bars], "show_progress": "hidden", "api_visibility": "private"}
        canvas.change(
            lambda drawing: look(drawing and drawing["composite"], models), canvas, **quiet
        )
        file.change(lambda path: look(path and Path(path), models), file, **quiet)
    return page


def look(picture: "Image | Path | None", models: "list[Classifier]") -> list[Any]:
    """Return the picture as the models see it, enlarged, and probabilities by class per model; None for a blank one."""
    from PIL.Image import Resampling, fromarray

    from lineup.data.image_io import UnreadablePictureError

    if picture is None or is_blank(picture):
        return [None] * (1 + len(models))
    try:
        seen = models[0].preprocess(picture)
    except UnreadablePictureError as error:
        raise gradio_error(f"This picture can't be used: {error}") from None
    enlarged = fromarray(seen.transpose(1, 2, 0).squeeze()).resize(
        (MAGNIFIED, MAGNIFIED), Resampling.NEAREST
    )
    answers = [model.classify([model.preprocess(picture)])[0].tolist() for model in models]
    return [
        enlarged,
        *(
            dict(zip(model.classes, answer, strict=True))
            for model, answer in zip(models, answers, strict=True)
        ),
    ]


def gradio_error(text: str) -> Exception:
    """Return an error that the page shows."""
    import gradio

    return gradio.Error(text, print_exception=False)


def is_blank(picture: "Image | Path") -> bool:
    """Tell whether a drawing is of one shade only; a file never counts as blank."""
    from lineup.data.image_io import to_eight_bits

    if isinstance(picture, Path):
        return False
    darkest, brightest = to_eight_bits(picture, 1).getextrema()
    return darkest == brightest


if __name__ == "__main__":
    run(main)
