"""The hidden states among what a block is given and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from evenkeel.errors import MethodError

__all__ = ["changed_input", "changed_output", "output_states"]

_KEYWORD = "hidden_states"


def output_states(output: Any) -> Tensor:
    """Return the hidden states that a block returned: its output, or the first of several.

    Args:
        output: what the block returned.

    Returns:
        The hidden states, shape ``[..., width]``.

    Raises:
        MethodError: if it is no tensor.
    """
    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, Tensor):
        raise MethodError(
            f"a block of this model returns a {type(output).__name__}, in which no hidden states are known; use a "
            "method that does not go by blocks"
        )
    return states


def changed_output(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return what a block returned, with other hidden states.

    Args:
        output: what the block returned, as in :func:`output_states`.
        change: given the hidden states, returns what takes their place.

    Returns:
        The like of ``output``.
    """
    states = change(output_states(output))
    return states if isinstance(output, Tensor) else type(output)((states, *output[1:]))


def changed_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what a block is given, with other hidden states: its first argument, or the one of that name.

    Args:
        args: the arguments by position.
        kwargs: the arguments by name.
        change: given the hidden states, returns what takes their place.

    Returns:
        The arguments by position and by name.

    Raises:
        MethodError: if there are no hidden states among them.
    """
    if args and isinstance(args[0], Tensor):
        return (change(args[0]), *args[1:]), dict(kwargs)
    if isinstance(kwargs.get(_KEYWORD), Tensor):
        return args, {**kwargs, _KEYWORD: change(kwargs[_KEYWORD])}
    raise MethodError(
        "a block of this model is given no tensor of hidden states first, nor one by that name; use a method that does "
        "not go by blocks"
    )
