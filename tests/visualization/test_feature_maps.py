"""Feature maps beside their pictures: means, scales, and which channels are shown."""

from __future__ import annotations

import numpy as np
import pytest

from detkt.base.errors import InputError
from detkt.visualization.feature_maps import PictureMaps, channel_figure, feature_map_figure, mean_response


def test_mean_response_is_over_channels_of_the_magnitude():
    feature = np.array([[[1.0, -2.0]], [[-3.0, 4.0]]])
    np.testing.assert_array_equal(mean_response(feature), [[2.0, 3.0]])
    for wrong in (np.zeros((3, 3)), np.zeros((0, 2, 2))):
        with pytest.raises(InputError, match="must be"):
            mean_response(wrong)
    with pytest.raises(InputError, match="not finite"):
        mean_response(np.full((1, 2, 2), np.nan))


def test_feature_maps_stand_beside_their_pictures_each_in_its_own_scale():
    wide, tall = np.zeros((40, 60, 3), dtype=np.uint8), np.full((50, 20, 3), 7, dtype=np.uint8)
    teacher = np.linspace(0, 100, 24).reshape(1, 4, 6)
    maps = {"teacher": teacher, "student": np.ones((8, 2, 3))}
    figure = feature_map_figure([PictureMaps("one", wide, maps), PictureMaps("two", tall, maps)])
    shown = [axes.images[0] for axes in figure.axes]
    assert [tuple(image.get_extent()) for image in shown] == [(0, 60, 40, 0)] * 3 + [(0, 20, 50, 0)] * 3
    np.testing.assert_array_equal(shown[3].get_array(), tall)
    assert shown[1].get_clim() == pytest.approx((1, 99))
    np.testing.assert_array_equal(shown[1].get_array(), teacher[0])
    assert shown[2].get_clim() == (1, 2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:2] == ["one", "teacher\n1 x 4 x 6, mean |x| 1 to 99"]
    assert titles[3:] == ["two", *titles[1:3]]


def test_many_maps_take_several_lines():
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    maps = {f"map {number}": np.full((2, 3, 3), float(number)) for number in range(15)}
    figure = feature_map_figure([PictureMaps(name, picture, maps) for name in ("one", "two")])
    assert len(figure.axes) == 2 * 3 * (1 + 5)
    for block in (figure.axes[:18], figure.axes[18:]):
        shown = [axes.get_title().partition("\n")[0] for axes in block if axes.images]
        assert shown[1:] == list(maps)
        assert [bool(axes.images) for axes in block[::6]] == [True, False, False]  # the picture stands once


def variances(*values: float) -> np.ndarray:
    """A map (C, 1, 2) whose channels have these variances."""
    return np.array([[[-1.0, 1.0]]]) * np.sqrt(values)[:, None, None]


def channels_of(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_channels_are_those_that_vary_most_over_all_pictures():
    picture = np.zeros((10, 20, 3), dtype=np.uint8)
    rows = [PictureMaps(name, picture, {"map": variances(*v)}) for name, v in (("a", (1, 4, 2)), ("b", (5, 1, 2)))]
    figure = channel_figure(rows, 2)  # sums 6, 5, 4
    assert channels_of(figure) == ["a", "channel 0", "channel 1", "b", "channel 0", "channel 1"]
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), [[-2, 2]])
    # One scale a row, that of the channels in it.
    clims = [axes.images[0].get_clim() for axes in figure.axes]
    assert clims[1] == clims[2]
    np.testing.assert_allclose(clims[1], np.percentile([-1, 1, -2, 2], (1, 99)))
    assert figure.axes[1].texts[0].get_text().startswith("map\n3 x 1 x 2\n-1.97 to 1.97")
    assert len(channels_of(channel_figure(rows, 9))) == 2 * (1 + 3)  # no more than there are


def test_maps_of_equally_many_channels_show_the_same_ones():
    """Shares 0.9, 0.1, 0 and 0, 0.2, 0.8: together the first and the last, however large the values are."""
    maps = {"factor": variances(9, 1, 0), "wider": variances(1, 2, 3, 4), "other": 1000 * variances(0, 2, 8)}
    figure = channel_figure([PictureMaps("a", np.zeros((10, 20, 3), dtype=np.uint8), maps)], 2)
    expected = ["a", "channel 0", "channel 2", "channel 3", "channel 2", "channel 0", "channel 2"]
    assert channels_of(figure) == expected


def test_wrong_counts_and_maps_are_refused():
    row = PictureMaps("a", np.zeros((10, 20, 3), dtype=np.uint8), {"map": variances(1, 2)})
    with pytest.raises(InputError, match="number of channels is 0"):
        channel_figure([row], 0)
    with pytest.raises(InputError, match="not finite"):
        channel_figure([PictureMaps("a", row.picture, {"map": np.full((1, 2, 2), np.inf)})], 1)
