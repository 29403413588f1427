"""What constructors and loaded states are checked by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from evenkeel.errors import ThresholdError

__all__ = ["is_count", "is_number", "refuse_mismatch", "require", "take_tensor"]

_GREATEST = torch.finfo(torch.float32).max


def is_number(value: object) -> bool:
    """Say whether ``value`` is a number that is finite in float32; ``True``, text and tensors are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= _GREATEST  # refuses NaN too


def is_count(value: object, *, least: int) -> bool:
    """Say whether ``value`` is a whole number that is not below ``least``; ``True`` is none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def require(good: bool, what: str, value: object, wanted: str, advice: str) -> None:
    """Refuse an argument that cannot be.

    Args:
        good: whether it is as wanted.
        what: its name, as in ``Ema.beta``.
        value: what was given.
        wanted: what it must be.
        advice: what to do.

    Raises:
        ThresholdError: if it is not as wanted.
    """
    if not good:
        raise ThresholdError(f"{what} must be {wanted}, but got {value!r}; {advice}")


def refuse_mismatch(norms: Tensor, count: int | None) -> None:
    """Refuse norms of another number of components than the threshold was bound to.

    Args:
        norms: the norms, shape ``[C]``.
        count: the number of components bound; None if there are none yet.

    Raises:
        ThresholdError: if they do not fit.
    """
    if count is None:
        raise ThresholdError(
            "this threshold does not know yet whose norms it sees; call bind(components) before limits(), as "
            "clip_grad_norm_ does"
        )
    if tuple(norms.shape) != (count,):
        raise ThresholdError(
            f"the norms have the shape {tuple(norms.shape)}, but the threshold is bound to {count} components; call "
            "bind() with the components that the norms belong to"
        )


def take_tensor(
    owner: str, state: Mapping[str, Any], key: str, shape: Sequence[int], *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a copy of a tensor out of a loaded state.

    Args:
        owner: whose state it is, for the message.
        state: the state.
        key: the tensor's key.
        shape: the shape that it must have.
        dtype: the dtype that it must have; None for any floating one.

    Returns:
        The copy: training changes it in place, and must not change what was loaded.

    Raises:
        ThresholdError: if there is no such tensor.
    """
    value = state.get(key)
    if not isinstance(value, Tensor):
        raise ThresholdError(
            f"{owner} cannot load a state whose '{key}' is {type(value).__name__} instead of a tensor; pass what "
            "state_dict() of the same class returned"
        )
    if tuple(value.shape) != tuple(shape):
        raise ThresholdError(
            f"{owner} cannot load '{key}' of shape {tuple(value.shape)}, because it needs {tuple(shape)}; make the "
            "threshold with the configuration that the state was saved under"
        )
    if not (value.is_floating_point() if dtype is None else value.dtype == dtype):
        raise ThresholdError(
            f"{owner} cannot load '{key}' of dtype {value.dtype}, because it needs {dtype or 'a floating one'}; pass "
            "what state_dict() of the same class returned"
        )
    return value.detach().clone()
