"""Norms of weights, and of how far they lie from a copy that was made of them before."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evenkeel.clipping import cpu
from evenkeel.clipping._norms import accumulation_dtype, joined_norms, tensor_norms
from evenkeel.clipping._plan import Plan, plan
from evenkeel.clipping._spread import join
from evenkeel.errors import ComponentError
from evenkeel.partition import Components, Piece

__all__ = ["WeightCopies", "copied_norms", "copy_weights", "weight_distances", "weight_names", "weight_norms"]

WeightCopies = Mapping[str, tuple[Tensor, ...]]

_CHUNK = 1 << 24  # entries whose differences exist at one time, 64 MiB in float32
_NARROW = (torch.bfloat16, torch.float16)  # a difference of two such numbers need not be one


def weight_names(parts: Components) -> list[str]:
    """Return what :func:`copy_weights` calls the weights of components.

    Args:
        parts: the components.

    Returns:
        One name for each of their pieces: the parameter's, and where it is cut which part of it.
    """
    return [_name(piece) for part in parts for piece in part.pieces]


@torch.no_grad()
def copy_weights(
    parts: Components, known: Container[str] = (), into: WeightCopies | None = None
) -> dict[str, tuple[Tensor, ...]]:
    """Copy the weights of components, as this rank has them, on their devices.

    Args:
        parts: the components.
        known: names of what is not to be copied.
        into: copies that nobody needs any more, to be written over where they are of the same weights.

    Returns:
        Tensors without gradient by name, see :func:`weight_names`; several where a shard splits a cut part.
    """
    copies: dict[str, tuple[Tensor, ...]] = {}
    read: list[Tensor] = []
    for parameter, piece, _ in plan(parts, None).entries:
        name = _name(piece)
        if name not in known:
            views = piece.of(parameter.detach())
            copies[name] = (into or {}).get(name) or tuple(torch.empty_like(view) for view in views)
            read.extend(views)
    written = [copy for views in copies.values() for copy in views]
    if written:
        torch._foreach_copy_(written, read)
    return copies


@torch.no_grad()
def weight_norms(parts: Components) -> Tensor:
    """Return the 2-norm of the weights of every component, over all ranks that share it; nothing waits for the device.

    Args:
        parts: the components, ``C`` of them.

    Returns:
        Norms, shape ``[C]``, on the weights' device: float64 on a CPU, elsewhere float32 unless weights are float64.
    """
    where = plan(parts, None)
    return _joined(_now(where), None, where)


@torch.no_grad()
def copied_norms(parts: Components, copies: WeightCopies) -> Tensor:
    """Return what :func:`weight_norms` returned when the copies were made.

    Args:
        parts: the components, ``C`` of them.
        copies: copies of their weights.

    Returns:
        Norms, shape ``[C]``.

    Raises:
        ComponentError: if a component was not copied.
    """
    where = plan(parts, None)
    return _joined(_then(where, copies), None, where)


@torch.no_grad()
def weight_distances(parts: Components, copies: WeightCopies) -> Tensor:
    r"""Return how far the weights of every component lie from a copy, :math:`\lVert w - w' \rVert_2`.

    Differences are taken entry by entry, in float32 at least, of some millions of entries at a time.

    Args:
        parts: the components, ``C`` of them.
        copies: copies of their weights.

    Returns:
        Norms of the differences, shape ``[C]``, as :func:`weight_norms` returns them.

    Raises:
        ComponentError: if a component was not copied.

    Example:
        >>> from evenkeel.partition import components
        >>> parts = components(torch.nn.Linear(3, 1, bias=False))
        >>> before = copy_weights(parts)
        >>> _ = parts[0].parameters[0].data.add_(2.0)
        >>> round(weight_distances(parts, before).item(), 4)            # the root of 3 times 2 squared
        3.4641
    """
    where = plan(parts, None)
    return _joined(_now(where), _then(where, copies), where)


def _name(piece: Piece) -> str:
    cuts = (f"{span.dim}:{span.start}:{span.length}:{span.stride}:{span.count}" for span in piece.spans)
    return f"{piece.name}[{','.join(cuts)}]" if piece.spans else piece.name


_Entries = list[tuple[Tensor, int]]  # this rank's weights, and the slot that each is counted in


def _now(where: Plan) -> _Entries:
    return [
        (_real(view), slot)
        for parameter, piece, slot in where.entries
        if slot >= 0
        for view in piece.of(parameter.detach())
    ]


def _then(where: Plan, copies: WeightCopies) -> _Entries:
    found: _Entries = []
    for _, piece, slot in where.entries:
        name = _name(piece)
        if name not in copies:
            raise ComponentError(
                f"the weights of '{name}' were not copied, so that nobody knows how far they have moved; call "
                "copy_weights with these components before they are trained"
            )
        if slot >= 0:
            found.extend((_real(view), slot) for view in copies[name])
    return found


def _real(view: Tensor) -> Tensor:
    return torch.view_as_real(view.resolve_conj()) if view.is_complex() else view


def _joined(entries: _Entries, minus: _Entries | None, where: Plan) -> Tensor:
    local = _local(entries, minus, where)
    return join(local.unsqueeze(0), where, 2.0)[0][0]


def _local(entries: _Entries, minus: _Entries | None, where: Plan) -> Tensor:
    """Return the norms of slots on this rank, on the device of the first parameter."""
    home = where.entries[0][0].device
    tensors = [tensor for tensor, _ in entries]
    dtype = torch.float64 if home.type == "cpu" else accumulation_dtype([entry[0] for entry in where.entries])
    each: list[Tensor] = []
    order: list[int] = []
    then = None if minus is None else [tensor for tensor, _ in minus]
    at_once = [] if then is None else _readable(tensors, then)
    if then is not None and at_once:
        each.append(cpu.distances([tensors[i] for i in at_once], [then[i] for i in at_once]).to(home, dtype))
        order.extend(entries[index][1] for index in at_once)
    for chunk in _chunks(tensors, set(at_once)):
        chosen = [tensors[index] for index in chunk]
        if then is not None:
            chosen = _differences(chosen, [then[index] for index in chunk])
        each.append(tensor_norms(chosen, 2.0, dtype).to(home))
        order.extend(entries[index][1] for index in chunk)
    if not each:
        return torch.zeros(len(where.owners), dtype=dtype, device=home)
    norms = each[0] if len(each) == 1 else torch.cat(each)
    if order == list(range(len(where.owners))):
        return norms
    return joined_norms(norms, where.index(order, home), count=len(where.owners), norm_type=2.0)


def _differences(now: Sequence[Tensor], then: Sequence[Tensor]) -> list[Tensor]:
    if any(tensor.dtype in _NARROW for tensor in now):
        now, then = [tensor.float() for tensor in now], [tensor.float() for tensor in then]
    return list(torch._foreach_sub(list(now), list(then)))


def _readable(tensors: Sequence[Tensor], then: Sequence[Tensor]) -> list[int]:
    """Return which pairs the compiled kernels can take, which write no differences."""
    if not cpu.available():
        return []
    return [i for i, pair in enumerate(zip(tensors, then, strict=True)) if all(map(cpu.reads, pair))]


def _chunks(tensors: Sequence[Tensor], done: Container[int]) -> Iterator[list[int]]:
    """Yield indices of tensors of one device, so many that their entries stay few; one tensor may have more."""
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if index not in done:
            by_device.setdefault(tensor.device, []).append(index)
    for indices in by_device.values():
        chunk, size = list[int](), 0
        for index in indices:
            if chunk and size + tensors[index].numel() > _CHUNK:
                yield chunk
                chunk, size = [], 0
            chunk.append(index)
            size += tensors[index].numel()
        yield chunk
