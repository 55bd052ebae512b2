"""Where the labels of boxes go: inside the picture, beside their own box, not over one another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

MOST_COVERED = 0.2


def place_labels(
    boxes: np.ndarray,
    sizes: np.ndarray,
    picture: tuple[float, float],
    required: Sequence[bool],
) -> list[tuple[float, float] | None]:
    """Left upper corners of n labels, in the order given: the first have the first choice.

    boxes: (n, 4) x1 y1 x2 y2; sizes: (n, 2) width and height of each label; picture: width and height, all in the
    same pixels. Tried are the corners outside and inside the box, then places along its edges; a place is the worse
    the more it covers of labels placed before and, half as much, of the corners of other boxes. None: a label that
    is not *required* and would, at its best place, share more than a fifth of its area with another label.
    """
    placed: list[tuple[float, float, float, float]] = []
    result: list[tuple[float, float] | None] = []
    for i, (box, (width, height)) in enumerate(zip(boxes, sizes, strict=True)):
        others = np.delete(boxes, i, axis=0)
        best, best_cost, best_covered = (0.0, 0.0), float("inf"), 0.0
        for rank, (x, y) in enumerate(_candidates(box, width, height)):
            x, y = _clamp(x, width, picture[0]), _clamp(y, height, picture[1])
            place = (x, y, x + width, y + height)
            covered = max((_shared(place, other) for other in placed), default=0.0) / max(width * height, 1e-9)
            corners = np.concatenate([others[:, [0, 1]], others[:, [2, 1]]])
            hidden = ((corners > place[:2]) & (corners < place[2:])).all(axis=1).sum()
            cost = covered + 0.05 * hidden + 0.001 * rank
            if cost < best_cost:
                best, best_cost, best_covered = (x, y), cost, covered
        if best_covered > MOST_COVERED and not required[i]:
            result.append(None)
            continue
        result.append(best)
        placed.append((*best, best[0] + width, best[1] + height))
    return result


def _candidates(box: np.ndarray, width: float, height: float) -> Iterator[tuple[float, float]]:
    x1, y1, x2, y2 = box.tolist()
    for y in (y1 - height, y1):  # above the box, then inside at its top
        yield from ((x1, y), (x2 - width, y))
    for y in (y2, y2 - height):  # below, then inside at its bottom
        yield from ((x1, y), (x2 - width, y))
    for share in (0.25, 0.5, 0.75):  # along the edges, outside
        y = y1 + share * (y2 - y1) - height / 2
        yield from ((x1 - width, y), (x2, y), (x1, y), (x2 - width, y))


def _clamp(start: float, length: float, limit: float) -> float:
    return max(0.0, min(start, limit - length))


def _shared(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)
