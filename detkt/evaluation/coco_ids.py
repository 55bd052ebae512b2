"""What the ids in COCO files mean: which ``image_id`` is which picture, which ``category_id`` which class.

`DatasetIds`: as the JSON of a COCO data set says, in its "images" (id, file_name) and "categories" (id, name). An
``image_id`` that is a text and no id there is a picture's name.

`PlainIds`, without such a file: ``image_id`` is the picture's name ("000012", or that of its file,
"JPEGImages/000012.jpg"), or its number, which is made of the digits of its name (12 for 000012, 2008000012 for
2008_000012); ``category_id`` is the place of the class among the classes, from 1 on. An entry that names its class
itself, in "category_name", is taken at its word, here and there, so that a list of classes in another order does no
harm.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from pathlib import PureWindowsPath
from typing import Any
from unicodedata import normalize

from detkt.base.errors import InputError, cut, suggestion
from detkt.base.files import load_json
from detkt.data.annotated import shorten
from detkt.data.images import picture_suffixes

Id = int | str

_GIVE = "give the JSON of the data set whose ids these are (--coco-annotations)"


class OtherClass(Exception):
    """A class that is not among those known, of which detections are to be left out."""


class UnknownId(Exception):
    """An id or a name that stands for nothing here; the message does not say where it was found."""


class CocoIds(ABC):
    """The ids of *pictures* and *classes*, both ways; each method raises `UnknownId`.

    others: what becomes of a detection of another class: "refuse" raises `UnknownId`, "leave" `OtherClass`, "keep"
    takes it.
    """

    def __init__(self, pictures: Sequence[str], classes: Sequence[str], others: str = "refuse") -> None:
        self.pictures, self.classes, self.others = list(pictures), list(classes), others
        self._known = frozenset(pictures)

    @abstractmethod
    def picture(self, image_id: Id) -> str: ...

    @abstractmethod
    def class_name(self, entry: Mapping[str, Any]) -> str:
        """The class of a detection, an entry with "category_id"."""

    @abstractmethod
    def image_id(self, picture: str) -> Id: ...

    @abstractmethod
    def category_id(self, class_name: str) -> Id: ...

    def picture_named(self, name: str) -> str:
        """The picture that *name*, its own or its file's, means."""
        if (picture := plain_name(normalize("NFC", name), self._known)) in self._known:
            return picture
        near = suggestion(picture, self.pictures)
        raise UnknownId(f"picture '{name}' is not among the {len(self.pictures)} of the split{near}")

    def class_named(self, name: str) -> str:
        """*name*, or what is raised for a class that is not known."""
        name = normalize("NFC", name)
        if name in self.classes or self.others == "keep":
            return name
        if self.others == "leave":
            raise OtherClass
        raise UnknownId(f"class '{cut(name)}' is not among {shorten(self.classes)}{suggestion(name, self.classes)}")


def coco_ids(
    pictures: Sequence[str],
    classes: Sequence[str],
    dataset: str | PathLike | None = None,
    others: str = "refuse",
) -> CocoIds:
    """The ids of *pictures* and *classes* in the COCO data set of the JSON file *dataset*, or without one.

    Raises InputError for a file that is no such data set.
    """
    if dataset is None:
        return PlainIds(pictures, classes, others)
    return DatasetIds(pictures, classes, dataset, load_json(dataset), others)


