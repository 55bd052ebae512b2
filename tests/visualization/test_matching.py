"""Gained, lost, removed and new, on hand-made pictures; which pictures are chosen."""

from __future__ import annotations

import pytest
from comparison_records import found, objects

from detkt.base.errors import InputError
from detkt.visualization.matching import check_choice, choice_text, choose_pictures, compare

TRUTH = {"a": objects(("dog", 0, 11, 11, 30, 30), ("cat", 0, 41, 11, 60, 30), ("dog", 1, 11, 61, 30, 80))}
DOG, CAT, HARD = ("dog", 0.9, 11, 11, 30, 30), ("cat", 0.8, 41, 11, 60, 30), ("dog", 0.7, 11, 61, 30, 80)
FALSE = ("cow", 0.6, 71, 71, 90, 90)


def changes(student, distilled, truth=TRUTH, **settings):
    return compare({"a": found(*student)}, {"a": found(*distilled)}, truth, **settings).pictures["a"]


def test_gained_and_lost_objects():
    one = changes([DOG], [CAT])
    assert (one.gained.tolist(), one.lost.tolist()) == ([1], [0])
    same = changes([DOG, CAT], [CAT, DOG])
    assert (same.gained.size, same.lost.size) == (0, 0)


def test_difficult_objects_are_apart():
    one = changes([DOG], [DOG, HARD])
    assert (one.gained.size, one.gained_difficult.tolist(), one.lost_difficult.size) == (0, [2], 0)
    one = changes([DOG, HARD], [DOG])
    assert (one.lost.size, one.lost_difficult.tolist()) == (0, [2])
    # A detection on a difficult object is no error, so none is removed or new.
    assert (one.removed.size, one.new.size) == (0, 0)


def test_removed_and_new_errors_are_those_without_counterpart():
    assert changes([FALSE], []).removed.tolist() == [0]
    assert changes([], [FALSE]).new.tolist() == [0]
    kept = changes([FALSE], [("cow", 0.95, 71, 71, 90, 85)])  # IoU 0.75: the same error
    assert (kept.removed.size, kept.new.size) == (0, 0)
    moved = changes([FALSE], [("cow", 0.95, 71, 71, 90, 79)])  # IoU 0.45: another one
    assert (moved.removed.tolist(), moved.new.tolist()) == ([0], [0])
    renamed = changes([FALSE], [("cat", 0.95, 71, 71, 90, 90)])
    assert (renamed.removed.tolist(), renamed.new.tolist()) == ([0], [0])


def test_error_that_became_correct_is_removed():
    poor = ("dog", 0.9, 11, 11, 30, 19)  # IoU 0.45 with the dog, 0.9 with the box below
    one = changes([poor], [("dog", 0.9, 11, 11, 30, 20)])
    assert (one.gained.tolist(), one.removed.tolist(), one.new.size) == ([0], [0], 0)


def test_counterparts_are_one_to_one_the_best_first():
    student = [FALSE, ("cow", 0.55, 71, 71, 90, 89)]
    distilled = [("cow", 0.8, 71, 71, 90, 89)]
    one = changes(student, distilled)
    assert one.models["student"].boxes[one.removed].tolist() == [[71, 71, 90, 90]]
    assert one.new.size == 0
    before, after = (len(one.models[role].errors) for role in ("student", "distilled"))
    assert before - one.removed.size + one.new.size == after


def test_teacher_is_optional_and_judged_alike():
    comparison = compare({}, {}, TRUTH, teacher={"a": found(DOG, CAT)})
    assert comparison.models == ("student", "distilled", "teacher")
    assert comparison.classes == ["cat", "dog"]
    assert comparison.pictures["a"].models["teacher"].found.tolist() == [True, True, False]
    assert compare({}, {}, TRUTH).models == ("student", "distilled")


def test_score_threshold_decides_what_is_found():
    assert changes([("dog", 0.49, 11, 11, 30, 30)], [DOG]).gained.tolist() == [0]
    assert changes([("dog", 0.49, 11, 11, 30, 30)], [DOG], score_threshold=0.4).gained.size == 0


