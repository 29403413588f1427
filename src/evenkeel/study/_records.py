"""What a store's records must be, whoever wrote the store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evenkeel.errors import StoreError
from evenkeel.study._plan import Plan, RunSpec

__all__ = ["RunRecord", "Status", "check_records", "is_plain", "plain_plan", "read_record"]

Status = Literal["queued", "running", "done", "failed", "diverged", "error", "lost"]

_WITH_RESULT = ("done", "failed", "diverged")
_MOVES = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # and what turns the direction of writing
_ID = re.compile(r"[0-9a-f]{16}")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what moves a terminal's cursor or colours its text


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What the store knows of a run.

    Attributes:
        id: hash of the specification.
        spec: the specification.
        status: ``done``, ``failed`` (no better than chance) and ``diverged`` are results; ``error`` (it raised) and
            ``lost`` (its process died, again and again) are tried again by the next start.
        attempts: how often it was started; what it stands for counts, too.
        outcome: scores, failure by both lines, times, memory, provenance; empty before the run ended.
        error: the traceback, where it raised; how its process ended, where it was lost.
        stands_for: id of the planned run whose place it took, because that one ran out of memory; None where it is
            the planned one.
    """

    id: str
    spec: RunSpec
    status: Status
    attempts: int
    outcome: Mapping[str, Any]
    error: str | None
    stands_for: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run has a result and is not to be run again."""
        return self.status in _WITH_RESULT


def read_record(
    run: str,
    spec: str,
    status: str,
    attempts: int,
    outcome: str | None,
    error: str | None,
    stands_for: str | None = None,
) -> RunRecord:
    """Make a record of a store's row.

    Args:
        run: the id.
        spec: the specification, as JSON.
        status: the status.
        attempts: how often it was started.
        outcome: the outcome, as JSON.
        error: the traceback.
        stands_for: the id of the run whose place it took.

    Returns:
        The record.

    Raises:
        ValueError: if a value is not what it must be, or the id is not that of the specification.
    """
    found = RunSpec.model_validate_json(spec)
    if found.id != run:  # which names a folder too
        raise ValueError("its id is not that of its specification")
    if status not in get_args(Status) or not isinstance(attempts, int) or attempts < 0:
        raise ValueError(f"a run cannot be {status!r} after {attempts!r} attempts")
    names = (found.task, found.metric, found.model, found.method)
    if not all(is_plain(name) for name in names):
        raise ValueError("a name in it holds control characters")
    if stands_for is not None and not (isinstance(stands_for, str) and _ID.fullmatch(stands_for)):
        raise ValueError("what it stands for is no id of a run")
    content = json.loads(outcome) if outcome else {}
    if not isinstance(content, dict):
        raise ValueError("its outcome is no mapping")
    said = None if error is None else _CONTROL.sub("?", str(error))
    return RunRecord(
        id=run,
        spec=found,
        status=status,  # type: ignore[arg-type]
        attempts=attempts,
        outcome=content,
        error=said,
        stands_for=stands_for,
    )


def plain_plan(text: str) -> Plan:
    """Read a stored plan.

    Args:
        text: the plan, as JSON.

    Returns:
        The plan.

    Raises:
        ValueError: if it is none, or a name in it cannot be shown.
    """
    plan = Plan.stored(text)
    names = (*(task.name for task in plan.tasks), *plan.models, *plan.methods)
    if not all(is_plain(name) for name in names):
        raise ValueError("a name in it holds control characters")
    return plan


def is_plain(text: str) -> bool:
    """Whether a text can be shown on a terminal: it moves nothing and hides nothing."""
    return not _MOVES.search(text)


Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", max_length=1000)]


class _MadeWith(BaseModel):
    model_config = ConfigDict(extra="allow")

    versions: dict[Text, Text]
    python: Text
    device: Text
    threads: int


class _Outcome(BaseModel):
    """What reports read of an outcome."""

    model_config = ConfigDict(extra="allow")

    metric: Text
    scores: dict[str, Finite | None]
    majority: dict[str, Finite | None]
    failed: bool
    failed_by_majority: bool
    constant: bool
    wall_seconds: Finite
    provenance: _MadeWith
    health: dict[Text, bool | Finite | None] = {}  # these three are in newer records alone
    racing: dict[Text, Finite | None] = {}
    convergence: dict[Text, Finite | None] = {}


def check_records(path: Path, runs: Iterable[RunRecord]) -> None:
    """See that every run with a result has what reports read.

    Args:
        path: the study's folder, for the message.
        runs: the runs.

    Raises:
        StoreError: if one has not: the folder was made by something else, or was damaged.
    """
    for run in runs:
        if not run.finished:
            continue
        try:
            outcome = _Outcome.model_validate(dict(run.outcome))
            complete = "validation" in outcome.majority and "validation" in outcome.scores
            scored = complete and (outcome.scores["validation"] is not None) == (run.status != "diverged")
            if not scored:
                raise ValueError("it has no score for the validation part that fits its status")
        except (ValidationError, ValueError, RecursionError) as error:
            raise StoreError(
                f"the record of run {run.id} in '{path}' is not what evenkeel writes ({_short(error)}); get the folder "
                "anew from whoever made it, or run the study again"
            ) from error


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
