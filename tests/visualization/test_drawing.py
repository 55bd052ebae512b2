"""Colours where boxes must be; sizes of figures and files."""

from __future__ import annotations

import numpy as np
import pytest
from comparison_records import found, objects
from PIL import Image

from detkt.base.errors import InputError
from detkt.visualization import drawing
from detkt.visualization.drawing import class_styles, difference_figure, model_marks, picture_figure
from detkt.visualization.matching import compare
from detkt.visualization.panels import Mark, Style, pixel_figure, save_figure

GREY = np.full((100, 100, 3), 90, dtype=np.uint8)
YELLOW, RED, BLUE, PINK = (255, 213, 0), (255, 42, 42), (79, 195, 255), (255, 123, 224)
TRUTH = {
    "a": objects(("dog", 0, 11, 11, 30, 30), ("cat", 0, 51, 11, 70, 30)),
    "b": objects(("cat", 0, 51, 51, 70, 70)),
}
CAT, COW = ("cat", 0.8, 51, 11, 70, 30), ("cow", 0.6, 61, 61, 90, 90)
STUDENT = {"a": found(CAT, COW)}
DISTILLED = {"a": found(CAT, ("dog", 0.9, 11, 11, 30, 30), ("cow", 0.7, 11, 61, 40, 90))}


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


def panels(figure):
    """The picture's part of every panel, in the order drawn."""
    image, (height, width) = pixels(figure), pixels(figure).shape[:2]
    parts = []
    for axes in figure.axes:
        x1, y1, x2, y2 = (axes.get_position().extents * [width, height, width, height]).round().astype(int)
        parts.append(image[height - y2 : height - y1, x1:x2])
    return parts


def has(panel, color, tolerance=12):
    """Bounds x1, y1, x2, y2 of the pixels of *color* as shares of the panel; None where there is none."""
    rows, columns = np.nonzero((np.abs(panel.astype(int) - color) <= tolerance).all(axis=2))
    if not len(rows):
        return None
    height, width = panel.shape[:2]
    return columns.min() / width, rows.min() / height, columns.max() / width, rows.max() / height


@pytest.fixture
def comparison():
    return compare(STUDENT, DISTILLED, TRUTH, teacher=DISTILLED)


def test_gained_is_yellow_and_new_pink_in_the_distilled_row_and_false_red_in_the_students(comparison):
    student, distilled, teacher = panels(difference_figure([comparison.pictures["a"]], lambda _: GREY))
    # The student's cow at 61..90 of 100 pixels; its label stands above.
    x1, y1, x2, y2 = has(student, RED)
    assert (x1, x2, y2) == pytest.approx((0.60, 0.90, 0.90), abs=0.02)
    assert 0.5 < y1 < 0.6
    assert has(student, YELLOW) is None
    # The dog at 11..30 is gained, the cow at 11..40, 61..90 a new error; the cat is neither.
    x1, y1, x2, y2 = has(distilled, YELLOW)
    assert (x1, y2) == pytest.approx((0.10, 0.30), abs=0.02)
    assert x2 < 0.5
    x1, y1, x2, y2 = has(distilled, PINK)
    assert (x1, x2, y2) == pytest.approx((0.10, 0.40, 0.90), abs=0.02)
    assert has(distilled, RED) is None
    assert has(student, BLUE) is None
    assert all(has(teacher, color) is None for color in (YELLOW, RED, BLUE, PINK))
    # The teacher's boxes are there all the same, in the quiet colour.
    quiet = has(teacher, (0xD5, 0xDD, 0xE6), tolerance=25)
    assert quiet[0] == pytest.approx(0.10, abs=0.02)


def test_marks_tell_false_from_correct(comparison):
    marks = {mark.text: mark for mark in model_marks(comparison.pictures["a"], "distilled")}
    assert marks["dog 0.90"].style is drawing.GAINED
    assert marks["cat 0.80"].style is drawing.OTHER
    assert marks["cow 0.70"].style is drawing.NEW
    assert marks["dog 0.90"].box == (10, 10, 30, 30)  # corners from 0
    assert [m.style for m in model_marks(comparison.pictures["a"], "student")] == [
        drawing.OTHER,
        drawing.FALSE,
    ]
    teacher = {mark.text: mark.style for mark in model_marks(comparison.pictures["a"], "teacher")}
    assert teacher["cow 0.70"] is drawing.OTHER_FALSE


def test_what_got_worse_is_marked():
    """The other way round: the dog is lost, and an error that both make stays quiet in the distilled row."""
    changes = compare({"a": DISTILLED["a"]}, {"a": found(("cow", 0.6, 12, 61, 40, 90))}, TRUTH).pictures["a"]
    before = {mark.text: mark.style for mark in model_marks(changes, "student")}
    assert before == {"dog 0.90": drawing.LOST, "cat 0.80": drawing.LOST, "cow 0.70": drawing.FALSE}
    assert [mark.style for mark in model_marks(changes, "distilled")] == [drawing.OTHER_FALSE]
    student, distilled = panels(difference_figure([changes], lambda _: GREY))
    x1, _, x2, y2 = has(student, BLUE)
    assert (x1, x2, y2) == pytest.approx((0.10, 0.70, 0.30), abs=0.02)
    assert has(distilled, PINK) is None


