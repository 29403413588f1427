"""Tables of studies that older versions of evenkeel made, as this version knows them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute

from evenkeel.measure import TELEMETRY

__all__ = ["OLDER_TELEMETRY", "as_telemetry"]

OLDER_TELEMETRY = "norms.parquet"  # gradient norms alone, with steps counted from 0
_ALWAYS = ("step", "component", "layer", "role", "kind", "norm")


def as_telemetry(table: pa.Table, *, first: int = 1) -> pa.Table:
    """Return a table of telemetry, or of gradient norms, with the columns of ``TELEMETRY``.

    Args:
        table: the table.
        first: the number of its first step.

    Returns:
        Those columns and no others; what the table lacks is null throughout.

    Raises:
        KeyError: if it lacks one that even the oldest tables have.
        pyarrow.ArrowException: if one is of another kind.
    """
    lacking = [name for name in _ALWAYS if name not in table.column_names]
    if lacking:
        raise KeyError(f"it has no column {lacking[0]}")
    columns = [_cast(table, field) for field in TELEMETRY]
    if first != 1:
        columns[0] = pa.compute.add(columns[0], pa.scalar(1 - first, TELEMETRY[0].type))
    return pa.Table.from_arrays(columns, names=TELEMETRY.names)


def _cast(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, field.type)])
    column = table[field.name]
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
        return column.cast(pa.string()).dictionary_encode()
    return column.cast(field.type)
