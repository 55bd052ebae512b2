"""A small shapes set and three models' detections on it, made from its objects by jitter: models that err as real ones.

One class and one picture have names that would do harm on a page that does not escape them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np

from detkt.data.shapes import ShapesConfig, write_shapes
from detkt.data.voc import VOCDetection
from detkt.evaluation import voc
from detkt.evaluation.bootstrap import METRICS, PairedIntervals
from detkt.visualization.matching import DISTILLED, STUDENT, TEACHER, Comparison, compare
from detkt.visualization.report import write_report
from detkt.visualization.sources import Scored, Source, averages_of, student_gain

CLASSES = ["cross", "disc", "heart", "ring", "star", "triangle"]
EVIL_CLASS = "<script>document.title='harm'</script>"
EVIL_ID = "<b>&'\"#%3f"  # the name of a file, so without a slash


@dataclass
class Scene:
    """What `detkt.visualization.report.write_report` is called with."""

    dataset: VOCDetection
    scored: dict[str, Scored]

    @cached_property
    def gain(self) -> dict[str, PairedIntervals]:
        return student_gain(self.scored, self.dataset)

    def write(self, folder: Path, threshold: float = 0.5, scored: dict[str, Scored] | None = None) -> Path:
        """The report in *folder*."""
        arguments = (scored or self.scored, self.compare(threshold), self.dataset, "test", self.gain)
        return write_report(folder, *arguments, quiet=True)

    def compare(self, threshold: float = 0.5) -> Comparison:
        return compare(
            **{role: one.detections for role, one in self.scored.items()},
            annotations=self.dataset.annotations(),
            score_threshold=threshold,
            classes=self.dataset.classes,
        )


def make_scene(
    folder: Path, pictures: int = 24, seed: int = 3, evil: bool = True, metrics: Sequence[str] = METRICS
) -> Scene:
    config = ShapesConfig(
        image_size=128, train=1, val=1, test=pictures, classes=tuple(CLASSES), min_objects=2, max_objects=4
    )
    root, classes = write_shapes(folder / "shapes", config), list(CLASSES)
    if evil:
        classes[1] = EVIL_CLASS
        _rename(root)
    dataset = VOCDetection(root, "test", classes=classes)
    truth = dataset.annotations()
    detections = _detections(np.random.default_rng(seed), dataset)
    known = {STUDENT: (1_234_567, 9.5), DISTILLED: (1_234_567, 9.4), TEACHER: (45_600_000, 38.25)}
    scored = {}
    for role, found in detections.items():
        meta = {"architecture": f"net_of_the_{role}", "extra": {"method": "ktan" if role == DISTILLED else "none"}}
        result = voc.evaluate(found, truth, classes=classes)
        averages = averages_of(result, found, dataset, metrics)
        scored[role] = Scored(Source(role, Path("runs") / role, None, meta), found, result, *known[role], averages)
    return Scene(dataset, scored)


def _rename(root: Path) -> None:
    names = root / "ImageSets" / "Main" / "test.txt"
    first = names.read_text().split()[0]
    names.write_text(names.read_text().replace(first, EVIL_ID, 1))
    for old in root.glob(f"*/{first}.*"):
        old.rename(old.with_stem(EVIL_ID))
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<name>disc</name>", f"<name>{escape(EVIL_CLASS)}</name>"))


def _detections(rng: np.random.Generator, dataset: VOCDetection) -> dict[str, dict]:
    """Role -> detections. Student and distilled share most of their errors, the teacher has few."""
    skill = {STUDENT: 0.62, DISTILLED: 0.82, TEACHER: 0.95}
    result = {role: {} for role in skill}
    for picture, record in dataset.annotations().items():
        ease = rng.uniform(0.4, 1.2, len(record["boxes"]))
        noise = [rng.uniform(1, 128, (3, 2)), rng.uniform(18, 50, (3, 2)), rng.integers(len(CLASSES), size=3)]
        noise.append(rng.beta(2, 3, 3))
        for role, level in skill.items():
            rows = []
            for box, label, share in zip(record["boxes"], record["labels"], ease, strict=True):
                size = box[2:] - box[:2]
                for again in range(1 + (rng.random() > level)):
                    name = label if rng.random() < 0.6 + 0.4 * level else dataset.classes[rng.integers(len(CLASSES))]
                    moved = box + np.tile(size, 2) * rng.normal(0, 0.13 * (1.2 - level) * (1 + again), 4)
                    rows.append((name, np.clip(level * share + rng.normal(0, 0.12), 0.02, 0.94), moved))
            for middle, size, label, score in zip(*noise, strict=True):
                around = np.concatenate([middle - size / 2, middle + size / 2]) + rng.normal(0, 1.5, 4)
                rows.append((dataset.classes[label], np.clip(score * (1.9 - level) - 0.05, 0.02, 0.94), around))
            boxes = np.clip(np.array([box for _, _, box in rows]), 1, 128)
            scores = np.array([score for _, score, _ in rows], np.float32)
            # Some equal scores, and some exactly on a threshold.
            scores[::5] = np.round(scores[::5], 1)
            result[role][picture] = {"boxes": boxes, "scores": scores, "labels": [name for name, _, _ in rows]}
    return result
