"""Oracles that look at what a component does, not at what it is called.

One forward pass is a list of events: attentions (with the queries, keys and values that they receive), inputs of activation
functions, products with the tensors that they multiply. They are recorded below autograd, where every implementation of
attention looks alike: two products with a softmax between them. A component is perturbed in place, the pass is repeated,
and the first events that differ say what the component makes.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from evenkeel.partition import Component, Components
from evenkeel.partition._span import views

__all__ = ["Event", "Probe", "Verdict", "key_bias_gradients"]

# The tensors of an attention that a component of a role changes: these and no others.
MAKES = {
    "query": {"query"},
    "query_a": {"query"},
    "query_b": {"query"},
    "key": {"key"},
    "key_rope": {"key"},
    "key_b": {"key"},
    "value": {"value"},
    "value_b": {"value"},
    "key_value_a": {"key", "value"},
    "qkv": {"query", "key", "value"},
}
_FEED_FORWARD = re.compile(r"(shared_expert|expert|ffn)_(in|gate|out)")
_PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "convolution", "_grouped_mm", "mv", "addmv"}
_ACTIVATIONS = {
    *("gelu", "silu", "relu", "tanh", "sigmoid", "softplus", "leaky_relu", "elu", "mish", "hardswish", "hardtanh"),
    *("expm1", "erf", "log_sigmoid_forward", "softsign", "clamp_min", "prelu", "hardsigmoid"),
}
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
        return {name for name in names if _differ(self.tensors.get(name), other.tensors.get(name))}


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or one.shape != other.shape:
        return one is not other
    scale = one.abs().max().item() if one.numel() else 0.0
    return not torch.allclose(one, other, rtol=0.0, atol=1e-5 * max(scale, 1e-3), equal_nan=True)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class _Recorder(TorchDispatchMode):
    """Writes the events of one forward pass down, and routes tokens to experts as it is told."""

    def __init__(self, parameters: frozenset[int], route: Callable[[Tensor, int], Tensor | None]) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._route = route
        self._parameters = {storage: storage for storage in parameters}  # and copies of them, to what they are copies of
        self._products: list[tuple[Tensor, Tensor]] = []
        self._scores: dict[int, int] = {}  # storage -> the product whose scores it holds
        self._weights: dict[int, Event] = {}  # storage -> the attention whose probabilities it holds
        self._alive: list[Tensor] = []  # a freed storage's address would be given away again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [item for item in _flat(args) if isinstance(item, Tensor)]
        before = self._before(name, args, tensors)
        out = func(*args, **(kwargs or {}))
        if name == "topk" and (indices := self._route(args[0], args[1])) is not None:
            out = type(out)((args[0].gather(-1, indices), indices)) if type(out) is tuple else [args[0].gather(-1, indices), indices]
        self._after(name, before, tensors, [item for item in _flat(out if isinstance(out, (tuple, list)) else (out,)) if isinstance(item, Tensor)])
        return out

    def _before(self, name: str, args: Any, tensors: list[Tensor]) -> Event | None:
        """Note what enters, before an operation in place can change it."""
        if name.rstrip("_") in _ACTIVATIONS:
            return self._note(Event(kind="activation", tensors={"input": args[0].detach().clone()}))
        if name == "glu":  # the second half goes through the activation
            return self._note(Event(kind="activation", tensors={"input": args[0].chunk(2, args[1] if len(args) > 1 else -1)[1].clone()}))
        if name in _FUSED_ATTENTION:
            return self._note(Event(kind="attention", tensors=dict(zip(("query", "key", "value"), (t.clone() for t in tensors), strict=False))))
        if name in _PRODUCTS:
            return self._product(tensors[-2:] if name in ("addmm", "baddbmm", "addmv") else tensors[:2])
        if name in _SOFTMAX and _storage(tensors[0]) in self._scores:
            query, key = self._products[self._scores[_storage(tensors[0])]]
            return self._note(Event(kind="attention", tensors={"query": query, "key": key}))
        return None

    def _product(self, operands: list[Tensor]) -> Event:
        storages = [_storage(item) for item in operands]
        own = {storage for storage in storages if storage in self._parameters}
        attention = next((self._weights[_storage(item)] for item in operands if _storage(item) in self._weights), None)
        if attention is not None and not own and "value" not in attention.tensors:
            value = next(item for item in operands if self._weights.get(_storage(item)) is not attention)
            attention.tensors["value"] = value.clone()
        inputs = {str(i): item.clone() for i, item in enumerate(operands) if _storage(item) not in own}
        return self._note(Event(kind="product", tensors=inputs, parameters=frozenset(self._parameters[one] for one in own)))

    def _note(self, event: Event) -> Event:
        self.events.append(event)
        return event

    def _after(self, name: str, event: Event | None, before: list[Tensor], after: list[Tensor]) -> None:
        """Follow scores up to their softmax, and probabilities up to the values."""
        after = [item for item in after if item.is_floating_point()]
        self._alive.extend(after)
        if event is not None and event.kind == "product":
            if not event.parameters and len(event.tensors) == 2 and after:
                self._scores[_storage(after[0])] = len(self._products)
                self._products.append((event.tensors["0"], event.tensors["1"]))
            return
        if event is not None and event.kind == "attention":
            if name in _SOFTMAX:
                self._weights[_storage(after[0])] = event
            return
        if len(before) == 1 and _storage(before[0]) in self._parameters:
            for item in after:
                self._parameters.setdefault(_storage(item), self._parameters[_storage(before[0])])
        scores = [self._scores[_storage(item)] for item in before if _storage(item) in self._scores]
        weights = [self._weights[_storage(item)] for item in before if _storage(item) in self._weights]
        for item in after:
            if scores:
                self._scores.setdefault(_storage(item), min(scores))
            if weights:
                self._weights.setdefault(_storage(item), weights[0])


def _flat(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, (list, tuple)):
            yield from _flat(item)
        else:
            yield item


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the oracles found in one model.

    Attributes:
        objections: what contradicts a component's role, each in a sentence.
        proven: paths of the components whose role was confirmed.
        silent: paths of the components with a role that an oracle knows, but which this forward pass does not use.
    """

    objections: list[str]
    proven: set[str]
    silent: set[str]


