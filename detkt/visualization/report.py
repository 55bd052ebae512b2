"""A comparison as a web page that opens from disk: `write_report` makes a folder of one page, its data and pictures.

The page redraws the boxes and counts again at any score threshold, and is right at each, for three reasons:

- What a detection is depends on detections of higher score alone (see `detkt.visualization.judging`). So all are
  judged once, down to the lowest threshold of the slider, and the page leaves out what scores less.
- An object is found if its finder, the first that is right about it, scores enough: that is among the verdicts.
- Errors of student and distilled are paired by falling IoU, each at most once. The page gets every pair that could be
  made, in that order (`error_pairs`), and takes the first free ones whose both sides score enough. Leaving pairs out
  does not change the order of the others, so this is what `detkt.visualization.matching.compare` does.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from operator import methodcaller
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image
from tqdm import tqdm

from detkt.base.errors import InputError
from detkt.base.files import make_folder, write_atomically
from detkt.data.boxes import voc_to_corners
from detkt.data.detection import DetectionSet
from detkt.evaluation.bootstrap import PairedIntervals
from detkt.evaluation.table import COLUMNS
from detkt.visualization.judging import ERRORS, Judged, Verdict
from detkt.visualization.matching import DISTILLED, STUDENT, Comparison, PictureChanges, compare, error_pairs
from detkt.visualization.sources import CONFIDENCE, RESAMPLES, TITLES, Scored
from detkt.visualization.tables import SIZE_LIMITS, SIZES, box_sizes, change_tables

LEAST_SCORE = 0.1
"""Where the slider begins, unless the comparison's own threshold is lower still."""

KINDS = {
    "gained": "objects that only the distilled model finds",
    "lost": "objects that only the student finds",
    "removed": "errors of the student that are gone",
    "new": "errors that the student did not make",
}
MARKS = {
    "found": "found",
    "gained": "found, but not by the student",
    "lost": "found, but not by the distilled model",
    "missed": "object not found",
    "error": "error that stays, or the teacher's",
    "removed": "error, gone in the distilled model",
    "new": "error, new in the distilled model",
}

SIZE_HINTS = tuple(
    text.format(*(round(limit**0.5) for limit in SIZE_LIMITS)) for text in ("< {0}²", "< {1}²", "≥ {1}²")
)
"""What `SIZES` mean: areas in pixels."""

_VERDICTS = list(Verdict)
_COPIED = ("style.css", "report.js")
_LONGEST_SIDE = 1280
_QUALITY = 88


def write_report(
    folder: Path,
    scored: Mapping[str, Scored],
    comparison: Comparison,
    dataset: DetectionSet,
    split: str,
    gain: Mapping[str, PairedIntervals],
    *,
    quiet: bool = False,
) -> Path:
    """Write the report on *comparison* into *folder*; returns its ``index.html``.

    scored: role -> model, the same that were compared, on the pictures of *dataset*, its *split*; gain: of the
    distilled model over the student, see `detkt.visualization.sources.student_gain`. All pictures of the data set
    are copied as JPEG, those with a side of more than 1280 pixels reduced. A report that was there is replaced.

    Raises InputError: the folder cannot be written to.
    """
    make_folder(folder / "pictures")
    for old in (folder / "pictures").glob("[0-9]*.jpg"):
        old.unlink()
    for number in tqdm(range(len(dataset)), desc="report", unit="picture", disable=quiet, file=sys.stderr):
        _write_picture(dataset, number, folder / _picture_file(number))
    data = report_data(scored, comparison, dataset)
    template = files("detkt.visualization") / "report_template"
    texts = {name: (template / name).read_text(encoding="utf-8") for name in _COPIED}
    # Browsers read a text of JSON in half the time that the same values take as a script.
    texts["data.js"] = f"window.reportData = JSON.parse({script_json(script_json(data))});\n"
    texts["index.html"] = report_page(scored, comparison, data, split, gain)
    for name, text in texts.items():
        write_atomically(folder / name, methodcaller("write_text", text, encoding="utf-8"))
    return folder / "index.html"


def report_data(scored: Mapping[str, Scored], comparison: Comparison, dataset: DetectionSet) -> dict[str, Any]:
    """What the page draws and counts, ready for JSON.

    "threshold", "least", "most": the score threshold at first, and the slider's ends; "classes", "sizes", "verdicts":
    names, of which all others are numbers; "titles": of the models; "pictures", each with:

    - "id", "file", "size" (width, height);
    - "objects": rows of class, size, difficult (0 or 1), box;
    - "detections": for each model rows of class, size, score, verdict, object (-1: none), IoU, box, by falling score;
    - "pairs": see `error_pairs`.

    A box is four numbers x1 y1 x2 y2, corners from 0 in pixels of the original picture. Scores are exact, since they
    are compared with the threshold; boxes and IoU are rounded, since they are but shown.
    """
    threshold = comparison.score_threshold
    least = min(LEAST_SCORE, threshold)
    judged = compare(
        **{role: one.detections for role, one in scored.items()},
        annotations=dataset.annotations(),
        score_threshold=least,
        iou_threshold=comparison.iou_threshold,
        classes=comparison.classes,
    )
    class_number = {name: number for number, name in enumerate(comparison.classes)}
    pictures = [
        _picture_data(judged.pictures[picture], class_number, comparison.iou_threshold)
        | {"id": str(picture), "file": _picture_file(number), "size": list(dataset.sizes[number])}
        for number, picture in enumerate(dataset.ids)
    ]
    scores = [
        one.scores[0] for changes in judged.pictures.values() for one in changes.models.values() if len(one.scores)
    ]
    return {
        "threshold": threshold,
        "least": least,
        "most": float(max([1.0, threshold, *scores])),
        "classes": list(comparison.classes),
        "sizes": list(SIZES),
        "verdicts": [str(verdict) for verdict in _VERDICTS],
        "titles": [scored[role].source.title for role in comparison.models],
        "pictures": pictures,
    }


