"""Maps of the models of a comparison on one picture: student's, distilled student's, teacher's, and its method's."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
from torch import nn

from detkt.config import load_config
from detkt.data.detection import DetectionSet
from detkt.distiller import Distiller
from detkt.visualization.matching import DISTILLED, STUDENT, TEACHER
from detkt.visualization.method_maps import CONFIG, holds_method, picture_maps, restore
from detkt.visualization.sources import Source


def trained_distiller(sources: Mapping[str, Source]) -> Distiller | None:
    """The distilled student with its teacher and the nets of its method; None where these are not at hand.

    Raises InputError as `detkt.visualization.method_maps.restore` does.
    """
    distilled, teacher = sources.get(DISTILLED), sources.get(TEACHER)
    if distilled is None or teacher is None or distilled.model is None or teacher.model is None:
        return None
    if not holds_method(distilled.folder) or not load_config(distilled.folder / CONFIG).needs_teacher:
        return None
    # The checkpoint's weights go into a copy: what is scored stays what its file has.
    return restore(distilled.folder, copy.deepcopy(distilled.model), teacher.model)


def compared_maps(
    sources: Mapping[str, Source], distiller: Distiller | None, dataset: DetectionSet, index: int
) -> dict[str, np.ndarray]:
    """Title -> map (C, h, w) of picture number *index*: those of the *sources* that are detectors.

    distiller: of `trained_distiller`; its views stand for the distilled student's and the teacher's maps. Others are
    shown by their backbone's first output.
    """
    maps = {}
    for role, source in sources.items():
        if source.model is not None and (distiller is None or role == STUDENT):
            maps[source.title] = _first_output(source.model, dataset, index)
    if distiller is not None:
        for title, feature in picture_maps(distiller, dataset, index).maps.items():
            maps[title.replace(STUDENT, sources[DISTILLED].title, 1)] = feature
    return maps


def _first_output(model: nn.Module, dataset: DetectionSet, index: int) -> np.ndarray:
    with Distiller(model, None, "none") as alone:
        return next(iter(picture_maps(alone.eval(), dataset, index).maps.values()))
