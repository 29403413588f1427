"""What is wrong with a plan, in the words of the person who wrote it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from evenkeel.errors import EvenkeelError, PlanError, unknown_name

__all__ = ["faults_of", "raise_all", "refuse", "shown"]


def faults_of(error: ValidationError, plan: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> list[str]:
    """Put every error of a validation into words.

    A mistyped key makes two errors: one key too many, and the right one missing. The first says more, so the second is
    left out; so is what is said of a list because of one of its entries.

    Args:
        error: what pydantic found.
        plan: the class of the whole.
        sections: the classes of its parts, by key.

    Returns:
        One sentence for each fault, unknown keys first.
    """
    every = error.errors()
    found = [item for item in every if not any(_inside(other["loc"], item["loc"]) for other in every)]
    unknown = [str(item["loc"][-1]) for item in found if item["type"] == "extra_forbidden"]
    sentences = [
        unknown_name("key", str(item["loc"][-1]), sections.get(str(item["loc"][0]), plan).model_fields)
        for item in found
        if item["type"] == "extra_forbidden"
    ]
    for item in found:
        mistyped = item["type"] == "missing" and difflib.get_close_matches(str(item["loc"][-1]), unknown, cutoff=0.5)
        if item["type"] != "extra_forbidden" and not mistyped:
            sentences.append(_sentence(item))
    return sentences


def _inside(place: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _sentence(item: Mapping[str, Any]) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:  # about the plan as a whole
        return message
    key = ".".join(str(bit) for bit in item["loc"])
    given = "" if isinstance(item["input"], dict) else f" (given: {shown(item['input'])})"
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def shown(given: object) -> str:
    """Write a value as its author would.

    Args:
        given: any value.

    Returns:
        Its text.

    Example:
        >>> shown(float("nan")), shown("much")
        ('NaN', "'much'")
    """
    return "NaN" if isinstance(given, float) and math.isnan(given) else repr(given)


def refuse(where: str, faults: Sequence[str]) -> PlanError:
    """Make one error of everything that is wrong.

    Args:
        where: what the message calls the place that it was written in.
        faults: at least one sentence.

    Returns:
        The error, for the caller to raise.

    Example:
        >>> print(refuse("the plan", ["a is missing", "b is 3"]))
        the plan has 2 faults:
        - a is missing
        - b is 3
    """
    if len(faults) == 1:
        return PlanError(f"{where}: {faults[0]}")
    return PlanError("\n- ".join([f"{where} has {len(faults)} faults:", *faults]))


def raise_all(errors: Sequence[EvenkeelError], where: str) -> None:
    """Raise the only error as it is, or one that tells of several; nothing where there is none.

    Args:
        errors: what was caught.
        where: what the message calls the place.

    Raises:
        EvenkeelError: if there is any.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise refuse(where, [str(error) for error in errors])
