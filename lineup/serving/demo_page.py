"""The page of `make demo`: a canvas, the picture as the models see it, and what each says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio
from gradio.themes import Base
from PIL.Image import Image, Resampling, fromarray
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lineup.data.image_io import UnreadablePictureError, to_eight_bits
from lineup.errors import UserError
from lineup.serving.classifier import Classifier

CANVAS = 320  # pixels, height and width
BRUSH = 12  # pixels, radius: about what a felt pen is to a handwritten digit
SHOWN = 4  # classes per architecture
MAGNIFIED = 224  # pixels, of the picture as the models see it
LARGEST_FILE = "20mb"
HOSTS = ["127.0.0.1", "localhost"]  # a page elsewhere may give its own name this address
# the canvas begins without a tool; it may not be there yet
TAKE_BRUSH = """() => {
    const take = () => {
        const brush = document.querySelector("#canvas button[aria-label=Brush]");
        brush ? brush.click() : setTimeout(take, 100);
    };
    take();
}"""
FONT = ["system-ui", "sans-serif"]  # of this computer: others would be fetched from elsewhere


def serve(classifiers: dict[str, Classifier], port: int) -> None:
    """Serve the page until Ctrl-C, to this computer only; UserError where the port is taken."""
    try:
        build_page(classifiers).launch(
            server_name="127.0.0.1",
            server_port=port,
            quiet=True,
            footer_links=[],
            max_file_size=LARGEST_FILE,
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]},
            theme=Base(font=FONT, font_mono=FONT),
        )
    except OSError:
        raise UserError(f"port {port} is taken; try --port {port + 1}") from None


def build_page(classifiers: dict[str, Classifier]) -> gradio.Blocks:
    """Return the page. Only a set that declares a framing knows what a drawing should look like."""
    models = list(classifiers.values())
    dataset = models[0].metadata["dataset"]
    has_framing = models[0].preprocessing.framing is not None
    invitation = "Draw a picture or drop one" if has_framing else "Drop a picture"
    text = f"# {dataset}\n{invitation}, and see what each architecture makes of it."
    with gradio.Blocks(
        title=f"Lineup: {dataset}", analytics_enabled=False, fill_width=True
    ) as page:
        gradio.Markdown(text)
        with gradio.Row():
            with gradio.Column(scale=0, min_width=CANVAS + 60):
                with gradio.Tabs(selected="draw" if has_framing else "drop"):
                    with gradio.Tab("Draw", id="draw", visible=has_framing):
                        canvas = _canvas()
                    with gradio.Tab("Drop", id="drop"):
                        file = _file()
                seen = gradio.Image(
                    label="As the models see it", height=MAGNIFIED + 30, buttons=[], elem_id="seen"
                )
            with gradio.Column(), gradio.Row():
                bars = [_bars(name) for name in classifiers]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        shown = [seen, *bars]
        page.load(js=TAKE_BRUSH)
        canvas.change(
            lambda drawing: look(drawing and drawing["composite"], models), canvas, shown, **quiet
        )
        file.change(lambda path: look(path and Path(path), models), file, shown, **quiet)
    return page


def _canvas() -> gradio.Sketchpad:
    return gradio.Sketchpad(
        type="pil",
        format="png",
        canvas_size=(CANVAS, CANVAS),
        fixed_canvas=True,
        brush=gradio.Brush(default_size=BRUSH, colors=["#000000"], color_mode="fixed"),
        layers=False,
        transforms=(),
        buttons=[],
        placeholder="Draw here",
        show_label=False,
        elem_id="canvas",
    )


def _file() -> gradio.Image:
    file = gradio.Image(sources=["upload", "clipboard"], elem_id="file")
    # Gradio's own decodes the file, and shows its own error where it can't
    file.preprocess = lambda upload: upload and upload.path
    return file


def _bars(name: str) -> gradio.Label:
    return gradio.Label(label=name, num_top_classes=SHOWN, min_width=260, elem_id=f"says-{name}")


def look(picture: Image | Path | None, models: list[Classifier]) -> list[Any]:
    """Return the picture as the models see it, enlarged, and probabilities by class per model.

    An empty canvas gives None for all of them, and so does an unreadable picture, with a warning.
    """
    nothing = [None] * (1 + len(models))
    if not picture or _is_blank(picture):
        return nothing
    try:
        images = [model.preprocess(picture) for model in models]
    except UnreadablePictureError as error:
        gradio.Warning(f"This picture can't be used: {error}")
        return nothing
    seen = fromarray(images[0].transpose(1, 2, 0).squeeze())
    answers = []
    for model, image in zip(models, images, strict=True):
        probabilities = model.classify([image])[0].tolist()
        answers.append(dict(zip(model.classes, probabilities, strict=True)))
    return [seen.resize((MAGNIFIED, MAGNIFIED), Resampling.NEAREST), *answers]


def _is_blank(picture: Image | Path) -> bool:
    """Tell whether a drawing is of one shade; a file never counts as blank."""
    if isinstance(picture, Path):
        return False
    darkest, brightest = to_eight_bits(picture, 1).getextrema()
    return darkest == brightest
