"""Labels stay inside the picture and off one another."""

from __future__ import annotations

import numpy as np

from detkt.visualization.labels import place_labels

PICTURE = (200.0, 100.0)


def place(boxes, size=(40.0, 10.0), required=None):
    boxes = np.array(boxes, dtype=float).reshape(-1, 4)
    sizes = np.array([size] * len(boxes)).reshape(-1, 2)
    return place_labels(boxes, sizes, PICTURE, [True] * len(boxes) if required is None else required)


def test_a_label_stands_on_its_box_where_there_is_room():
    assert place([[50, 40, 120, 80]]) == [(50, 30)]


def test_a_label_moves_inside_at_the_top_and_left_at_the_right_border():
    (x, y) = place([[50, 3, 120, 80]])[0]
    assert (x, y) == (50, 0)  # within the picture, which the place above the box is not
    assert place([[180, 40, 199, 80]]) == [(160, 30)]


def test_labels_of_random_boxes_stay_inside_and_optional_ones_apart():
    random = np.random.default_rng(0)
    for _ in range(20):
        corners = random.uniform((0, 0), (160, 60), (12, 2))
        boxes = np.concatenate([corners, corners + random.uniform(5, 40, (12, 2))], axis=1)
        places = place(boxes, required=[i < 3 for i in range(12)])
        assert all(spot is not None for spot in places[:3])
        kept = [spot for spot in places if spot is not None]
        assert len(kept) >= 6
        for x, y in kept:
            assert 0 <= x <= 160
            assert 0 <= y <= 90
        for i, (x, y) in enumerate(kept):
            for u, v in kept[:i]:
                shared = max(0, 40 - abs(x - u)) * max(0, 10 - abs(y - v))
                assert shared <= 0.2 * 400 + 1e-9


def test_equal_boxes_get_labels_apart():
    first, second, third = place([[50, 40, 120, 80]] * 3)
    assert len({first, second, third}) == 3


def test_an_optional_label_without_room_is_left_out_and_a_required_one_is_not():
    crowd = [[0, 0, 200, 100]] * 3
    big = (200.0, 100.0)
    assert place(crowd, big, required=[True, False, True]) == [(0, 0), None, (0, 0)]


def test_a_label_wider_than_the_picture_begins_at_its_left():
    assert place([[150, 50, 180, 70]], (300.0, 10.0))[0][0] == 0


def test_no_boxes():
    assert place([]) == []
