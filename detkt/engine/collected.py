"""Finished runs from anywhere as rows: their folders, or their ``metrics.json`` files under names of one's own."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detkt.base.errors import InputError
from detkt.base.files import load_json
from detkt.engine.comparison import Row, find_outcomes
from detkt.engine.run_folder import PICTURES
from detkt.evaluation.outcomes import Outcomes, read_outcomes
from detkt.kinds import Kind, kind_of_scores

_NAMED = re.compile(r"(?P<label>.+)-s(?P<seed>\d+)$")
Found = tuple[str, dict[str, Any], Outcomes | None]


def read_rows(
    paths: Iterable[Path], *, pictures: bool, quiet: bool
) -> tuple[list[Row], dict[str, Any] | None, Kind[Any]]:
    """The runs in *paths* as rows, the best mean first, the teacher's scores where one is there, and their kind.

    Args:
        paths: folders of runs, folders of such folders or of their ``metrics.json`` files, such files, or a
            ``table.json``. A run called ``NAME-sSEED`` is in the row NAME (less the name of its config, where all have
            one), any other in that of its method. ``NAME-sSEED.npz`` beside a file is the run's ``pictures.npz``.
        pictures: with what they did picture by picture; a folder that has not kept it is looked at once.
        quiet: no progress bars.

    Raises:
        InputError: there is none, one is damaged, or they were not scored on the same pictures and classes.
    """
    runs = [run for path in paths for run in _read(path, pictures, quiet)]
    teachers = [scores for _, scores, _ in runs if scores.get("role") == "teacher"]
    students = [run for run in runs if run[1].get("role") != "teacher"]
    if not students:
        raise InputError("no finished run of a student among --runs; give run folders or their metrics.json files")
    kind = kind_of_scores(set.intersection(*(set(scores) for _, scores, _ in runs)))
    if kind is None:
        raise InputError("--runs holds detectors and classifiers, or files without scores; give runs of one data set")
    if len(splits := {str(run[1].get("split")) for run in runs}) > 1:
        raise InputError(f"--runs holds runs that were tested on different lists ({', '.join(sorted(splits))})")
    _check_classes(runs)
    if len(teachers) > 1:
        raise InputError(f"--runs holds {len(teachers)} teachers; give one at most")
    configs = {str(scores.get("dataset")) for _, scores, _ in students}
    prefix = f"{configs.pop()}-" if len(configs) == 1 else ""
    rows: dict[str, Row] = {}
    for name, scores, outcomes in sorted(students, key=lambda run: run[1]["seed"]):
        label = name.removeprefix(prefix)
        row = rows.setdefault(label, Row(label))
        row.runs.append(scores)
        row.outcomes.append(outcomes)
    measure = next(iter(kind.measures))
    ranked = sorted(rows.values(), key=lambda row: row.mean(measure), reverse=True)
    return ranked, teachers[0] if teachers else None, kind


def _check_classes(runs: Iterable[Found]) -> None:
    known = [(f"{run[0]}, seed {run[1]['seed']}", set(run[1]["per_class"])) for run in runs if run[1].get("per_class")]
    for name, classes in known:
        if unlike := classes ^ known[0][1]:
            raise InputError(
                f"--runs holds runs of different classes: '{min(unlike)}' is one of those of {known[0][0]} or {name}, "
                "not of both; give runs of one data set"
            )


def _read(path: Path, pictures: bool, quiet: bool) -> list[Found]:
    if path.is_dir():
        if (path / "metrics.json").is_file():
            scores = _scores(load_json(path / "metrics.json"), path / "metrics.json")
            return [_labelled(path.name, scores, find_outcomes(path, quiet) if pictures else None)]
        inside = sorted(path.glob("*/metrics.json"))
        if inside:
            return [run for each in inside for run in _read(each.parent, pictures, quiet)]
        files = [file for file in sorted(path.glob("*.json")) if _is_metrics(load_json(file))]
        if not files:
            raise InputError(f"--runs {path} holds no finished run, and no metrics.json files")
        return [run for file in files for run in _read(file, pictures, quiet)]
    content = load_json(path)
    if isinstance(content, dict) and content and all(isinstance(value, list) for value in content.values()):
        return [(label, _scores(scores, path), None) for label, runs in content.items() for scores in runs]
    scores = _scores(content, path)
    if path.name == "metrics.json":
        return [_labelled(path.parent.name, scores, find_outcomes(path.parent, quiet) if pictures else None)]
    beside = path.with_suffix(Path(PICTURES).suffix)
    return [_labelled(path.stem, scores, read_outcomes(beside) if pictures and beside.is_file() else None)]


def _labelled(name: str, scores: dict[str, Any], outcomes: Outcomes | None) -> Found:
    if match := _NAMED.match(name):
        if int(match["seed"]) != scores["seed"]:
            raise InputError(f"{name} is called seed {match['seed']}, but its metrics say seed {scores['seed']}")
        return match["label"], scores, outcomes
    return str(scores["method"]), scores, outcomes


def _is_metrics(content: Any) -> bool:
    return isinstance(content, dict) and {"method", "seed", "updates", "seconds"} <= set(content)


def _scores(content: Any, path: Path) -> dict[str, Any]:
    """*content*, less null: what cannot be measured is nan."""
    if not _is_metrics(content):
        raise InputError(f"{path} is not the metrics.json of a finished run; leave it out")
    kind = kind_of_scores(content)
    measures = kind.measures if kind else ()
    scores = content | {key: math.nan for key in measures if content[key] is None}
    for key in (*measures, "seed", "updates", "seconds"):
        if not isinstance(scores[key], int | float):
            raise InputError(f"{path} holds no number under '{key}'; mend it, or leave it out")
    return scores
