"""The models that are compared: trained detectors, or files of detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detkt.base.errors import InputError
from detkt.config import DataConfig, load_data_config
from detkt.data import coco_file, test_set
from detkt.data.detection import DetectionSet
from detkt.evaluation import voc
from detkt.evaluation.bootstrap import COCO_METRIC, METRICS, PairedIntervals, bootstrap_difference
from detkt.evaluation.coco import evaluate_coco
from detkt.evaluation.coco_ids import coco_ids
from detkt.evaluation.detection_files import is_coco_file, other_classes, read_detections
from detkt.evaluation.detector import Detections, detect
from detkt.evaluation.table import percent, signed
from detkt.export.runtime import is_exported, open_model, parameter_count
from detkt.kinds import Detection
from detkt.models.saved import META_FILE
from detkt.models.weights import WEIGHTS_FILE
from detkt.visualization.matching import DISTILLED, STUDENT

RESAMPLES, CONFIDENCE = 1000, 0.95
TITLES = Detection.measures


@dataclass(frozen=True, eq=False)
class Source:
    """One model to compare, opened: *model* and *meta* (its ``model.json``) are None for files of detections."""

    role: str
    path: Path
    model: nn.Module | None
    meta: dict[str, Any] | None

    @property
    def classes(self) -> list[str]:
        """The model's."""
        assert self.meta is not None
        return self.meta["classes"]

    @property
    def folder(self) -> Path:
        """The run's folder, where its log and config are."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def title(self) -> str:
        """The role, with the method by which the model was trained: "distilled (ktan)"."""
        method = ((self.meta or {}).get("extra") or {}).get("method")
        return f"{self.role} ({method})" if method not in (None, "none") else self.role


@dataclass(frozen=True)
class Average:
    """A mean average precision, and the AP of each class; nan where there is nothing to find."""

    mean: float
    per_class: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Scored:
    """A source's detections on a data set and what they are worth.

    result: VOC 2007's 11-point AP, with its curves; parameters: how many; milliseconds: of the network, a picture; both
    None for result files; averages: by key in ``metrics.json``, the one that leads first.
    """

    source: Source
    detections: Detections
    result: voc.VocResult
    parameters: int | None
    milliseconds: float | None
    averages: Mapping[str, Average]

    @property
    def leading(self) -> str:
        """The key of the average that leads."""
        return next(iter(self.averages))


def open_sources(paths: Mapping[str, Path], device: torch.device) -> dict[str, Source]:
    """Role -> source for each of *paths*: a run's folder, its ``model.safetensors``, a folder of VOC result files, or a
    COCO result file (``*.json``).

    Raises InputError: none of these, a damaged model, models of different classes.
    """
    sources = {role: _open(role, path, device) for role, path in paths.items()}
    models = [source for source in sources.values() if source.meta is not None]
    for other in models[1:]:
        first = models[0]
        ours, theirs = first.classes, other.classes
        if set(ours) != set(theirs):
            raise InputError(
                f"{first.role} {first.path} knows the classes {', '.join(ours)}, but {other.role} {other.path} "
                f"{', '.join(theirs)}; compare models of the same classes"
            )
    return sources


def comparison_data(
    run: Path, root: str | None = None, split: str | None = None, year: str | None = None
) -> DataConfig:
    """Where the pictures are: as *run*'s ``config.yaml`` says, but for what is given.

    Raises InputError: no *root* given and no config to name one, or the folder that it names is not there.
    """
    path = run / "config.yaml"
    configured = load_data_config(path) if path.is_file() else DataConfig()
    if root is not None:
        reading = {key: getattr(configured, key) for key in ("format", "year", "test", "boxes", "exif", "max_pixels")}
        data = DataConfig(root=root, **reading)
    elif path.is_file():
        data = configured
    else:
        raise InputError(f"{run} holds no config.yaml that would name the data set; give --data-root DIR")
    return replace(data, test=split or data.test, year=year or data.year)


def open_dataset(
    data: DataConfig, sources: Mapping[str, Source], coco_annotations: str | None = None
) -> tuple[DetectionSet, dict[str, Any]]:
    """The pictures to compare on, and how to read files of detections for them (see `score_source`).

    The classes are the models'; if there are only files of detections those of the data set, and those that the files
    have besides.
    """
    known = [source.classes for source in sources.values() if source.meta is not None]
    dataset = test_set(data, list(known[0]) if known else None)
    reading: dict[str, Any] = {
        "dataset": coco_annotations or coco_file(data, dataset),
        "others": "refuse" if known else "keep",
    }
    for source in () if known else sources.values():
        found = read_detections(source.path, coco_ids(dataset.ids, dataset.classes, **reading))
        dataset.classes += other_classes(found, dataset.classes)
    return dataset, reading


def score_source(
    source: Source,
    dataset: DetectionSet,
    device: torch.device,
    *,
    batch_size: int = 8,
    workers: int = 0,
    quiet: bool = False,
    reading: Mapping[str, Any] | None = None,
    metrics: Sequence[str] = METRICS,
) -> Scored:
    """Run the model over *dataset*, or read its detections, and score them.

    metrics: which averages, see :attr:`detkt.kinds.Detection.resampled`. reading: keyword arguments of
    `detkt.evaluation.coco_ids.coco_ids` for files of detections.
    """
    parameters = milliseconds = None
    if source.model is None:
        detections = read_detections(source.path, coco_ids(dataset.ids, dataset.classes, **(reading or {})))
    else:
        parameters = parameter_count(source.model)
        # The same pictures, but labels are numbered in the model's own order of the classes.
        pictures = copy(dataset)
        pictures.classes = source.classes
        detections, milliseconds = detect(
            source.model,
            pictures,
            device,
            batch_size=batch_size,
            workers=workers,
            quiet=quiet,
        )
    classes = dataset.classes + other_classes(detections, dataset.classes)
    result = voc.evaluate(detections, dataset.annotations(), classes=classes)
    averages = averages_of(result, detections, dataset, metrics)
    return Scored(source, detections, result, parameters, milliseconds, averages)


def averages_of(
    result: voc.VocResult, detections: Detections, dataset: DetectionSet, metrics: Sequence[str]
) -> dict[str, Average]:
    """The *metrics* of *detections*, whose VOC 2007 score is *result*."""
    area = voc.score(voc.Matching((), result.curves, result.iou_threshold), use_07_metric=False)
    found = {metric: Average(each.map, each.per_class) for metric, each in zip(METRICS, (result, area), strict=True)}
    if COCO_METRIC in metrics:
        coco = evaluate_coco(detections, dataset.annotations(), list(result.per_class))
        found[COCO_METRIC] = Average(coco.ap, coco.per_class)
    return {metric: found[metric] for metric in metrics}


def student_gain(scored: Mapping[str, Scored], dataset: DetectionSet) -> dict[str, PairedIntervals]:
    """What the distilled model gains over the student, with the interval that the luck of the pictures leaves.

    By the metrics of its averages, the one that leads first; `RESAMPLES` of the pictures, of which `CONFIDENCE` lie
    within.
    """
    return bootstrap_difference(
        scored[DISTILLED].detections,
        scored[STUDENT].detections,
        dataset.annotations(),
        metrics=list(scored[DISTILLED].averages),
        classes=dataset.classes,
        resamples=RESAMPLES,
        confidence=CONFIDENCE,
    )


def gain_text(gain: Mapping[str, PairedIntervals]) -> str:
    """`student_gain` as a line, in points of percent."""
    metric, pair = next(iter(gain.items()))
    change = pair.difference
    value, low, high = (signed(number).strip() for number in (change.value, change.low, change.high))
    return (
        f"gain of the distilled over the student: {value} {TITLES[metric]}, {100 * CONFIDENCE:g} % interval "
        f"{low} to {high} ({RESAMPLES} resamples of the pictures)"
    )


def models_table(scored: Mapping[str, Scored]) -> str:
    """A line a model: the mAP that leads (percent), parameters, milliseconds a picture; "-" where it is not known."""
    names = [one.source.title for one in scored.values()]
    width = max(len("model"), *map(len, names))
    leading = next(iter(scored.values())).leading
    lines = [f"{'model':<{width}}  {TITLES[leading]:>9}   parameters  ms per picture"]
    for name, one in zip(names, scored.values(), strict=True):
        parameters = "-" if one.parameters is None else f"{one.parameters:,}"
        milliseconds = "-" if one.milliseconds is None else f"{one.milliseconds:.1f}"
        lines.append(f"{name:<{width}}  {percent(one.averages[leading].mean):>9}  {parameters:>11}  {milliseconds:>14}")
    return "\n".join(lines)


def _open(role: str, path: Path, device: torch.device) -> Source:
    if is_coco_file(path):
        if not path.is_file():
            raise InputError(f"{role}: no file {path}")
        return Source(role, path, None, None)
    # A checkpoint alone is a run that is not finished: open_model says how to go on.
    of_a_run = any((path / name).exists() for name in (META_FILE, WEIGHTS_FILE, "last.pt"))
    if path.is_file() or is_exported(path) or of_a_run:
        return Source(role, path, *open_model(path, device))
    if any(path.glob("*_det_*_*.txt")):
        return Source(role, path, None, None)
    wanted = f"a trained model ({META_FILE}, {WEIGHTS_FILE}) or VOC result files (*_det_<split>_<class>.txt)"
    if not path.is_dir():
        raise InputError(f"{role}: no folder {path}; give one that holds {wanted}, or a COCO result file (*.json)")
    raise InputError(f"{role}: {path} does not hold {wanted}; give a folder that does")
