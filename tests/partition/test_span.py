from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from evenkeel.partition import Span
from evenkeel.partition._span import shard_views, views


def indices(span: Span) -> list[int]:
    """The slow twin: the definition, index by index."""
    return [span.start + span.stride * run + step for run in range(span.count) for step in range(span.length)]


def entries(tensor: Tensor, *spans: Span) -> Tensor:
    """What the spans own, by index selection, which copies."""
    for span in spans:
        tensor = tensor.index_select(span.dim, torch.tensor(indices(span)))
    return tensor


def flat(view: Tensor, *spans: Span) -> Tensor:
    """The view with the runs of every dimension joined again."""
    unfolded = [span.dim for span in spans if span.count > 1]
    for dim in reversed(unfolded):  # the last one unfolded has its run at the end
        view = view.movedim(-1, dim + 1).flatten(dim, dim + 1)
    return view


@st.composite
def spans(draw: st.DrawFn, dim: int = 0) -> Span:
    length = draw(st.integers(1, 5))
    return Span(
        dim=dim,
        start=draw(st.integers(0, 6)),
        length=length,
        stride=length + draw(st.integers(0, 4)),
        count=draw(st.integers(1, 5)),
    )


def counting(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape)


# --- the view


@given(spans(dim=1), st.integers(0, 3))
def test_a_view_holds_the_indices_of_the_definition(span: Span, rest: int) -> None:
    tensor = counting(2, span.stop + rest, 3)
    view = span.of(tensor)
    assert torch.equal(flat(view, span), entries(tensor, span))
    assert view.numel() == 2 * span.size * 3
    assert span.size == len(indices(span))
    assert span.stop == max(indices(span)) + 1


@given(spans(dim=0), spans(dim=2), st.booleans())
def test_spans_along_two_dimensions_hold_what_both_have(first: Span, second: Span, turned: bool) -> None:
    tensor = counting(first.stop + 1, 2, second.stop)
    both = (second, first) if turned else (first, second)
    assert torch.equal(flat(views(tensor, both), *both), entries(tensor, *both))


@given(spans(dim=0), spans(dim=1))
def test_a_view_never_copies_and_writes_to_its_own_entries_alone(rows: Span, columns: Span) -> None:
    tensor = torch.zeros(rows.stop + 1, columns.stop + 1)
    view = views(tensor, (rows, columns))
    assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    view += 1  # an entry that the view held twice would become 2
    mine = torch.zeros_like(tensor)
    mine[torch.tensor(indices(rows))[:, None], torch.tensor(indices(columns))[None, :]] = 1
    assert torch.equal(tensor, mine)


@given(spans(dim=1))
def test_tensors_that_are_not_contiguous_have_views_too(span: Span) -> None:
    base = counting(2 * span.stop, 6)
    for tensor in (base.t()[::2], base.t()[:, ::2], base.t().flip(0), torch.arange(6)[:, None].expand(6, span.stop)):
        view = span.of(tensor)
        assert torch.equal(flat(view, span), entries(tensor, span))
        assert view.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()


def test_no_span_is_the_tensor_itself() -> None:
    tensor = torch.zeros(2, 3)
    assert views(tensor, ()) is tensor


def test_a_run_alone_keeps_the_number_of_dimensions_and_several_add_one() -> None:
    tensor = counting(12, 2)
    assert Span(dim=0, start=4, length=4, stride=12).of(tensor).shape == (4, 2)
    assert Span(dim=0, start=1, length=2, stride=4, count=3).of(tensor).shape == (3, 2, 2)


@pytest.mark.parametrize("stop", [11, 3])
def test_a_tensor_that_is_too_small_is_not_read_beyond_its_end(stop: int) -> None:
    with pytest.raises(RuntimeError, match="exceeds dimension size"):
        Span(dim=0, start=2, length=2, stride=5, count=3).of(torch.zeros(stop))


# --- shards


@given(spans(), st.data())
def test_the_shards_of_a_span_are_the_span(span: Span, data: st.DataObject) -> None:
    total = span.stop + data.draw(st.integers(0, 4))
    borders = sorted(data.draw(st.lists(st.integers(0, total), max_size=4)))  # shards may be empty
    found: list[int] = []
    for start, stop in zip([0, *borders], [*borders, total], strict=True):
        within = span.within(start, stop)
        assert len(within) <= 3
        for part in within:
            assert part.dim == span.dim
            assert part.length >= 1
            assert part.stop <= stop - start
            found.extend(start + index for index in indices(part))
    assert found == indices(span)  # each once, and in order


@given(spans(dim=0), spans(dim=1), st.data())
def test_the_views_of_shards_hold_the_entries_of_the_whole(rows: Span, columns: Span, data: st.DataObject) -> None:
    """Sharded along both dimensions, as by FSDP and tensor parallelism together."""
    tensor = counting(rows.stop + 1, columns.stop)
    borders = [sorted({0, data.draw(st.integers(0, length)), length}) for length in tensor.shape]
    found: list[int] = []
    for top, bottom in pairwise(borders[0]):
        for left, right in pairwise(borders[1]):
            shard = tensor[top:bottom, left:right]
            pieces = shard_views(shard, (rows, columns), (top, left))
            assert all(piece.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for piece in pieces)
            assert all(piece.numel() for piece in pieces)
            found.extend(entry for piece in pieces for entry in piece.flatten().tolist())
    assert sorted(found) == sorted(entries(tensor, rows, columns).flatten().tolist())


def test_a_shard_of_a_whole_tensor_is_its_own_view_and_an_empty_one_has_none() -> None:
    shard = torch.ones(3, 2)
    (view,) = shard_views(shard, (), (6, 0))
    assert view is shard
    assert shard_views(torch.ones(0, 2), (), (9, 0)) == ()


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 3), (5, 10), (12, 20), (4, 4)], ids=["before", "gap", "after", "empty"]
)
def test_a_shard_without_any_of_it_has_no_span(start: int, stop: int) -> None:
    assert Span(dim=0, start=3, length=2, stride=7, count=2).within(start, stop) == ()


def test_a_shard_of_one_index_has_that_index() -> None:
    span = Span(dim=0, start=3, length=2, stride=7, count=2)  # 3, 4, 10, 11
    assert [len(span.within(index, index + 1)) for index in range(13)] == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]
