"""What a run keeps of its pictures: the same scores, the same resamples, and no damaged file."""

from __future__ import annotations

import numpy as np
import pytest
from test_bootstrap import CLASSES, NOTHING, hit, random_case, thing

from detkt.base.errors import InputError
from detkt.evaluation.bootstrap import bootstrap_map
from detkt.evaluation.outcomes import (
    ClassificationOutcomes,
    DetectionOutcomes,
    read_outcomes,
    resampled,
    write_outcomes,
)


@pytest.mark.parametrize("seed", range(4))
def test_a_detectors_file_holds_what_its_resamples_need(tmp_path, seed):
    detections, annotations = random_case(seed, 30)
    write_outcomes(tmp_path / "pictures.npz", DetectionOutcomes.of(detections, annotations, CLASSES))
    found = read_outcomes(tmp_path / "pictures.npz")
    assert found.pictures == tuple(annotations)
    expected = bootstrap_map(detections, annotations, classes=CLASSES, resamples=100, seed=7)
    once = found.measures(np.ones((1, 30), dtype=np.int64))
    for measure, interval in expected.items():
        assert once[measure][0] == pytest.approx(interval.value, abs=1e-12)
        assert np.array_equal(resampled(found, measure, 100, seed=7), interval.samples, equal_nan=True)


def test_nothing_found_and_nothing_there_can_be_kept(tmp_path):
    for number, detections in enumerate(({}, {"a": hit("car")})):
        path = tmp_path / f"{number}.npz"
        write_outcomes(path, DetectionOutcomes.of(detections, {"a": thing("car"), "b": NOTHING}, ["car", "dog"]))
        maps = read_outcomes(path).measures(np.array([[1, 1], [0, 2]]))["map_area"]
        assert maps.tolist() == pytest.approx([number, np.nan], nan_ok=True)


def test_a_classifiers_shares_by_hand(tmp_path):
    right = ClassificationOutcomes(("a", "b", "c"), np.array([True, False, False]), np.array([True, True, False]))
    write_outcomes(tmp_path / "pictures.npz", right)
    found = read_outcomes(tmp_path / "pictures.npz").measures(np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]]))
    assert found["top1"].tolist() == pytest.approx([1 / 3, 2 / 3, 0])
    assert found["top5"].tolist() == pytest.approx([2 / 3, 2 / 3, 1])


def test_a_damaged_file_is_told(tmp_path):
    path = tmp_path / "pictures.npz"
    write_outcomes(path, ClassificationOutcomes(("a",), np.array([True]), np.array([True])))
    content = path.read_bytes()
    for damaged in (content[:-20], b"", b"text", content[:40] + b"\0" * 20 + content[60:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"pictures.npz is damaged or not a run's; remove it, and"):
            read_outcomes(path)
