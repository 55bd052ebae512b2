"""Data sets in the format of COCO: one JSON file a split, with "images", "annotations" and "categories".

Boxes are x, y, width and height in pixels, from the picture's left upper edge. Polygons and run lengths are passed
over. Objects with ``iscrowd`` are regions of many objects. An object's ``"difficult": 1``, which COCO itself does not
know, is VOC's flag; ``detkt prepare --convert`` writes it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from detkt.base.errors import InputError, cut, literal
from detkt.base.files import load_json
from detkt.data.annotated import AnnotatedPicture, Contents, Flaw, Reading, fit_boxes, shorten
from detkt.data.boxes import xywh_to_corners
from detkt.data.coco_folder import PictureFinder, find_split, picture_id
from detkt.data.parts import parse_part, part_of

Id = int | str


def read_coco(root: Path, split: str, reading: Reading) -> Contents:
    """The pictures of *split*, in the order of their ids, which pycocotools goes by too; classes by their ids.

    All faulty annotations are told of in ``flaws``: a box of negative size or wholly outside, a number that is none, a
    picture or category that is not there. Boxes of no width or height, as COCO's own have, are not learnt.

    Raises InputError: no such split, no COCO data set, an id or a category's name given twice, a picture not there.
    """
    pictures: dict[tuple[Path, str], AnnotatedPicture] = {}
    whole = Contents([], [], _locate, list, "width and height")
    files: dict[Path, Contents] = {}
    for part in split.split("+"):
        name, bounds = parse_part(part)
        path = find_split(root, name)
        if path not in files:
            files[path] = _read_file(root, path, name, reading)
            whole.notes += files[path].notes
            whole.flaws += files[path].flaws
        found = files[path].pictures
        whole.classes = list(dict.fromkeys([*whole.classes, *files[path].classes]))
        for number in part_of(len(found), name, bounds):
            pictures[path, found[number].id] = found[number]
    taken: dict[str, AnnotatedPicture] = {}
    for picture in pictures.values():
        first = taken.setdefault(picture.id, picture)
        if first is not picture:
            what = f"picture id '{cut(picture.id)}' is taken by {first.source}; rename one of them"
            raise InputError(f"{picture.source}: {what}")
    whole.pictures, whole.all_classes = list(pictures.values()), partial(list, whole.classes)
    return whole


def _locate(picture: AnnotatedPicture, index: int) -> str:
    return f"{picture.source}, annotation {cut(picture.rows[index])} of {cut(picture.id)}"


def _read_file(root: Path, path: Path, split: str, reading: Reading) -> Contents:
    content = load_json(path, _without_outlines)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no COCO data set; it must hold lists 'images', 'annotations' and 'categories'")
    images, categories = _by_id(path, content, "images"), _by_id(path, content, "categories")
    annotations = content.get("annotations")
    if not isinstance(annotations, list):
        raise InputError(f"{path} is no COCO data set with objects; it must hold a list 'annotations'")
    if not images:
        raise InputError(f"{path}: 'images' are empty; give a split that has pictures")
    names, notes = _names(path, annotations, categories)
    numbers = {id: place for place, id in enumerate(images)}
    found = Contents([], list(names.values()), _locate, list, "width and height", notes)
    objects = _Objects(path, found.flaws, reading.boxes == "clip")
    for place, annotation in enumerate(annotations):
        objects.add(place, annotation, numbers, names)
    del content, annotations
    finder = PictureFinder(root, path, split)
    where: list[Path | None] = []
    named: dict[str, Id] = {}
    shown_by: dict[Path, Id] = {}
    for id, image in images.items():
        file_name = image.get("file_name")
        if not isinstance(file_name, str) or not file_name.strip():
            raise InputError(f"{path}, image {literal(id)}: 'file_name' is missing or no text")
        if file_name in named:
            raise InputError(
                f"{path}, image {literal(id)}: file_name '{cut(file_name)}' is that of image "
                f"{literal(named[file_name])}, too"
            )
        named[file_name] = id
        picture = finder.find(file_name) if reading.pictures else None
        if picture is not None and (first := shown_by.setdefault(picture, id)) != id:
            raise InputError(
                f"{path}, image {literal(id)}: no picture {cut(file_name)} but {picture}, which is image "
                f"{literal(first)}; add the picture where file_name says"
            )
        where.append(picture)
    if reading.pictures and (lacking := [name for name, one in zip(named, where, strict=True) if one is None]):
        raise InputError(
            f"{path}, image {literal(named[lacking[0]])}: no picture {cut(lacking[0])} ({len(lacking)} of "
            f"{len(named)} are not there) in {shorten(map(str, finder.folders), 4)}; add them, or take them out of the "
            "file"
        )
    short = [picture_id(name) for name in named]
    if len(set(short)) < len(short):  # a.jpg and a.png
        short = list(named)
    stated = [_size(image) for image in images.values()]
    sizes = [size or (reading.size(one) if one is not None else None) for size, one in zip(stated, where, strict=True)]
    found.pictures = objects.shared_out(list(zip(short, where, sizes, stated, strict=True)))
    return found


def _without_outlines(item: dict) -> dict:
    # Of COCO's 450 MB nine tenths are outlines: dropped as they come, they never fill the memory.
    item.pop("segmentation", None)
    return item


def _by_id(path: Path, content: dict, part: str) -> dict[Id, dict]:
    """The items of a list by id, in the order of the ids."""
    items = content.get(part)
    if not isinstance(items, list):
        raise InputError(f"{path} is no COCO data set; it must hold a list '{part}'")
    found: dict[Id, dict] = {}
    texts: set[str] = set()
    for place, item in enumerate(items):
        id = _id(item.get("id")) if isinstance(item, dict) else None
        if id is None:
            raise InputError(f"{path}: '{part}', item {place} (the first is 0), lacks an 'id'")
        if str(id) in texts:
            raise InputError(f"{path}: '{part}' hold the id {literal(id)} twice; give each its own")
        texts.add(str(id))
        found[id] = item
    numeric = all(isinstance(id, int) for id in found)
    return {id: found[id] for id in sorted(found, key=None if numeric else str)}


def _names(path: Path, annotations: list, categories: dict[Id, dict]) -> tuple[dict[Id, str], list[str]]:
    """Category id -> name, and notes."""
    names: dict[Id, str] = {}
    for id, item in categories.items():
        name = str(item.get("name")) if _is_number(item.get("name")) else item.get("name")  # the digits 0 to 9, say
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}, category {literal(id)}: 'name' is missing or no text")
        names[id] = normalize("NFC", " ".join(name.split()))
    # Roboflow puts the whole data set's name before the classes, as a category of which all others are kinds.
    used = {str(_id(one.get("category_id"))) for one in annotations if isinstance(one, dict)}
    above = {
        id: {str(item.get("supercategory")) for other, item in categories.items() if other != id} for id in categories
    }
    heads = [id for id, item in categories.items() if above[id] == {str(item["name"])} and str(id) not in used]
    notes = [
        f"{path}: category {literal(id)} ('{cut(names.pop(id))}') has no object, and all others have it as their "
        "supercategory: it is not taken for a class"
        for id in heads
    ]
    if not names:
        raise InputError(f"{path}: 'categories' are empty; name the classes there")
    first: dict[str, Id] = {}
    for id, name in names.items():
        if name in first:
            both = f"categories {literal(first[name])} and {literal(id)}"
            raise InputError(f"{path}: {both} are both called '{cut(name)}'; rename one")
        first[name] = id
    return names, notes


def _size(image: dict) -> tuple[int, int] | None:
    """(width, height) as stated; None where they are not, or are 0 or parts of a pixel."""
    sides: list[Any] = [image.get(key) for key in ("width", "height")]
    if not all(_is_number(side) and side >= 1 and float(side).is_integer() for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


class _Objects:
    """The annotations of a file, a row each, with what is wrong with them."""

    def __init__(self, path: Path, flaws: list[Flaw], clip: bool) -> None:
        self._path, self._flaws, self._clip = path, flaws, clip
        self._rows: dict[int, list[int]] = defaultdict(list)  # of each picture, by its number
        self._measured: list[tuple[float, float, float, float, float]] = []
        self._names: list[str] = []
        self._flags: list[tuple[bool, bool]] = []
        self._ids: list[Any] = []

    def add(self, place: int, item: Any, numbers: dict[Id, int], names: dict[Id, str]) -> None:
        """Take the annotation at *place*, or note what is wrong with it."""
        if not isinstance(item, dict):
            self._flaws.append(Flaw(self._path, f"{self._path}, annotation at place {place}", "it is no {…}"))
            return
        id = item.get("id", f"at place {place}")
        number = _known(numbers, item.get("image_id"))
        name = _known(names, item.get("category_id"))
        box: Any = item.get("bbox")
        area = item.get("area")
        crowd, difficult = (0 if item.get(key) is None else item[key] for key in ("iscrowd", "difficult"))
        what = ""
        if number is None:
            what = f"image_id {literal(item.get('image_id'))} is not among the images"
        elif name is None:
            what = f"category_id {literal(item.get('category_id'))} is not among the categories"
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            what = f"'bbox' is {literal(box)}; it must be [x, y, width, height], finite numbers"
        elif crowd not in (0, 1) or difficult not in (0, 1):
            key, value = ("iscrowd", crowd) if crowd not in (0, 1) else ("difficult", difficult)
            what = f"'{key}' is {literal(value)}; it must be 0 or 1"
        elif area is not None and not _is_number(area):
            what = f"'area' is {literal(area)}, which is not a finite number"
        if what:
            self._flaws.append(Flaw(self._path, f"{self._path}, annotation {cut(id)}", what))
            return
        x, y, width, height = map(float, box)
        self._rows[number].append(len(self._ids))
        self._measured.append((x, y, width, height, width * height if area is None else float(area)))
        self._names.append(name)
        self._flags.append((bool(crowd), bool(difficult)))
        self._ids.append(id)

    def shared_out(
        self, pictures: Sequence[tuple[str, Path | None, tuple[int, int] | None, tuple[int, int] | None]]
    ) -> list[AnnotatedPicture]:
        """A record a picture, given as (id, file, size, stated size)."""
        order = [row for number in range(len(pictures)) for row in self._rows[number]]
        of = np.array([number for number in range(len(pictures)) for _ in self._rows[number]], dtype=np.intp)
        measured = np.array([self._measured[row] for row in order], dtype=np.float64).reshape(-1, 5)
        flags = np.array([self._flags[row] for row in order], dtype=bool).reshape(-1, 2)
        # Where nothing tells the size, boxes are taken as they are.
        sizes = np.array([size or (math.inf, math.inf) for _, _, size, _ in pictures], dtype=np.float64).reshape(-1, 2)
        with np.errstate(over="ignore", invalid="ignore"):  # 1e308 and more beside it
            boxes, overshoot, wrong = fit_boxes(xywh_to_corners(measured[:, :4]), sizes[of], self._clip)
        for row, what in wrong.items():
            where = f"{self._path}, annotation {cut(self._ids[order[row]])} of {cut(pictures[of[row]][0])}"
            self._flaws.append(Flaw(self._path, where, what))
        records, start = [], 0
        for number, (id, image, size, stated) in enumerate(pictures):
            rows = self._rows[number]
            part = slice(start, start := start + len(rows))
            records.append(
                AnnotatedPicture(
                    id=id,
                    image=image,
                    source=self._path,
                    size=size,
                    stated=stated is not None,
                    boxes=boxes[part],
                    names=tuple(self._names[row] for row in rows),
                    difficult=flags[part, 1],
                    crowd=flags[part, 0],
                    overshoot=overshoot[part],
                    rows=tuple(self._ids[row] for row in rows),
                    measured=measured[part],
                )
            )
        return records


def _known(table: dict[Id, Any], id: Any) -> Any:
    """What *table* has of *id*, which may be a number there and a text here, or the reverse."""
    id = _id(id)
    if id is None:
        return None
    if id in table:
        return table[id]
    if isinstance(id, int):
        return table.get(str(id))
    return table.get(int(id)) if id.removeprefix("-").isdecimal() and len(id) < 100 else None


def _id(value: Any) -> Id | None:
    """*value* as an id; whole numbers may be written 1.0, as programs for tables do. None: it is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None
