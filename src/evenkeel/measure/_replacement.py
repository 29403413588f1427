"""Layer replacement: which layers of a fine-tuned model went wrong, seen by putting pretrained ones back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from evenkeel.errors import MeasureError
from evenkeel.partition import ModelBlock, blocks

__all__ = ["layer_replacement", "layer_weights"]

T = TypeVar("T")
_Pair = tuple[nn.Parameter, Tensor]  # a parameter, and what it is to hold


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copy the weights of all layers, for a :func:`layer_replacement` after the training that comes next.

    Args:
        model: any module.

    Returns:
        The parameters of its blocks by their dotted names without wrappers, copied to the CPU's memory.
    """
    return {
        name: parameter.detach().to("cpu", copy=True)
        for block in blocks(model)
        for name, parameter in block.parameters.items()
    }


def layer_replacement(
    model: nn.Module, pretrained: nn.Module | Mapping[str, Tensor], evaluate: Callable[[nn.Module], T]
) -> list[T]:
    r"""Evaluate a fine-tuned model with the pretrained weights put back into its top k layers, for k = 0..L.

    With layers :math:`1..L` counted from the embeddings, fine-tuned weights :math:`\theta` and pretrained ones
    :math:`\theta^0`, the k-th result is

    .. math::

        \mathrm{evaluate}(\theta_1, \ldots, \theta_{L-k}, \theta^0_{L-k+1}, \ldots, \theta^0_L)

    The layers are those of :func:`evenkeel.partition.blocks`. What lies outside of them stays as it was fine-tuned:
    embeddings, norms beside the stack, pooler and head. Buffers stay too. Of several stacks the last comes first: with
    an encoder and a decoder, the decoder's layers from its top, then the encoder's. One block that stands for all
    layers, as ALBERT's, counts once (L = 1). A parameter that several layers share is put back with the lowest of them.

    Args:
        model: the fine-tuned model. Its weights are changed during the call and are, bit for bit, the old ones
            afterwards, also when ``evaluate`` raises.
        pretrained: a model with the same layers, or tensors by name such as its ``state_dict()`` before training, or
            what :func:`layer_weights` copied. Prefixes may differ: a bare encoder serves for a classifier.
        evaluate: is given ``model`` and returns what is wanted of it; it must not change weights.

    Returns:
        ``L + 1`` results; the first is of the model as it was given.

    Raises:
        MeasureError: if the model has no layers, or ``pretrained`` lacks a parameter of one, has it in another shape or
            without values, or in the very memory of the model.

    Source: Mosbach, Andriushchenko & Klakow 2021, arXiv 2006.04884, section 4.1 (there, with the perplexity of the
    masked language model for ``evaluate``).

    Example:
        >>> layer = lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity())
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([layer(), layer()])})
        >>> before = layer_weights(model)
        >>> _ = [nn.init.zeros_(parameter) for parameter in model.parameters()]  # the fine-tuning
        >>> layer_replacement(model, before, lambda model: [bool(weight == 0) for weight in model.parameters()])
        [[True, True], [True, False], [False, False]]
    """
    layers = blocks(model)[::-1]
    if not layers:
        raise MeasureError(
            f"{type(model).__name__} has no layers that could be put back: no list of repeated blocks was found in it; "
            "look at evenkeel.components(model)"
        )
    chosen = _matched(layers, _named(pretrained))
    kept: list[_Pair] = []
    try:
        results = [evaluate(model)]
        for pairs in chosen:
            kept += [(parameter, parameter.detach().clone()) for parameter, _ in pairs]
            _put(pairs)
            results.append(evaluate(model))
    finally:
        _put(kept)
    return results


def _put(pairs: Iterable[_Pair]) -> None:
    with torch.no_grad():
        for parameter, values in pairs:
            parameter.copy_(values)


def _named(pretrained: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(pretrained, nn.Module):
        return {name: tensor for block in blocks(pretrained) for name, tensor in block.parameters.items()}
    if not isinstance(pretrained, Mapping):
        raise MeasureError(
            f"the pretrained weights are a {type(pretrained).__name__}; give a model, or a mapping of names to tensors "
            "such as its state_dict()"
        )
    return pretrained


def _matched(layers: Sequence[ModelBlock], known: Mapping[str, Tensor]) -> list[list[_Pair]]:
    """Return what is to be put into each layer; everything is checked before anything is changed."""
    removed, added = _prefixes(layers, known)
    return [
        [
            (parameter, _checked(name, parameter, known.get(added + name.removeprefix(removed))))
            for name, parameter in layer.parameters.items()
        ]
        for layer in layers
    ]


def _prefixes(layers: Sequence[ModelBlock], known: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return what the model's names have before the known ones, and the known ones before the model's."""
    names = [name for layer in layers for name in layer.parameters]
    bits = layers[0].name.split(".")
    for count in range(len(bits)):  # the number of the layer stays: it is in no prefix
        removed = "".join(f"{bit}." for bit in bits[:count])
        if any(name.startswith(removed) and name.removeprefix(removed) in known for name in names):
            return removed, ""
    for end in names:
        longer = next((name for name in known if name.endswith(f".{end}")), None)
        if longer is not None:
            return "", longer.removesuffix(end)
    raise MeasureError(
        f"the pretrained weights have none of the model's layers: no '{names[0]}', but "
        f"{', '.join(map(repr, list(known)[:3])) or 'nothing'}; give the model that the fine-tuning began from, or its "
        "state_dict()"
    )


def _checked(name: str, parameter: nn.Parameter, values: object) -> Tensor:
    if not isinstance(values, Tensor):
        raise MeasureError(
            f"the pretrained weights have no tensor '{name}', which is in a layer of the model; copy all layers "
            "before the training, with layer_weights(model)"
        )
    if values.shape != parameter.shape:
        raise MeasureError(
            f"the pretrained '{name}' has the shape {tuple(values.shape)}, and the model's has "
            f"{tuple(parameter.shape)}; give the model that the fine-tuning began from"
        )
    if values.is_meta:
        raise MeasureError(f"the pretrained '{name}' is on the meta device and has no values; load the weights first")
    if values.numel() and values.data_ptr() == parameter.data_ptr():
        raise MeasureError(
            f"the pretrained '{name}' is the model's own memory, so that it changed with the training; copy the "
            "weights before the training with layer_weights(model)"
        )
    return values
