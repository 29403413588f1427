"""One pass on the CPU does to the last bit what norms, thresholds and scaling do one after the other."""

from __future__ import annotations

from typing import Any, final

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.clipping import _bag
from tests.clipping._bag import INF, NAN, Bag, bits, drawn
from torch import Tensor

from evenkeel import ClipResult, clip_grad_norm_, components
from evenkeel.clipping import _clip
from evenkeel.clipping.thresholds import Limits, Seen, Threshold

pytestmark = pytest.mark.usefixtures("either_way")

LONG = 256 * 1024  # what is scaled right after its norm was taken


@final
class Same(Threshold):
    """Numbers too, but an object, which is asked once all norms are there."""

    def __init__(self, *values: float) -> None:
        self.values = values

    def limits(self, seen: Seen) -> Limits:
        return Limits(thresholds=torch.tensor(self.values, dtype=seen.norms.dtype), norms=seen.norms)


def both(grads: list[Tensor], max_norm: float, norm_type: float, nonfinite: Any, by: Any) -> list[tuple[Any, ...]]:
    found = []
    for threshold in (None, Same):
        model = Bag(*[grad.clone() for grad in grads])
        parts = components(model, by)
        limit = max_norm if threshold is None else threshold(*[max_norm] * len(parts))
        found.append(seen_bits(clip_grad_norm_(parts, limit, norm_type, nonfinite), model))
    return found


def seen_bits(result: ClipResult, model: Bag) -> tuple[Any, ...]:
    tensors = (result.norms, result.thresholds, result.coefficients, result.total_norm)
    return (*map(bits, tensors), *map(bits, model.grads))


SIZES = st.sampled_from([0, 1, 7, LONG - 1, LONG, LONG + 1, 70_001])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])


@st.composite
def gradients(draw: st.DrawFn, *bad: float) -> list[Tensor]:
    grads = []
    for seed in range(draw(st.integers(1, 4))):
        scale = draw(st.sampled_from([1e-3, 1.0, 100.0]))
        grad = drawn(draw(SIZES), seed=seed, scale=scale, dtype=draw(DTYPES))
        if grad.numel() and bad:
            grad[draw(st.sampled_from([0, -1]))] = draw(st.sampled_from([*bad, 1.0]))
        grads.append(grad)
    return grads


PARTITIONS = st.sampled_from(["tensor", "global"])


@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
@given(gradients(), st.sampled_from([1e-6, 1e-2, 1.0, 33.0, INF]), st.sampled_from([1.0, 2.0, 3.7, INF]), PARTITIONS)
def test_finite_gradients(grads: list[Tensor], max_norm: float, norm_type: float, by: str) -> None:
    once, twice = both(grads, max_norm, norm_type, "propagate", by)
    assert once == twice
    careful, _ = both(grads, max_norm, norm_type, "error", by)
    assert once == careful


@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
@given(gradients(NAN, INF, -INF), st.sampled_from([1e-2, 1.0, INF]), st.sampled_from([1.0, 2.0, INF]), PARTITIONS)
def test_gradients_that_are_not_finite(grads: list[Tensor], max_norm: float, norm_type: float, by: str) -> None:
    for nonfinite in ("propagate", "zero"):
        once, twice = both(grads, max_norm, norm_type, nonfinite, by)
        assert once == twice


@given(st.floats(2.0**-100, 2.0**100, width=32), st.floats(2.0**-100, 2.0**100, width=32))
def test_coefficients_are_rounded_alike(norm: float, max_norm: float) -> None:
    """A long gradient of one entry that is not 0 has any norm one likes."""
    grad = torch.zeros(LONG)
    grad[5] = norm
    once, twice = both([grad], max_norm, INF, "propagate", "tensor")
    assert once == twice


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e35])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_a_long_gradient_within_its_threshold_keeps_every_bit(value: float, nonfinite: Any) -> None:
    grad = torch.full((LONG,), value)
    model = Bag(grad.clone())
    clip_grad_norm_(model, INF, nonfinite=nonfinite)
    assert bits(model.grads[0]) == bits(grad)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_a_long_gradient_is_silenced_by_selection(bad: float) -> None:
    grad = drawn(LONG)
    grad[1000] = bad
    model, alone = Bag(grad, torch.tensor([3.0, 4.0]), drawn(LONG, seed=1)), Bag(drawn(LONG, seed=1))
    result = clip_grad_norm_(model, 1.0, nonfinite="zero")
    clip_grad_norm_(alone, 1.0)
    assert bits(model.grads[0]) == bits(torch.zeros(LONG))
    assert bits(model.grads[2]) == bits(alone.grads[0])
    assert result.coefficients[0].item() == 0.0


def test_this_is_the_way_that_numbers_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would compare one thing with itself."""
    taken: list[str] = []
    for name in ("clip_at_once", "look"):
        monkeypatch.setattr(_clip, name, _noting(getattr(_clip, name), name, taken))
    both([torch.tensor([3.0, 4.0])], 1.0, 2.0, "propagate", "tensor")
    clip_grad_norm_(Bag(torch.ones(2)), 1.0, nonfinite="error")
    assert taken == ["clip_at_once", "look", "look"]


def _noting(call: Any, name: str, taken: list[str]) -> Any:
    def noting(*args: Any, **kwargs: Any) -> Any:
        taken.append(name)
        return call(*args, **kwargs)

    return noting


def test_the_slow_norm_of_these_tests_is_right() -> None:
    assert _bag.slow_norm(torch.tensor([3.0, -4.0]), 2.0) == 5.0
