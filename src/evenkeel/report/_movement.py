"""How the weights of single runs moved, in the few numbers that claims about components are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import stats

from evenkeel.measure import Recorded, half_time
from evenkeel.report._figure_data import Floats

__all__ = ["Movement", "half_times"]


@dataclass(frozen=True, kw_only=True)
class Movement:
    """How the weights of a run moved.

    Attributes:
        half_times: the half times of its components as shares of the training, without those that never moved.
        layers_in_order: Spearman's rank correlation of half times with layers, below 0 where upper layers converge
            first; NaN where there are no layers to compare.
        layer_change: log10 of the change of its layers since before fine-tuning, the mean over layers; NaN where none
            moved. A layer's is the largest root mean square change of its components, as Yang & Ma 2022 take it.
        moved_again: log10 of how far the top layer, which is released first, moves within the last phase, as a ratio to
            its first; NaN where there is one phase, or it stood still in one of them.
    """

    half_times: dict[str, float]
    layers_in_order: float
    layer_change: float
    moved_again: float

    @classmethod
    def of(cls, table: pa.Table) -> Movement:
        """Read a run's telemetry."""
        found = Recorded.of(table)
        times = _half_times(found)
        return cls(
            half_times=times,
            layers_in_order=_in_order(found, times),
            layer_change=_log_mean(_largest_of_layers(found, found.column("rms_change")[-1])),
            moved_again=_moved_again(found),
        )


def half_times(runs: Sequence[Movement]) -> Floats:
    """Return the half times of the components that every run has one of.

    Args:
        runs: ``R`` runs of one model.

    Returns:
        Half times as shares of the training, shape ``[R, C]``.
    """
    times = [run.half_times for run in runs]
    shared = [path for path in times[0] if all(path in run for run in times)] if times else []
    return np.array([[run[path] for path in shared] for run in times]).reshape(len(times), len(shared))


def _half_times(found: Recorded) -> dict[str, float]:
    times = found.steps / found.steps.max()
    columns = zip(found.components, found.column("rms_change").T, strict=True)
    halves = {path: half_time(times, column) for path, column in columns}
    return {path: time for path, time in halves.items() if np.isfinite(time)}


def _in_order(found: Recorded, times: dict[str, float]) -> float:
    layers = {path: layer for path, layer in zip(found.components, found.layers, strict=True) if layer is not None}
    both = [path for path in layers if path in times]
    if len({layers[path] for path in both}) < 2 or len({times[path] for path in both}) < 2:
        return float("nan")
    return float(stats.spearmanr([layers[path] for path in both], [times[path] for path in both]).statistic)


def _moved_again(found: Recorded) -> float:
    top = max((layer for layer in found.layers if layer is not None), default=None)
    phases = found.table["phase"].fill_null(0).to_numpy()
    if top is None or phases.max() == phases.min():
        return float("nan")
    changes, steps = found.column("phase_rms_change"), found.table["step"].to_numpy()
    ends = [int(steps[phases == phase].max()) for phase in (phases.min(), phases.max())]
    first, last = (
        _log_mean(_largest_of_layers(found, changes[np.searchsorted(found.steps, end)], only=top)) for end in ends
    )
    return last - first


def _largest_of_layers(found: Recorded, changes: Floats, only: int | None = None) -> list[float]:
    layers = sorted({layer for layer in found.layers if layer is not None and only in (None, layer)})
    of_layer = [changes[[own == layer for own in found.layers]] for layer in layers]
    return [float(np.nanmax(values)) for values in of_layer if np.isfinite(values).any()]


def _log_mean(changes: list[float]) -> float:
    moved = [change for change in changes if change > 0 and np.isfinite(change)]
    return float(np.log10(moved).mean()) if moved else float("nan")
