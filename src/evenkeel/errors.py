"""Every exception that evenkeel raises on purpose.

One hierarchy, so that ``except EvenkeelError`` catches what is the caller's to mend and nothing else. A message says
what was given, why it cannot be, and what to do. The command line prints it and exits with code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ComponentError",
    "DataError",
    "EngineError",
    "EvenkeelError",
    "GradientError",
    "MeasureError",
    "MethodError",
    "MissingExtraError",
    "ModelError",
    "OptimizerError",
    "PlanError",
    "ReportError",
    "StoreError",
    "ThresholdError",
    "unknown_name",
]


class EvenkeelError(Exception):
    """Base of all errors that evenkeel raises on purpose."""


class ComponentError(EvenkeelError, ValueError):
    """A model, or a selection of its components, from which no partition can be made."""


class ThresholdError(EvenkeelError, ValueError):
    """A threshold that is no positive number, or that no component answers to."""


class GradientError(EvenkeelError, RuntimeError):
    """Gradients that cannot be clipped as asked: none at all, sharded, or not finite."""


class OptimizerError(EvenkeelError, ValueError):
    """An optimizer that cannot be made, or used, as asked."""


class MeasureError(EvenkeelError, ValueError):
    """A measurement that cannot be taken as asked."""


class MethodError(EvenkeelError, ValueError):
    """An unknown fine-tuning method, a bad option of one, or a mix that cannot be."""


class DataError(EvenkeelError, ValueError):
    """An unknown task, or data that cannot be read, split or labelled."""


class ModelError(EvenkeelError, ValueError):
    """A model that cannot be found, loaded or used for the task."""


class PlanError(EvenkeelError, ValueError):
    """A study whose plan contradicts itself or holds a value that cannot be."""


class EngineError(EvenkeelError, RuntimeError):
    """A place to execute runs that cannot be reached, has no room for a run, or starts no process."""


class StoreError(EvenkeelError, RuntimeError):
    """A study folder that cannot be written, or that holds something else."""


class ReportError(EvenkeelError, RuntimeError):
    """A report that cannot be made from what there is."""


class MissingExtraError(EvenkeelError, ImportError):
    """An optional dependency that is not installed; the message names the extra."""


def unknown_name(what: str, given: str, known: Iterable[str]) -> str:
    """Say that ``given`` is no known ``what``, offer the nearest name and list them all.

    Args:
        what: the kind of thing, in the singular: ``"method"``.
        given: the name that was not found.
        known: the names that there are.

    Returns:
        The message, for an exception of the caller's choice.

    Example:
        >>> unknown_name("method", "ful", ["full", "component-clip"])
        "unknown method 'ful': did you mean 'full'? Known: component-clip, full"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f": did you mean '{near[0]}'? " if near else "; "
    return f"unknown {what} '{given}'{hint}Known: {', '.join(names)}"