class Probe:
    """A model, what enters it, its components, and the events of its forward pass."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor], parts: Components, *, seed: int = 0) -> None:
        self.model, self.inputs, self.parts = model, inputs, parts
        self._generator = torch.Generator().manual_seed(seed)
        self._roles: dict[int, set[str | None]] = {}
        for part in parts:
            self._roles.setdefault(_storage(part.parameters[0]), set()).add(part.role)
        self._all = frozenset(_storage(parameter) for parameter in model.parameters())
        self._linear = _linear_attentions(model)
        self.clean, self.output = self.run()

    def run(self, route: Callable[[Tensor, int], Tensor | None] = lambda scores, k: None) -> tuple[list[Event], Tensor]:
        """Return the events of a forward pass, and the logits."""
        recorder = _Recorder(self._all, route)
        with torch.no_grad(), _written_down(self._linear, recorder.events), recorder:
            out = self.model(**self.inputs)
        return recorder.events, (out if isinstance(out, Tensor) else out.logits).detach()

    @contextmanager
    def perturbed(self, part: Component) -> Iterator[None]:
        """Add noise to the entries of a component and to no others, for a while."""
        with torch.no_grad():
            kept = [piece.tensor().detach().clone() for piece in part.pieces]
            for piece in part.pieces:
                entries = views(piece.tensor().detach(), piece.spans)
                entries.add_(torch.randn(entries.shape, generator=self._generator).to(entries.dtype), alpha=0.5)
            try:
                yield
            finally:
                for piece, whole in zip(part.pieces, kept, strict=True):
                    piece.tensor().detach().copy_(whole)

    def changes(self, part: Component) -> list[tuple[int, set[str]]]:
        """Return the events that a perturbed component changes, by index, and which of their tensors."""
        with self.perturbed(part):
            events, _ = self.run()
        found = [(i, new.changed(old)) for i, (new, old) in enumerate(zip(events, self.clean, strict=False))]
        return [(i, names) for i, names in found if names]

    def _attentions(self, changes: list[tuple[int, set[str]]]) -> list[tuple[int, set[str]]]:
        return [(i, names) for i, names in changes if self.clean[i].kind == "attention"]

    def attention(self) -> Verdict:
        """Perturb what makes queries, keys and values: the first attention that changes must change in these alone.

        The layers must change in the order of their numbers, too, and the first layer of parameters that the values of an
        attention enter must be the attention's output.
        """
        verdict = Verdict(objections=[], proven=set(), silent=set())
        order: dict[tuple[str | None, str], list[tuple[int, int]]] = {}
        for part in self.parts:
            if part.role not in MAKES or part.layer is None:
                continue
            changes = self.changes(part)
            attentions = self._attentions(changes)
            if not attentions:
                verdict.silent.add(part.path)
                continue
            index, names = attentions[0]
            if names == MAKES[part.role]:
                verdict.proven.add(part.path)
            else:
                verdict.objections.append(f"{part.path} ({part.name}) changes {sorted(names)}")
            if not part.shared:
                word = re.sub(r"^.*?layer\.\d+\.", "", part.path)
                order.setdefault((part.stack, word), []).append((part.layer, index))
            if part.role == "value" and (fault := self._leaves(changes, index)):
                verdict.objections.append(f"what {part.path} makes enters {fault} first, not attention_output")
        for (stack, word), pairs in order.items():
            if pairs != sorted(pairs) or len({index for _, index in pairs}) != len(pairs):
                verdict.objections.append(f"layers of {stack or ''} {word} do not run in the order of their numbers: {pairs}")
        return verdict

    def _leaves(self, changes: list[tuple[int, set[str]]], start: int) -> str:
        """Return the roles of the parameters that the changed values first meet, if they are not an attention's output."""
        met = next((self.clean[i].parameters for i, _ in changes if i > start and self.clean[i].parameters), frozenset())
        roles = {role for storage in met for role in self._roles.get(storage, ())}
        return "" if not roles or roles == {"attention_output"} else ", ".join(sorted(map(str, roles)))

    def feed_forward(self, experts: int = 0) -> Verdict:
        """Perturb the layers of feed-forward parts and experts.

        ``gate``, and ``in`` where there is no gate, must change what enters an activation function before anything
        else; ``in`` beside a gate must change no activation before it changes what ``out`` multiplies; ``out`` must change
        nothing up to its own product. Token ``t`` is routed to the experts ``t, t+1, ...``, and a perturbed expert may
        change its own tokens alone.

        Args:
            experts: number of experts that are routed to; the first and the last are perturbed.
        """
        verdict = Verdict(objections=[], proven=set(), silent=set())
        routed = _Routed(experts, self.inputs["input_ids"].numel())
        clean: dict[str, list[Tensor]] = {}
        events, self.output = self.run(routed.route)
        self.clean = events
        gated = {_feed_forward_of(part) for part in self.parts if part.role and re.fullmatch(r"\w+_gate", part.role)}
        for part in self.parts:
            found = _FEED_FORWARD.fullmatch(part.role or "")
            expert = _expert_of(part)
            if not found or part.layer is None or (expert is not None and experts and 0 < expert < experts - 1):
                continue
            name = part.name.split("[")[0]
            if expert is not None and name not in clean:
                with _outputs_around(self.model, name, routed.tokens) as clean[name]:
                    self.run(routed.route)
            with _outputs_around(self.model, name, routed.tokens) as after, self.perturbed(part):
                events, output = self.run(routed.route)
            changed = [i for i, (new, old) in enumerate(zip(events, self.clean, strict=False)) if new.changed(old)]
            if not changed and not _differ(output, self.output):
                verdict.silent.add(part.path)
                continue
            fault = self._fault(part, found[2], _feed_forward_of(part) in gated, changed)
            if not fault and expert is not None and routed.used:
                fault = routed.fault(expert, clean[name], after)
            if fault:
                verdict.objections.append(f"{part.path} ({part.name}) {fault}")
            else:
                verdict.proven.add(part.path)
        return verdict

    def _fault(self, part: Component, what: str, gated: bool, changed: list[int]) -> str:
        """Say what is wrong with a feed-forward layer, given the events that it changes."""
        out = f"{part.role.removesuffix(what)}out" if part.role else ""
        if what == "out":
            own = _storage(part.parameters[0])
            uses = [i for i, event in enumerate(self.clean) if own in event.parameters]
            return "changes what happens before its own product" if uses and changed and changed[0] <= uses[0] else ""
        first = self.clean[changed[0]].kind if changed else "nothing"
        expected = "product" if what == "in" and gated else "activation"
        if first != expected:
            return f"first changes what enters a {first}, not {expected}"
        met = next((self.clean[i].parameters for i in changed if self.clean[i].parameters), frozenset())
        roles = {role for storage in met for role in self._roles.get(storage, ())}
        return "" if not met or roles == {out} else f"enters {sorted(map(str, roles))}, not {out}"


