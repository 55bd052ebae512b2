"""Sign flips and intervals: small cases by hand, tables of Student's t, and how often the truth is held."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detkt.evaluation.significance import PAIRS_NEEDED, interval, sign_flip_p, smallest_p, student_t


def test_flips_by_hand():
    assert sign_flip_p([2.0]) == 1.0
    # Sums of ±1 ±2 ±3: 6 and -6 alone are as far as 6.
    assert sign_flip_p([1, 2, 3]) == 2 / 8
    # -1 + 2 + 3 = 4: the sums ±6 and ±4 are as far.
    assert sign_flip_p([-1, 2, 3]) == 4 / 8
    assert sign_flip_p([-1, -2, -3]) == 2 / 8
    assert sign_flip_p([1, -1]) == 1.0
    assert sign_flip_p([0, 0, 0]) == 1.0
    # Five of six agree; a sum as far as 19 flips nothing or the 1 alone.
    assert sign_flip_p([-1, 2, 3, 4, 5, 6]) == 4 / 64
    assert math.isnan(sign_flip_p([]))
    assert math.isnan(sign_flip_p([math.nan, 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert math.isnan(sign_flip_p([math.inf] + [0.1] * 20))


def test_rounding_hides_no_tie():
    assert sign_flip_p([0.1, 0.2, 0.3, -0.6]) == 1.0
    assert sign_flip_p([0.1] * 6) == 2 / 64


def test_many_pairs_are_drawn():
    values = np.random.default_rng(1).normal(0.5, 1, 30)
    z = values.sum() / math.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.01)
    assert sign_flip_p([1.0] * 30) > 0


def test_three_seeds_show_nothing():
    assert [smallest_p(n) for n in (0, 1, 2, 3, 5, 6)] == [1, 1, 0.5, 0.25, 0.0625, 0.03125]
    assert PAIRS_NEEDED == 6
    assert all(sign_flip_p([1.0] * n) == smallest_p(n) for n in range(1, 9))


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227)]
)
def test_students_t_is_that_of_the_tables(freedom, t):
    assert student_t(freedom) == pytest.approx(t, abs=1e-4)
    assert student_t(4, 0.99) == pytest.approx(4.60409, abs=1e-4)


def test_seeds_alone_give_students_interval():
    # Mean 2, deviation 1, so 2 ± 4.30265 / sqrt(3).
    assert interval([1, 2, 3]) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)
    assert interval([1.0]) is None


def test_one_seed_has_the_interval_of_the_pictures():
    draws = np.arange(101.0)[None]
    assert interval([50.0], draws) == pytest.approx((2.5, 97.5))
    with_nothing = np.append(draws, [[np.nan]], axis=1)
    assert interval([50.0], with_nothing) == pytest.approx((2.5, 97.5))
    assert interval([50.0], np.full((1, 3), np.nan)) is None


def test_pictures_that_change_nothing_leave_the_interval_of_the_seeds():
    values = np.random.default_rng(3).normal(0, 1, 8)
    low, high = interval(values, np.repeat(values[:, None], 20000, axis=1))
    assert (low, high) == pytest.approx(interval(values), abs=0.12)


def test_seeds_that_agree_leave_the_interval_of_the_pictures():
    draws = np.random.default_rng(0).normal(0, 1, 1000)
    low, high = interval([0.0] * 6, np.repeat(draws[None], 6, axis=0))
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))


def test_a_centred_interval_is_moved_by_the_bias_alone():
    """Here all resamples are 3 above the values, which differ by seed; pictures with nan count for nothing."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, 6)
    draws = values[:, None] + generator.normal(0, 1, 1000)
    draws -= draws.mean() - values.mean()
    low, high = interval(values, draws)
    biased = np.append(draws + 3, np.full((6, 1), np.nan), axis=1)
    assert interval(values, biased) == pytest.approx((low + 3, high + 3))
    assert interval(values, biased, centred=True) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("of_seeds", "of_pictures", "of_both", "least", "most"),
    [
        (1.0, 0.0, 1.0, 0.92, 0.99),
        (0.05, 4.0, 1.0, 0.92, 0.99),
        (0.5, 4.0, 1.0, 0.92, 0.99),
        (0.5, 4.0, 0.0, 0.92, 0.98),
        # The interaction is counted three times: never too narrow.
        (0.0, 0.0, 1.0, 0.99, 1.0),
    ],
)
def test_the_truth_is_held_about_as_often_as_said(of_seeds, of_pictures, of_both, least, most):
    """A score is the mean over 50 pictures of seed + picture + both; the truth is 0."""
    generator, held, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        noise = generator.normal(0, of_both, (6, 50))
        cells = generator.normal(0, of_seeds, (6, 1)) + generator.normal(0, of_pictures, 50) + noise
        drawn = generator.multinomial(50, np.full(50, 1 / 50), size=300) / 50
        low, high = interval(cells.mean(axis=1), cells @ drawn.T)
        held += low <= 0 <= high
    assert least <= held / trials <= most
