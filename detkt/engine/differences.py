"""What a comparison says: differences to one method, paired by seed, with tests and intervals; and learning curves."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detkt.base.errors import InputError, suggestion
from detkt.engine.comparison import Row
from detkt.evaluation.outcomes import Outcomes, resampled
from detkt.evaluation.significance import LEVEL, PAIRS_NEEDED, interval, sign_flip_p, smallest_p

RESAMPLES = 1000
AS_GOOD_AS_EQUAL = 0.01
"""Of two scores of one model: another device or version rounds otherwise."""
PLAIN = "none"


@dataclass(frozen=True)
class Estimate:
    """A mean over the seeds whose score is finite.

    Attributes:
        value: a share, as scores are; nan where there is no such seed.
        low, high: its 95 % interval, that of a row's own score less the bootstrap's bias; None where one seed and no
            picture says nothing.
        holds: the luck that the interval holds: ``pictures + seeds``, ``seeds``, ``pictures``, or ``–``.
    """

    value: float
    low: float | None
    high: float | None
    holds: str


@dataclass(frozen=True)
class Difference(Estimate):
    """One method's mean less another's, over the seeds of which both have a finite score.

    Attributes:
        pairs: how many these are.
        p: of the exact two-sided sign-flip test.
    """

    pairs: int
    p: float


@dataclass(frozen=True)
class Reached:
    """When a method came to the plain student's last score, on the pictures of ``data.val``, by the mean over seeds.

    Attributes:
        updates: of the student; None: never, in the table ``never``.
        share: of the plain student's updates.
    """

    updates: int | None
    share: float | None


@dataclass(frozen=True)
class Comparison:
    """All that is said of some rows by one measure.

    Attributes:
        rows: the methods.
        measure: key of ``metrics.json``.
        against: the row that the others are compared with; None: there is none.
        estimates, differences, reached: by row; without *against* the last two are empty, and those without validation
            during the training have reached nothing.
        warnings: what a reader has to know, a sentence each.
    """

    rows: list[Row]
    measure: str
    against: str | None
    estimates: dict[str, Estimate]
    differences: dict[str, Difference]
    reached: dict[str, Reached]
    warnings: list[str]

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        rows = [
            {
                "method": row.method,
                "seeds": [run.get("seed") for run in row.runs],
                "estimate": asdict(self.estimates[row.method]),
                "difference": asdict(self.differences[row.method]) if row.method in self.differences else None,
                "reached": asdict(self.reached[row.method]) if row.method in self.reached else None,
            }
            for row in self.rows
        ]
        return {"measure": self.measure, "against": self.against, "rows": rows, "warnings": self.warnings}


def compare(rows: Sequence[Row], measure: str, against: str | None = None, resamples: int = RESAMPLES) -> Comparison:
    """Say what is to be said of *rows*.

    Args:
        rows: the methods.
        measure: key of ``metrics.json``.
        against: a row's name; None: the plain student, where there is one.
        resamples: draws of the pictures.

    Raises:
        InputError: there is no such row, a seed is twice in one, or runs were tested on different pictures.
    """
    check_against(against, [row.method for row in rows])
    base = next((row for row in rows if row.method == against), None) if against else _plain(rows)
    _check_pictures(rows)
    draws: Draws = {}
    unlike: list[str] = []
    for row in rows:
        _by_seed(row)
        for index in range(len(row.runs)):
            draws[row.method, _seed(row, index)] = _drawn(row, index, measure, resamples, unlike)
    estimates = {row.method: _estimate(row, measure, draws) for row in rows}
    differences, reached = {}, {}
    if base is not None:
        others = [row for row in rows if row is not base]
        differences = {row.method: _difference(row, base, measure, draws) for row in others}
        reached = updates_to_reach(rows, base, measure)
    warnings = [*unlike, *_not_finite(rows, measure), *_unlike_trainings(rows), *_unlike_curves(rows, measure)]
    warnings += _warnings(list(differences.values()), base)
    return Comparison(list(rows), measure, base.method if base else None, estimates, differences, reached, warnings)


def check_against(against: str | None, names: Sequence[str]) -> None:
    """InputError where no row of *names* is called *against*."""
    if against is not None and against not in names:
        raise InputError(f"--against {against}: no such row{suggestion(against, names)}; there are: {', '.join(names)}")


def _plain(rows: Sequence[Row]) -> Row | None:
    """The plain students: the row of that name, or the only one whose runs had no method."""
    if named := [row for row in rows if row.method == PLAIN]:
        return named[0]
    plain = [row for row in rows if all(run.get("method") == PLAIN for run in row.runs)]
    return plain[0] if len(plain) == 1 else None


def _check_pictures(rows: Sequence[Row]) -> None:
    known = [(row.method, found.pictures) for row in rows for found in row.outcomes if found is not None]
    for method, pictures in known:
        if pictures != known[0][1]:
            raise InputError(f"{known[0][0]} and {method} were tested on different pictures; compare runs of one list")


def _seed(row: Row, index: int) -> int:
    return row.runs[index].get("seed", index)


Draws = dict[tuple[str, int], np.ndarray | None]


def _drawn(row: Row, index: int, measure: str, resamples: int, unlike: list[str]) -> np.ndarray | None:
    """(resamples,) the run's score on draws of the pictures; None where they are not known, or, which *unlike* is told,
    are of another model than its scores."""
    outcomes: Outcomes | None = row.outcomes[index] if row.outcomes else None
    if outcomes is None:
        return None
    whole = outcomes.measures(np.ones((1, len(outcomes.pictures)), dtype=np.int64), measure)
    if measure not in whole:
        return None
    found, told = float(whole[measure][0]), row.runs[index][measure]
    if abs(found - told) > AS_GOOD_AS_EQUAL:
        unlike.append(
            f"{row.method}, seed {_seed(row, index)}: its pictures.npz says {100 * found:.1f} where metrics.json says "
            f"{100 * told:.1f}, and is left out"
        )
        return None
    return resampled(outcomes, measure, resamples)


def _joined(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.stack(known) if known and len(known) == len(parts) else None


def _told(
    values: Sequence[float], drawn: np.ndarray | None, centred: bool = False
) -> tuple[float, float | None, float | None, str]:
    """Mean, ends of the interval, and what it holds."""
    if not values:
        return math.nan, None, None, "–"
    ends = interval(values, drawn, centred=centred)
    if ends is None:
        return statistics.fmean(values), None, None, "–"
    parts = ["pictures"] * (drawn is not None) + ["seeds"] * (len(values) > 1)
    return statistics.fmean(values), *ends, " + ".join(parts)


def _estimate(row: Row, measure: str, draws: Draws) -> Estimate:
    known = [index for index, run in enumerate(row.runs) if math.isfinite(run[measure])]
    drawn = _joined([draws[row.method, _seed(row, index)] for index in known])
    return Estimate(*_told([row.runs[index][measure] for index in known], drawn, centred=True))


def _difference(row: Row, base: Row, measure: str, draws: Draws) -> Difference:
    ours, theirs = (_by_seed(each) for each in (row, base))
    shared = {seed: ours[seed][measure] - theirs[seed][measure] for seed in sorted(set(ours) & set(theirs))}
    values = {seed: value for seed, value in shared.items() if math.isfinite(value)}
    pairs = [(draws[row.method, seed], draws[base.method, seed]) for seed in values]
    drawn = _joined([None if a is None or b is None else a - b for a, b in pairs])
    return Difference(*_told(list(values.values()), drawn), len(values), sign_flip_p(list(values.values())))


def _by_seed(row: Row) -> dict[int, dict[str, Any]]:
    found = {_seed(row, index): run for index, run in enumerate(row.runs)}
    if len(found) < len(row.runs):
        raise InputError(f"{row.method} has two runs of one seed; give each run once, or name them apart")
    return found


def updates_to_reach(rows: Sequence[Row], base: Row, measure: str) -> dict[str, Reached]:
    """When each row came to the last validation score of *base*; rows without validation are left out.

    The mean over a row's seeds is taken where all were scored, and the first time that it is as high counts. So the
    plain student itself may have been there before its end.
    """
    curves = {row.method: mean_curve(row, measure) for row in rows}
    plain = curves[base.method]
    if not plain:
        return {}
    total, goal = plain[-1]
    reached = {}
    for method, curve in curves.items():
        if curve:
            first = next((updates for updates, score in curve if score >= goal), None)
            reached[method] = Reached(first, None if first is None else first / total)
    return reached


def mean_curve(row: Row, measure: str) -> list[tuple[int, float]]:
    """The mean over the seeds of the scores during the training: (updates of the student, score)."""
    curves = [
        {point["updates"]: point[measure] for point in run.get("curve", []) if point.get(measure) is not None}
        for run in row.runs
    ]
    shared = set.intersection(*(set(curve) for curve in curves))
    return [(updates, statistics.fmean(curve[updates] for curve in curves)) for updates in sorted(shared)]


def _not_finite(rows: Sequence[Row], measure: str) -> list[str]:
    told = []
    for row in rows:
        seeds = [str(_seed(row, index)) for index, run in enumerate(row.runs) if not math.isfinite(run[measure])]
        if seeds:
            told.append(f"{row.method}, seed {', '.join(seeds)}: no finite {measure}, left out of mean, Δ and p")
    return told


def _unlike_trainings(rows: Sequence[Row]) -> list[str]:
    told = []
    for key, what in (("parameters", "number of parameters, so in architecture"), ("updates", "number of updates")):
        found: dict[int, dict[str, None]] = {}
        for row in rows:
            for run in row.runs:
                if key in run:
                    found.setdefault(run[key], {})[row.method] = None
        if len(found) > 1:
            each = "; ".join(f"{count} of {', '.join(found[count])}" for count in sorted(found))
            told.append(f"The students differ in their {what}: {each}")
    return told


def _unlike_curves(rows: Sequence[Row], measure: str) -> list[str]:
    return [
        f"{row.method}: its seeds share no number of updates after which all were validated, so its curve is not known"
        for row in rows
        if any(run.get("curve") for run in row.runs) and not mean_curve(row, measure)
    ]


def _warnings(differences: Sequence[Difference], base: Row | None) -> list[str]:
    if base is None:
        return []
    few = sorted({each.pairs for each in differences if each.pairs < PAIRS_NEEDED})
    told = [
        f"{pairs} pair{'s' if pairs > 1 else ''} of seeds can give no p below {smallest_p(pairs):.2g}, whatever the "
        f"difference: {PAIRS_NEEDED} is the least that can show anything at p < {LEVEL:.2g}"
        for pairs in few
        if pairs
    ]
    if 0 in few:
        told.append(f"Some rows have no pair of one seed with {base.method}, and are not compared")
    if any("pictures" not in each.holds for each in differences if each.pairs):
        told.append("Some intervals leave out the draw of the pictures: of those runs it is not known what they found")
    return told
