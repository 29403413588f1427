from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenkeel.report import _words as words


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_number_once(values: set[int]) -> None:
    named = []
    for part in words.ranges(values).split(", ") if values else []:
        first, _, last = part.partition(" to ")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(values)


def test_p_values_keep_what_decides() -> None:
    assert words.p_value(0.0499) == "= .050"
    assert words.p_value(0.0995) == "= .10"
    assert words.p_value(0.00099) == "< .001"


def test_standing_counts_runs_without_a_result(make_runs) -> None:
    _, runs = make_runs({"full": [0.7, "error", "queued", "queued", "lost", "diverged"]})
    assert words.standing(runs) == "2 queued, 1 ended in an error, 1 lost with their process"
    assert words.standing(runs[:1]) == ""


def test_the_last_line_of_an_error_says_what_was_wrong(make_runs) -> None:
    _, runs = make_runs({"full": [0.7, "error"]})
    assert [words.last_line(run) for run in runs] == ["", "ValueError: <b>no such thing</b>"]
