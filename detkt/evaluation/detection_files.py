"""Files of detections, of whatever detector: a folder of VOC result files, or one COCO result file (``*.json``)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from detkt.base.errors import InputError
from detkt.base.files import check_folder, make_folder
from detkt.evaluation.coco_ids import CocoIds
from detkt.evaluation.coco_results import read_coco_results, write_coco_results
from detkt.evaluation.detector import Detections
from detkt.evaluation.records import Records
from detkt.evaluation.voc_results import check_writable_names, read_results, write_results


def is_coco_file(path: str | PathLike) -> bool:
    """Whether *path* is, or would be, a COCO result file: it ends in ``.json`` and is no folder."""
    path = Path(path)
    return path.suffix.lower() == ".json" and not path.is_dir()


def read_detections(path: str | PathLike, ids: CocoIds) -> Detections:
    """The detections in *path*. ids: the pictures and classes, and what their ids are in a COCO result file.

    Raises InputError as `read_coco_results` and `read_results` do.
    """
    if is_coco_file(path):
        return read_coco_results(path, ids)
    if Path(path).is_file():
        raise InputError(f"{path} is a file; give a COCO result file (*.json) or the folder of VOC result files")
    return read_results(path, ids.classes, pictures=ids.pictures, others=ids.others)


def write_detections(path: str | PathLike, detections: Records, ids: CocoIds, split: str) -> None:
    """Write *detections* to *path*; split: for the names of VOC result files. Folders are made as needed.

    Raises InputError as `write_coco_results` and `write_results` do.
    """
    if is_coco_file(path):
        make_folder(Path(path).absolute().parent, "folder")
        write_coco_results(path, detections, ids)
    else:
        write_results(path, detections, ids.classes, split)


def other_classes(detections: Records, classes: Sequence[str]) -> list[str]:
    """The names, sorted, of classes that *detections* have besides *classes*."""
    return sorted({str(name) for found in detections.values() for name in found["labels"]}.difference(classes))


def check_writable(path: str | PathLike, flag: str) -> None:
    """See before the work that `write_detections` can write to *path*, given by *flag*; InputError if it cannot."""
    check_folder(Path(path).absolute().parent if is_coco_file(path) else Path(path).absolute(), flag)


def check_names(path: str | PathLike, pictures: Sequence[str], classes: Sequence[str], split: str) -> None:
    """See before the work that the file or folder *path* can hold these names; InputError if it cannot."""
    if not is_coco_file(path):
        check_writable_names(pictures, classes, split)
