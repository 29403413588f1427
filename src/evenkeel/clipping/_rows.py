"""AGC by row: what one output is computed from is clipped on its own, relative to its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evenkeel.clipping._find_rows import Rows, Vector, find_rows
from evenkeel.clipping._local import local_norms
from evenkeel.clipping._nonfinite import Nonfinite, refuse_nonfinite
from evenkeel.clipping._plan import Plan
from evenkeel.clipping._result import ClipResult
from evenkeel.clipping._spread import join
from evenkeel.clipping._units import Units
from evenkeel.clipping.thresholds import WeightRelative
from evenkeel.partition import Components

__all__ = ["clip_rows", "share_left"]


def clip_rows(
    parts: Components, where: Plan, threshold: WeightRelative, *, norm_type: float, nonfinite: Nonfinite
) -> ClipResult:
    r"""Clip every row of the weights on its own, in place.

    .. math::

        g_r \leftarrow g_r \cdot \min\left(1, \frac{\lambda \max(\lVert w_r \rVert, \epsilon)}
        {\lVert g_r \rVert + 10^{-6}}\right)

    A row is what one output is computed from: all entries of a parameter under one index of its first dimension; of
    stacked experts, under one expert and one output; a parameter of fewer than two dimensions is one row. A cut part
    has rows of its own. Rows may lie on several ranks, each whole on one; vectors may be split.

    Args:
        parts: the components, ``C`` of them.
        where: where their gradients are.
        threshold: ratio and floor.
        norm_type: order of the norms.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`; ``"propagate"`` keeps NaN inside its row, ``"zero"`` silences
            the whole component.

    Returns:
        Norms before clipping; as thresholds the norms that components would have if every row were at its limit; as
        coefficients the share of the norms that is left.

    Raises:
        GradientError: if rows are not whole on a rank, a gradient is of a kind without rows, or ``nonfinite="error"``
            met a component that is not finite.

    Source: Brock et al. 2021, arXiv 2102.06171, equations 2 and 3.
    """
    whole, vectors = find_rows(parts, where, threshold, norm_type)
    sums, among_stages, split = _joined(whole, vectors, where, threshold, norm_type)
    norms, thresholds, left = sums
    if nonfinite == "error":
        refuse_nonfinite(norms, where.names)
    coefficients = share_left(norms, left)
    silenced = None
    if nonfinite == "zero":
        silenced = ~norms.isfinite()
        coefficients = coefficients.masked_fill(silenced, 0.0)
    for rows in (*whole, *split):
        _scale(rows, silenced)
    return ClipResult(
        names=where.names,
        norms=norms,
        thresholds=thresholds,
        coefficients=coefficients,
        norm_type=float(norm_type),
        whole=among_stages,
    )


def share_left(norms: Tensor, left: Tensor) -> Tensor:
    """Return what share of norms clipping leaves.

    Args:
        norms: norms before clipping, any shape.
        left: norms after it, of the same shape.

    Returns:
        At most 1; 1 of nothing, 0 of infinity.
    """
    return torch.where(norms == 0, 1.0, left / norms).clamp(max=1.0)


def _joined(
    whole: Sequence[Rows], vectors: Sequence[Vector], where: Plan, threshold: WeightRelative, norm_type: float
) -> tuple[Tensor, Tensor | None, list[Rows]]:
    """Bring all ranks' rows together: norms, limits, what is left, shape ``[3, C]``; the norm of all stages; vectors.

    The norms of vectors travel in the same message, in columns behind those of the slots.
    """
    count = len(where.names)
    local = _local(whole, where, norm_type)
    columns = [torch.nn.functional.pad(vector.norms, (0, 1)) for vector in vectors]
    local = torch.stack([*local.unbind(1), *(column.to(local) for column in columns)], dim=1)
    wider = replace(
        where,
        names=(*where.names, *("" for _ in vectors)),
        owners=(*where.owners, *range(count, count + len(vectors))),
        spread=(*where.spread, *(vector.groups for vector in vectors)),
        stages=None,
    )
    joined, _ = join(local, wider, norm_type)
    sums = joined[:, :count]
    finished: list[Rows] = []
    for vector, (norm, weight, _) in zip(vectors, joined[:, count:].unbind(1), strict=True):
        found = Units(norms=norm, limits=vector.ratio * weight.clamp(min=threshold.floor))
        finished.extend(Rows(units=found, write=write, owner=vector.owner, slot=0) for write in vector.write)
        if vector.counted:
            beside = torch.stack([norm, found.limits, found.left])
            both = torch.stack([sums[:, vector.owner], beside])
            sums = sums.index_copy(
                1,
                where.index((vector.owner,), sums.device),
                torch.linalg.vector_norm(both.double(), norm_type, dim=0).to(sums.dtype).unsqueeze(1),
            )
    among_stages = None
    if where.stages is not None:
        alone = replace(where, owners=tuple(range(count)), spread=((),) * count)
        sums, over_all = join(sums, alone, norm_type)
        among_stages = None if over_all is None else over_all[0]
    return sums, among_stages, finished


def _local(whole: Sequence[Rows], where: Plan, norm_type: float) -> Tensor:
    """Return norms, limits and what is left of what is whole here, shape ``[3, S]``."""
    counted = [rows for rows in whole if rows.slot >= 0]
    found = [rows for rows in counted if rows.units.norms is not None]
    slots = [rows.slot for rows in found]
    tables = [
        local_norms([rows.units.norms for rows in found if rows.units.norms is not None], slots, where, norm_type),
        local_norms([rows.units.limits for rows in counted], [rows.slot for rows in counted], where, norm_type),
        local_norms([rows.units.left for rows in found], slots, where, norm_type),
    ]
    dtype = torch.promote_types(tables[0].dtype, tables[1].dtype)
    return torch.stack([table.to(tables[0].device, dtype) for table in tables])


def _scale(rows: Rows, silenced: Tensor | None) -> None:
    """Multiply rows by their coefficients, or write zeros where their component is silenced."""
    write = rows.write
    if write is None:
        return
    coefficients = rows.units.coefficients.to(write.device)
    if rows.places is not None:
        coefficients = coefficients[rows.places]
    off = None if silenced is None else silenced[rows.owner].to(write.device)
    if write.device.type == "cpu" and not torch.compiler.is_compiling():  # looking is free here
        if off is not None and bool(off):
            write.zero_()
            return
        if bool((coefficients == 1).all()):
            return
    write.mul_(coefficients)
    if off is not None:
        write.masked_fill_(off, 0.0)
