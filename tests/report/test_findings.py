from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.report import findings
from evenkeel.report._findings import NOT_SHOWN
from evenkeel.report._words import p_value
from evenkeel.stats import compare, compare_failures, compare_paired, compare_paired_failures, holm, wilson

CLAIMS = ("higher.", "lower.", "steadier.", "less steady.", "fails less often.", "fails more often.")
RNG = np.random.default_rng(5)
GOOD = [round(float(score), 4) for score in RNG.normal(0.72, 0.01, 20)]
SHAKY = [0.55] * 8 + [round(float(score), 4) for score in RNG.normal(0.68, 0.03, 12)]


def claims(said: list[str]) -> list[str]:
    return [sentence for sentence in said if sentence.endswith(CLAIMS)]


def about(said: list[str], what: str) -> str:
    (sentence,) = [sentence for sentence in said if what in sentence and " against " in sentence]
    return sentence


def bad(scores: list[float]) -> list[bool]:
    return [score < 0.58 for score in scores]


def test_what_the_tests_show_is_said_with_their_numbers(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY, "component-clip": GOOD}))  # the same seeds: in pairs
    result = compare_paired(GOOD, SHAKY)
    low, high = result.difference_interval
    mean = about(said, "mean accuracy")
    assert (
        f"{np.mean(GOOD):.3f} against {np.mean(SHAKY):.3f}, difference {result.difference:+.3f} over 20 pairs" in mean
    )
    assert mean.endswith(f"(95 % interval {low:+.3f} to {high:+.3f}): higher.")
    spread = about(said, "ratio of standard")
    assert f"ratio of standard deviations {result.std_ratio:.2f}" in spread
    assert spread.endswith(f"Brown-Forsythe p {p_value(result.spread_p)}: steadier.")
    p = compare_paired_failures(bad(GOOD), bad(SHAKY))
    assert about(said, "failed runs").endswith(f"0 of 20 against 8 of 20 (McNemar p {p_value(p)}): fails less often.")


def test_other_seeds_are_compared_as_two_groups(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY, "component-clip": GOOD[:19]}))
    result = compare(GOOD[:19], SHAKY)
    assert f"difference {result.difference:+.3f} (95 % interval" in about(said, "mean accuracy")
    assert f"Brown-Forsythe p {p_value(result.brown_forsythe_p)}" in about(said, "ratio of standard")
    assert f"(Fisher p {p_value(compare_failures(0, 19, 8, 20))})" in about(said, "failed runs")


def test_the_other_direction_is_said_too(make_runs) -> None:
    said = claims(findings(*make_runs({"component-clip": GOOD, "full": SHAKY})))
    assert [sentence.rsplit(": ", 1)[1] for sentence in said] == ["lower.", "less steady.", "fails more often."]


def test_the_first_method_has_its_failures_with_an_interval(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY}))
    low, high = wilson(8, 20)
    expected = f"rte, tiny: full: failed runs 8 of 20 (95 % interval {100 * low:.0f} % to {100 * high:.0f} %)."
    assert said == ["All 20 runs have a result.", expected]


def test_several_comparisons_are_paid_for(make_runs) -> None:
    fates = {"full": SHAKY, "a": GOOD, "b": SHAKY, "c": [0.55, 0.56, *GOOD[2:]]}
    said = findings(*make_runs(fates))
    adjusted = holm([compare_paired_failures(bad(fates[name]), bad(SHAKY)) for name in "abc"])
    for name, p in zip("abc", adjusted, strict=True):
        sentence = about([s for s in said if f"{name} against" in s], "failed runs")
        assert f"adjusted for 3 comparisons {p_value(p)})" in sentence
    result = compare_paired(GOOD, SHAKY, confidence=1 - 0.05 / 3)
    assert f"(98.3 % interval {result.difference_interval[0]:+.3f}" in about(
        [s for s in said if "a against" in s], "mean"
    )


def test_models_of_a_task_are_adjusted_together_and_tasks_apart(make_runs) -> None:
    fates = {"full": SHAKY, "component-clip": GOOD}
    assert not any("adjusted" in s for s in findings(*make_runs(fates, tasks=["rte", "cola"])))
    together = findings(*make_runs(fates, models=["x", "y"]))
    assert sum("adjusted for 2 comparisons" in s for s in together) == 4


