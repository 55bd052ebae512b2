"""Feature maps beside their picture: where teacher, regressed teacher and student respond."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from detkt.errors import InputError
from detkt.visualization.panels import DPI


def mean_response(feature: np.ndarray) -> np.ndarray:
    """(h, w) mean over the channels of the magnitude of a map (C, h, w).

    Raises InputError for another shape, an empty map, or values that are not finite.
    """
    feature = np.asarray(feature, dtype=np.float64)
    if feature.ndim != 3 or not feature.size:
        raise InputError(f"a feature map must be (channels, height, width), not {feature.shape}")
    if not np.isfinite(feature).all():
        raise InputError("a feature map holds values that are not finite")
    return np.abs(feature).mean(axis=0)


def feature_map_figure(picture: np.ndarray, maps: Mapping[str, np.ndarray]) -> Figure:
    """The *picture*, then for each map the mean magnitude over its channels, enlarged to the picture (bilinear).

    Every map has its own scale, from its 1st to its 99th percentile: networks differ in the size of their values,
    and what the view shows is where each of them responds. The scale stands above the map.

    Args:
        picture: (H, W, 3) uint8.
        maps: name -> (C, h, w), covering the picture exactly (cut off what batching has padded).

    Raises InputError as `mean_response` does.
    """
    responses = {name: mean_response(feature) for name, feature in maps.items()}
    height, width = picture.shape[:2]
    panel_width = float(np.clip(3.0 * width / height, 1.6, 5.4))
    panel_height = panel_width * height / width
    size = ((len(maps) + 1) * (panel_width + 0.15), panel_height + 0.5)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(maps) + 1, squeeze=False)[0]
    extent = (0, width, height, 0)
    panels[0].imshow(picture, extent=extent)
    panels[0].set_title("picture", fontsize=9)
    for axes, (name, response) in zip(panels[1:], responses.items(), strict=True):
        low, high = np.percentile(response, (1, 99))
        # A flat map has no scale of its own.
        high = high if high > low else low + 1
        axes.imshow(response, extent=extent, cmap="inferno", vmin=low, vmax=high, interpolation="bilinear")
        channels, rows, columns = np.shape(maps[name])
        title = f"{name}\n{channels} x {rows} x {columns}, mean |x| {low:.3g} to {high:.3g}"
        axes.set_title(title, fontsize=7.5, parse_math=False)
    for axes in panels:
        axes.set_axis_off()
    return figure
