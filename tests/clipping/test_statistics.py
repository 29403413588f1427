"""Statistics over many steps, against Python's own numbers."""

from __future__ import annotations

import copy
import io
import math
import pickle
import statistics
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests import _models
from tests.clipping._bag import INF, NAN, Bag
from tests.clipping.test_clip import NoSynchronisation

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping import ClipResult, ClipStatistics
from evenkeel.errors import MeasureError

Step = dict[str, tuple[float, bool]]  # component -> norm, and whether it was clipped


def result(step: Step, dtype: torch.dtype = torch.float32) -> ClipResult:
    norms = torch.tensor([norm for norm, _ in step.values()], dtype=dtype)
    coefficients = torch.tensor([0.5 if clipped else 1.0 for _, clipped in step.values()], dtype=dtype)
    return ClipResult(names=tuple(step), norms=norms, thresholds=norms * coefficients, coefficients=coefficients)


def slow(steps: list[Step], window: int | None) -> dict[str, dict[str, float]]:
    """What the class says in words, one component after the other."""
    found = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        own = [step[name] for step in steps if name in step][-(window or len(steps)) :]
        seen = [(norm, clipped) for norm, clipped in own if math.isfinite(norm) and norm > 0]
        found[name] = {
            "steps": len(own),
            "clipped": sum(clipped for _, clipped in seen) / len(seen) if seen else NAN,
            "mean_norm": statistics.fmean(norm for norm, _ in seen) if seen else NAN,
            "max_norm": max(norm for norm, _ in seen) if seen else NAN,
            "nonfinite": sum(not math.isfinite(norm) for norm, _ in own),
        }
    return found


def assert_equal(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert ours[name] == pytest.approx(values, rel=1e-12, nan_ok=True)


NORMS = st.sampled_from([0.0, 0.125, 1.0, 3.5, 1e30, 1e-30, NAN, INF])
STEPS = st.lists(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(NORMS, st.booleans()), min_size=1), min_size=1, max_size=12
)


@given(STEPS, st.sampled_from([None, 1, 2, 5, 100]))
def test_it_is_what_python_counts(steps: list[Step], window: int | None) -> None:
    """Components come and go; what is float32 here is exact in float64."""
    counted = ClipStatistics(window)
    for step in steps:
        counted.update(result(step, torch.float64))
    assert_equal(counted.to_dict(), slow(steps, window))


@given(STEPS, STEPS, st.sampled_from([None, 3]))
def test_a_resumed_one_goes_on(before: list[Step], after: list[Step], window: int | None) -> None:
    first = ClipStatistics(window)
    for step in before:
        first.update(result(step))
    state = first.state_dict()
    kept = copy.deepcopy(state)
    second = ClipStatistics(window)
    second.load_state_dict(state)
    pickled, copied = pickle.loads(pickle.dumps(first)), copy.deepcopy(first)  # noqa: S301
    for step in after:
        for counted in (first, second, pickled, copied):
            counted.update(result(step))
    for counted in (second, pickled, copied):
        assert_equal(counted.to_dict(), first.to_dict())
    assert state["names"] == kept["names"]
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                value, kept[key], rtol=0, atol=0, equal_nan=True
            )  # what was saved does not move on


def test_every_number_can_be_had_by_name() -> None:
    counted = ClipStatistics()
    for norm, clipped in ((2.0, True), (4.0, False), (NAN, False), (0.0, False)):
        counted.update(result({"a": (norm, clipped), "b": (0.0, False)}))
    assert counted.steps == {"a": 4, "b": 4}
    assert counted.clipped == pytest.approx({"a": 0.5, "b": NAN}, nan_ok=True)
    assert counted.mean_norm == pytest.approx({"a": 3.0, "b": NAN}, nan_ok=True)
    assert counted.max_norm == pytest.approx({"a": 4.0, "b": NAN}, nan_ok=True)
    assert counted.nonfinite == {"a": 1, "b": 0}


def test_the_mean_stays_exact_over_many_steps() -> None:
    """A mean of float32 would have drifted by then."""
    counted = ClipStatistics()
    step = result({"a": (0.1, False)})
    for _ in range(1000):
        counted.update(step)
    exact = torch.tensor(0.1).item()
    assert counted.mean_norm["a"] == pytest.approx(exact, rel=1e-13)


