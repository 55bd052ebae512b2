"""Is one method better than another, over runs with several seeds on a test set of some pictures?

A run's score is luck of its seed and luck of the pictures it is tested on. Both are drawn here, as in the two-way
bootstrap (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007): pictures with replacement, the same
ones for all runs, and seeds with replacement, in pairs. As Owen shows, it counts what is neither the seed's nor the
picture's alone, their interaction, three times: where much of a score is that, an interval is wider than it need be,
never too narrow by it.

What we decided: seeds are few, and a percentile interval of n of them is too narrow, by the square root of
(n - 1) / n and by what Student's t exceeds the normal distribution. So the part of a resample that is owed to the
draw of the seeds is enlarged by both (Hesterberg, "What Teachers Should Know About the Bootstrap", The American
Statistician 2015, section 4.2, does the same to the quantiles). Without pictures the interval is Student's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
MOST_EXACT = 20
"""Above so many pairs the 2^n flips are drawn, not gone through."""


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip test (Fisher 1935): the share of all 2^n signs of the differences whose mean is as
    far from 0 as the one observed, or farther.

    Under the null hypothesis each pair's difference is as likely with either sign. nan without differences, and where
    one is not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        return math.nan
    if len(values) > MOST_EXACT:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (2**16, len(values)))
        sums = np.append(signs @ values, values.sum())
    else:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
    # Sums of the same numbers in another order differ by rounding.
    far = np.abs(sums) >= abs(values.sum()) - 1e-9 * np.abs(values).sum()
    return float(far.mean())


def smallest_p(pairs: int) -> float:
    """The smallest p that :func:`sign_flip_p` can give for so many pairs: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - pairs))


PAIRS_NEEDED = next(pairs for pairs in range(1, 64) if smallest_p(pairs) < LEVEL)
"""With fewer, no difference can reach a p of 0.05."""


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t such that Student's distribution with *freedom* degrees has the share *confidence* within ± t.

    Abramowitz and Stegun 26.7.3 and 26.7.4 have that share in closed form; it is inverted by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _share_within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _share_within(angle: float, freedom: int) -> float:
    """The share of Student's distribution within ± sqrt(freedom) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(odd, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def interval(
    values: Sequence[float],
    resampled: np.ndarray | None = None,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    *,
    centred: bool = False,
) -> tuple[float, float] | None:
    """The interval of the mean of *values*, one a seed.

    Args:
        values: (n,) a score, or a difference of two, by seed.
        resampled: (n, r) the same on r draws of the pictures, the same draws for all; None: pictures are not drawn,
            and the interval is Student's.
        confidence: the share of such intervals that hold the truth.
        seed: of the draw of the seeds.
        centred: less the bootstrap's bias, the mean of the resamples less that of *values*. An AP is higher on pictures
            of which some are drawn several times; in a difference of two that mostly cancels, and it is left as it is.

    Returns:
        Its ends; of one seed without pictures None, of one seed with pictures what the pictures alone say.
    """
    n, tail = len(values), (1 - confidence) / 2
    mean = float(np.mean(values))
    if resampled is None:
        if n < 2:
            return None
        half = student_t(n - 1, confidence) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return mean - half, mean + half
    draws = resampled[:, ~np.isnan(resampled).any(axis=0)]
    if not draws.shape[1]:
        return None
    if centred:
        draws = draws - (draws.mean() - mean)
    samples = draws.mean(axis=0)
    if n > 1:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws.shape[1])
        wider = math.sqrt(n / (n - 1)) * student_t(n - 1, confidence) / NormalDist().inv_cdf(1 - tail)
        samples = samples + wider * ((counts.T * draws).mean(axis=0) - samples)
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)
