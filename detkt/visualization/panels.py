"""A picture with boxes and labels inside a matplotlib figure, laid out in whole pixels of the figure.

So a picture is resampled once, by its panel's exact factor, and labels can be measured and kept inside it.
Figures are matplotlib's, with the Agg canvas, and without pyplot's global state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from detkt.base.files import write_atomically
from detkt.visualization.labels import place_labels

DPI = 160
_PADDING = 3


@dataclass(frozen=True)
class Style:
    """How a box is drawn: colours, line width and letter size in points, whether its label may be left out."""

    color: str
    text_color: str = "black"
    label_color: str | None = None  # None: the box's
    label_alpha: float = 1.0
    width: float = 2.2
    letters: float = 8.0
    dashed: bool = False
    required: bool = True

    @property
    def line(self) -> dict:
        """Line properties, with a dark rim that sets the colour off against any picture."""
        return {
            "linewidth": self.width,
            "linestyle": (0, (4, 2.5)) if self.dashed else "solid",
            "path_effects": [withStroke(linewidth=self.width + 1.2, foreground="#101418", alpha=0.75)],
        }


@dataclass(frozen=True)
class Mark:
    """A box (x1, y1, x2, y2: corners from 0, in pixels of the picture), its label and its style."""

    box: tuple[float, float, float, float]
    text: str
    style: Style


def pixel_figure(width: int, height: int) -> Figure:
    """An empty figure of exactly *width* x *height* pixels, with its Agg canvas."""
    # The canvas rounds down, so a hair more than the exact number of inches.
    figure = Figure(figsize=((width + 0.01) / DPI, (height + 0.01) / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write *figure* as PNG or, by its suffix, JPEG; the file is whole or not there. InputError: cannot write."""
    kind = "jpeg" if path.suffix.lower() in (".jpg", ".jpeg") else "png"
    options = {"quality": 92} if kind == "jpeg" else {}

    def write(temporary: Path) -> None:
        with _any_letters():
            figure.savefig(temporary, format=kind, dpi=DPI, pil_kwargs=options)

    write_atomically(path, write)


@contextmanager
def _any_letters() -> Iterator[None]:
    """No warning of class names in a script that matplotlib's font lacks: their letters become boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def draw_panel(figure: Figure, image: np.ndarray, marks: Sequence[Mark], place: tuple[int, int, int, int]) -> None:
    """Draw *image* (H, W, 3) uint8 and its *marks* at *place*: x, y, width and height in pixels from the top left.

    Boxes that must be labelled are drawn last and labelled first, those of high score before others as given.
    """
    x, y, width, height = place
    total_width, total_height = (int(side) for side in figure.bbox.size)
    axes = figure.add_axes(
        (x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height)
    )
    axes.set_axis_off()
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    axes.imshow(np.asarray(resized), extent=(0, width, height, 0), interpolation="none", aspect="auto")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)

    marks = sorted(marks, key=lambda mark: not mark.style.required)
    factors = np.array([width / image.shape[1], height / image.shape[0]] * 2)
    boxes = np.array([mark.box for mark in marks], dtype=np.float64).reshape(-1, 4) * factors
    boxes = np.clip(boxes, 0, [width, height, width, height])
    # Labels stand flush with the outer edge of the line.
    margins = np.array([mark.style.width * DPI / 72 / 2 for mark in marks]).reshape(-1, 1)
    with _any_letters():
        texts = [_fitting_text(figure, mark, width) for mark in marks]
    sizes = np.array([(text.width, text.height) for text in texts]).reshape(-1, 2)
    outer = boxes + margins * np.array([-1, -1, 1, 1])
    corners = place_labels(outer, sizes, (width, height), [mark.style.required for mark in marks])
    for order, (mark, box, text, corner) in enumerate(zip(marks, boxes, texts, corners, strict=True)):
        above = 2 * (len(marks) - order) + (1000 if mark.style.required else 0)
        _draw_box(axes, mark.style, box, width, height, zorder=10 + above)
        if corner is not None:
            _draw_label(axes, mark.style, text, corner, zorder=10_000 + above)


@dataclass(frozen=True)
class _Text:
    text: str
    letters: float
    width: float
    height: float
    descent: float


def _fitting_text(figure: Figure, mark: Mark, available: float) -> _Text:
    """The label's text, measured with its padding, in letters small enough for the picture's width."""
    letters = mark.style.letters
    canvas: Any = figure.canvas  # Agg's
    renderer = canvas.get_renderer()
    while True:
        font = FontProperties(size=letters, weight="bold" if mark.style.required else "normal")
        width, _, _ = renderer.get_text_width_height_descent(mark.text, font, ismath=False)
        # One height for all, whichever letters are in them.
        _, height, descent = renderer.get_text_width_height_descent("Agjy", font, ismath=False)
        if width + 2 * _PADDING <= available or letters <= 4:
            return _Text(mark.text, letters, width + 2 * _PADDING, height + _PADDING, descent)
        letters -= 0.5


def _draw_box(axes, style: Style, box: np.ndarray, width: int, height: int, zorder: float) -> None:
    # A line along the picture's border would lose its outer half.
    inset = style.width * DPI / 72 / 2
    x1, x2 = np.clip(box[[0, 2]], inset, width - inset)
    y1, y2 = np.clip(box[[1, 3]], inset, height - inset)
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=style.color, zorder=zorder, **style.line)
    )


def _draw_label(axes, style: Style, text: _Text, corner: tuple[float, float], zorder: float) -> None:
    x, y = corner
    ground = Rectangle(
        corner,
        text.width,
        text.height,
        facecolor=style.label_color or style.color,
        alpha=style.label_alpha,
        linewidth=0,
        zorder=zorder,
    )
    axes.add_patch(ground)
    axes.text(
        x + _PADDING,
        y + text.height - text.descent - _PADDING / 2,
        text.text,
        size=text.letters,
        weight="bold" if style.required else "normal",
        color=style.text_color,
        va="baseline",
        parse_math=False,
        clip_on=True,
        zorder=zorder + 1,
    )
