"""What a network did on each test picture, kept with a run: its score can then be taken of any draw of the pictures.

A detector's file holds, for every class, its detections in descending order of score (the picture, and whether it is
a hit, by VOC's rule and at COCO's thresholds) and how many objects each picture has; a classifier's, which pictures it
got right. Scores as such are not kept:
only their order counts.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from detkt.base.errors import InputError
from detkt.base.files import write_atomically
from detkt.evaluation.bootstrap import (
    COCO_METRIC,
    METRICS,
    Curve,
    counted,
    draws,
    maps_of_curves,
    objects_per_picture,
)
from detkt.evaluation.coco_curves import CocoCurve, coco_curves, coco_map
from detkt.evaluation.records import Records
from detkt.evaluation.voc import match


class Outcomes(Protocol):
    """One network on the test pictures."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Their ids."""
        ...

    def measures(self, weights: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        """Scores (r,), by their keys in ``metrics.json``, of r test sets that hold picture i ``weights[:, i]`` times.

        nan where such a set has nothing to find. weights: (r, pictures) int64. only: the key that is asked for, so that
        others need not be computed.
        """
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file holds."""
        ...


@dataclass(frozen=True, eq=False)
class DetectionOutcomes:
    """pictures: ids; curves: by class, as :func:`detkt.evaluation.bootstrap.counted` has it; objects: by class, how
    many that are not difficult each picture holds; coco: by class, None in files of before they were kept."""

    pictures: tuple[str, ...]
    curves: Mapping[str, Curve]
    objects: Mapping[str, np.ndarray]
    coco: Mapping[str, CocoCurve] | None = None

    @classmethod
    def of(cls, detections: Records, annotations: Records, classes: Sequence[str]) -> DetectionOutcomes:
        """Match the detections, at an IoU of 0.5; raises InputError as `detkt.evaluation.voc.match` does."""
        matching = match(detections, annotations, classes=classes)
        curves = {name: counted(found) for name, found in matching.per_class.items()}
        coco = coco_curves(detections, annotations, list(curves))
        return cls(tuple(map(str, matching.pictures)), curves, objects_per_picture(annotations, list(curves)), coco)

    def measures(self, weights: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        found = {}
        if only != COCO_METRIC:
            found = dict(zip(METRICS, maps_of_curves(self.curves, self.objects, weights), strict=True))
        if self.coco is not None and only in (None, COCO_METRIC):
            found[COCO_METRIC] = coco_map(self.coco, self.objects, weights)
        return found

    def arrays(self) -> dict[str, np.ndarray]:
        curves = list(self.curves.values())
        return {
            "pictures": np.array(self.pictures),
            "classes": np.array(list(self.curves)),
            "objects": np.stack(list(self.objects.values())).astype(np.int32),
            "lengths": np.array([len(hits) for _, hits in curves]),
            "found_in": np.concatenate([places for places, _ in curves]).astype(np.int32),
            "hits": np.concatenate([hits for _, hits in curves]),
            **self._coco_arrays(),
        }

    def _coco_arrays(self) -> dict[str, np.ndarray]:
        if not self.coco:
            return {}
        curves = list(self.coco.values())
        return {
            "coco_lengths": np.array([len(one.pictures) for one in curves]),
            "coco_found_in": np.concatenate([one.pictures for one in curves]).astype(np.int32),
            "coco_verdicts": np.concatenate([one.verdicts for one in curves], axis=1),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> DetectionOutcomes:
        """The reverse of :meth:`arrays`."""
        names, ends = arrays["classes"].tolist(), np.cumsum(arrays["lengths"])[:-1]
        parts = zip(np.split(arrays["found_in"], ends), np.split(arrays["hits"], ends), strict=True)
        objects = dict(zip(names, arrays["objects"].astype(np.int64), strict=True))
        coco = None
        if "coco_lengths" in arrays:
            ends = np.cumsum(arrays["coco_lengths"])[:-1]
            both = (np.split(arrays["coco_found_in"], ends), np.split(arrays["coco_verdicts"], ends, axis=1))
            coco = dict(zip(names, map(CocoCurve, *both), strict=True))
        return cls(tuple(arrays["pictures"].tolist()), dict(zip(names, parts, strict=True)), objects, coco)


@dataclass(frozen=True, eq=False)
class ClassificationOutcomes:
    """pictures: ids; top1, top5: (pictures,) bool, whether the true class is the first, or among the first five."""

    pictures: tuple[str, ...]
    top1: np.ndarray
    top5: np.ndarray

    def measures(self, weights: np.ndarray, only: str | None = None) -> dict[str, np.ndarray]:
        total = weights.sum(axis=1)
        return {"top1": weights @ self.top1 / total, "top5": weights @ self.top5 / total}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"pictures": np.array(self.pictures), "top1": self.top1, "top5": self.top5}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ClassificationOutcomes:
        """The reverse of :meth:`arrays`."""
        return cls(tuple(arrays["pictures"].tolist()), arrays["top1"], arrays["top5"])


def resampled(outcomes: Outcomes, measure: str, resamples: int, seed: int = 0) -> np.ndarray:
    """(resamples,) *measure* on pictures drawn with replacement; equal seeds draw alike, whatever the network."""
    parts = [outcomes.measures(weights, measure)[measure] for weights in draws(len(outcomes.pictures), resamples, seed)]
    return np.concatenate(parts)


def write_outcomes(path: Path, outcomes: Outcomes) -> None:
    """Keep *outcomes* at *path*; raises InputError where it cannot be written."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **outcomes.arrays())  # type: ignore[arg-type]

    write_atomically(path, write)


def read_outcomes(path: Path) -> Outcomes:
    """The reverse of :func:`write_outcomes`; raises InputError where the file is damaged or another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return (ClassificationOutcomes if "top1" in arrays else DetectionOutcomes).from_arrays(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise InputError(
            f"{path} is damaged or not a run's; remove it, and the run's model is looked at anew"
        ) from None
