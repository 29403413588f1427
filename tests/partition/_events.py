"""One forward pass as a list of events: attentions with their queries, keys and values, activations, products.

They are recorded below autograd, where every implementation of attention looks alike: two products with a softmax
between them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "Changes",
    "EndError",
    "Enough",
    "Event",
    "Recorder",
    "Route",
    "differ",
    "flat",
    "linear_attentions",
    "storage",
    "written_down",
]

_ATTENDED = ("query", "key", "value")
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "_grouped_mm", "mv", "addmv"}
_ACTIVATIONS = {
    *("gelu", "silu", "relu", "tanh", "sigmoid", "softplus", "leaky_relu", "elu", "mish", "hardswish", "hardtanh"),
    *("expm1", "erf", "log_sigmoid_forward", "softsign", "clamp_min", "prelu", "hardsigmoid"),
}
Route = Callable[[Tensor, int], Tensor | None]  # scores and k -> the indices to take instead of the k highest
Changes = list[tuple[int, set[str]]]  # number of an event, and the names of its tensors that changed
Enough = Callable[[Changes], bool]
_SOFTMAX = {"_softmax", "_safe_softmax"}
_FUSED_ATTENTION = {"_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"}


@dataclass(kw_only=True)
class Event:
    """What happened: an ``attention``, an ``activation`` or a ``product``, with what entered it.

    Attributes:
        kind: which of the three.
        tensors: what entered, by name; of a product only what is no parameter.
        parameters: storages of the parameters that a product multiplied with.
    """

    kind: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parameters: frozenset[int] = frozenset()

    def changed(self, other: Event) -> set[str]:
        """Return the names of the tensors that differ from those of ``other``."""
        names = self.tensors.keys() | other.tensors.keys()
        return {name for name in names if differ(self.tensors.get(name), other.tensors.get(name))}


def differ(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return one is not other
    scale = one.abs().max().item() if one.numel() else 0.0
    return not torch.allclose(one, other, rtol=0.0, atol=1e-5 * max(scale, 1e-3), equal_nan=True)


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class EndError(Exception):
    """Ends a forward pass of which no more is asked."""


class Recorder(TorchDispatchMode):
    """Writes the events of one forward pass down, and routes tokens to experts as it is told."""

    def __init__(self, parameters: frozenset[int], route: Route, reference: list[Event], enough: Enough) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.changes: Changes = []  # the events that differ from those of the reference, so far
        self._reference, self._enough, self._compared = reference, enough, 0
        self._route = route
        self._parameters = dict(zip(parameters, parameters, strict=True))  # and copies of them, to their originals
        self._products: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[int, int] = {}  # storage -> the product whose scores it holds
        self._weights: dict[int, Event] = {}  # storage -> the attention whose probabilities it holds
        self._alive: list[Tensor] = []  # a freed storage's address would be given away again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [item for item in flat(args) if isinstance(item, Tensor)]
        before = self._before(name, args, tensors)
        out = func(*args, **(kwargs or {}))
        if name == "topk" and (indices := self._route(args[0], args[1])) is not None:
            out = (args[0].gather(-1, indices), indices)
        self._after(name, before, tensors, [item for item in flat((out,)) if isinstance(item, Tensor)])
        if before is not None and before.parameters and self._reference:  # what was in the making is complete by now
            self.compare()
            if self._enough(self.changes):
                raise EndError
        return out

    def compare(self) -> None:
        """Compare the events since the last comparison with those of the reference."""
        stop = min(len(self.events), len(self._reference))
        for index in range(self._compared, stop):
            names = self.events[index].changed(self._reference[index])
            if names:
                self.changes.append((index, names))
        self._compared = max(self._compared, stop)

    def _before(self, name: str, args: Any, tensors: list[Tensor]) -> Event | None:
        """Note what enters, before an operation in place can change it."""
        if name.rstrip("_") in _ACTIVATIONS:
            return self._note(Event(kind="activation", tensors={"input": args[0].clone()}))
        if name == "glu":  # its second half goes through the activation
            half = args[0].chunk(2, args[1] if len(args) > 1 else -1)[1]
            return self._note(Event(kind="activation", tensors={"input": half.clone()}))
        if name in _FUSED_ATTENTION:
            made = dict(zip(_ATTENDED, (item.clone() for item in tensors[:3]), strict=True))
            return self._note(Event(kind="attention", tensors=made))
        if name in _PRODUCTS:
            return self._product(tensors[-2:] if name in ("addmm", "baddbmm", "addmv") else tensors[:2])
        if name in _SOFTMAX and storage(tensors[0]) in self._scores:
            query, key = self._products[self._scores[storage(tensors[0])]]
            return self._note(Event(kind="attention", tensors={"query": query, "key": key}))
        return None

    def _product(self, operands: list[Tensor]) -> Event:
        storages = [storage(item) for item in operands]
        own = {storage for storage in storages if storage in self._parameters}
        attention = next((self._weights[storage(item)] for item in operands if storage(item) in self._weights), None)
        if attention is not None and not own and "value" not in attention.tensors:
            value = next(item for item in operands if self._weights.get(storage(item)) is not attention)
            attention.tensors["value"] = value.clone()
        elif not own and len(scores := [i for i in (0, 1) if storages[i] in self._scores]) == 1:  # linear attention
            query, key = self._products[self._scores[storages[scores[0]]]]
            value = operands[1 - scores[0]].clone()
            self._note(Event(kind="attention", tensors={"query": query, "key": key, "value": value}))
        inputs = {str(i): item.clone() for i, item in enumerate(operands) if storage(item) not in own}
        return self._note(
            Event(kind="product", tensors=inputs, parameters=frozenset(self._parameters[one] for one in own))
        )

    def _note(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def _after(self, name: str, event: Event | None, before: list[Tensor], after: list[Tensor]) -> None:
        """Follow scores up to their softmax, and probabilities up to the values."""
        after = [item for item in after if item.is_floating_point()]
        self._alive.extend(after)
        if event is not None and event.kind == "product":
            if not event.parameters and len(event.tensors) == 2 and after:
                self._scores[storage(after[0])] = len(self._products)
                self._products.append((event.tensors["0"], event.tensors["1"]))
            return
        if event is not None and event.kind == "attention":
            if name in _SOFTMAX:
                self._weights[storage(after[0])] = event
            return
        if len(before) == 1 and storage(before[0]) in self._parameters:
            for item in after:
                self._parameters.setdefault(storage(item), self._parameters[storage(before[0])])
        scores = [self._scores[storage(item)] for item in before if storage(item) in self._scores]
        weights = [self._weights[storage(item)] for item in before if storage(item) in self._weights]
        for item in after:
            if scores:
                self._scores.setdefault(storage(item), min(scores))
            if weights:
                self._weights.setdefault(storage(item), weights[0])


def flat(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from flat(item)
        else:
            yield item


def linear_attentions(model: nn.Module) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Find the functions of a model's modules and their files that take a query, a key and a value."""
    owners = {
        id(owner): owner for module in model.modules() for owner in (module, sys.modules[type(module).__module__])
    }
    found = []
    for owner in owners.values():
        for name, value in vars(owner).items():
            if inspect.isfunction(value):
                names = inspect.signature(value).parameters.keys()
                if set(_ATTENDED) <= names and not {"module", "self"} & names:  # those are softmax attentions
                    found.append((owner, name, value))
    return found


@contextmanager
def written_down(functions: list[tuple[Any, str, Callable[..., Any]]], events: list[Event]) -> Iterator[None]:
    """Record calls of these functions as attentions, for a while."""

    def written(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            events.append(Event(kind="attention", tensors={name: given[name].clone() for name in _ATTENDED}))
            return function(*args, **kwargs)

        return call

    for owner, name, function in functions:
        setattr(owner, name, written(function))
    try:
        yield
    finally:
        for owner, name, function in functions:
            setattr(owner, name, function)
