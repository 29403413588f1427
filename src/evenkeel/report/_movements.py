"""How the weights of a study's runs moved, kept so that a packed study can still be judged when it goes on."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from evenkeel.errors import StoreError
from evenkeel.report._figure_data import tables_of
from evenkeel.report._movement import Movement
from evenkeel.report._results import Cell
from evenkeel.study import RunRecord, StudyFolder

__all__ = ["Movements"]

_SCALARS = ("layers_in_order", "layer_change", "moved_again")
_SCHEMA = pa.schema(
    {
        "run": pa.string(),
        "components": pa.list_(pa.string()),
        "half_times": pa.list_(pa.float64()),
        **dict.fromkeys(_SCALARS, pa.float64()),
    }
)


class Movements:
    """Movements by run: from a run's telemetry, or, where a packed study left that behind, as a report once had it."""

    def __init__(self, folder: StudyFolder) -> None:
        """Look into a study's folder.

        Args:
            folder: where the tables are.

        Raises:
            StoreError: if what an earlier report kept is no such table.
        """
        self._folder = folder
        self._known = _read(folder.movements) if os.path.lexists(folder.movements) else {}

    def of(self, cell: Cell) -> list[tuple[RunRecord, Movement]]:
        """Return the movement of each finished run that is known of."""
        self._known |= {run.id: Movement.of(table) for run, table in tables_of(cell, self._folder, "telemetry")}
        return [(run, self._known[run.id]) for run in cell.finished if run.id in self._known]

    def as_parquet(self) -> bytes:
        """Return all that were asked for, now or by an earlier report, as a file."""
        rows = [
            {
                "run": run,
                "components": list(one.half_times),
                "half_times": list(one.half_times.values()),
                **{name: getattr(one, name) for name in _SCALARS},
            }
            for run, one in self._known.items()
        ]
        written = io.BytesIO()
        pa.parquet.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), written, compression="zstd")
        return written.getvalue()


def _read(path: Path) -> dict[str, Movement]:
    try:
        if path.is_symlink():
            raise ValueError("it is a link")
        table = pa.parquet.read_table(path, partitioning=None)
        if not table.schema.equals(_SCHEMA):
            raise ValueError("its columns are others")
        return {
            row["run"]: Movement(
                half_times=dict(zip(row["components"], row["half_times"], strict=True)),
                **{name: row[name] for name in _SCALARS},
            )
            for row in table.to_pylist()
        }
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        raise StoreError(
            f"'{path}' is not what a report wrote there ({error}); remove it: a study with telemetry loses "
            "nothing by it, and of runs that were packed some claims can then not be told"
        ) from error