def test_equal_methods_differ_in_nothing(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY, "component-clip": SHAKY}))
    assert claims(said) == []
    assert sum(sentence.endswith(f"{NOT_SHOWN}.") for sentence in said) == 3


@pytest.mark.parametrize("n", [1, 2, 4])
def test_few_seeds_are_too_few(make_runs, n: int) -> None:
    said = findings(*make_runs({"full": [0.5] * n, "component-clip": [0.9] * n}))
    assert claims(said) == []
    assert sum("too few to tell" in sentence for sentence in said) == 2
    assert not any(" p " in sentence for sentence in said)


def test_fewer_than_ten_seeds_give_a_hint_of_a_mean_and_no_claim(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY[5:12], "component-clip": GOOD[:7]}))
    assert "a hint and no proof" in about(said, "mean accuracy")


def test_scores_that_are_all_equal_are_not_judged(make_runs) -> None:
    rising = [0.6 + i / 100 for i in range(1, 13)]
    said = findings(*make_runs({"full": [0.6] * 12, "component-clip": rising}))
    assert about(said, "mean accuracy").endswith("higher.")  # their differences vary as scores do
    assert "as all scores of full are equal" in about(said, "ratio of standard")
    said = findings(*make_runs({"full": [0.6] * 12, "component-clip": rising[:-1]}))  # not in pairs
    assert "the scores of a method are all equal" in about(said, "mean accuracy")
    said = findings(*make_runs({"full": [0.6] * 12, "component-clip": [0.7] * 12}))
    assert "are all equal" in about(said, "mean accuracy")
    assert claims([about(said, "ratio of standard")]) == []


def test_failing_every_time_is_no_steadiness(make_runs) -> None:
    said = findings(*make_runs({"full": SHAKY, "component-clip": [0.5] * 20}))
    assert about(said, "mean accuracy").endswith("lower.")
    assert about(said, "ratio of standard").endswith("no steadiness where all runs failed (component-clip).")


def test_diverged_runs_are_left_out_of_means_and_counted_as_failed(make_runs) -> None:
    said = findings(*make_runs({"full": GOOD, "component-clip": [*GOOD[:19], "diverged"]}))
    assert "(1 diverged run without a score left out)" in about(said, "mean accuracy")
    assert "failed runs 1 of 20 against 0 of 20" in about(said, "failed runs")


def test_a_method_that_always_diverged_is_compared_in_failures(make_runs) -> None:
    said = findings(*make_runs({"full": GOOD, "component-clip": ["diverged"] * 20}))
    assert any("all runs of component-clip diverged" in sentence for sentence in said)
    assert about(said, "failed runs").endswith("fails more often.")


def test_what_is_missing_is_said(make_runs) -> None:
    said = findings(*make_runs({"full": [0.7, "error", "queued"], "component-clip": ["running", "lost", "queued"]}))
    assert said[0].startswith("1 of 6 runs have a result (2 queued, 1 running, 1 ended in an error, 1 lost")
    assert "component-clip has no result yet" in said[-1]
    said = findings(*make_runs({"full": ["queued"], "component-clip": [0.7]}))
    assert "full: no result yet" in said[1]
    assert "full has no result yet" in said[2]


fate = st.one_of(st.floats(0, 1), st.sampled_from(["diverged", "error", "queued", "lost"]), st.just(0.55))


@settings(max_examples=25)
@given(st.lists(st.lists(fate, min_size=1, max_size=12), min_size=1, max_size=3))
def test_whatever_came_out_claims_follow_the_tests(make_runs, lists: list) -> None:
    said = findings(*make_runs({f"m{i}": fates for i, fates in enumerate(lists)}))
    assert len(said) >= 2
    for sentence in claims(said):
        numbers = [float(x) for x in re.findall(r"interval ([+-]\d\.\d{3}) to ([+-]\d\.\d{3})", sentence) for x in x]
        if sentence.endswith(("higher.", "lower.")):
            assert numbers[0] * numbers[1] >= 0
        elif "adjusted" not in sentence:
            assert float(re.search(r" p [=<] (\S+?)\)?:", sentence)[1]) <= 0.05
    assert not any("nan" in sentence or "inf " in sentence for sentence in said)