class _Routed:
    """Sends token ``t`` to the experts ``t, t+1, ...``, whatever the router thinks."""

    def __init__(self, experts: int, tokens: int) -> None:
        self.experts, self.tokens = experts, tokens
        self.used: set[int] = set()

    def route(self, scores: Tensor, k: int) -> Tensor | None:
        if not self.experts or scores.shape[-1] != self.experts or scores.numel() != self.tokens * self.experts:
            return None
        self.used.add(k)
        chosen = (torch.arange(self.tokens)[:, None] + torch.arange(k)) % self.experts
        return chosen.view(*scores.shape[:-1], k)

    def fault(self, expert: int, before: list[Tensor], after: list[Tensor]) -> str:
        """Say which tokens an expert reaches, if they are not its own."""
        if not before or not after:
            return "has no output for each token around it"
        reached = {t for t in range(self.tokens) if _differ(before[0][t], after[0][t])}
        own = {t for t in range(self.tokens) if (expert - t) % self.experts < max(self.used)}
        return "" if reached == own else f"reaches the tokens {sorted(reached)}, its own are {sorted(own)}"


def _expert_of(part: Component) -> int | None:
    """Return the number of the expert that a component belongs to."""
    if part.role not in ("expert_in", "expert_gate", "expert_out"):
        return None
    numbers = [bit for bit in re.sub(r"^.*?layer\.\d+\.", "", part.path).split(".") if bit.isdigit()]
    return int(numbers[-1]) if numbers else None


