"""The Triton kernel that updates parameters and moments of many tensors at once. Imported where it is launched.

A launch covers all tensors of one dtype, and each of its programs one box (evenkeel.clipping.gpu.places), which lies
at the same place of a parameter, its gradient and its two moments. Where these four begin stands side by side in the
second table, in this order; a box's column ``tensor`` tells where the first of them stands.
What the seven numbers are is told by AdamWSegments.step_.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-untyped, import-not-found, unused-ignore]

from evenkeel.clipping.gpu.places import address_of, aligned, count_of, edges_of, has_vectors, is_run, jit, places_of

__all__ = ["update_boxes"]

# Single numbers are read there. Wherever these tables begin, one kernel does: none must be compiled during a capture.
launched: Callable[[Callable[..., Any]], Any] = functools.partial(
    triton.jit, do_not_specialize_on_alignment=("numbers", "coefficients", "silenced", "found_inf")
)


@launched
def update_boxes(
    boxes: tl.tensor,
    starts: tl.tensor,
    numbers: tl.tensor,
    coefficients: tl.tensor,
    silenced: tl.tensor,
    found_inf: tl.tensor,
    element: tl.constexpr,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    width: tl.constexpr,
) -> tl.tensor:
    """Update every box by its gradient times its component's coefficient, or by zeros where that is silenced."""
    vector: tl.constexpr = 128 // element.primitive_bitwidth  # entries of one 16-byte access
    box = boxes + tl.program_id(0).to(tl.int64) * width
    component = tl.load(box + 2)
    heard = tl.load(silenced + component) == 0
    factor = tl.load(coefficients + component).to(accumulator)
    p, g = address_of(box, starts, element), address_of(box, starts + 1, element)
    m, v = address_of(box, starts + 2, element), address_of(box, starts + 3, element)
    alike = ((p ^ g) | (p ^ m) | (p ^ v)) % 16 == 0
    if tl.load(found_inf) == 0.0:  # NaN is not
        if is_run(box) & alike:
            _update(box, p, g, m, v, numbers, heard, factor, element, accumulator, block, vector, True)
        elif has_vectors(box, p, vector) & alike:
            _update(box, p, g, m, v, numbers, heard, factor, element, accumulator, block, vector, False)
        else:  # 4 single entries for each thread: more places need more registers than the vectors do
            _update(box, p, g, m, v, numbers, heard, factor, element, accumulator, 1024, 1, False)


@jit
def _update(
    box: tl.tensor,
    p: tl.tensor,
    g: tl.tensor,
    m: tl.tensor,
    v: tl.tensor,
    numbers: tl.tensor,
    heard: tl.tensor,
    factor: tl.tensor,
    element: tl.constexpr,
    accumulator: tl.constexpr,
    block: tl.constexpr,
    vector: tl.constexpr,
    run: tl.constexpr,
) -> tl.tensor:
    """Update a box of the four addresses."""
    # What decay takes off can be less than float32 tells apart from 1: where the number is float64, nothing is lost.
    fade = (1.0 - tl.load(numbers).to(tl.float64)).to(accumulator)
    fresh, kept = tl.load(numbers + 1).to(accumulator), tl.load(numbers + 2).to(accumulator)
    fresh_square, step = tl.load(numbers + 3).to(accumulator), tl.load(numbers + 4).to(accumulator)
    root, epsilon = tl.load(numbers + 5).to(accumulator), tl.load(numbers + 6).to(accumulator)
    count = count_of(box)
    if run:
        ps, before, vectors = aligned(p, count, element, vector)
        gs, _, _ = aligned(g, count, element, vector)
        ms, _, _ = aligned(m, count, element, vector)
        vs, _, _ = aligned(v, count, element, vector)
    else:
        size: tl.constexpr = vector * element.primitive_bitwidth // 8
        ps = tl.multiple_of(p.to(tl.pointer_type(element)), size)
        gs = tl.multiple_of(g.to(tl.pointer_type(element)), size)
        ms = tl.multiple_of(m.to(tl.pointer_type(element)), size)
        vs = tl.multiple_of(v.to(tl.pointer_type(element)), size)
        vectors = count // vector
    for first in range(0, vectors, block // vector):
        places, real = places_of(box, first, vectors, block, vector, run)
        _update_at(ps, gs, ms, vs, places, real, heard, factor, fade, fresh, kept, fresh_square, step, root, epsilon)
    if run:  # noqa: SIM102  before it is compiled; elsewhere there are no edges
        if vectors * vector != count:
            places, real = edges_of(count, before, vectors, vector)
            _update_at(
                ps, gs, ms, vs, places, real, heard, factor, fade, fresh, kept, fresh_square, step, root, epsilon
            )


@jit
def _update_at(
    ps: tl.tensor,
    gs: tl.tensor,
    ms: tl.tensor,
    vs: tl.tensor,
    places: tl.tensor,
    real: tl.tensor,
    heard: tl.tensor,
    factor: tl.tensor,
    fade: tl.tensor,
    fresh: tl.tensor,
    kept: tl.tensor,
    fresh_square: tl.tensor,
    step: tl.tensor,
    root: tl.tensor,
    epsilon: tl.tensor,
) -> tl.tensor:
    accumulator: tl.constexpr = factor.dtype
    element: tl.constexpr = ps.dtype.element_ty
    g = tl.load(gs + places, mask=real, other=0.0).to(accumulator)
    m = tl.load(ms + places, mask=real, other=0.0).to(accumulator)
    v = tl.load(vs + places, mask=real, other=0.0).to(accumulator)
    p = tl.load(ps + places, mask=real, other=0.0).to(accumulator)
    g = tl.where(heard, g * factor, 0.0)
    m += (g - m) * fresh
    v = v * kept + (fresh_square * g) * g  # the square alone could overflow
    p = tl.where(tl.abs(p) == float("inf"), p, p - p * fade)  # a mask stays one
    p -= step * m / (tl.sqrt(v) / root + epsilon)
    tl.store(ms + places, m.to(element), mask=real)
    tl.store(vs + places, v.to(element), mask=real)
    tl.store(ps + places, p.to(element), mask=real)
