"""From norms on a device to rows of telemetry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from evenkeel.measure._schema import TELEMETRY
from evenkeel.partition import Components

__all__ = ["UNKNOWN", "Record", "rows_of"]

UNKNOWN = -1.0  # in place of a norm or a coefficient, which are never negative
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was seen of a step of the optimizer, still on the device.

    Attributes:
        step: number of the step, the first is 1.
        phase: the phase of training that it belongs to, the first is 0.
        parts: the components that were trained, ``C`` of them.
        values: shape ``[10, C]``, each ``UNKNOWN`` where it was not seen: the gradient's norm; its coefficient; the
            step's coefficient; norm of the weights before the step; of the step's change; of the weights after it; of
            the weights at the beginning of training; of what lies between those two; and both again for the beginning
            of the phase.
    """

    step: int
    phase: int
    parts: Components
    values: Tensor


def rows_of(records: Sequence[Record]) -> pa.Table:
    r"""Bring records to the host, all at once, and make rows of them.

    With weights :math:`w` of a component of ``n`` entries and earlier ones :math:`w^0`:

    .. math::

        \mathrm{rms} = \lVert w - w^0 \rVert / \sqrt n, \qquad
        1 - \cos(w, w^0) = \frac{\lVert w - w^0 \rVert^2 - (\lVert w \rVert - \lVert w^0 \rVert)^2}
        {2 \lVert w \rVert \lVert w^0 \rVert}

    The right side keeps its digits where the two lie close together; a product of both would lose them.

    Args:
        records: at least one.

    Returns:
        A table of ``TELEMETRY``.
    """
    values: Floats = torch.cat([record.values for record in records], dim=1).cpu().numpy().astype(np.float64)
    counts = [len(record.parts) for record in records]
    parts = [part for record in records for part in record.parts]
    sizes = np.array([part.size for part in parts], dtype=np.int64)
    norm, coefficient, limited, before, update, after, *references = values
    columns: dict[str, Any] = {
        "step": pa.array(np.repeat([record.step for record in records], counts), pa.int32()),
        "phase": pa.array(np.repeat([record.phase for record in records], counts), pa.int16()),
        "component": _words([part.path for part in parts]),
        "layer": pa.array([part.layer for part in parts], pa.int16()),
        "role": _words([part.role for part in parts]),
        "kind": _words([part.kind for part in parts]),
        "size": pa.array(sizes),
        "norm": _numbers(norm),
        "coefficient": _numbers(coefficient),
        "update_coefficient": _numbers(limited),
        "weight_norm": _numbers(before),
        "update_norm": _numbers(update),
    }
    for prefix, start, distance in (("", *references[:2]), ("phase_", *references[2:])):
        columns[f"{prefix}rms_change"] = _numbers(_rms(distance, sizes))
        columns[f"{prefix}cosine_distance"] = _numbers(_cosine_distance(after, start, distance))
    return pa.Table.from_arrays([columns[name] for name in TELEMETRY.names], schema=TELEMETRY)


def _words(words: Sequence[str | None]) -> pa.Array:
    return pa.array(words, pa.string()).dictionary_encode()


def _numbers(values: Floats) -> pa.Array:
    with np.errstate(over="ignore", under="ignore"):  # of what diverged
        return pa.array(values.astype(np.float32), mask=values < 0)


def _rms(distance: Floats, sizes: NDArray[np.int64]) -> Floats:
    return np.where(distance < 0, UNKNOWN, distance / np.sqrt(np.maximum(sizes, 1)))


def _cosine_distance(now: Floats, then: Floats, distance: Floats) -> Floats:
    """Return 1 - cos of the angle; unknown of weights that are all 0, which point nowhere."""
    with np.errstate(all="ignore"):  # of what diverged
        quotient = (distance**2 - (now - then) ** 2) / (2 * now * then)
    return np.where((distance < 0) | (now == 0) | (then == 0), UNKNOWN, np.clip(quotient, 0.0, 2.0))
