"""What ``detkt diff`` leaves in its folder: the pictures, the diagrams and the numbers of a comparison."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detkt.base.errors import InputError
from detkt.data.detection import DetectionSet
from detkt.engine.run_folder import write_metrics
from detkt.evaluation.bootstrap import PairedIntervals
from detkt.visualization.curves import (
    per_class_ap_figure,
    precision_recall_figure,
    read_log,
    training_curves_figure,
)
from detkt.visualization.drawing import difference_figure
from detkt.visualization.feature_maps import PictureMaps, feature_map_figure
from detkt.visualization.feature_view import compared_maps, trained_distiller
from detkt.visualization.matching import Comparison
from detkt.visualization.panels import save_figure
from detkt.visualization.sources import CONFIDENCE, RESAMPLES, Scored
from detkt.visualization.tables import change_tables, picture_records

log = logging.getLogger(__name__)

FORMAT = 1


def read_logs(scored: Mapping[str, Scored]) -> dict[str, list[dict[str, Any]]]:
    """Title of the model -> its run's log, of those that have one with an entry in it."""
    paths = {one.source.title: one.source.folder / "log.jsonl" for one in scored.values()}
    logs = {title: read_log(path) for title, path in paths.items() if path.is_file()}
    return {title: log for title, log in logs.items() if log}


def write_difference(
    folder: Path,
    scored: Mapping[str, Scored],
    comparison: Comparison,
    dataset: DetectionSet,
    shown: Sequence[Hashable],
    gain: Mapping[str, PairedIntervals],
    how: str = "",
) -> list[Path]:
    """Write diff.png with the pictures *shown*, per_class_ap.png, precision_recall.png, changes.json, and where they
    apply training_curves.png (a run has a log) and feature_maps.png (a model is a detector). Returns their paths.

    gain: of the distilled model over the student, see `detkt.visualization.sources.student_gain`.
    how: the pictures *shown* were chosen, for diff.png and changes.json.

    Files of an earlier comparison are replaced, others left.
    """
    number_of: dict[Hashable, int] = {picture: number for number, picture in enumerate(dataset.ids)}

    def read(picture: Hashable) -> np.ndarray:
        image, _ = dataset[number_of[picture]]
        return (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)

    titles = {role: one.source.title for role, one in scored.items()}
    results = {titles[role]: one.result for role, one in scored.items()}
    logs = read_logs(scored)
    figures = {
        "diff.png": difference_figure([comparison.pictures[one] for one in shown], read, titles, truth=True, note=how),
        "per_class_ap.png": per_class_ap_figure(
            {titles[role]: one.averages[one.leading] for role, one in scored.items()}, next(iter(gain))
        ),
        "precision_recall.png": precision_recall_figure(results),
    }
    if logs:
        figures["training_curves.png"] = training_curves_figure(logs)
    if shown and (maps := _feature_maps(scored, dataset, number_of[shown[0]])):
        figures["feature_maps.png"] = feature_map_figure([PictureMaps(str(shown[0]), read(shown[0]), maps)])
    for name in {"training_curves.png", "feature_maps.png"} - set(figures):
        # One of an earlier comparison would pass for this one's.
        (folder / name).unlink(missing_ok=True)
    for name, figure in figures.items():
        save_figure(figure, folder / name)
    numbers = difference_json(scored, comparison, shown, gain)
    write_metrics(folder / "changes.json", {**numbers, "shown_how": how})
    return [folder / name for name in (*figures, "changes.json")]


def _feature_maps(scored: Mapping[str, Scored], dataset: DetectionSet, index: int) -> dict[str, np.ndarray]:
    """The maps on picture number *index* of the models that are detectors; empty where there is none."""
    sources = {role: one.source for role, one in scored.items()}
    try:
        distiller = trained_distiller(sources)
    except InputError as error:
        # One picture less is no reason to throw away the comparison.
        log.warning("warning: %s; feature_maps.png does without what the method makes of the maps", error)
        distiller = None
    return compared_maps(sources, distiller, dataset, index)


def difference_json(
    scored: Mapping[str, Scored],
    comparison: Comparison,
    shown: Sequence[Hashable],
    gain: Mapping[str, PairedIntervals],
) -> dict[str, Any]:
    """The numbers of a comparison: models, the gain over the student, tables, pictures shown, and what changed in each
    picture; nan where there is nothing to measure."""
    models = {
        role: {
            "title": one.source.title,
            "source": str(one.source.path),
            **{metric: average.mean for metric, average in one.averages.items()},
            "per_class": one.averages[one.leading].per_class,
            "parameters": one.parameters,
            "milliseconds_per_picture": one.milliseconds,
        }
        for role, one in scored.items()
    }
    return {
        "format": FORMAT,
        "score_threshold": comparison.score_threshold,
        "iou_threshold": comparison.iou_threshold,
        "models": models,
        "gain": {
            "resamples": RESAMPLES,
            "confidence": CONFIDENCE,
            **{metric: pair.numbers() for metric, pair in gain.items()},
        },
        "tables": change_tables(comparison),
        "shown": [str(picture) for picture in shown],
        "pictures": picture_records(comparison),
    }
