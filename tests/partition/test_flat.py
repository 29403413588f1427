from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from evenkeel.errors import ComponentError
from evenkeel.partition import Piece, Span
from evenkeel.partition._flat import FlatShard, flat_shards

SHAPES = st.lists(st.integers(1, 5), max_size=4).map(tuple)


@st.composite
def spans(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Span, ...]:
    """At most one contiguous span for each dimension."""
    found = []
    for dim, length in enumerate(shape):
        if draw(st.booleans()):
            start = draw(st.integers(0, length - 1))
            size = draw(st.integers(1, length - start))
            found.append(Span(dim=dim, start=start, length=size, stride=size))
    return tuple(found)


@given(SHAPES, st.data())
def test_the_boxes_of_a_run_are_the_run(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    start = data.draw(st.integers(0, whole.numel()))
    stop = data.draw(st.integers(start, whole.numel()))
    flat = whole.flatten()[start:stop]
    boxes = list(FlatShard(shape=shape, start=start, stop=stop).blocks(flat))
    for view, begin in boxes:
        there = whole[tuple(slice(first, first + size) for first, size in zip(begin, view.shape, strict=True))]
        assert torch.equal(view, there)
        assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert [entry for view, _ in boxes for entry in view.flatten().tolist()] == flat.tolist()
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@given(SHAPES, st.data())
def test_all_runs_together_have_the_entries_of_a_cut(shape: tuple[int, ...], data: st.DataObject) -> None:
    whole = torch.arange(math.prod(shape)).view(shape)
    borders = sorted(data.draw(st.lists(st.integers(0, whole.numel()), max_size=3)))  # runs may be empty
    cut = data.draw(spans(shape))
    (want,) = Piece(name="p", spans=cut, shape=shape).of(whole)
    got = []
    for start, stop in zip([0, *borders], [*borders, whole.numel()], strict=True):
        piece = Piece(name="p", spans=cut, shape=shape, flat=FlatShard(shape=shape, start=start, stop=stop))
        got += [entry for view in piece.of(whole.flatten()[start:stop]) for entry in view.flatten().tolist()]
    assert sorted(got) == sorted(want.flatten().tolist())


def test_a_run_of_another_length_is_refused() -> None:
    piece = Piece(name="p", shape=(2, 3), flat=FlatShard(shape=(2, 3), start=1, stop=4))
    with pytest.raises(ComponentError, match=r"'p' has entries of shape \(2, 3\) on this rank.* with \(3,\)"):
        piece.of(torch.zeros(2, 3))


def test_parts_of_what_was_not_contiguous_are_refused_and_the_whole_is_not() -> None:
    flat = FlatShard(shape=(2, 3), start=0, stop=6, rowwise=False)
    (whole,) = Piece(name="p", shape=(2, 3), flat=flat).of(torch.arange(6))
    assert whole.tolist() == list(range(6))
    rows = (Span(dim=0, start=0, length=1, stride=1),)
    with pytest.raises(ComponentError, match="not contiguous"):
        Piece(name="p", spans=rows, shape=(2, 3), flat=flat).of(torch.arange(6))


def test_a_model_without_fsdp1_has_no_runs() -> None:
    assert flat_shards(nn.Linear(2, 2)) == {}


@pytest.fixture
def wrapped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], nn.Module]:
    """A model that torch says FSDP1 has wrapped, with what it keeps for itself."""

    def wrap(handle: Any) -> nn.Module:
        module = SimpleNamespace(_handle=handle, _use_orig_params=True)
        monkeypatch.setattr(FullyShardedDataParallel, "fsdp_modules", lambda model: [module])
        return nn.Linear(2, 2)

    return wrap


def test_another_version_of_torch_is_told_as_such(wrapped: Callable[[Any], nn.Module]) -> None:
    with pytest.raises(ComponentError, match=r"in another way in torch .*flat_param.*use torch.*fully_shard"):
        flat_shards(wrapped(SimpleNamespace()))


def test_parameters_that_were_sharded_before_fsdp1_wrapped_them_are_refused(
    wrapped: Callable[[Any], nn.Module],
) -> None:
    flat = SimpleNamespace(_param_extensions=[None, object()])
    with pytest.raises(ComponentError, match="sharded already"):
        flat_shards(wrapped(SimpleNamespace(flat_param=flat)))


def test_a_wrapper_without_parameters_of_its_own_has_no_runs(wrapped: Callable[[Any], nn.Module]) -> None:
    assert flat_shards(wrapped(None)) == {}