class PlainIds(CocoIds):
    """Names, and numbers made of names, see the module's head; what is written are the names."""

    def __init__(self, pictures: Sequence[str], classes: Sequence[str], others: str = "refuse") -> None:
        super().__init__(pictures, classes, others)
        self._of_number: dict[int, list[str]] = {}
        for picture in pictures:
            if digits := re.sub("[^0-9]", "", picture):
                self._of_number.setdefault(int(digits), []).append(picture)

    def picture(self, image_id: Id) -> str:
        if isinstance(image_id, str):
            return self.picture_named(image_id)
        same = self._of_number.get(image_id, [])
        if len(same) == 1:
            return same[0]
        whose = f"of {shorten(same, 2)} alike" if same else f"of no picture among the {len(self.pictures)} of the split"
        raise UnknownId(f"image_id {image_id} is the number {whose}; {_GIVE}")

    def class_name(self, entry: Mapping[str, Any]) -> str:
        if isinstance(name := entry.get("category_name"), str):
            return self.class_named(name)
        number = entry["category_id"]
        if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= len(self.classes):
            return self.classes[number - 1]
        ends = f"1 ({self.classes[0]}) to {len(self.classes)} ({self.classes[-1]})"
        raise UnknownId(f"category_id {cut(json.dumps(number))} is no number from {ends}; {_GIVE}")

    def image_id(self, picture: str) -> str:
        return picture

    def category_id(self, class_name: str) -> int:
        return self.classes.index(class_name) + 1


class DatasetIds(CocoIds):
    """The ids of the COCO data set that is the *content* of the JSON file *path*; InputError: it is none."""

    def __init__(
        self,
        pictures: Sequence[str],
        classes: Sequence[str],
        path: str | PathLike,
        content: Any,
        others: str = "refuse",
    ) -> None:
        super().__init__(pictures, classes, others)
        self._path = path
        if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
            raise InputError(f"{path} is no COCO data set; it must hold lists 'images' and 'categories'")
        self._files = self._named_ids(content["images"], "images", "file_name")
        self._names = self._named_ids(content["categories"], "categories", "name")
        self._image_ids = {plain_name(name, self._known): id for id, name in self._files.items()}
        self._category_ids = {name: id for id, name in self._names.items()}

    def picture(self, image_id: Id) -> str:
        if image_id not in self._files:
            if isinstance(image_id, str) and plain_name(normalize("NFC", image_id), self._known) in self._known:
                return self.picture_named(image_id)
            raise UnknownId(f"image_id {cut(json.dumps(image_id))} is not among the 'images' of {self._path}")
        return self.picture_named(self._files[image_id])

    def class_name(self, entry: Mapping[str, Any]) -> str:
        if isinstance(name := entry.get("category_name"), str):
            return self.class_named(name)
        number = entry["category_id"]
        if not is_id(number) or number not in self._names:
            raise UnknownId(f"category_id {cut(json.dumps(number))} is not among the 'categories' of {self._path}")
        return self.class_named(self._names[number])

    def image_id(self, picture: str) -> Id:
        if picture not in self._image_ids:
            raise UnknownId(f"picture '{cut(picture)}' is not among the 'images' of {self._path}")
        return self._image_ids[picture]

    def category_id(self, class_name: str) -> Id:
        if class_name not in self._category_ids:
            near = suggestion(class_name, self._category_ids)
            raise UnknownId(f"class '{cut(class_name)}' is not among the 'categories' of {self._path}{near}")
        return self._category_ids[class_name]

    def _named_ids(self, items: list, part: str, key: str) -> dict[Id, str]:
        found: dict[Id, str] = {}
        for index, item in enumerate(items):
            if not isinstance(item, dict) or not is_id(item.get("id")) or not isinstance(item.get(key), str):
                raise InputError(f"{self._path}: '{part}', item {index} (the first is 0), lacks 'id' or '{key}'")
            if item["id"] in found:
                raise InputError(f"{self._path}: '{part}' hold the id {json.dumps(item['id'])} twice")
            found[item["id"]] = item[key]
        return found


def is_id(value: Any) -> bool:
    """Whether *value* can be an id: a whole number or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def plain_name(name: str, pictures: Collection[str]) -> str:
    """The one of *pictures* that *name*, its own or its file's, means; else the file's name without suffix."""
    path = PureWindowsPath(name)  # knows both separators
    path = path.with_suffix("") if path.suffix.lower() in picture_suffixes() else path
    return next((one for one in (name, path.as_posix()) if one in pictures), path.name)
