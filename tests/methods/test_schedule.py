from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import MethodError
from evenkeel.methods import Phase, PhaseSchedule


def schedule(
    *epochs: float | None, usual: float = 3, restarts: Sequence[bool] = (), steps: int | None = None
) -> PhaseSchedule:
    wanted = restarts or (True,) * len(epochs)
    phases = [
        Phase(name="p", trainable=lambda _: True, epochs=each, restart=restart)
        for each, restart in zip(epochs, wanted, strict=True)
    ]
    made = PhaseSchedule(phases, epochs=usual)
    if steps is not None:
        made.set_steps(steps)
    return made


def test_phases_without_a_length_of_their_own_have_the_usual_one() -> None:
    made = schedule(None, 1, None)
    made.set_steps(70)
    assert (len(made), made.total_epochs, made.phase_steps()) == (3, 7, [30, 10, 30])
    assert [made.at(step) for step in (0, 29, 30, 39, 40, 69)] == [(0, 0), (0, 0), (1, 30), (1, 30), (2, 40), (2, 40)]
    assert [step for step in range(71) if made.begins(step)] == [0, 30, 40]


@given(st.lists(st.floats(0.5, 5), min_size=1, max_size=8), st.integers(100, 5000))
def test_no_step_is_lost_and_every_phase_has_its_share(epochs: list[float], steps: int) -> None:
    made = schedule(*epochs)
    made.set_steps(steps)
    assert sum(made.phase_steps()) == steps
    for length, epoch in zip(made.phase_steps(), epochs, strict=True):
        assert abs(length - steps * epoch / sum(epochs)) <= 1


@pytest.mark.parametrize(
    ("restarts", "found"),
    [
        ((True, True, True), [(0, 10), (10, 20), (30, 30)]),
        ((False, False, False), [(0, 60)]),
        ((True, False, False), [(0, 60)]),
        ((False, True, False), [(0, 10), (10, 50)]),
        ((True, False, True), [(0, 30), (30, 30)]),
    ],
)
def test_phases_that_do_not_restart_go_on_with_the_schedule_before(
    restarts: Sequence[bool], found: list[tuple[int, int]]
) -> None:
    made = schedule(1, 2, 3, restarts=restarts, steps=60)
    assert made.schedules() == found  # first step and length
    assert made.phase_steps() == [10, 20, 30]


@given(st.lists(st.tuples(st.floats(0.5, 5), st.booleans()), min_size=1, max_size=8), st.integers(100, 5000))
def test_schedules_follow_one_another_without_a_gap(phases: list[tuple[float, bool]], steps: int) -> None:
    epochs, restarts = zip(*phases, strict=True)
    made = schedule(*epochs, restarts=restarts, steps=steps)
    found = made.schedules()
    assert [start for start, _ in found] == [0, *(start + length for start, length in found[:-1])]
    assert sum(length for _, length in found) == steps
    assert len(found) == 1 + sum(restarts[1:])
    assert all(made.begins(start) for start, _ in found)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_phase_without_a_step_is_refused(steps: int) -> None:
    with pytest.raises(MethodError, match=f"{steps} steps are too few for 3 phases; train longer"):
        schedule(None, None, None).set_steps(steps)