def _feed_forward_of(part: Component) -> tuple[str | None, int | None, str, str]:
    """Say which feed-forward part of the model a component belongs to: its path without what it is there."""
    found = _FEED_FORWARD.fullmatch(part.role or "")
    place = part.path.replace(part.role or "", "").removesuffix(".weight").removesuffix(".bias")
    return part.stack, part.layer, found[1] if found else "", place


@contextmanager
def _outputs_around(model: nn.Module, name: str, tokens: int) -> Iterator[list[Tensor]]:
    """Collect, for a parameter, the output of the innermost module around it that has one vector for each token."""
    bits = name.split("[")[0].split(".")[:-1]
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Any) -> None:
        first = next((item for item in _flat((out,)) if isinstance(item, Tensor)), None)
        if first is not None and first.is_floating_point() and first.dim() > 1 and first.numel() // first.shape[-1] == tokens:
            seen.append(first.detach().reshape(tokens, -1).clone())

    around = [model.get_submodule(".".join(bits[:end])) for end in range(len(bits), 0, -1)]
    around = around[1:] if isinstance(around[0], nn.Linear) else around  # one expert's layer sees its own tokens alone
    hooks = [module.register_forward_hook(keep) for module in around]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _linear_attentions(model: nn.Module) -> list[tuple[Any, str, Callable[..., Any]]]:
    """Find the functions of a model's modules and their files that take a query, a key and a value."""
    owners = {id(owner): owner for module in model.modules() for owner in (module, sys.modules[type(module).__module__])}
    found = []
    for owner in owners.values():
        for name, value in vars(owner).items():
            if inspect.isfunction(value):
                names = inspect.signature(value).parameters.keys()
                if {"query", "key", "value"} <= names and not {"module", "self"} & names:  # those are softmax attentions
                    found.append((owner, name, value))
    return found


@contextmanager
def _written_down(functions: list[tuple[Any, str, Callable[..., Any]]], events: list[Event]) -> Iterator[None]:
    """Record calls of these functions as attentions, for a while."""

    def written(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(function).bind(*args, **kwargs).arguments
            events.append(Event(kind="attention", tensors={name: given[name].clone() for name in ("query", "key", "value")}))
            return function(*args, **kwargs)

        return call

    for owner, name, function in functions:
        setattr(owner, name, written(function))
    try:
        yield
    finally:
        for owner, name, function in functions:
            setattr(owner, name, function)


def key_bias_gradients(model: nn.Module, inputs: Mapping[str, Tensor], parts: Components) -> dict[str, tuple[float, float]]:
    """Return, for each bias of keys, the norm of its gradient and the smaller one of its block's query and value biases.

    Softmax attention without rotary positions ignores a constant that is added to all keys, so the former is zero.
    """
    model.zero_grad()
    out = model(**inputs)
    logits = out if isinstance(out, Tensor) else out.logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    norms = {part.path: part.gradients()[0].norm().item() for part in parts if part.kind == "bias" and part.gradients()}
    model.zero_grad()
    found: dict[str, tuple[float, float]] = {}
    for part in parts:
        if part.kind == "bias" and part.role == "key" and part.path in norms:
            beside = [norms.get(re.sub(r"key(?=\.bias)", role, part.path)) for role in ("query", "value")]
            found[part.path] = (norms[part.path], min((norm for norm in beside if norm is not None), default=float("nan")))
    return found
