"""Differences by hand: pairs of one seed, what intervals hold, what is warned of, when a score is reached."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.engine.comparison import Row
from detkt.engine.comparison_table import markdown_table
from detkt.engine.differences import compare
from detkt.evaluation.outcomes import ClassificationOutcomes


def row(method, scores, *, outcomes=None, curves=None, first=0):
    """A row of runs with these top-1 shares and the seeds from *first* on."""
    runs = [
        {"method": method, "seed": first + i, "top1": score, "top5": 1.0, "updates": 10, "seconds": 2.0}
        for i, score in enumerate(scores)
    ]
    for run, curve in zip(runs, curves or [], strict=False):
        run["curve"] = [{"updates": updates, "top1": score} for updates, score in curve]
    return Row(method, runs, list(outcomes) if outcomes else [None] * len(runs))


def classified(hits):
    """Outcomes of a classifier that got pictures right where *hits* is 1."""
    right = np.array(hits, dtype=bool)
    return ClassificationOutcomes(tuple(map(str, range(len(right)))), right, np.ones(len(right), dtype=bool))


def test_seeds_are_paired_whatever_their_order():
    plain, better = row("none", [0.5, 0.6, 0.7]), row("kd", [0.61, 0.72, 0.9])
    better = Row("kd", better.runs[::-1] + row("kd", [0.0], first=9).runs, [None] * 4)
    found = compare([better, plain], "top1")
    # Seeds 0 to 2: 0.11, 0.12, 0.20; seed 9 has no partner.
    (difference,) = found.differences.values()
    assert (found.against, difference.pairs) == ("none", 3)
    assert difference.value == pytest.approx(0.43 / 3)
    assert difference.p == 0.25
    half = 4.30265 * np.std([0.11, 0.12, 0.20], ddof=1) / math.sqrt(3)
    assert (difference.low, difference.high) == pytest.approx((0.43 / 3 - half, 0.43 / 3 + half), abs=1e-6)
    assert difference.holds == "seeds"
    assert found.warnings[0].startswith("3 pairs of seeds can give no p below 0.25, whatever the difference: 6 is")


def test_six_seeds_can_show_something_and_are_not_warned_of():
    plain, better = row("none", [0.5] * 6), row("kd", [0.51, 0.52, 0.53, 0.54, 0.55, 0.56])
    found = compare([plain, better], "top1")
    assert found.differences["kd"].p == 2 / 64
    assert not any("pairs" in warning for warning in found.warnings)


def test_pictures_are_drawn_together_for_both_of_a_pair():
    """The better one finds what the plain one finds, and one picture of 50 more: hard pictures do not blur it."""
    hits = np.array([1, 0] * 25)
    more = hits.copy()
    more[1] = 1
    plain = row("none", [0.5] * 2, outcomes=[classified(hits)] * 2)
    better = row("kd", [0.52] * 2, outcomes=[classified(more)] * 2)
    found = compare([plain, better], "top1")
    difference = found.differences["kd"]
    assert difference.holds == "pictures + seeds"
    # The picture is drawn 0 to 3 times in nearly all resamples of 50.
    assert (difference.low, difference.high) == pytest.approx((0.0, 0.06), abs=0.021)
    alone = found.estimates["none"]
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 50), rel=0.1)
    # Shuffled, the same scores differ by pictures as well.
    other = row("kd", [0.52] * 2, outcomes=[classified(more[::-1])] * 2)
    blurred = compare([plain, other], "top1").differences["kd"]
    assert blurred.high - blurred.low > 4 * (difference.high - difference.low)


def test_one_seed_is_told_by_its_pictures_alone_or_by_nothing():
    plain, better = row("none", [0.5]), row("kd", [0.75])
    assert compare([plain, better], "top1").differences["kd"].low is None
    plain = row("none", [0.5], outcomes=[classified([1, 1, 0, 0])])
    better = row("kd", [0.75], outcomes=[classified([1, 1, 1, 0])])
    difference = compare([plain, better], "top1").differences["kd"]
    assert (difference.holds, difference.p, difference.pairs) == ("pictures", 1.0, 1)
    assert 0 <= difference.low < 0.25 < difference.high <= 1


def test_pictures_of_another_model_are_left_out_and_other_pictures_refused():
    found = compare([row("kd", [0.9], outcomes=[classified([1, 0])])], "top1")
    assert found.warnings == [
        "kd, seed 0: its pictures.npz says 50.0 where metrics.json says 90.0, and is left out",
    ]
    assert found.estimates["kd"].low is None
    others = [row("kd", [0.5], outcomes=[classified([1, 0])]), row("none", [0.5], outcomes=[classified([1, 0, 1, 0])])]
    with pytest.raises(InputError, match="kd and none were tested on different pictures"):
        compare(others, "top1")


def test_a_pair_without_a_finite_score_is_left_out_and_named():
    plain = row("none", [0.5, 0.5, math.nan], outcomes=[classified([1, 0])] * 2 + [None])
    better = row("kd", [math.nan, 0.6, 0.8])
    found = compare([better, plain], "top1")
    assert found.warnings[:2] == [
        "kd, seed 0: no finite top1, left out of mean, Δ and p",
        "none, seed 2: no finite top1, left out of mean, Δ and p",
    ]
    difference = found.differences["kd"]
    assert (difference.value, difference.pairs, difference.p) == (pytest.approx(0.1), 1, 1.0)
    assert found.estimates["kd"].value == pytest.approx(0.7)
    assert found.estimates["none"].holds == "pictures + seeds"
    assert "| 70.0 ± 14.1 |" in markdown_table(found, {"top1": "top-1"}, {})


def test_scores_of_which_none_is_finite_are_told_as_none():
    """As COCO's AP of small objects, where there are none."""
    rows = [row("kd", [math.nan] * 6), row("none", [math.nan] * 6)]
    found = compare(rows, "top1")
    assert rows[0].spread("top1") is None
    assert (found.differences["kd"].pairs, found.differences["kd"].low) == (0, None)
    assert math.isnan(found.differences["kd"].p)
    assert found.estimates["none"].low is None
    assert "Some rows have no pair of one seed with none, and are not compared" in found.warnings
    cells = markdown_table(found, {"top1": "top-1"}, {}).splitlines()[2].split("|")
    assert [cell.strip() for cell in cells[3:8]] == ["–"] * 5


