"""What a table of telemetry holds: one row for each component and recorded step."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

__all__ = ["TELEMETRY", "of_today", "one_table"]

_WORD = pa.dictionary(pa.int32(), pa.string())

TELEMETRY = pa.schema(  # docs/measures.md says what each column means
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("phase", pa.int16(), nullable=False),
        pa.field("component", _WORD, nullable=False),
        pa.field("layer", pa.int16()),
        pa.field("role", _WORD),
        pa.field("kind", _WORD),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("norm", pa.float32()),
        pa.field("coefficient", pa.float32()),
        pa.field("update_coefficient", pa.float32()),
        pa.field("weight_norm", pa.float32()),
        pa.field("update_norm", pa.float32()),
        pa.field("rms_change", pa.float32()),
        pa.field("cosine_distance", pa.float32()),
        pa.field("phase_rms_change", pa.float32()),
        pa.field("phase_cosine_distance", pa.float32()),
    ]
)


def of_today(table: pa.Table) -> pa.Table:
    """Give a table that an earlier version recorded the columns that have come since, null throughout.

    Args:
        table: rows of ``TELEMETRY`` as it was.

    Returns:
        The same rows; the same table where nothing is lacking.
    """
    if table.schema.names == TELEMETRY.names:
        return table
    return pa.concat_tables([TELEMETRY.empty_table(), table], promote_options="default").select(TELEMETRY.names)


def one_table(tables: Iterable[pa.Table]) -> pa.Table:
    """Put the blocks of a run together; however they were cut, the table is the same.

    Args:
        tables: blocks of ``TELEMETRY``, in order.

    Returns:
        One table, each column in one piece.
    """
    return pa.concat_tables([TELEMETRY.empty_table(), *tables]).unify_dictionaries().combine_chunks()