def test_a_silenced_component_counts_as_not_finite() -> None:
    counted, model = ClipStatistics(), Bag(torch.tensor([NAN, 1.0]), torch.tensor([3.0, 4.0]))
    counted.update(clip_grad_norm_(model, 1.0, nonfinite="zero"))
    assert counted.nonfinite == {"p0": 1, "p1": 0}
    assert counted.clipped == pytest.approx({"p0": NAN, "p1": 1.0}, nan_ok=True)


@pytest.mark.parametrize("window", [None, 3])
def test_counting_waits_for_nothing(window: int | None) -> None:
    model = _models.bert()
    _models.backward(model)
    counted, parts = ClipStatistics(window), components(model)
    with NoSynchronisation():
        for _ in range(2):
            counted.update(clip_grad_norm_(parts, 0.05))
        counted.update(clip_grad_norm_(parts.select("query"), 0.05))
        state = counted.state_dict()
    assert len(state["names"]) == len(parts)
    assert counted.steps[parts.select("query")[0].name] == min(3, window or 3)


@pytest.mark.parametrize("window", [None, 3])
def test_counting_stays_on_the_device(window: int | None) -> None:
    """Meta tensors have a device and no values: whatever looks at one fails."""
    step = result({"a": (1.0, False)})
    there = ClipResult(
        names=step.names,
        norms=step.norms.to("meta"),
        thresholds=step.thresholds.to("meta"),
        coefficients=step.coefficients.to("meta"),
    )
    counted = ClipStatistics(window)
    for _ in range(2):
        counted.update(there)
    assert all(value.is_meta for value in counted.state_dict().values() if isinstance(value, torch.Tensor))
    with pytest.raises(NotImplementedError):
        counted.to_dict()


@pytest.mark.parametrize("window", [None, 2])
def test_reset_forgets_everything(window: int | None) -> None:
    counted = ClipStatistics(window)
    counted.update(result({"a": (1.0, True)}))
    counted.reset()
    assert counted.to_dict() == {}
    counted.update(result({"b": (2.0, False)}))
    assert counted.clipped == {"b": 0.0}


def test_the_gradients_graph_is_not_kept() -> None:
    norms = torch.ones(1, requires_grad=True) * 2
    counted = ClipStatistics()
    counted.update(ClipResult(names=("a",), norms=norms, thresholds=norms, coefficients=norms / 4))
    assert not any(value.requires_grad for value in counted.state_dict().values() if isinstance(value, torch.Tensor))
    assert counted.clipped == {"a": 1.0}


@pytest.mark.parametrize("window", [None, 4])
def test_the_table_begins_with_what_is_clipped_most(window: int | None) -> None:
    counted = ClipStatistics(window)
    for clipped in (True, False):
        counted.update(
            result({"some[x]": (1.0, clipped), "never": (2.0, False), "always": (3.0, True), "no": (0.0, False)})
        )
    console = Console(width=120, file=io.StringIO())
    console.print(counted)
    file: Any = console.file
    text = file.getvalue()
    places = [text.index(name) for name in ("always", "some[x]", "never", "no ")]
    assert places == sorted(places)
    assert "50.0%" in text
    assert ("all steps" if window is None else "the last 4 steps") in text


@pytest.mark.parametrize("window", [0, -1, 1.5, True, "3", NAN])
def test_a_bad_window_is_refused(window: Any) -> None:
    with pytest.raises(MeasureError, match="window must be a whole number of steps, at least 1, but got"):
        ClipStatistics(window)


def test_a_state_of_another_kind_is_refused() -> None:
    counted = ClipStatistics(3)
    counted.update(result({"a": (1.0, True)}))
    for state in (ClipStatistics().state_dict(), ClipStatistics(4).state_dict(), {}, [], None):
        with pytest.raises(MeasureError, match=r"ClipStatistics\(window=3\) cannot load a state of"):
            counted.load_state_dict(state)  # type: ignore[arg-type]
    with pytest.raises(MeasureError, match="cannot load 'norms' of shape"):
        counted.load_state_dict({**counted.state_dict(), "norms": torch.zeros(1, 2)})
    assert counted.steps == {"a": 1}  # it is as it was
