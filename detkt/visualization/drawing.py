"""Pictures with boxes: one picture's detections, and KTAN's Fig. 2 (student, distilled and teacher side by side).

Liu et al., "KTAN: Knowledge Transfer Adversarial Network", IJCNN 2020, Fig. 2: yellow boxes are correct detections
that the distilled network gains over the student, red ones false detections of the student. What got worse is marked
as well: a picture that shows gains alone shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from detkt.data.boxes import voc_to_corners
from detkt.visualization.matching import DISTILLED, STUDENT, PictureChanges
from detkt.visualization.panels import Mark, Style, draw_panel, pixel_figure

YELLOW, RED, BLUE, PINK, GREEN, QUIET = "#ffd500", "#ff2a2a", "#4fc3ff", "#ff7be0", "#7df58d", "#d5dde6"
GAINED = Style(YELLOW)
LOST = Style(BLUE)
FALSE = Style(RED, "white")
NEW = Style(PINK)
OTHER = Style(QUIET, "white", "#20262e", label_alpha=0.65, width=1.0, letters=6.5, required=False)
OTHER_FALSE = replace(OTHER, dashed=True)
TRUTH = Style(GREEN, letters=7.0)
TRUTH_DIFFICULT = replace(TRUTH, dashed=True)

COLUMNS = 6
_TRUTH_ROW = "truth"
PANEL_HEIGHT = 448
_WIDEST, _NARROWEST, _LEGEND_WIDTH = 800, 300, 1040
_LEFT, _GAP, _CAPTION, _LEGEND, _NOTE = 56, 8, 76, 92, 46


def difference_figure(
    pictures: Sequence[PictureChanges],
    read: Callable[[Hashable], np.ndarray],
    titles: Mapping[str, str] | None = None,
    truth: bool = False,
    note: str = "",
) -> Figure:
    """KTAN's Fig. 2: a column a picture, a row a model: a) student, b) distilled, c) teacher where there is one.

    In the distilled row, yellow: the detections of objects gained, pink: false detections that the student does not
    make. In the student's row, blue: the detections of objects lost, red: all false detections. All others are thin; of
    these, false ones (which the distilled network shares with the student, or the teacher's) are dashed.
    More than six pictures are divided evenly into blocks of rows, one below the other.

    Args:
        pictures: one or more, all with the same models.
        read: picture id -> (H, W, 3) uint8.
        titles: model -> name of its row.
        truth: a row with the objects that are to be found above the others, difficult ones dashed.
        note: a line below all: which pictures these are.
    """
    rows = [*([_TRUTH_ROW] if truth else []), *pictures[0].models]
    names = {role: f"{'abc'[i]}) {(titles or {}).get(role, role)}" for i, role in enumerate(pictures[0].models)}
    images = [read(changes.picture) for changes in pictures]
    panels = [_panel_size(image) for image in images]
    cells = [max(width, _NARROWEST) for width, _ in panels]
    blocks = np.array_split(np.arange(len(pictures)), -(-len(pictures) // COLUMNS))
    block_height = _CAPTION + len(rows) * (PANEL_HEIGHT + _GAP)
    bottom = _LEGEND + (_NOTE if note else 0)
    width = max(_LEGEND_WIDTH, *(_LEFT + sum(cells[i] + _GAP for i in block) for block in blocks))
    figure = pixel_figure(width, len(blocks) * block_height + bottom)
    for number, block in enumerate(blocks):
        top = number * block_height + _CAPTION
        for row, role in enumerate(rows):
            middle = top + row * (PANEL_HEIGHT + _GAP) + PANEL_HEIGHT / 2
            name = names.get(role, "ground truth")
            _write(figure, _LEFT / 2, middle, name, rotation=90, va="center", size=10, weight="bold")
        left = _LEFT
        for i in block:
            _write(figure, left + cells[i] / 2, top - 8, _caption(pictures[i]), va="bottom", size=7)
            for row, role in enumerate(rows):
                x = left + (cells[i] - panels[i][0]) // 2
                y = top + row * (PANEL_HEIGHT + _GAP) + (PANEL_HEIGHT - panels[i][1]) // 2
                marks = truth_marks(pictures[i]) if role == _TRUTH_ROW else model_marks(pictures[i], role)
                draw_panel(figure, images[i], marks, (x, y, *panels[i]))
            left += cells[i] + _GAP
    if note:
        _write(figure, width / 2, len(blocks) * block_height + _LEGEND + _NOTE / 3, note, va="center", size=8)
    _draw_legend(figure, (_NOTE if note else 0) / figure.bbox.height)
    return figure


def truth_marks(changes: PictureChanges) -> list[Mark]:
    """The objects of a picture as the row of the ground truth has them."""
    corners = voc_to_corners(changes.boxes)
    return [
        Mark(tuple(corners[i].tolist()), label, TRUTH_DIFFICULT if changes.difficult[i] else TRUTH)
        for i, label in enumerate(changes.labels)
    ]


def model_marks(changes: PictureChanges, role: str) -> list[Mark]:
    """The detections of one model as `difference_figure` draws them."""
    judged = changes.models[role]
    gained = set(judged.finder[changes.gained].tolist()) if role == DISTILLED else set()
    lost = set(judged.finder[changes.lost].tolist()) if role == STUDENT else set()
    new = set(changes.new.tolist()) if role == DISTILLED else set()
    corners = voc_to_corners(judged.boxes)
    marks = []
    for i, verdict in enumerate(judged.verdicts):
        if i in gained:
            style = GAINED
        elif i in lost:
            style = LOST
        elif i in new:
            style = NEW
        elif verdict.is_error:
            style = FALSE if role == STUDENT else OTHER_FALSE
        else:
            style = OTHER
        marks.append(Mark(tuple(corners[i].tolist()), f"{judged.labels[i]} {judged.scores[i]:.2f}", style))
    return marks


def picture_figure(image: np.ndarray, marks: Sequence[Mark]) -> Figure:
    """One picture (H, W, 3) uint8 with its *marks*, at its own size.

    A picture whose longer side has less than 640 pixels is enlarged to that, one of more than 2000 reduced.
    """
    longest = max(image.shape[:2])
    scale = float(np.clip(longest, 640, 2000)) / longest
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    figure = pixel_figure(width, height)
    draw_panel(figure, image, marks, (0, 0, width, height))
    return figure


def class_styles(classes: Sequence[str]) -> dict[str, Style]:
    """A colour for each class, for pictures of one model's detections; they come again after the twentieth."""
    palette, styles = colormaps["tab20"], {}
    for number, name in enumerate(classes):
        # tab20 holds pairs of a dark and a pale hue: first all dark ones.
        color = palette((2 * number + number // 10) % 20)
        bright = float(np.dot(color[:3], (0.299, 0.587, 0.114))) > 0.55
        styles[name] = Style(to_hex(color), "black" if bright else "white", width=1.6, letters=7.0)
    return styles


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2]
    scale = min(PANEL_HEIGHT / height, _WIDEST / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _caption(changes: PictureChanges) -> str:
    return (
        f"{changes.picture}\nobjects: {len(changes.gained)} gained, {len(changes.lost)} lost\n"
        f"errors: {len(changes.removed)} removed, {len(changes.new)} new"
    )


def _write(figure: Figure, x: float, y: float, text: str, **settings) -> None:
    width, height = figure.bbox.size
    options: dict[str, Any] = {"ha": "center", "parse_math": False} | settings
    figure.text(x / width, 1 - y / height, text, **options)


def _draw_legend(figure: Figure, bottom: float) -> None:
    entries = {
        "correct, gained over the student": GAINED,
        "correct, lost by the distilled": LOST,
        "false detection of the student": FALSE,
        "false, new in the distilled": NEW,
        "any other detection": OTHER,
        "any other, false": OTHER_FALSE,
    }
    handles = [Rectangle((0, 0), 1, 1, fill=False, edgecolor=s.color, **s.line) for s in entries.values()]
    figure.legend(
        handles,
        list(entries),
        loc="lower center",
        bbox_to_anchor=(0.5, bottom),
        ncols=3,
        frameon=False,
        fontsize=8.5,
        handleheight=1.1,
    )
