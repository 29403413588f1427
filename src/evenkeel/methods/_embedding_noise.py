"""Passes in which the embeddings of the input tokens are changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from evenkeel.errors import MethodError

__all__ = ["changed_embeddings", "token_embeddings"]


def token_embeddings(model: nn.Module, method: str) -> tuple[nn.Module, ...]:
    """Return the modules that embed the input tokens: several where an encoder and a decoder have one table.

    Args:
        model: the model.
        method: the name of the method that asks.

    Returns:
        The module that ``model.get_input_embeddings()`` tells, and those that are tied to it.

    Raises:
        MethodError: if the model does not tell.
    """
    ask = getattr(model, "get_input_embeddings", None)
    try:
        found = ask() if callable(ask) else None
    except NotImplementedError:
        found = None
    if not isinstance(found, nn.Module):
        raise MethodError(
            f"{method} changes the embeddings of the input tokens, and {type(model).__name__} does not tell which "
            "module makes them; give the model a method get_input_embeddings()"
        )
    table = getattr(found, "weight", None)
    tied = (one for one in model.modules() if isinstance(one, nn.Embedding) and one.weight is table)
    return found, *(one for one in tied if one is not found)


@contextmanager
def changed_embeddings(embeddings: Iterable[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Change what ``embeddings`` return, as long as the context lasts.

    The inputs of the model stay tokens, so that positions, masks and pooling are found as always. Of an encoder and a
    decoder both sides are changed.

    Args:
        embeddings: the modules that embed the input tokens.
        change: given how many tensors were changed before in this context, and the embeddings of tokens; returns what
            takes their place.

    Yields:
        Nothing.

    Raises:
        MethodError: if nothing was embedded, as where a model is given ``inputs_embeds``.
    """
    calls = 0

    def hook(_: nn.Module, __: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return change(calls - 1, output)

    handles = [module.register_forward_hook(hook) for module in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise MethodError(
            "the model did not embed its input tokens, so that their embeddings cannot be changed; give it input_ids, "
            "and do not compile it"
        )