def report_page(
    scored: Mapping[str, Scored],
    comparison: Comparison,
    data: Mapping[str, Any],
    split: str,
    gain: Mapping[str, PairedIntervals],
) -> str:
    """The page, HTML. All names in it are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("detkt.visualization", "report_template"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = change_tables(comparison)
    models = [_model_summary(role, scored[role], scored[STUDENT]) for role in comparison.models]
    leading = scored[STUDENT].leading
    ends = gain[leading].difference
    return environment.get_template("index.html.j2").render(
        split=split,
        n_pictures=len(data["pictures"]),
        iou=comparison.iou_threshold,
        data=data,
        models=models,
        metrics=[(metric, *COLUMNS[metric], TITLES[metric]) for metric in scored[STUDENT].averages],
        interval=[_percent(ends.low), _percent(ends.high)],
        confidence=round(100 * CONFIDENCE),
        resamples=RESAMPLES,
        kinds=KINDS,
        marks=MARKS,
        total=count_cells(tables["total"]),
        class_rows=[
            (f"class:{number}", name, count_cells(tables["per_class"][name]))
            for number, name in enumerate(comparison.classes)
        ],
        size_rows=[
            (f"size:{number}", size, hint, count_cells(tables["per_size"][size]))
            for number, (size, hint) in enumerate(zip(SIZES, SIZE_HINTS, strict=True))
        ],
        error_rows=[(f"kind:{kind}", str(kind), count_cells(tables["per_error"][str(kind)])) for kind in ERRORS],
        classes=comparison.classes,
    )


def count_cells(row: Mapping[str, Any]) -> dict[str, int]:
    """A row of `detkt.visualization.tables.change_tables`, flat, as the page names its cells: "found0", "gained", …"""
    cells: dict[str, int] = {}
    for key, value in row.items():
        cells |= {f"{key}{n}": one for n, one in enumerate(value.values())} if isinstance(value, dict) else {key: value}
    return cells


def script_json(value: Any) -> str:
    """JSON that may stand in a script, of a page too: <, > and & are written as escapes, so no name can end it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _model_summary(role: str, one: Scored, student: Scored) -> dict[str, Any]:
    return {
        "role": role,
        "title": one.source.title,
        "source": one.source.path.name,
        "architecture": (one.source.meta or {}).get("architecture"),
        "mean": {metric: _percent(average.mean) for metric, average in one.averages.items()},
        "gain": {
            metric: _percent(average.mean - student.averages[metric].mean) for metric, average in one.averages.items()
        },
        "ap": {
            metric: {name: _percent(value) for name, value in average.per_class.items()}
            for metric, average in one.averages.items()
        },
        "parameters": one.parameters,
        "milliseconds": one.milliseconds,
    }


def _percent(share: float) -> float | None:
    return 100 * share if math.isfinite(share) else None


def _picture_data(changes: PictureChanges, class_number: Mapping[str, int], iou_threshold: float) -> dict[str, Any]:
    columns = zip(
        [class_number[name] for name in changes.labels],
        _size_numbers(changes.boxes),
        changes.difficult.astype(int).tolist(),
        _corners(changes.boxes),
        strict=True,
    )
    return {
        "objects": [[label, size, difficult, *box] for label, size, difficult, box in columns],
        "detections": [_detection_rows(judged, class_number) for judged in changes.models.values()],
        "pairs": error_pairs(changes.models[STUDENT], changes.models[DISTILLED], iou_threshold),
    }


def _detection_rows(judged: Judged, class_number: Mapping[str, int]) -> Sequence[list]:
    columns = zip(
        [class_number[name] for name in judged.labels],
        _size_numbers(judged.boxes),
        judged.scores.tolist(),
        [_VERDICTS.index(verdict) for verdict in judged.verdicts],
        judged.objects.tolist(),
        judged.iou.round(2).tolist(),
        _corners(judged.boxes),
        strict=True,
    )
    return [[label, size, score, verdict, k, iou, *box] for label, size, score, verdict, k, iou, box in columns]


def _size_numbers(boxes: np.ndarray) -> list[int]:
    # Not left to the page: its boxes are rounded.
    return [SIZES.index(name) for name in box_sizes(boxes)]


def _corners(boxes: np.ndarray) -> list[list[float]]:
    return voc_to_corners(boxes).round(1).tolist()


def _picture_file(number: int) -> str:
    # Numbered: an id may hold what no file or link can.
    return f"pictures/{number:06}.jpg"


def _write_picture(dataset: DetectionSet, number: int, path: Path) -> None:
    image, _ = dataset[number]
    picture = Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
    picture.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    # Not to disk at once, as a checkpoint is: thousands of pictures would take minutes, and are soon made again.
    try:
        picture.save(path, quality=_QUALITY)
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from None
