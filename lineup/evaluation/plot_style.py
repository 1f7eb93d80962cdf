"""How every plot looks and is written: legible at 900 pixels, in any script, for all eyes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from rich.text import Text

from lineup.files import replacing

WIDTH = 8.0  # inches; at 160 dots per inch sharp also where a README scales it to 900 pixels
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.55"  # of Okabe and Ito's palette
CENTERED = {"ha": "center", "va": "center"}

_STYLE = {
    "text.parse_math": False,  # class names may hold dollar signs
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "0.4",
    "grid.color": "0.9",
    "legend.frameon": False,
}
_FALLBACK_FONTS = """Noto Sans CJK JP, Noto Sans CJK SC, Hiragino Sans, Yu Gothic, Malgun Gothic,
Microsoft YaHei, Arial Unicode MS, Noto Sans, Noto Sans Devanagari, Noto Sans Thai, Noto Emoji"""
_MARKERS = "osD^vP*X<>"


@contextmanager
def drawing(path: Path, height: float, width: float = WIDTH) -> Iterator[Figure]:
    """Yield an empty figure, sized in inches, that becomes a PNG when the block succeeds."""
    with matplotlib.rc_context(_STYLE | {"font.family": _fonts()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(Glyph|Matplotlib currently does not support)")
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=160, metadata={"Software": None})


@contextmanager
def canvas(path: Path, height: float, width: float = WIDTH) -> Iterator[Axes]:
    """Yield axes that fill a figure, measured in inches from its top left corner."""
    with drawing(path, height, width) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.axis("off")
        yield axes


def draw_message(text: str, path: Path) -> None:
    """Draw one line of text, where a plot has nothing to show."""
    with drawing(path, height=1, width=6) as figure:
        figure.text(0.5, 0.5, text, size=12, **CENTERED)


def _fonts() -> list[str]:
    """Return DejaVu, and what is installed for names in scripts that it lacks."""
    installed = set(get_font_names())
    fallbacks = _FALLBACK_FONTS.replace("\n", " ").split(", ")
    return ["DejaVu Sans", *(name for name in fallbacks if name in installed)]


def line_styles(architectures: Iterable[str]) -> list[dict[str, Any]]:
    """Return a colour and a marker per architecture, the same in every plot of one order."""
    colors = cycle(matplotlib.color_sequences["petroff10"])
    looks = zip(architectures, colors, cycle(_MARKERS))
    return [{"color": color, "marker": marker} for _, color, marker in looks]


def percent(fraction: float, _place: int | None = None) -> str:
    """Return a percentage without needless zeros, 0.995 → 99.5 %; also formats an axis."""
    return f"{100 * fraction:.4g} %"


def shorten(name: str, most: int) -> str:
    """Return a name cut to the width of `most` Latin letters."""
    text = Text(name)
    text.truncate(most, overflow="ellipsis")
    return text.plain
