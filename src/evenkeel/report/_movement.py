"""How the weights of single runs moved, in the few numbers that claims about components are judged by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from scipy import stats

from evenkeel.measure import Recorded, half_time
from evenkeel.report._figure_data import Floats

__all__ = ["half_times", "layer_change", "layers_in_order", "moved_again"]


def half_times(tables: list[pa.Table]) -> Floats:
    """Return the half times of the components that every run has one of.

    Args:
        tables: the telemetry of ``R`` runs of one model.

    Returns:
        Half times as shares of the training, shape ``[R, C]``.
    """
    runs = [_half_times(Recorded.of(table)) for table in tables]
    shared = [path for path in runs[0] if all(path in run for run in runs)] if runs else []
    return np.array([[run[path] for path in shared] for run in runs]).reshape(len(runs), len(shared))


def layers_in_order(table: pa.Table) -> float:
    """Return the rank correlation of the half times of a run's components with their layers.

    Args:
        table: its telemetry.

    Returns:
        Spearman's coefficient; below 0 where upper layers converge first. NaN where there are no layers to compare.
    """
    found = Recorded.of(table)
    times = _half_times(found)
    layers = {path: layer for path, layer in zip(found.components, found.layers, strict=True) if layer is not None}
    both = [path for path in layers if path in times]
    if len({layers[path] for path in both}) < 2 or len({times[path] for path in both}) < 2:
        return float("nan")
    return float(stats.spearmanr([layers[path] for path in both], [times[path] for path in both]).statistic)


def layer_change(table: pa.Table) -> float:
    """Return log10 of the change of a run's layers since before fine-tuning.

    A layer's change is the largest root mean square change of its components, as Yang & Ma 2022 take it.

    Args:
        table: its telemetry.

    Returns:
        The mean over layers; NaN where none moved.
    """
    found = Recorded.of(table)
    return _log_mean(_largest_of_layers(found, found.column("rms_change")[-1]))


def moved_again(table: pa.Table) -> float:
    """Return how far the layer that is released first moves in the last phase, against its first phase.

    Args:
        table: the telemetry of a run that trains in phases, top-down.

    Returns:
        log10 of the ratio of its root mean square changes within the two phases; NaN where there is one phase, or it
        stood still in one of them.
    """
    phases = table["phase"].fill_null(0).to_numpy()
    top = max((layer for layer in Recorded.of(table).layers if layer is not None), default=None)
    if top is None or phases.max() == phases.min():
        return float("nan")
    ends = [
        _log_mean(_of_phase(table.filter(pa.array(phases == phase)), top)) for phase in (phases.min(), phases.max())
    ]
    return ends[1] - ends[0]


def _of_phase(table: pa.Table, layer: int) -> list[float]:
    found = Recorded.of(table)
    return _largest_of_layers(found, found.column("phase_rms_change")[-1], only=layer)


def _half_times(found: Recorded) -> dict[str, float]:
    times = found.steps / found.steps.max()
    columns = zip(found.components, found.column("rms_change").T, strict=True)
    halves = {path: half_time(times, column) for path, column in columns}
    return {path: time for path, time in halves.items() if np.isfinite(time)}


def _largest_of_layers(found: Recorded, changes: Floats, only: int | None = None) -> list[float]:
    layers = sorted({layer for layer in found.layers if layer is not None and only in (None, layer)})
    of_layer = [changes[[own == layer for own in found.layers]] for layer in layers]
    return [float(np.nanmax(values)) for values in of_layer if np.isfinite(values).any()]


def _log_mean(changes: list[float]) -> float:
    moved = [change for change in changes if change > 0 and np.isfinite(change)]
    return float(np.log10(moved).mean()) if moved else float("nan")
