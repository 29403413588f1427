"""Oracles that look at what a component does, not at what it is called.

One forward pass is a list of events: attentions (with the queries, keys and values that they receive), inputs of
activation functions, products with the tensors that they multiply. They are recorded below autograd, where every
implementation of attention looks alike: two products with a softmax between them. A component is perturbed in place,
the pass is repeated, and the first events that differ say what the component makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tests.partition._events import (
    Changes,
    EndError,
    Enough,
    Event,
    Recorder,
    Route,
    differ,
    flat,
    linear_attentions,
    storage,
    written_down,
)
from torch import Tensor, nn

from evenkeel.partition import Component, Components
from evenkeel.partition._span import views

__all__ = ["Probe", "Verdict", "key_bias_gradients"]

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
    "key_value": {"key", "value"},
    "query_key": {"query", "key"},
    "qkv": {"query", "key", "value"},
}
_FEED_FORWARD = re.compile(r"(shared_expert|expert|ffn)_(in|gate|out)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the oracles found in one model.

    Attributes:
        objections: what contradicts a component's role, each in a sentence.
        proven: paths of the components whose role was confirmed.
        silent: paths of the components with a role that an oracle knows, but which this forward pass does not use, and
            of experts whose router cannot be told whom to choose.
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
            self._roles.setdefault(storage(part.parameters[0]), set()).add(part.role)
        self._first, self._last = _layers_of_a_kind(parts)
        self._all = frozenset(storage(parameter) for parameter in model.parameters())
        self._linear = linear_attentions(model)
        self.clean, self.output = self.run()

    def run(self, route: Route = lambda scores, k: None) -> tuple[list[Event], Tensor]:
        """Return the events of a forward pass, and the logits."""
        recorder = Recorder(self._all, route, [], lambda changes: False)
        with torch.no_grad(), written_down(self._linear, recorder.events), recorder:
            out = self.model(**self.inputs)
        return recorder.events, (out if isinstance(out, Tensor) else out.logits).detach()

    def changes(self, part: Component, enough: Enough, route: Route = lambda scores, k: None) -> Changes:
        """Return the events that a perturbed component changes and which of their tensors, up to what is enough.

        A change of the logits alone is an event behind the last one.
        """
        recorder = Recorder(self._all, route, self.clean, enough)
        with self.perturbed(part), torch.no_grad(), written_down(self._linear, recorder.events):
            try:
                with recorder:
                    out = self.model(**self.inputs)
            except EndError:
                return recorder.changes
        recorder.compare()
        if not recorder.changes and differ((out if isinstance(out, Tensor) else out.logits).detach(), self.output):
            return [(len(self.clean), {"logits"})]
        return recorder.changes

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

    def _attended(self, changes: Changes) -> tuple[int, set[str]] | None:
        """Return the first attention among the events that changed."""
        return next(((i, names) for i, names in changes if self._is(i, "attention")), None)

    def _is(self, index: int, kind: str) -> bool:
        return index < len(self.clean) and self.clean[index].kind == kind

    def _met(self, changes: Changes, start: int = -1) -> frozenset[int]:
        """Return the parameters of the first product behind ``start`` among the events that changed."""
        behind = [i for i, _ in changes if start < i < len(self.clean)]
        return next((self.clean[i].parameters for i in behind if self.clean[i].parameters), frozenset())

    def _left(self, changes: Changes) -> bool:
        """Say whether the changes have gone through an attention to the next parameters."""
        attended = self._attended(changes)
        return attended is not None and bool(self._met(changes, attended[0]))

    def attention(self) -> Verdict:
        """Perturb what makes queries, keys and values, in the first and last layer of each kind.

        The first attention that changes must change in these alone; the layers must change in the order of their
        numbers; and the first parameters that the values of an attention meet must be the attention's output.
        """
        verdict = Verdict(objections=[], proven=set(), silent=set())
        order: dict[tuple[str | None, str], list[tuple[int, int]]] = {}
        for part in self.parts:
            if part.role not in MAKES or part.layer is None or (part.stack, part.layer) not in self._first | self._last:
                continue
            changes = self.changes(part, self._left)
            attended = self._attended(changes)
            if attended is None:
                verdict.silent.add(part.path)
                continue
            index, names = attended
            if names == MAKES[part.role]:
                verdict.proven.add(part.path)
            else:
                verdict.objections.append(f"{part.path} ({part.name}) changes {sorted(names)}")
            if not part.shared:
                word = _tail(part)
                order.setdefault((part.stack, word), []).append((part.layer, index))
            if part.role == "value" and (fault := self._leaves(changes, index)):
                verdict.objections.append(f"what {part.path} makes enters {fault} first, not attention_output")
        for (stack, word), pairs in order.items():
            if pairs != sorted(pairs) or len({index for _, index in pairs}) != len(pairs):
                verdict.objections.append(
                    f"layers of {stack or ''} {word} do not run in the order of their numbers: {pairs}"
                )
        return verdict

    def _leaves(self, changes: Changes, start: int) -> str:
        """Return the roles of the parameters that changed values first meet, if they are not the attention's output."""
        roles = {role for storage in self._met(changes, start) for role in self._roles.get(storage, ())}
        return "" if roles == {"attention_output"} else ", ".join(sorted(map(str, roles))) or "nothing"

    def feed_forward(self, experts: int = 0) -> Verdict:
        """Perturb the layers of feed-forward parts and experts, in the first layer of each kind.

        ``gate``, and ``in`` where there is no gate, must change what enters an activation function before anything
        else; ``in`` beside a gate must change no activation before it changes what ``out`` multiplies; ``out`` must
        change nothing up to its own product. Token ``t`` is routed to the experts ``t, t+1, ...``, and a perturbed
        expert may change its own tokens alone.

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
            expert = _expert_of(part)
            known = _FEED_FORWARD.fullmatch(part.role or "") and (part.stack, part.layer) in self._first
            if not known or routed.skips(expert):
                continue
            name = part.name.split("[")[0]
            if expert is not None and name not in clean:
                with _outputs_around(self.model, name, routed.tokens) as clean[name]:
                    self.run(routed.route)
            fault = self._fault(part, _feed_forward_of(part) in gated, routed, clean.get(name, []))
            if fault is None:
                verdict.silent.add(part.path)
            elif fault:
                verdict.objections.append(f"{part.path} ({part.name}) {fault}")
            else:
                verdict.proven.add(part.path)
        return verdict

    def _fault(self, part: Component, gated: bool, routed: _Routed, before: list[Tensor]) -> str | None:
        """Perturb a feed-forward layer and say what is wrong with it; None where that changes nothing."""
        expert = _expert_of(part)
        with _outputs_around(self.model, part.name.split("[")[0], routed.tokens) as after:

            def enough(changes: Changes) -> bool:
                return bool(self._met(changes)) and (bool(after) or expert is None)

            changes = self.changes(part, enough, routed.route)
        if not changes or (expert is not None and not routed.used):
            return None
        if expert is not None and (fault := routed.fault(expert, before, after)):
            return fault
        stem, _, what = (part.role or "").rpartition("_")
        if what == "out":
            own = self._weights(part)
            uses = [i for i, event in enumerate(self.clean) if own & event.parameters]
            if not uses:
                return "multiplies nothing"
            return "changes what happens before its own product" if changes[0][0] <= uses[0] else ""
        first = self.clean[changes[0][0]].kind if changes[0][0] < len(self.clean) else "logit"
        expected = "product" if what == "in" and gated else "activation"
        if first != expected:
            return f"first changes what enters a {first}, not {expected}"
        roles = {role for storage in self._met(changes) for role in self._roles.get(storage, ())}
        return "" if roles == {f"{stem}_out"} else f"enters {sorted(map(str, roles))}, not {stem}_out"

    def _weights(self, part: Component) -> set[int]:
        """Return the storages of the weight that a component is or, being a bias, is added to."""
        if part.kind == "weight":
            return {storage(part.parameters[0])}
        near = [other for other in self.parts if (other.stack, other.layer) == (part.stack, part.layer)]
        own = [other for other in near if other.path == re.sub(r"bias$", "weight", part.path)]
        experts = [other for other in near if other.role == "expert_out" and other.kind == "weight"]
        return {storage(other.parameters[0]) for other in own or experts}


def _layers_of_a_kind(parts: Components) -> tuple[set[tuple[str | None, int]], set[tuple[str | None, int]]]:
    """Return the first and the last layers, with their stacks, of those that are made of the same components."""
    made: dict[tuple[str | None, int], list[str]] = {}
    for part in parts:
        if part.layer is not None:
            made.setdefault((part.stack, part.layer), []).append(f"{_tail(part)} {part.role} {part.cut} {part.shape}")
    first: dict[tuple[str | None, str], tuple[str | None, int]] = {}
    last = dict(first)
    for place, words in made.items():
        first.setdefault((place[0], "|".join(words)), place)
        last[place[0], "|".join(words)] = place
    return set(first.values()), set(last.values())


def _tail(part: Component) -> str:
    """Return the path without stack and layer."""
    return re.sub(r"^.*?layer\.\d+\.", "", part.path)


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

    def skips(self, expert: int | None) -> bool:
        """Say whether an expert is neither the first nor the last."""
        return expert is not None and 0 < expert < self.experts - 1

    def fault(self, expert: int, before: list[Tensor], after: list[Tensor]) -> str:
        """Say which tokens an expert reaches, if they are not its own."""
        if not before or not after:
            return "has no output for each token around it"
        reached = {t for t in range(self.tokens) if differ(before[0][t], after[0][t])}
        own = {t for t in range(self.tokens) if (expert - t) % self.experts < max(self.used)}
        return "" if reached == own else f"reaches the tokens {sorted(reached)}, its own are {sorted(own)}"


def _expert_of(part: Component) -> int | None:
    """Return the number of the expert that a component belongs to."""
    if part.role not in ("expert_in", "expert_gate", "expert_out"):
        return None
    numbers = [bit for bit in _tail(part).split(".") if bit.isdigit()]
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
        first = next((item for item in flat((out,)) if isinstance(item, Tensor)), None)
        if first is not None and first.is_floating_point() and first.shape[:-1].numel() == tokens:
            seen.append(first.detach().reshape(tokens, -1).clone())

    around = [model.get_submodule(".".join(bits[:end])) for end in range(len(bits), 0, -1)]
    around = around[1:] if isinstance(around[0], nn.Linear) else around  # one expert's layer sees its own tokens alone
    hooks = [module.register_forward_hook(keep) for module in around]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def key_bias_gradients(
    model: nn.Module, inputs: Mapping[str, Tensor], parts: Components
) -> dict[str, tuple[float, float]]:
    """Return, for each bias of keys, the norm of its gradient and the smaller one of query and value beside it.

    Softmax attention without rotary positions ignores a constant that is added to all keys, so the former is zero.
    """
    model.zero_grad()
    out = model(**inputs)
    logits = out if isinstance(out, Tensor) else out.logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    norms: dict[str, float] = {}
    for part in parts:
        gradient = part.pieces[0].tensor().grad
        if part.kind == "bias" and gradient is not None:
            norms[part.path] = views(gradient, part.pieces[0].spans).norm().item()
    model.zero_grad()
    found: dict[str, tuple[float, float]] = {}
    for part in parts:
        if part.kind == "bias" and part.role == "key" and part.path in norms:
            beside = [norms.get(re.sub(r"key(?=\.bias)", role, part.path)) for role in ("query", "value")]
            others = [norm for norm in beside if norm is not None]
            found[part.path] = norms[part.path], min(others, default=float("nan"))
    return found
