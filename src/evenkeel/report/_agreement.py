"""How often two runs of a method predict different labels for the same example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute

from evenkeel.report._figure_data import tables_of
from evenkeel.report._results import Cell
from evenkeel.report._words import percent
from evenkeel.stats import disagreement
from evenkeel.study import StudyFolder

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The share of validation examples on which two runs disagree, on average.

    Attributes:
        method: the method.
        every: among all runs with predictions, in per cent; a dash where there are fewer than two.
        successful: among the runs that did not fail.
    """

    method: str
    every: str
    successful: str


def agreement(cell: Cell, folder: StudyFolder) -> Agreement | None:
    """Compare the predictions of a cell's runs.

    Args:
        cell: the runs.
        folder: where their tables are.

    Returns:
        The shares; None for numbers, which never agree, where runs were validated on different examples, and where no
        two runs left predictions.
    """
    found = [(run, _predicted(table)) for run, table in tables_of(cell, folder, "predictions")]
    split = {run.spec.split_seed for run, _ in found}
    sizes = {len(labels) for _, labels in found}
    if len(found) < 2 or len(split) > 1 or len(sizes) > 1 or any(labels.dtype.kind == "f" for _, labels in found):
        return None
    kept = [labels for run, labels in found if not run.outcome["failed"]]
    return Agreement(method=cell.method, every=_said([labels for _, labels in found]), successful=_said(kept))


def _predicted(table: pa.Table) -> np.ndarray:
    ours = table.filter(pa.compute.equal(table["part"], "validation")).sort_by("example")
    return np.asarray(ours["prediction"].to_numpy(zero_copy_only=False))


def _said(predictions: Sequence[np.ndarray]) -> str:
    share = disagreement(np.stack(predictions)) if len(predictions) > 1 else math.nan
    return "-" if math.isnan(share) else percent(share)
