from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.report import MethodVerdict, verdicts
from evenkeel.report._judge import ALPHA

RNG = np.random.default_rng(5)
GOOD = [round(float(score), 4) for score in RNG.normal(0.72, 0.01, 20)]
SHAKY = [0.55] * 8 + [round(float(score), 4) for score in RNG.normal(0.68, 0.03, 12)]


def only(found: list[MethodVerdict]) -> MethodVerdict:
    (one,) = found
    return one


def test_what_is_shown_stands_first_with_its_evidence(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": SHAKY, "component-clip": GOOD})))
    assert (found.where, found.method, found.tone) == ("rte, tiny", "component-clip", "better")
    better, steadier, safer = found.text.split("; ")
    assert better.startswith("better than full (+0.")
    assert "95 % interval" in better
    assert steadier.startswith(
        f"steadier than full (std {np.std(GOOD, ddof=1):.3f} against {np.std(SHAKY, ddof=1):.3f}"
    )
    assert safer == "fails less often (0 of 20 runs against 8 of 20, McNemar p = .008)"


def test_worse_is_said_as_plainly(make_runs) -> None:
    found = only(verdicts(*make_runs({"component-clip": GOOD, "full": SHAKY})))
    assert found.tone == "worse"
    assert found.text.startswith("worse than component-clip")
    assert "less steady than component-clip" in found.text
    assert "fails more often" in found.text


def test_good_and_bad_at_once_is_mixed(make_runs) -> None:
    low = [score - 0.1 for score in GOOD]  # steady and lower
    high = [0.62] * 6 + [0.9] * 14
    found = only(verdicts(*make_runs({"full": high, "b": low})))
    assert found.tone == "mixed"
    assert "worse than full" in found.text
    assert "steadier than full" in found.text


def test_what_is_not_shown_says_how_many_more_seeds_would_do(make_runs) -> None:
    ours = [0.70, 0.73, 0.66, 0.74, 0.71, 0.69, 0.72, 0.75]
    theirs = [0.69, 0.70, 0.70, 0.71, 0.72, 0.66, 0.71, 0.73]
    found = only(verdicts(*make_runs({"full": theirs, "b": ours})))
    assert found.tone == "open"
    assert found.text.startswith("not shown to differ from full: not shown to be better or worse (+0.")
    assert "more seeds would tell" in found.text
    assert found.text.endswith("no run failed with either")


def test_no_number_of_seeds_shows_a_difference_that_is_none(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": GOOD, "b": GOOD})))
    assert found.tone == "open"
    assert "seeds" not in found.text


def test_few_runs_are_too_few(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": [0.5] * 4, "b": [0.9] * 4})))
    assert (
        found.text
        == "too few seeds to tell (4 and 4 runs); take at least 5 of each, and about 30 to see a spread halved"
    )
    assert found.tone == "open"


def test_one_method_has_no_verdict(make_runs) -> None:
    assert verdicts(*make_runs({"full": GOOD})) == []


def test_many_comparisons_are_paid_for(make_runs) -> None:
    slightly = [score + 0.012 + 0.02 * (-1) ** i for i, score in enumerate(GOOD)]
    alone = only(verdicts(*make_runs({"full": GOOD, "a": slightly})))
    among = verdicts(*make_runs({"full": GOOD, "a": slightly, **dict.fromkeys("bcdefghijkl", GOOD)}))[0]
    assert "95 % interval" in alone.text
    assert f"{100 * (1 - ALPHA / 12):.1f} % interval" in among.text


def test_where_all_diverged_failures_are_told(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": GOOD, "b": ["diverged"] * 20})))
    assert found.tone == "worse"
    assert found.text.startswith("fails more often (20 of 20 runs against 0 of 20")


fate = st.one_of(st.floats(0, 1), st.sampled_from(["diverged", "error", "queued"]), st.just(0.55))


@settings(max_examples=15)
@given(st.lists(st.lists(fate, min_size=1, max_size=12), min_size=2, max_size=3))
def test_whatever_came_out_there_is_a_verdict_without_nan(make_runs, lists: list) -> None:
    for found in verdicts(*make_runs({f"m{i}": fates for i, fates in enumerate(lists)})):
        assert found.text
        assert "nan" not in found.text
        assert found.tone in ("better", "worse", "mixed", "open")


@pytest.mark.slow
def test_methods_that_are_alike_are_seldom_told_apart(make_runs) -> None:
    rng, claimed = np.random.default_rng(1), 0
    for _ in range(100):
        fates = {name: rng.normal(0.7, 0.02, 20).round(4).tolist() for name in ("full", "b")}
        claimed += only(verdicts(*make_runs(fates))).tone != "open"
    assert claimed <= 18  # three tests at .05 each: 14 % at most, and chance


def test_collapsing_every_time_is_worse_and_not_steadier(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": SHAKY, "b": [0.5] * 20})))
    assert found.tone == "worse"
    assert found.text.startswith("worse than full (-0.")
    assert "steadier" not in found.text
    assert "spread is no steadiness where all runs failed (b)" in found.text


def test_scores_that_do_not_vary_are_not_judged(make_runs) -> None:
    found = only(verdicts(*make_runs({"full": [0.6] * 12, "b": [0.7] * 12})))
    assert found.tone == "open"
    assert "means not judged, as scores do not vary (+0.100" in found.text
