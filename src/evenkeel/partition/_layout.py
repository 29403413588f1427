"""The short language in which rules say what a parameter is, and how it is cut.

A rule reads::

    query                                            the whole parameter
    norm as attention_norm                           its word in the path, where that is not the role
    query | key | value                              equal parts of the first dimension, one after the other
    query | key | value @-1                          of the last dimension, as in GPT-2's Conv1D
    query*num_heads | key*kv | value*kv              parts in these proportions
    num_heads x (query | key | value)                repeated: the heads are interleaved
    * x (expert_gate | expert_in)                    interleaved entry by entry
    expert: expert_gate | expert_in                  the first dimension counts experts, the rest is cut as said
    expert*num_experts: expert_in                    the experts' slices stand one after the other in the first one
    query | key | value if multi_query               holds where the condition does; of several rules the first

Numbers may be computed (``+ - * / //``, ``not and or``, comparisons) from the attributes of the module that the rule
stands for and, where it has none, of its configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from evenkeel.errors import ComponentError, unknown_name
from evenkeel.partition._expression import Look, evaluate, objection
from evenkeel.partition._roles import ROLES
from evenkeel.partition._span import Span

__all__ = ["Cut", "Part", "Rule", "parse"]


_FORM = re.compile(
    r"""\s*(?:expert\s*(?:\*\s*(?P<slices>[^:]+?)\s*)?(?P<expert>:))?\s*
    (?:(?P<repeat>[^|()]+?|\([^)]*\))\s+x\s+\((?P<inner>.*)\)|(?P<flat>.*?))\s*
    (?:@\s*(?P<dim>-?\d+))?\s*""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a parameter: its role, its word in the path, and its share of the dimension as an expression."""

    role: str
    word: str
    share: str = "1"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part with its place: what is behind the parameter's name in brackets, its spans and its shape."""

    part: Part
    label: str
    spans: tuple[Span, ...]
    shape: tuple[int, ...]
    expert: int | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a parameter is, and how it is cut.

    Attributes:
        text: the rule as it was written.
        parts: the parts, one for a parameter that is not cut.
        repeat: how often the parts are repeated, as an expression; ``"*"`` as often as they fit.
        dim: the dimension that is cut, of the parameter or of one expert's slice of it.
        experts: how experts share the first dimension: not at all (``""``), one index each (``"1"``), or one slice
            each, as many as the expression says.
        condition: an expression that must hold.
    """

    text: str
    parts: tuple[Part, ...]
    repeat: str = "1"
    dim: int = 0
    experts: str = ""
    condition: str = ""

    @property
    def whole(self) -> bool:
        """Whether the parameter is one component."""
        return len(self.parts) == 1 and not self.experts

    def holds(self, look: Look) -> bool:
        """Say whether the rule's condition holds; an attribute that is not there counts as false.

        Args:
            look: returns the value of a name, or raises AttributeError.

        Returns:
            Whether it does; always, where there is none.
        """
        if not self.condition:
            return True
        try:
            return bool(evaluate(self.condition, look, lenient=True))
        except (TypeError, ZeroDivisionError):  # such as a comparison with what is not there
            return False

    def cuts(self, name: str, shape: tuple[int, ...], look: Look) -> list[Cut]:
        """Cut a parameter.

        Args:
            name: its dotted name, for messages.
            shape: its shape.
            look: returns the value of a name, or raises AttributeError.

        Returns:
            The cuts, disjoint and complete, in the order of the rule, expert by expert.

        Raises:
            ComponentError: if a name has no value, or the parts do not fit the shape.
        """
        if self.experts not in ("", "1"):
            return self._slices(name, shape, look)
        lead = 1 if self.experts else 0
        if len(shape) <= lead:
            raise self._misfit(name, shape, f"expected at least {lead + 1} dimensions, found {len(shape)}")
        rest = shape[lead:]
        if not -len(rest) <= self.dim < len(rest):
            raise self._misfit(name, shape, f"expected a dimension {self.dim}, found {len(rest)} to choose from")
        dim = lead + self.dim % len(rest)
        places = self._places(name, shape, dim, look)
        return [
            Cut(
                part=part,
                label=part.word if expert is None else f"{expert}.{part.word}",
                spans=(() if expert is None else (Span(dim=0, start=expert, length=1, stride=1),)) + spans,
                shape=(*rest[: dim - lead], size, *rest[dim - lead + 1 :]),
                expert=expert,
            )
            for expert in (range(shape[0]) if self.experts else (None,))
            for part, spans, size in places
        ]

    def _slices(self, name: str, shape: tuple[int, ...], look: Look) -> list[Cut]:
        """Cut the first dimension into one slice for each expert."""
        count = self._number(name, shape, self.experts, look)
        if len(self.parts) > 1 or not shape or not count or shape[0] % count:
            raise self._misfit(name, shape, f"expected one part and {count} equal slices along dimension 0")
        size = shape[0] // count
        return [
            Cut(
                part=self.parts[0],
                label=f"{expert}.{self.parts[0].word}",
                spans=(Span(dim=0, start=expert * size, length=size, stride=size),),
                shape=(size, *shape[1:]),
                expert=expert,
            )
            for expert in range(count)
        ]

    def _places(
        self, name: str, shape: tuple[int, ...], dim: int, look: Look
    ) -> list[tuple[Part, tuple[Span, ...], int]]:
        """Return each part with its span along ``dim`` and its size there."""
        total = shape[dim]
        if len(self.parts) == 1:
            return [(self.parts[0], (), total)]
        shares = [self._number(name, shape, part.share, look) for part in self.parts]
        total_share = sum(shares)
        fits = total // max(1, total_share)
        repeat = fits if self.repeat == "*" else self._number(name, shape, self.repeat, look)
        unit, left = divmod(total, repeat * total_share) if repeat * total_share else (0, 1)
        if left or not unit or (self.repeat == "*" and unit != 1):
            raise self._misfit(
                name,
                shape,
                f"expected a multiple of {repeat} x {'+'.join(map(str, shares))} = {repeat * total_share} along "
                f"dimension {dim}, found {total}",
            )
        stride = unit * total_share
        starts = [unit * sum(shares[:index]) for index in range(len(shares))]
        return [
            (
                part,
                (Span(dim=dim, start=start, length=unit * share, stride=stride, count=repeat),),
                repeat * unit * share,
            )
            for part, start, share in zip(self.parts, starts, shares, strict=True)
            if share
        ]

    def _number(self, name: str, shape: tuple[int, ...], expression: str, look: Look) -> int:
        try:
            value = evaluate(expression, look)
        except (AttributeError, TypeError, ZeroDivisionError) as error:
            raise self._misfit(name, shape, f"'{expression}' has no value: {error}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value % 1:  # NaN and inf too
            raise self._misfit(name, shape, f"'{expression}' is {value!r}, which is no whole number")
        return int(value)

    def _misfit(self, name: str, shape: tuple[int, ...], reason: str) -> ComponentError:
        return ComponentError(
            f"the rule '{self.text}' does not fit parameter '{name}' of shape {shape}: {reason}; correct the rule, or "
            "pass roles= with one that says how this model uses the tensor"
        )


def parse(text: str) -> Rule:
    """Read one rule.

    Args:
        text: the rule.

    Returns:
        The rule.

    Raises:
        ComponentError: if it cannot be read.

    Example:
        >>> [part.role for part in parse("num_heads x (query | key | value)").parts]
        ['query', 'key', 'value']
    """
    body, conditional, condition = text.partition(" if ")
    found = _FORM.fullmatch(body)
    if found is None or bool(conditional) != bool(condition.strip()):
        raise _unreadable(text, "its form is none of those documented")
    parts = tuple(_part(text, part) for part in (found["inner"] or found["flat"] or "").split("|"))
    if len({part.word for part in parts}) < len(parts):
        raise _unreadable(text, "two parts have the same word in the path; tell them apart by 'as'")
    rule = Rule(
        text=text,
        parts=parts,
        repeat=(found["repeat"] or "1").strip(),
        dim=int(found["dim"] or 0),
        experts=(found["slices"] or "1") if found["expert"] else "",
        condition=condition.strip(),
    )
    repeat = "1" if rule.repeat == "*" else rule.repeat
    for expression in (rule.condition or "1", repeat, rule.experts or "1", *(part.share for part in parts)):
        reason = objection(expression)
        if reason:
            raise _unreadable(text, reason)
    return rule


def _part(rule: str, text: str) -> Part:
    found = re.fullmatch(r"\s*(?P<role>[a-z_]\w*)(?:\s+as\s+(?P<word>[\w.]+))?\s*(?:\*\s*(?P<share>.+?))?\s*", text)
    if found is None:
        raise _unreadable(rule, f"'{text.strip()}' is no role, with 'as word' and '* share' behind it where needed")
    if found["role"] not in ROLES:
        raise _unreadable(rule, unknown_name("role", found["role"], ROLES))
    return Part(role=found["role"], word=found["word"] or found["role"], share=found["share"] or "1")


def _unreadable(rule: str, reason: str) -> ComponentError:
    return ComponentError(f"the rule '{rule}' cannot be read: {reason}; see docs/components.md for the language")
