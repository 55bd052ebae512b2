"""Where the files of a COCO data set are: the JSON of a split, and its pictures."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from detkt.base.errors import InputError, suggestion
from detkt.data.annotated import shorten
from detkt.data.images import picture_suffixes

ROBOFLOW = "_annotations.coco.json"
_OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")
_LOOKED_AT = 1 << 16  # bytes at either end of a file


def find_split(root: Path, split: str) -> Path:
    """The JSON file of *split*: ``NAME.json``, ``annotations/instances_NAME.json``, ``annotations/NAME.json``,
    ``NAME/_annotations.coco.json``, or a path to one.

    Raises InputError: no such folder or split.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the one that holds the pictures and the JSON files")
    places = [
        root / f"{split}.json",
        root / "annotations" / f"instances_{split}.json",
        root / "annotations" / f"{split}.json",
        root / split / ROBOFLOW,
    ]
    if split.lower().endswith(".json"):
        places = [root / split, root / "annotations" / split, Path(split).expanduser()]
    for place in places:
        if os.path.isfile(place):
            return place
    there = coco_splits(root)
    which = f"the splits there: {shorten(there)}" if there else "there is none"
    looked = "a split NAME is NAME.json, annotations/instances_NAME.json or NAME/_annotations.coco.json"
    raise InputError(f"{root}: no split '{split}'{suggestion(split, there)}; {which} ({looked}, or the file's path)")


def coco_splits(root: Path) -> list[str]:
    """The names of the splits in *root*, sorted, those to learn from first."""
    inner = root / "annotations"
    files = {path.name: path for path in sorted(inner.glob("*.json")) if not path.name.startswith(_OTHER_TASKS)}
    official = [name for name in files if name.startswith("instances_")]
    names = {Path(name).stem.removeprefix("instances_") for name in official or files if is_coco(files[name])}
    names |= {path.stem for path in root.glob("*.json") if path.name != ROBOFLOW and is_coco(path)}
    names |= {path.parent.name for path in root.glob(f"*/{ROBOFLOW}")}
    if (root / ROBOFLOW).is_file():
        names.add(ROBOFLOW)
    return sorted(names, key=lambda name: ("train" not in name.lower(), name))


def is_coco(path: Path) -> bool:
    """Whether *path* looks like the JSON file of a COCO data set with objects, going by its two ends."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOKED_AT)
            file.seek(max(0, path.stat().st_size - _LOOKED_AT))
            text = start + file.read()
    except OSError:
        return False
    keys = (b'"images"', b'"annotations"', b'"categories"')
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and sum(key in text for key in keys) >= 2


def picture_id(file_name: str) -> str:
    """The id of the picture that a data set calls *file_name*: its path, without suffix and in composed letters."""
    path = PureWindowsPath(file_name)  # knows both separators
    name = path.name if path.anchor or ".." in path.parts else path.as_posix()
    stem, suffix = os.path.splitext(name)
    return normalize("NFC", stem if suffix.lower() in picture_suffixes() else name)


class PictureFinder:
    """Looks for pictures of *split*, whose JSON is *path*, in the folders that people keep them in."""

    def __init__(self, root: Path, path: Path, split: str) -> None:
        name = Path(split).stem.removeprefix("instances_") if split.lower().endswith(".json") else split
        folders = [root / name, root / "images" / name, root / "images", root, path.parent, path.parent / "images"]
        self.folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._usual = 0  # where the last one was: the next one will be there, too

    def find(self, file_name: str) -> Path | None:
        """The picture's file, None where it is not there."""
        path = PureWindowsPath(file_name)
        names = [file_name, path.as_posix(), path.name]
        if "%" in file_name:  # written as an address is
            names += [unquote(name) for name in names]
        if "://" in file_name:
            names.append(unquote(urlsplit(file_name).path.rpartition("/")[2]))
        if not file_name.isascii():
            names += [normalize(form, name) for form in ("NFC", "NFD") for name in names[:3]]
        order = sorted(range(len(self.folders)), key=lambda folder: folder != self._usual)
        for name in names:
            for folder in order:
                if os.path.isfile(found := os.path.join(self.folders[folder], name)):
                    self._usual = folder
                    return Path(os.path.normpath(found))
        return None
