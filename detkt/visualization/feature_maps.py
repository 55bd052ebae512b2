"""Feature maps beside their pictures: where networks respond, as a mean over the channels or channel by channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detkt.base.errors import InputError
from detkt.visualization.panels import DPI

WIDEST = 26.0  # inches of a figure


@dataclass(frozen=True, eq=False)
class PictureMaps:
    """A picture (H, W, 3) uint8, its name, and its maps: title -> (C, h, w).

    The maps cover the picture exactly (what batching has padded is cut off).
    """

    name: str
    picture: np.ndarray
    maps: Mapping[str, np.ndarray]


def mean_response(feature: np.ndarray) -> np.ndarray:
    """(h, w) mean over the channels of the magnitude of a map (C, h, w).

    Raises InputError for another shape, an empty map, or values that are not finite.
    """
    return np.abs(_checked(feature)).mean(axis=0)


def feature_map_figure(rows: Sequence[PictureMaps]) -> Figure:
    """A row a picture: the picture, then for each map the mean magnitude over its channels, enlarged to the picture.

    Every map has its own scale, from its 1st to its 99th percentile: networks differ in the size of their values,
    and what the view shows is where each of them responds. The scale stands above the map. More than 7 maps take
    several lines.

    rows: pictures with the same maps, one at least. Raises InputError as `mean_response` does.
    """
    count = len(rows[0].maps)
    lines = max(1, -(-count // 7))
    columns = 1 + -(-count // lines)
    heights = [row.picture.shape[0] / row.picture.shape[1] for row in rows for _ in range(lines)]
    panel_height = 3.0 if len(heights) == 1 else 2.3
    panel_width = min(float(np.clip(panel_height / max(heights), 2.2, 5.4)), WIDEST / columns)
    size = (columns * (panel_width + 0.15), sum(panel_width * height + 0.6 for height in heights))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, row in enumerate(rows):
        block = panels[number * lines : (number + 1) * lines]
        _show_picture(block[0, 0], row, fontsize=8)
        for axes, (name, feature) in zip(block[:, 1:].flat, row.maps.items(), strict=False):
            response = mean_response(feature)
            low, high = _scale(response)
            _show(axes, response, row.picture, low, high)
            shape = " x ".join(map(str, np.shape(feature)))
            axes.set_title(f"{name}\n{shape}, mean |x| {low:.2g} to {high:.2g}", fontsize=7.5, parse_math=False)
    return figure


def channel_figure(rows: Sequence[PictureMaps], count: int) -> Figure:
    """A block a picture, in it a row a map: the *count* channels whose values vary most over all pictures.

    Maps of equally many channels show the same ones, those of the largest variance in all of these maps together (each
    map's variances counted by their share of its sum): what a method compares, it compares channel by channel. One
    scale a row, as in `feature_map_figure`, from the channels shown.

    Raises InputError as `mean_response` does, or for a *count* below 1.
    """
    if count < 1:
        raise InputError(f"the number of channels is {count}; give 1 or more")
    titles = list(rows[0].maps)
    chosen = _leading_channels(rows, count)
    columns = max(len(channels) for channels in chosen.values())
    panel = min(1.1, WIDEST / (columns + 3))
    heights = [row.picture.shape[0] / row.picture.shape[1] for row in rows for _ in titles]
    size = (panel * (columns + 2.6) + 0.9, sum(panel * height + 0.24 for height in heights) + 0.2)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(len(heights), columns + 1, width_ratios=[2.2, *[1] * columns], height_ratios=heights)
    for block, row in enumerate(rows):
        first = block * len(titles)
        _show_picture(figure.add_subplot(grid[first : first + len(titles), 0]), row, fontsize=7)
        for line, title in enumerate(titles):
            feature = row.maps[title][chosen[title]]
            low, high = _scale(feature)
            for column, (channel, values) in enumerate(zip(chosen[title], feature, strict=True)):
                axes = figure.add_subplot(grid[first + line, column + 1])
                _show(axes, values, row.picture, low, high)
                axes.set_title(f"channel {channel}", fontsize=5.5, pad=2)
                if column == 0:
                    shape = " x ".join(map(str, row.maps[title].shape))
                    text = f"{title}\n{shape}\n{low:.3g} to {high:.3g}"
                    axes.text(
                        -0.08,
                        0.5,
                        text,
                        transform=axes.transAxes,
                        ha="right",
                        va="center",
                        fontsize=6.5,
                        parse_math=False,
                    )
    return figure


def _leading_channels(rows: Sequence[PictureMaps], count: int) -> dict[str, np.ndarray]:
    """Title -> the channels to show, the most varied first."""
    shares: dict[str, np.ndarray] = {}
    for title in rows[0].maps:
        variance = sum(_checked(row.maps[title]).var(axis=(1, 2)) for row in rows)
        shares[title] = variance / max(variance.sum(), np.finfo(float).tiny)
    chosen = {}
    for title, share in shares.items():
        together = sum(other for other in shares.values() if len(other) == len(share))
        chosen[title] = np.argsort(-together, kind="stable")[:count]
    return chosen


def _checked(feature: np.ndarray) -> np.ndarray:
    feature = np.asarray(feature, dtype=np.float64)
    if feature.ndim != 3 or not feature.size:
        raise InputError(f"a feature map must be (channels, height, width), not {feature.shape}")
    if not np.isfinite(feature).all():
        raise InputError("a feature map holds values that are not finite")
    return feature


def _scale(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (1, 99))
    # A flat map has no scale of its own.
    return low, high if high > low else low + 1


def _show_picture(axes: Axes, row: PictureMaps, fontsize: float) -> None:
    height, width = row.picture.shape[:2]
    axes.imshow(row.picture, extent=(0, width, height, 0))
    axes.set_title(row.name, fontsize=fontsize, parse_math=False)
    axes.set_axis_off()


def _show(axes: Axes, values: np.ndarray, picture: np.ndarray, low: float, high: float) -> None:
    """*values* (h, w) over the extent of the *picture*."""
    height, width = picture.shape[:2]
    extent = (0, width, height, 0)
    axes.imshow(values, extent=extent, cmap="inferno", vmin=low, vmax=high, interpolation="bilinear")
    axes.set_axis_off()
