"""The formats of annotations: which one a folder is in, its splits, and its reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from detkt.base.errors import InputError
from detkt.data.annotated import Contents, Reading
from detkt.data.coco import read_coco
from detkt.data.coco_folder import coco_splits
from detkt.data.voc import read_voc
from detkt.data.voc_folder import is_plain, plain_folders, voc_folder, year_folders
from detkt.data.yolo import read_yolo
from detkt.data.yolo_folder import open_yolo, yolo_file, yolo_splits

Reader = Callable[[Path, str, Reading], Contents]

READERS: dict[str, Reader] = {"voc": read_voc, "coco": read_coco, "yolo": read_yolo}
"""``data.format`` -> reader; the shapes are in VOC's."""


def reader(data_format: str) -> Reader:
    """The reader of ``data.format``."""
    return READERS["voc" if data_format == "shapes" else data_format]


def found_format(root: Path) -> str | None:
    """The format that the files in *root* are in; None: in none of them. What is in VOC's is VOC's."""
    if not root.is_dir() or year_folders(root) and not is_plain(root):
        return "voc" if root.is_dir() else None
    if yolo_file(root) is not None:
        return "yolo"
    if coco_splits(root):
        return "coco"
    return "voc" if year_folders(root) or plain_folders(root) else None


def split_names(data_format: str, root: Path) -> list[str]:
    """The splits in *root*, as the config names them."""
    if data_format == "coco":
        return coco_splits(root)
    if data_format == "yolo":
        return yolo_splits(open_yolo(root))
    if is_plain(root):
        return list(plain_folders(root))
    return [
        split if years == [root] else f"{year.name.removeprefix('VOC')}:{split}"
        for years in [year_folders(root)]
        for year in years
        for split in voc_folder(year).splits()
    ]


def wrong_format_hint(data_format: str, root: Path) -> str:
    """What to add to a refusal where *root* is in another format than the config says; else nothing."""
    try:
        found = found_format(root)
    except (InputError, OSError):
        return ""
    return f" (the folder looks like one of data.format={found})" if found not in (None, data_format) else ""
