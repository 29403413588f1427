from __future__ import annotations

import io
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rich.console import Console
from tests.study.test_plan import SPEC

from evenkeel.cli._board import Board, counts, methods_table
from evenkeel.cli._standing import Standing
from evenkeel.study import RunRecord, RunSpec, Status


def spec(seed: int, method: str = "full", **changes: Any) -> RunSpec:
    return SPEC.model_copy(update={"seed": seed, "method": method, **changes})


def queued(*specs: RunSpec) -> list[RunRecord]:
    return [RunRecord(id=one.id, spec=one, status="queued", attempts=0, outcome={}, error=None) for one in specs]


def outcome(score: float | None, seconds: float = 10.0) -> dict[str, Any]:
    failed = score is None or score < 0.5
    return {"metric": "accuracy", "scores": {"validation": score}, "failed": failed, "wall_seconds": seconds}


def drawn(what: Any, *, width: int = 80, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined]


@given(some.lists(some.floats(0, 1), min_size=2, max_size=30))
def test_mean_and_spread_are_those_of_all_scores(scores: list[float]) -> None:
    specs = [spec(seed) for seed in range(len(scores))]
    standing = Standing(queued(*specs))
    for one, score in zip(specs, scores, strict=True):
        standing.count(one, "running", {})
        standing.count(one, "done", outcome(score))
    (tally,) = standing.places.values()
    assert tally.mean == pytest.approx(statistics.fmean(scores), abs=1e-12)
    assert tally.std == pytest.approx(statistics.stdev(scores), abs=1e-9)
    assert (tally.finished, tally.failed, tally.total) == (
        len(scores),
        sum(score < 0.5 for score in scores),
        len(scores),
    )


def test_what_a_store_holds_and_what_happens_are_counted_alike() -> None:
    specs = [spec(seed) for seed in range(6)]
    states: list[tuple[Status, float | None]] = [
        ("done", 0.7), ("failed", 0.4), ("diverged", None), ("error", 0), ("running", 0), ("queued", 0),
    ]  # fmt: skip
    ended = ("done", "failed", "diverged")
    records = [
        RunRecord(
            id=one.id, spec=one, status=state, attempts=1, outcome=outcome(score) if state in ended else {}, error=None
        )
        for one, (state, score) in zip(specs, states, strict=True)
    ]
    stored, lived = Standing(records), Standing(queued(*specs))
    for record in records:
        lived.count(record.spec, "running", {})
        lived.count(record.spec, record.status, record.outcome)
    assert stored.places == lived.places
    assert counts(stored, None) == "3 of 6 runs have a result, 2 failed, 1 running, 1 error, time left not known yet"


def test_places_stand_together_in_the_plans_order() -> None:
    recipes = [SPEC.training.model_copy(update={"learning_rate": rate}) for rate in (1e-3, 1e-5)]
    runs = [spec(seed, method, training=recipe) for seed in (1, 2) for recipe in recipes for method in ("full", "a")]
    standing = Standing(queued(*runs))
    assert [(place.model, place.method) for place in standing.places] == [
        (f"tiny, learning_rate {rate}", method) for rate in ("0.001", "1e-05") for method in ("full", "a")
    ]


def test_a_run_that_gives_way_makes_room_for_a_recipe() -> None:
    specs = [spec(seed, method) for seed in (1, 2) for method in ("full", "a")]
    standing = Standing(queued(*specs))
    standing.count(specs[0], "done", outcome(0.7, seconds=10))
    standing.count(specs[2], "running", {}, now=0)
    other = spec(2, overrides={"gradient_accumulation_steps": 2})
    standing.substitute(specs[2], other)
    whole, halves = (f"tiny, gradient_accumulation_steps {name}" for name in ("unset", "2"))
    assert {place: tally.total for place, tally in standing.places.items()} == {
        ("rte", whole, "full"): 1, ("rte", whole, "a"): 2, ("rte", halves, "full"): 1,
    }  # fmt: skip
    assert standing.places["rte", whole, "full"].mean == 0.7  # type: ignore[index]
    assert counts(standing, None).startswith("1 of 4 runs have a result, 0 failed")
    third = spec(2, "a", overrides={"gradient_accumulation_steps": 2})
    standing.substitute(specs[3], third)  # by a recipe that is there
    assert standing.recipe(third) == standing.recipe(other) == "gradient_accumulation_steps 2"
    standing.count(third, "running", {}, now=3)
    standing.count(third, "done", outcome(0.5), now=4)
    assert counts(standing, None).startswith("2 of 4 runs have a result, 0 failed")
    assert standing.counted("running") == 0


def test_where_all_runs_give_way_one_recipe_needs_no_name() -> None:
    standing = Standing(queued(spec(1)))
    standing.substitute(spec(1), spec(1, overrides={"gradient_accumulation_steps": 2}))
    assert {place: tally.total for place, tally in standing.places.items()} == {("rte", "tiny", "full"): 1}


def test_the_time_left_follows_what_was_measured() -> None:
    slow, fast = [spec(seed, "slow") for seed in range(4)], [spec(seed, "fast") for seed in range(4)]
    standing = Standing(queued(*slow, *fast))
    assert standing.left(2, now=0) is None
    standing.count(slow[0], "done", outcome(0.7, seconds=100))
    standing.count(fast[0], "done", outcome(0.7, seconds=10))
    assert standing.left(2, now=0) == (3 * 100 + 3 * 10) / 2
    standing.count(slow[1], "running", {}, now=0)
    assert standing.left(2, now=40) == (3 * 100 + 3 * 10 - 40) / 2
    standing.count(slow[1], "done", outcome(0.6, seconds=200), now=90)
    assert standing.left(1, now=90) == 2 * 150 + 3 * 10


def test_a_method_that_was_not_measured_takes_as_long_as_the_others() -> None:
    runs = [spec(1, "known"), spec(1, "new")]
    standing = Standing(queued(*runs))
    standing.count(runs[0], "done", outcome(0.7, seconds=30))
    assert standing.left(1, now=0) == 30


def test_the_board_fits_80_columns_and_the_screen() -> None:
    methods = [f"component-clip:max_norm={norm}" for norm in range(30)]
    runs = [spec(seed, method) for seed in (1, 2) for method in methods]
    standing = Standing(queued(*runs))
    standing.count(runs[0], "done", outcome(0.75))
    standing.count(runs[1], "failed", outcome(0.25))
    standing.count(runs[2], "error", {})
    shown = drawn(Board(standing, left=lambda: 90.0, note="a note"), height=24).splitlines()
    assert len(shown) <= 24
    assert max(map(len, shown)) <= 80
    assert shown[1] == "2 of 60 runs have a result, 1 failed, 1 error, about 90 s left"
    assert shown[-2].strip() == "... 15 more"
    assert shown[-1] == "a note"
    row = next(line.split() for line in shown if line.startswith("component-clip:max_norm=1 "))
    assert row == ["component-clip:max_norm=1", "1/2", "0.250", "-", "1/1", "1"]


def test_a_finished_study_has_nothing_left() -> None:
    standing = Standing(queued(spec(1)))
    standing.count(spec(1), "done", outcome(0.7))
    assert counts(standing, None) == "1 of 1 runs have a result, 0 failed"
    assert "rte, tiny: accuracy" in drawn(methods_table(standing))
