"""Triton kernels over many tensors at once: sums of powers, their roots, scaling. Imported where they are launched.

A launch covers all tensors of one dtype, and each of its programs one box. A block is what a program has in flight.
Strided boxes take smaller ones: the registers that their 64-bit places need would be taken from the runs as well, and
with them the programs that hide each other's waiting.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from evenkeel.clipping.gpu.places import address_of, aligned, count_of, edges_of, has_vectors, is_run, jit, places_of

__all__ = ["ELEMENTS", "component_norms", "partial_sums", "scale_boxes"]

ELEMENTS: dict[torch.dtype, Any] = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


@jit
def partial_sums(
    boxes: tl.tensor,
    starts: tl.tensor,
    partials: tl.tensor,
    order: tl.constexpr,
    element: tl.constexpr,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Write the sum of the p-th powers of every box (for infinity the largest entry) to the box's slot, in float64."""
    vector: tl.constexpr = 128 // element.primitive_bitwidth  # entries of one 16-byte access
    box = boxes + tl.program_id(0).to(tl.int64) * width
    address = address_of(box, starts, element)
    count = count_of(box)
    if is_run(box):
        pointer, before, vectors = aligned(address, count, element, vector)
        total = _sum(box, pointer, vectors, order, accumulator, block, vector, True)
        if vectors * vector != count:
            places, real = edges_of(count, before, vectors, vector)
            edges = tl.load(pointer + places, mask=real, other=0.0).to(accumulator)
            total = _joined(total, _all(_power(edges, order), order).to(tl.float64), order)
    elif has_vectors(box, address, vector):
        pointer = tl.multiple_of(address.to(tl.pointer_type(element)), 16)
        total = _sum(box, pointer, count // vector, order, accumulator, block // 4, vector, False)
    else:
        total = _sum(box, address.to(tl.pointer_type(element)), count, order, accumulator, block // 8, 1, False)
    tl.store(partials + tl.load(box + 1), total)


@jit
def component_norms(
    partials: tl.tensor, firsts: tl.tensor, norms: tl.tensor, order: tl.constexpr, block: tl.constexpr
) -> tl.tensor:
    """Join the partial sums of every component, which lie behind one another, and take the p-th root."""
    component = tl.program_id(0)
    lanes = tl.arange(0, block)
    end = tl.load(firsts + component + 1)
    total = tl.zeros([block], tl.float64)
    for first in range(tl.load(firsts + component), end, block):
        total = _joined(total, tl.load(partials + first + lanes, mask=first + lanes < end, other=0.0), order)
    root = _all(total, order)
    if order == 2.0:
        root = tl.sqrt(root)
    elif order != 1.0 and order != float("inf"):
        root = _to_power(root, 1.0 / order)
    tl.store(norms + component, root.to(norms.dtype.element_ty))


@jit
def scale_boxes(
    boxes: tl.tensor,
    starts: tl.tensor,
    coefficients: tl.tensor,
    silenced: tl.tensor,
    element: tl.constexpr,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Multiply every box by its component's coefficient unless that is 1; write zeros where it is silenced."""
    vector: tl.constexpr = 128 // element.primitive_bitwidth
    box = boxes + tl.program_id(0).to(tl.int64) * width
    component = tl.load(box + 2)
    coefficient = tl.load(coefficients + component)
    off = tl.load(silenced + component) != 0
    if (coefficient != 1.0) | off:
        factor = coefficient.to(accumulator)
        address = address_of(box, starts, element)
        count = count_of(box)
        if is_run(box):
            pointer, before, vectors = aligned(address, count, element, vector)
            _scale(box, pointer, vectors, factor, off, accumulator, block, vector, True)
            if vectors * vector != count:
                places, real = edges_of(count, before, vectors, vector)
                _scale_at(pointer + places, real, factor, off, accumulator)
        elif has_vectors(box, address, vector):
            pointer = tl.multiple_of(address.to(tl.pointer_type(element)), 16)
            _scale(box, pointer, count // vector, factor, off, accumulator, block // 4, vector, False)
        else:
            _scale(box, address.to(tl.pointer_type(element)), count, factor, off, accumulator, block // 8, 1, False)


# --- what is done there


@jit
def _sum(
    box: tl.tensor,
    pointer: tl.tensor,
    vectors: tl.tensor,
    order: tl.constexpr,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    vector: tl.constexpr,
    run: tl.constexpr,
) -> tl.tensor:
    total = tl.zeros([block // vector, vector], accumulator)
    for first in range(0, vectors, block // vector):
        places, real = places_of(box, first, vectors, block, vector, run)
        entries = tl.load(pointer + places, mask=real, other=0.0).to(accumulator)
        total = _joined(total, _power(entries, order), order)
    return _all(total, order).to(tl.float64)


@jit
def _scale(
    box: tl.tensor,
    pointer: tl.tensor,
    vectors: tl.tensor,
    factor: tl.tensor,
    off: tl.tensor,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    vector: tl.constexpr,
    run: tl.constexpr,
) -> tl.tensor:
    for first in range(0, vectors, block // vector):
        places, real = places_of(box, first, vectors, block, vector, run)
        _scale_at(pointer + places, real, factor, off, accumulator)


@jit
def _scale_at(
    pointers: tl.tensor, real: tl.tensor, factor: tl.tensor, off: tl.tensor, accumulator: tl.constexpr
) -> tl.tensor:
    entries = tl.load(pointers, mask=real, other=0.0)
    scaled = (entries.to(accumulator) * factor).to(entries.dtype)
    tl.store(pointers, tl.where(off, tl.zeros_like(scaled), scaled), mask=real)


@jit
def _power(entries: tl.tensor, order: tl.constexpr) -> tl.tensor:
    """Return what is summed; for infinity the entries themselves, whose sign is taken off where they are compared."""
    if order == 2.0:
        return entries * entries
    elif order == 1.0:
        return tl.abs(entries)
    elif order == float("inf"):
        return entries
    else:
        return _to_power(tl.abs(entries), order)


@jit
def _to_power(base: tl.tensor, exponent: tl.constexpr) -> tl.tensor:
    """Raise float64 that is not negative to a positive power."""
    raised = tl.exp2(tl.log2(tl.where(base == 0.0, 1.0, base)) * exponent)
    return tl.where(base == 0.0, 0.0, raised)


@jit
def _joined(left: tl.tensor, right: tl.tensor, order: tl.constexpr) -> tl.tensor:
    if order == float("inf"):
        return tl.maximum(_bits(left), _bits(right)).to(left.dtype, bitcast=True)
    else:
        return left + right


@jit
def _all(values: tl.tensor, order: tl.constexpr) -> tl.tensor:
    """Join all entries to one."""
    if order == float("inf"):
        return tl.max(_bits(values)).to(values.dtype, bitcast=True)
    else:
        return tl.sum(values)


@jit
def _bits(values: tl.tensor) -> tl.tensor:
    """Return magnitudes as integers, which are ordered like them, with NaN above infinity: maxima of floats lose it."""
    if values.dtype == tl.float64:
        return values.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
