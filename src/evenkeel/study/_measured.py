"""What the curves of a run say of it, in a few numbers for its record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa

from evenkeel.measure import (
    Recorded,
    Vanishing,
    loss_area,
    nonfinite,
    racing,
    spikes,
    steps_to,
    time_to,
    vanishing,
)

__all__ = ["measured"]

_TAIL = 0.1  # share of the logged losses whose mean counts as the final loss: a single one is noise


def measured(telemetry: pa.Table, log: pa.Table, *, steps: int) -> dict[str, Any]:
    """Measure how a run trained; ``docs/measures.md`` says what each number means.

    Args:
        telemetry: its telemetry.
        log: its log, with ``step`` and ``loss``.
        steps: optimizer steps that it was to have.

    Returns:
        Plain JSON values: ``health`` (``nonfinite_steps``, ``vanishing``, ``vanished_layers``, ``spikes``), ``racing``
        (``components``, and for the half time and the time to 90 % median and spread, by size and not) and
        ``convergence`` (``loss_area``, ``half_loss_drop``, ``most_loss_drop``); None where something cannot be told.
    """
    found = Recorded.of(telemetry)
    moments, losses = log["step"].to_numpy(), log["loss"].to_numpy()
    found_vanishing = vanishing(found.layer_norms(), found.role_norms("head"))
    return {
        "health": _health(found, moments, losses, found_vanishing),
        "racing": _racing(found, steps),
        "convergence": _convergence(moments, losses),
    }


def _health(found: Recorded, moments: Any, losses: Any, gradients: Vanishing) -> dict[str, Any]:
    bad = nonfinite(found.column("norm", absent=0.0))
    return {
        "nonfinite_steps": len({*found.steps[bad].tolist(), *moments[nonfinite(losses)].tolist()}),
        "vanishing": gradients.vanished,
        "vanished_layers": _plain(gradients.share),
        "spikes": int(spikes(losses).sum()),
    }


def _racing(found: Recorded, steps: int) -> dict[str, Any]:
    changes, times = found.column("rms_change"), found.steps / max(1, steps)
    result: dict[str, Any] = {}
    for name, share in (("half_time", 0.5), ("time_to_90", 0.9)):
        race = racing([time_to(times, column, share) for column in changes.T], found.sizes)
        result["components"] = race.components
        result[f"{name}_median"], result[f"{name}_spread"] = _plain(race.median), _plain(race.spread)
        result[f"{name}_median_by_size"] = _plain(race.median_by_size)
        result[f"{name}_spread_by_size"] = _plain(race.spread_by_size)
    return result


def _convergence(moments: Any, losses: Any) -> dict[str, Any]:
    finite = losses[np.isfinite(losses)]
    final = float(finite[-max(1, math.ceil(_TAIL * len(finite))) :].mean()) if len(finite) else math.nan
    fell = len(finite) > 0 and final < finite[0]
    return {
        "loss_area": _plain(loss_area(moments, losses)),
        "half_loss_drop": _plain(steps_to(moments, losses, 0.5, final=final)) if fell else None,
        "most_loss_drop": _plain(steps_to(moments, losses, 0.9, final=final)) if fell else None,
    }


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
