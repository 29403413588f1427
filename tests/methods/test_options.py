from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from evenkeel.errors import MethodError
from evenkeel.methods._options import check_choice, check_flag, check_number

NO_NUMBERS: list[Any] = [True, False, "1", "", None, [1], {1: 1}, 1j, math.nan, (), object]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(MethodError, match=r"mine: size must be a finite number, but got .*; take 1"):
        check_number("mine", "size", value, advice="take 1")
    with pytest.raises(MethodError, match=r"mine: size must be a whole number, but got .*; take 1"):
        check_number("mine", "size", value, whole=True, advice="take 1")


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "words"),
    [
        ({"least": 0}, [0, 1e300, np.float32(2)], [-1e-9, math.inf], "a finite number from 0"),
        ({"above": 0}, [1e-300, 7], [0, -0.0, math.inf], "a finite number above 0"),
        ({"above": 0, "infinite": True}, [math.inf, 3], [0, -math.inf], "a number above 0 or inf"),
        ({"least": 0, "below": 1}, [0, 0.999], [1, 1.5, -1], "a number from 0 to below 1"),
        ({"above": 0, "most": 1}, [1, 0.5], [0, 1.001], "a number above 0 to 1"),
        ({"least": 2, "whole": True}, [2, np.int64(5)], [1, 2.0, 2.5], "a whole number from 2"),
        ({"least": 1, "whole": True, "optional": True}, [None, 1], [0, "none"], "a whole number from 1 or none"),
    ],
)
def test_bounds_hold_and_are_told(bounds: dict[str, Any], good: list[Any], bad: list[Any], words: str) -> None:
    for value in good:
        check_number("mine", "size", value, advice="take 2", **bounds)
    for value in bad:
        with pytest.raises(MethodError) as told:
            check_number("mine", "size", value, advice="take 2", **bounds)
        assert str(told.value) == f"mine: size must be {words}, but got {value!r}; take 2"


@pytest.mark.parametrize("value", [10**400, -(10**400), 10**5000], ids=["long", "negative", "longer"])
def test_numbers_that_no_float_can_hold_are_refused(value: int) -> None:
    for whole in (True, False):
        with pytest.raises(MethodError, match="mine: size must be .* but got one of more than 300 digits; take 1"):
            check_number("mine", "size", value, whole=whole, infinite=not whole, advice="take 1")


def test_counts_that_torch_cannot_hold_are_refused() -> None:
    check_number("mine", "size", 2**53, whole=True, advice="take 1")
    check_number("mine", "size", 10**30, advice="take 1")
    with pytest.raises(MethodError, match=r"size must be a whole number, but got 9007199254740993, .* beyond 2\*\*53"):
        check_number("mine", "size", 2**53 + 1, whole=True, advice="take 1")


def test_flags_are_no_numbers_and_no_text() -> None:
    check_flag("mine", "loud", True, advice="it shouts")
    check_flag("mine", "loud", False, advice="it shouts")
    for value in (0, 1, "true", None):
        with pytest.raises(MethodError, match=r"mine: loud must be true or false, but got .*; it shouts"):
            check_flag("mine", "loud", value, advice="it shouts")


def test_a_choice_that_is_near_one_is_offered_it() -> None:
    check_choice("mine", "colour", "blue", ("blue", "red"))
    with pytest.raises(MethodError, match="unknown colour of mine 'blu': did you mean 'blue'"):
        check_choice("mine", "colour", "blu", ("blue", "red"))
    for value in (None, 1, ["blue"]):
        with pytest.raises(MethodError, match="unknown colour of mine"):
            check_choice("mine", "colour", value, ("blue", "red"))
