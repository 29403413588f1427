"""Small expressions over the attributes of a module: the numbers and conditions in rules."""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["Look", "evaluate", "objection"]

Look = Callable[[str], Any]

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FORMS = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.And, ast.Or, ast.Compare)
_LEAVES = (ast.Name, ast.Attribute, ast.Constant, ast.Load)


def objection(expression: str) -> str:
    """Say why an expression is none; nothing that calls or subscripts is allowed, so that data cannot run code.

    Args:
        expression: the text.

    Returns:
        The reason, empty where there is none.

    Example:
        >>> objection("num_heads // num_kv_heads"), objection("exit()")
        ('', "'exit()' holds a Call, which is not allowed")
    """
    try:
        nodes = list(ast.walk(ast.parse(expression.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"'{expression}' is no expression"
    wrong = [node for node in nodes if not isinstance(node, (*_FORMS, *_LEAVES, *_OPERATORS))]
    wrong += [node for node in nodes if isinstance(node, ast.Compare) and len(node.ops) > 1]
    return f"'{expression}' holds a {type(wrong[0]).__name__}, which is not allowed" if wrong else ""


def evaluate(expression: str, look: Look, *, lenient: bool = False) -> Any:
    """Compute an expression that :func:`objection` has nothing against.

    Args:
        expression: the text.
        look: returns the value of a name, or raises AttributeError.
        lenient: let what has no value be None.

    Returns:
        Its value.

    Raises:
        AttributeError: if a name has no value.

    Example:
        >>> evaluate("heads // 2 + 1", {"heads": 8}.__getitem__)
        5
    """

    def attribute(owner: Any, name: str) -> Any:
        try:
            return look(name) if owner is _NOBODY else getattr(owner, name)
        except AttributeError:
            if lenient:
                return None
            raise

    return _value(_body(expression), attribute)


_NOBODY = object()


@functools.cache
def _body(expression: str) -> ast.AST:
    return ast.parse(expression.strip(), mode="eval").body


def _value(node: ast.AST, attribute: Callable[[Any, str], Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return attribute(_NOBODY, name)
        case ast.Attribute(value=owner, attr=name):
            return attribute(_value(owner, attribute), name)
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_value(left, attribute), _value(right, attribute))
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_value(operand, attribute))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(value, attribute) for value in values)
        case ast.BoolOp(values=values):
            return any(_value(value, attribute) for value in values)
        case _:  # pragma: no cover - objection() refuses everything else
            raise AssertionError(ast.dump(node))