@pytest.fixture
def comparison():
    """a: 1 gained; b: 1 gained, 1 removed; c: 1 gained, 1 lost; d: nothing there; e: a cat found by both."""
    truth = {name: TRUTH["a"] for name in "abc"} | {"d": objects(), "e": objects(("cat", 0, 1, 1, 20, 20))}
    both = found(("cat", 0.9, 1, 1, 20, 20))
    student = {"b": found(FALSE), "c": found(CAT), "e": both}
    distilled = {"a": found(DOG), "b": found(DOG), "c": found(DOG), "e": both}
    return compare(student, distilled, truth)


def test_pictures_of_largest_change(comparison):
    # b and c: two changes, but c of two objects, one for the worse; a: one.
    assert choose_pictures(comparison, 3) == ["c", "b", "a"]
    assert choose_pictures(comparison, 1) == ["c"]
    # d, where there is nothing, is never shown.
    assert choose_pictures(comparison, 9) == ["c", "b", "a", "e"]


def test_pictures_by_class_and_by_list(comparison):
    # Of the cow, only a removed error counts; of the cat, c has lost one.
    assert choose_pictures(comparison, 9, class_name="cow") == ["b"]
    assert choose_pictures(comparison, 9, class_name="cat") == ["c", "a", "b", "e"]
    assert choose_pictures(comparison, 1, images=["e", "a", "e"]) == ["e", "a"]


def test_a_fair_sample_goes_from_gain_to_loss():
    """Six pictures whose net gain is 3, 2, 1, 0, -1, -2 objects, in another order, and one without a change."""

    def row(finds):
        return found(*[("dog", 0.9, 11 + 100 * n, 11, 30 + 100 * n, 30) for n in finds])

    truth = {name: objects(*[("dog", 0, 11 + 100 * n, 11, 30 + 100 * n, 30) for n in range(4)]) for name in "abcdefg"}
    before = {"a": (0,), "b": (), "c": (0, 1), "d": (0, 1), "e": (0,), "f": (2,), "g": (1, 3)}
    after = {"a": (1,), "b": (0, 1, 2), "c": (), "d": (2,), "e": (1, 2, 3), "f": (0, 1), "g": (1, 3)}
    comparison = compare(*({name: row(finds[name]) for name in truth} for finds in (before, after)), truth)
    choice = {"class_name": None, "images": None, "sample": True}
    ordered = ["b", "e", "f", "a", "d", "c"]
    assert choose_pictures(comparison, 6, sample=True) == ordered
    assert choose_pictures(comparison, 3, sample=True) == ["e", "a", "c"]
    assert choose_pictures(comparison, 1, sample=True) == ["a"]
    assert choice_text(comparison, ordered[:3], **choice) == (
        "3 of 6 changed pictures, evenly from the largest gain to the largest loss. All 7: 10 objects gained, 7 lost; "
        "0 errors removed, 0 new."
    )
    # Fewer changes than places: what there is, as without a sample.
    assert choose_pictures(comparison, 7, sample=True) == choose_pictures(comparison, 7)
    assert choice_text(comparison, list(truth), **choice).startswith("the 7 pictures that changed most. All 7")
    assert choice_text(comparison, ["a"], **choice | {"images": ["a"]}).startswith("1 pictures chosen by name. ")


def test_wrong_choices_are_refused(comparison):
    for settings, message in [
        ({"class_name": "cta"}, "no class 'cta'.*did you mean 'cat'"),
        ({"images": ["f"]}, "no picture 'f' among the 5"),
        ({"images": []}, "no picture to draw"),
        ({"count": 0}, "number of pictures is 0"),
    ]:
        with pytest.raises(InputError, match=message):
            choose_pictures(comparison, **settings)
        with pytest.raises(InputError, match=message):
            check_choice(comparison.pictures, comparison.classes, **settings)
