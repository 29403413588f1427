"""On the CPU: a gradient is scaled right after its norm was taken, while it is in the cache."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from evenkeel.clipping import cpu
from evenkeel.clipping._gradients import Gradients
from evenkeel.clipping._norms import accumulation_dtype, component_norms, tensor_norms
from evenkeel.clipping._plan import Plan
from evenkeel.clipping._scale import scale
from evenkeel.clipping._values import all_at_hand
from evenkeel.clipping.thresholds import EPSILON, Limits

__all__ = ["can_clip_at_once", "clip_at_once"]

_LONG = 256 * 1024  # entries, 1 MiB; of shorter gradients many are dealt with in one call


def can_clip_at_once(gradients: Gradients, where: Plan) -> bool:
    """Say whether a component's coefficient is known, at no cost, as soon as its own gradient was read.

    Args:
        gradients: the gradients of the step.
        where: where they belong.

    Returns:
        Whether nothing but fixed thresholds is lacking.
    """
    return where.alone and all_at_hand(gradients.read)


def clip_at_once(
    gradients: Gradients, thresholds: Sequence[float], *, norm_type: float, silence: bool
) -> tuple[Tensor, Limits]:
    """Clip every component to a threshold that is a number.

    Args:
        gradients: the gradients of the step, all on the CPU and none spread over other ranks.
        thresholds: ``C`` numbers.
        norm_type: order of the norm.
        silence: whether gradients whose norm is not finite become zeros.

    Returns:
        The norms before clipping, shape ``[C]``, and what was allowed.
    """
    dtype = accumulation_dtype(gradients.read)
    limits = torch.tensor(thresholds, dtype=dtype, device="cpu")
    norms = torch.zeros(len(thresholds), dtype=dtype, device="cpu")
    alone = _alone(gradients)
    done = _clip_compiled if norm_type == 2.0 and dtype == torch.float32 and cpu.available() else _clip_long
    apart = done(gradients, alone, limits, norms, norm_type=norm_type, silence=silence)
    if len(apart) < len(gradients.read):
        rest = [index for index in range(len(gradients.read)) if index not in apart]
        owners = [gradients.owners[index] for index in rest]
        norms += component_norms(
            [gradients.read[index] for index in rest], owners, count=len(thresholds), norm_type=norm_type, dtype=dtype
        )
        allowed = Limits(thresholds=limits, norms=norms)
        silenced = ~norms.isfinite() if silence else None
        scale([gradients.write[index] for index in rest], owners, allowed.coefficients, silenced)
    return norms, Limits(thresholds=limits, norms=norms)


def _alone(gradients: Gradients) -> Sequence[int]:
    """Return the gradients that are the whole of their component, and are scaled as they are read."""
    places: Sequence[int] = range(len(gradients.read))
    number = Counter(gradients.slots)
    if len(number) < len(places):
        places = [place for place in places if number[gradients.owners[place]] == 1]
    return [place for place in places if gradients.read[place] is gradients.write[place]]


def _clip_compiled(
    gradients: Gradients, alone: Sequence[int], limits: Tensor, norms: Tensor, *, norm_type: float, silence: bool
) -> set[int]:
    """Clip by one compiled call what it can read; return which gradients these were."""
    readable = [alone[place] for place in cpu.readable([gradients.write[index] for index in alone])]
    grads = [gradients.write[index] for index in readable]
    if len(readable) == len(norms):  # one for each component, in their order: nearly always
        norms.copy_(cpu.clip_(grads, limits, silence=silence, epsilon=EPSILON))
    else:
        owners = torch.tensor([gradients.owners[index] for index in readable], dtype=torch.int64, device="cpu")
        norms[owners] = cpu.clip_(grads, limits[owners], silence=silence, epsilon=EPSILON)
    return set(readable)


def _clip_long(
    gradients: Gradients, alone: Sequence[int], limits: Tensor, norms: Tensor, *, norm_type: float, silence: bool
) -> set[int]:
    """Clip long gradients one by one; return which ones these were."""
    long = [index for index in alone if gradients.write[index].numel() >= _LONG]
    for index in long:
        grad, owner = gradients.write[index], gradients.owners[index]
        norm = tensor_norms([grad], norm_type, norms.dtype).item()
        coefficient = _coefficient(norm, limits[owner].item(), norms.dtype)
        if silence and not math.isfinite(norm):
            grad.zero_()
        elif coefficient != 1.0:
            grad.mul_(coefficient)
        norms[owner] = norm
    return set(long)


def _coefficient(norm: float, threshold: float, dtype: torch.dtype) -> float:
    """Return what ``Limits.coefficients`` will say, to the last bit: rounded to float32 after every operation."""
    if math.isinf(threshold):
        return math.nan if math.isnan(norm) else 1.0
    if dtype == torch.float64:
        return min(threshold / (norm + EPSILON), 1.0)
    return min(_single(_single(threshold) / _single(norm + _single(EPSILON))), 1.0)


def _single(number: float) -> float:
    return ctypes.c_float(number).value