def test_rows_columns_and_blocks(comparison):
    both = [comparison.pictures["a"], comparison.pictures["b"]]
    figure = difference_figure(both, lambda _: GREY, {"distilled": "distilled (ktan)"})
    assert len(figure.axes) == 6
    texts = [text.get_text() for text in figure.texts]
    assert [text for text in texts if text[1:2] == ")"] == ["a) student", "b) distilled (ktan)", "c) teacher"]
    assert "a\nobjects: 1 gained, 0 lost\nerrors: 1 removed, 1 new" in texts
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend[:2] == ["correct, gained over the student", "correct, lost by the distilled"]
    assert legend[2:4] == ["false detection of the student", "false, new in the distilled"]
    # A small picture is enlarged to the height of a row.
    assert {panel.shape[:2] for panel in panels(figure)} == {(448, 448)}
    wide = difference_figure(both * 4, lambda _: GREY)
    assert len(wide.axes) == 24
    # Two blocks of three rows with four columns each.
    assert len({round(axes.get_position().y0, 3) for axes in wide.axes}) == 6
    assert len({round(axes.get_position().x0, 3) for axes in wide.axes}) == 4


def test_the_row_of_the_ground_truth_stands_first(comparison):
    figure = difference_figure([comparison.pictures["a"]], lambda _: GREY, truth=True, note="1 of 2 pictures")
    truth, *others = panels(figure)
    assert len(others) == 3
    assert has(truth, (0x7D, 0xF5, 0x8D)) is not None and all(
        has(panel, (0x7D, 0xF5, 0x8D)) is None for panel in others
    )
    texts = [text.get_text() for text in figure.texts]
    assert texts[0] == "ground truth" and texts[-1] == "1 of 2 pictures"


def test_two_rows_without_a_teacher():
    one = compare(STUDENT, DISTILLED, TRUTH).pictures["a"]
    figure = difference_figure([one], lambda _: GREY)
    assert len(figure.axes) == 2


@pytest.mark.parametrize("shape", [(40, 900), (900, 40), (1, 1), (375, 500)])
def test_pictures_of_any_shape_keep_their_aspect(comparison, shape):
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    panel = panels(difference_figure([comparison.pictures["b"]], lambda _: image))[0]
    height, width = panel.shape[:2]
    assert height <= 448
    assert width <= 800
    scale = min(448 / shape[0], 800 / shape[1])
    assert (height, width) == pytest.approx((shape[0] * scale, shape[1] * scale), abs=1)


@pytest.mark.parametrize(
    ("shape", "drawn"), [((128, 128), (640, 640)), ((480, 700), (480, 700)), ((4000, 800), (2000, 400))]
)
def test_a_single_picture_is_drawn_at_its_own_size_within_limits(tmp_path, shape, drawn):
    image = np.full((*shape, 3), 90, dtype=np.uint8)
    box = (0.25 * shape[1], 0.5 * shape[0], 0.75 * shape[1], 0.75 * shape[0])
    figure = picture_figure(image, [Mark(box, "dog 0.90", Style("#ff0000"))])
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        save_figure(figure, tmp_path / f"drawn{suffix}")
        with Image.open(tmp_path / f"drawn{suffix}") as picture:
            assert (picture.format, picture.size) == (kind, drawn[::-1])
            colors = np.asarray(picture.convert("RGB"))
    x1, _, x2, y2 = has(pixels(figure), (255, 0, 0))
    assert (x1, x2, y2) == pytest.approx((0.25, 0.75, 0.75), abs=0.015)
    assert (np.abs(colors[2:5, 2:5].astype(int) - 90) < 10).all()


def test_labels_of_boxes_at_the_border_stay_inside():
    marks = [Mark(box, "dog 0.90", Style("#ff0000")) for box in [(0, 0, 30, 30), (70, 70, 100, 100), (95, 0, 100, 9)]]
    figure = picture_figure(GREY, marks)
    pixels(figure)
    frame = figure.axes[0].get_window_extent()
    assert len(figure.axes[0].texts) == 3
    for text in figure.axes[0].texts:
        extent = text.get_window_extent()
        assert frame.x0 - 1 <= extent.x0
        assert extent.x1 <= frame.x1 + 1
        assert frame.y0 - 1 <= extent.y0
        assert extent.y1 <= frame.y1 + 1


def test_formulas_and_foreign_letters_in_class_names_are_drawn_as_they_are(recwarn, tmp_path):
    figure = picture_figure(GREY, [Mark((10, 10, 60, 60), "$x_$ 犬 0.90", Style("#ff0000"))])
    assert figure.axes[0].texts[0].get_text() == "$x_$ 犬 0.90"
    save_figure(figure, tmp_path / "drawn.png")
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_class_styles_differ_and_are_readable():
    names = [f"class {i}" for i in range(20)]
    styles = class_styles(names)
    assert len({styles[name].color for name in names}) == 20
    assert styles == class_styles(names)
    assert {style.text_color for style in styles.values()} == {"black", "white"}


def test_a_figure_that_cannot_be_written_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        save_figure(pixel_figure(20, 20), tmp_path / "no folder" / "drawn.png")
