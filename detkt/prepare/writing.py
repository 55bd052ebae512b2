"""Annotations written in each of the formats, with as many digits as it takes to read the same boxes again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import yaml

from detkt.data.annotated import AnnotatedPicture
from detkt.data.boxes import corners_to_centres, corners_to_voc, corners_to_xywh
from detkt.data.voc import CLASS_FILE, choose_classes

Splits = Mapping[str, Sequence[AnnotatedPicture]]
Projected = tuple[AnnotatedPicture, dict[str, int]]


@dataclass(frozen=True)
class Writer:
    """How a format is written.

    Attributes:
        pictures: the folder of the pictures.
        project: picture -> what of it the format can hold, and how many of what it cannot ("noun|plural").
        write: (folder, split -> pictures, picture id -> file, classes).
    """

    pictures: str
    project: Callable[[AnnotatedPicture], Projected]
    write: Callable[[Path, Splits, Mapping[str, str], Sequence[str]], None]


def _without(picture: AnnotatedPicture, gone: np.ndarray) -> AnnotatedPicture:
    """*picture* less the objects that are *gone*."""
    kept = ~gone
    measured = None if picture.measured is None else picture.measured[kept]
    return replace(
        picture,
        boxes=picture.boxes[kept],
        names=tuple(name for name, keep in zip(picture.names, kept.tolist(), strict=True) if keep),
        difficult=picture.difficult[kept],
        crowd=picture.crowd[kept],
        overshoot=picture.overshoot[kept],
        rows=tuple(row for row, keep in zip(picture.rows, kept.tolist(), strict=True) if keep),
        measured=measured,
    )


def _own_measures(picture: AnnotatedPicture) -> np.ndarray:
    """(n,) whether COCO's measures of an object are others than those of its box."""
    if picture.measured is None:
        return np.zeros(len(picture.boxes), dtype=bool)
    boxes = corners_to_xywh(picture.boxes)
    own = np.column_stack([boxes, boxes[:, 2] * boxes[:, 3]])
    return ~np.isclose(own, picture.measured, rtol=1e-9, atol=1e-9).all(axis=1)


_MEASURES = "area of an outline, or box beyond the picture, by which COCO's AP goes|" + (
    "areas of outlines, or boxes beyond the picture, by which COCO's AP goes"
)
_EMPTY = "box without area|boxes without area"


def _project_coco(picture: AnnotatedPicture) -> Projected:
    return picture, {}


def _project_voc(picture: AnnotatedPicture) -> Projected:
    lost = {_EMPTY: int((~picture.has_area).sum())}
    kept = _without(picture, ~picture.has_area)
    lost["crowd, which becomes a difficult object|crowds, which become difficult objects"] = int(kept.crowd.sum())
    lost[_MEASURES] = int(_own_measures(kept).sum())
    none = np.zeros(len(kept.crowd), dtype=bool)
    return replace(kept, difficult=kept.difficult | kept.crowd, crowd=none, measured=None), lost


def _project_yolo(picture: AnnotatedPicture) -> Projected:
    lost = {
        _EMPTY: int((~picture.has_area).sum()),
        "difficult object, which is left out|difficult objects, which are left out": int(picture.difficult.sum()),
        "crowd, which is left out|crowds, which are left out": int((picture.crowd & ~picture.difficult).sum()),
    }
    kept = _without(picture, ~picture.has_area | picture.difficult | picture.crowd)
    lost[_MEASURES] = int(_own_measures(kept).sum())
    return replace(kept, measured=None), lost


def once(splits: Splits) -> Iterator[AnnotatedPicture]:
    """Every picture once."""
    yield from {one.id: one for own in splits.values() for one in own}.values()


def _number(value: float) -> str:
    """The shortest text that gives *value* again; whole numbers without a point."""
    return str(int(value)) if value.is_integer() else repr(value)


def _write_coco(folder: Path, splits: Splits, files: Mapping[str, str], classes: Sequence[str]) -> None:
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, pictures in splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, one in enumerate(pictures, start=1):
            assert one.size is not None
            image = {"id": image_id, "file_name": files[one.id], "width": one.size[0], "height": one.size[1]}
            images.append(image)
            boxes = corners_to_xywh(one.boxes)
            measured = np.column_stack([boxes, boxes[:, 2] * boxes[:, 3]]) if one.measured is None else one.measured
            for name, (*box, area), crowd, difficult in zip(
                one.names, measured.tolist(), one.crowd.tolist(), one.difficult.tolist(), strict=True
            ):
                item = {"id": len(annotations) + 1, "image_id": image_id, "category_id": numbers[name]}
                item |= {"bbox": box, "area": area, "iscrowd": int(crowd)}
                annotations.append(item | ({"difficult": 1} if difficult else {}))
        content = {"images": images, "annotations": annotations, "categories": categories}
        text = json.dumps(content, ensure_ascii=False)
        (folder / "annotations" / f"instances_{split}.json").write_text(text + "\n", encoding="utf-8")


def _write_voc(folder: Path, splits: Splits, files: Mapping[str, str], classes: Sequence[str]) -> None:
    (folder / "ImageSets/Main").mkdir(parents=True)
    (folder / "Annotations").mkdir()
    for split, pictures in splits.items():
        listed = "".join(f"{files[one.id]}\n" for one in pictures)
        (folder / "ImageSets/Main" / f"{split}.txt").write_text(listed, encoding="utf-8")
    for one in once(splits):
        assert one.size is not None
        lines = [
            "<annotation>",
            f"  <filename>{escape(Path(files[one.id]).name)}</filename>",
            f"  <size><width>{one.size[0]}</width><height>{one.size[1]}</height><depth>3</depth></size>",
        ]
        for name, box, difficult in zip(one.names, corners_to_voc(one.boxes).tolist(), one.difficult, strict=True):
            sides = zip(("xmin", "ymin", "xmax", "ymax"), map(_number, box), strict=True)
            corners = "".join(f"<{key}>{value}</{key}>" for key, value in sides)
            lines.append(
                f"  <object><name>{escape(name)}</name><difficult>{int(difficult)}</difficult>"
                f"<bndbox>{corners}</bndbox></object>"
            )
        path = folder / "Annotations" / f"{one.id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, "</annotation>", ""]), encoding="utf-8")
    told = [choose_classes(Counter(name for one in own for name in one.names)) for own in splits.values()]
    if any(own != (list(classes), {}) for own in told):
        (folder / CLASS_FILE).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


def _write_yolo(folder: Path, splits: Splits, files: Mapping[str, str], classes: Sequence[str]) -> None:
    numbers = {name: number for number, name in enumerate(classes)}
    for split, pictures in splits.items():
        listed = "".join(f"./images/{files[one.id]}\n" for one in pictures)
        (folder / f"{split}.txt").write_text(listed, encoding="utf-8")
    for one in once(splits):
        assert one.size is not None
        path = folder / "labels" / f"{one.id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        boxes = corners_to_centres(one.boxes, one.size).tolist()
        lines = [f"{numbers[name]} {' '.join(map(repr, box))}\n" for name, box in zip(one.names, boxes, strict=True)]
        path.write_text("".join(lines), encoding="utf-8")
    content = {split: f"{split}.txt" for split in splits} | {"nc": len(classes), "names": list(classes)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


WRITERS = {
    "voc": Writer("JPEGImages", _project_voc, _write_voc),
    "coco": Writer("images", _project_coco, _write_coco),
    "yolo": Writer("images", _project_yolo, _write_yolo),
}
"""``--convert`` -> how it is written."""
