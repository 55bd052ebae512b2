"""Messages stay one line that can be read, whatever somebody's files hold."""

from __future__ import annotations

from detkt.base.errors import LONGEST_LINE, InputError, cut, literal, suggestion


def test_long_values_are_cut_and_short_ones_are_not():
    assert cut("a" * 100) == "a" * 100
    assert cut("a" * 101) == "a" * 100 + "… (101 characters)"
    assert literal("x") == "'x'" and literal([1, 2]) == "[1, 2]"
    assert literal([7] * 1000) == "[7, " + "7, " * 32 + "… (3000 characters)"


def test_a_line_of_thousands_of_characters_keeps_both_its_ends():
    told = str(InputError("where: " + "x" * 100_000 + "; what to do"))
    assert len(told) < LONGEST_LINE + 10
    assert told.startswith("where: xxx") and told.endswith("xxx; what to do") and " … " in told
    assert str(InputError("a\nb" + "c" * 10)) == "a\\nb" + "c" * 10


def test_nothing_is_suggested_for_a_name_nobody_typed():
    assert suggestion("trian", ["train"]) == " (did you mean 'train'?)"
    assert suggestion("trian" * 30, ["train" * 30]) == ""