@pytest.mark.parametrize(("pairs", "told"), [(6, "0.031 *"), (10, "0.002 *"), (12, "0.0005 *"), (16, "3e-05 *")])
def test_a_p_is_never_told_as_zero(pairs, told):
    rows = [row("kd", [0.6 + k / 100 for k in range(pairs)]), row("none", [0.5] * pairs)]
    cells = markdown_table(compare(rows, "top1"), {"top1": "top-1"}, {}).splitlines()[2].split("|")
    assert told in [cell.strip() for cell in cells]


def test_which_row_is_the_plain_one():
    named = row("plain", [0.5])
    named.runs[0]["method"] = "none"
    assert compare([row("kd", [0.6]), named], "top1").against == "plain"
    assert compare([row("kd", [0.6]), row("at", [0.6])], "top1").against is None
    assert compare([row("kd", [0.6]), row("at", [0.7])], "top1", "at").differences["kd"].value == pytest.approx(-0.1)
    with pytest.raises(InputError, match=r"--against ta: no such row.*there are: kd, at"):
        compare([row("kd", [0.6]), row("at", [0.6])], "top1", "ta")
    twice = row("kd", [0.5, 0.6])
    twice.runs[1]["seed"] = 0
    for others in ([row("none", [0.5])], []):
        with pytest.raises(InputError, match="kd has two runs of one seed"):
            compare([twice, *others], "top1")


def test_updates_to_the_plain_students_last_score():
    plain = row("none", [0.6, 0.8], curves=[[(10, 0.3), (20, 0.5), (30, 0.6)], [(10, 0.2), (20, 0.6), (30, 0.8)]])
    # Means 0.70 at the end of plain; 0.5, 0.7, 0.65 of kd; at never gets there.
    better = row("kd", [0.6, 0.7], curves=[[(10, 0.4), (20, 0.8), (30, 0.7)], [(10, 0.6), (20, 0.6), (30, 0.6)]])
    worse = row("at", [0.6], curves=[[(10, 0.1), (20, 0.2), (30, 0.69)]])
    without = row("ft", [0.6])
    rows = [plain, better, worse, without]
    reached = compare(rows, "top1").reached
    assert {name: (each.updates, each.share) for name, each in reached.items()} == {
        "none": (30, 1.0),
        "kd": (20, pytest.approx(2 / 3)),
        "at": (None, None),
    }
    table = markdown_table(compare(rows, "top1"), {"top1": "top-1"}, {})
    assert "updates to none's last val score" in table
    cells = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")] for line in table.splitlines()[2:6]}
    assert cells["kd"][8] == "20 (67 %)"
    assert (cells["at"][8], cells["ft"][8]) == ("never", "–")


def test_seeds_that_were_not_validated_together_are_told():
    plain = row("none", [0.6], curves=[[(10, 0.6)]])
    apart = row("kd", [0.6, 0.7], curves=[[(10, 0.4)], [(20, 0.6)]])
    half = row("at", [0.6, 0.7], curves=[[(10, 0.4)]])
    without = row("ft", [0.6])
    found = compare([plain, apart, half, without], "top1")
    assert list(found.reached) == ["none"]
    told = [warning.partition(":")[0] for warning in found.warnings if "its curve is not known" in warning]
    assert told == ["kd", "at"]


def test_students_that_are_unlike_are_told():
    """Between rows, and within one."""
    plain, longer, mixed = row("none", [0.5] * 2), row("twice", [0.6] * 2), row("kd", [0.6] * 2)
    for each in (*longer.runs, mixed.runs[1]):
        each["updates"] = 20
    for each in plain.runs + longer.runs + mixed.runs:
        each["parameters"] = 7
    assert compare([mixed, longer, plain], "top1").warnings[0] == (
        "The students differ in their number of updates: 10 of kd, none; 20 of kd, twice"
    )
    plain.runs[0]["parameters"] = 8
    assert compare([plain], "top1").warnings == [
        "The students differ in their number of parameters, so in architecture: 7 of none; 8 of none"
    ]


def test_the_table_by_hand():
    rows = [row("kd", [0.6, 0.7, 0.8]), row("none", [0.5, 0.6, 0.7])]
    teacher = {"top1": 0.9}
    table = markdown_table(compare(rows, "top1"), {"top1": "top-1"}, {"kd": 61.25}, teacher).splitlines()
    assert [" ".join(line.split()) for line in table[:5]] == [
        "| method | seeds | top-1 | Δ top-1 to none [95 %] | interval holds | pairs | p | updates | seconds | paper |",
        "|" + "|".join("-" * len(cell) for cell in table[0].split("|")[1:-1]) + "|",
        "| kd | 3 | 70.0 ± 10.0 | +10.0 [+10.0, +10.0] | seeds | 3 | 0.250 | 10 | 2 | 61.2 |",
        "| none | 3 | 60.0 ± 10.0 | – | – | – | – | 10 | 2 | – |",
        "| teacher | 1 | 90.0 | – | – | – | – | – | – | – |",
    ]
    assert len({len(line) for line in table[:5]}) == 1
    assert table[6].startswith("3 pairs of seeds can give no p below 0.25")
