"""Rows on several ranks are those of one process, which test_rows.py proves."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests import _ranks
from tests.clipping import _jobs, _layouts
from tests.clipping._jobs import Clip, Outcome
from tests.clipping._sharded import POISONED, close, traffic

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping.thresholds import WeightRelative

pytestmark = pytest.mark.slow  # many ranks

ONE = {(("c10d.allreduce_", 1),)}
CALLS = [("tensor", 2.0, "propagate"), ("role", 3.0, "propagate"), ("global", float("inf"), "zero")]


def rows(ratio: float) -> WeightRelative:
    return WeightRelative(ratio, per="row")


def clips(ratio: float) -> list[Clip]:
    return [Clip(max_norm=rows(ratio), by=by, norm_type=norm, nonfinite=nonfinite) for by, norm, nonfinite in CALLS]


@functools.cache
def in_one_process(name: str, ratio: float, by: Any, norm_type: float, poisoned: str | None = None) -> Outcome:
    model = _layouts.build(name)
    _layouts.backward(model)
    parts = components(model, by)
    if poisoned is not None:
        _jobs.poison(parts, poisoned)
    nonfinite: Any = "propagate" if poisoned is None else "zero"
    result = clip_grad_norm_(parts, rows(ratio), norm_type, nonfinite)
    gradients = {key: own.grad for key, own in model.named_parameters() if own.grad is not None}
    return Outcome(
        names=result.names,
        norms=result.norms,
        coefficients=result.coefficients,
        total_norm=result.total_norm,
        gradients=gradients,
    )


def assert_same(got: Outcome, want: Outcome, what: str, *, whole: bool = True) -> None:
    index = [want.names.index(name) for name in got.names]
    close(got.norms, want.norms[index], f"norms {what}")
    close(got.coefficients, want.coefficients[index], f"coefficients {what}")
    close(got.total_norm, want.total_norm, f"total norm {what}")
    assert not whole or got.gradients.keys() == want.gradients.keys()
    for name, gradient in got.gradients.items():
        close(gradient, want.gradients[name], f"gradient of {name} {what}")


@pytest.mark.parametrize(("number", "layout", "name"), [(2, "fsdp2", "gpt2"), (2, "fsdp2", "mixtral")])
def test_ranks_clip_rows_as_one_process(number: int, layout: str, name: str) -> None:
    ratio = 0.05
    ranks = _ranks.run(number, _jobs.spread, layout, name, clips(ratio))
    for outcomes in ranks:
        for got, (by, norm_type, _) in zip(outcomes, CALLS, strict=True):
            want = in_one_process(name, ratio, by, norm_type)
            assert by != "tensor" or int((want.coefficients < 1).sum()) > 0  # something is clipped
            assert_same(got, want, f"{by} {norm_type}")
    assert traffic(ranks) == ONE


def test_a_nan_on_one_rank_silences_the_component_on_all() -> None:
    call = Clip(max_norm=rows(0.05), nonfinite="zero", poisoned=POISONED["gpt2"])
    want = in_one_process("gpt2", 0.05, "tensor", 2.0, POISONED["gpt2"])
    for (got,) in _ranks.run(2, _jobs.spread, "fsdp2", "gpt2", [call]):
        assert int((got.coefficients == 0).sum()) == 1
        assert_same(got, want, "poisoned", whole=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # GPT-2's embedding is tied: both stages have it, one counts it
def test_stages_clip_rows_as_one_process(name: str) -> None:
    ranks = _ranks.run(2, _jobs.staged, name, clips(0.05), True)
    for outcomes in ranks:
        for got, (by, norm_type, _) in zip(outcomes, CALLS, strict=True):
            assert_same(got, in_one_process(name, 0.05, by, norm_type), f"{by} {norm_type}", whole=False)
    assert traffic(ranks) == ONE


@pytest.mark.parametrize(
    ("layout", "name", "said"), [("tp", "llama", "splits rows among ranks"), ("fsdp1", "gpt2", "kept flat by FSDP1")]
)
def test_rows_that_are_split_are_refused(layout: str, name: str, said: str) -> None:
    with pytest.raises(_ranks.RankError, match=rf"GradientError: the rows of .* cannot be clipped: it .*{said}"):
        _ranks.run(2, _jobs.spread, layout, name, [Clip(max_norm=rows(0.05))])


def test_the_reference_is_in_double_precision() -> None:
    assert in_one_process("gpt2", 0.05, "tensor", 2.0).norms.dtype == torch.float64
