"""Where blocks of telemetry go: into memory, or block by block into one Parquet file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

import pyarrow as pa

from evenkeel.errors import MeasureError
from evenkeel.measure._schema import TELEMETRY, one_table

__all__ = ["Sink"]


@final
class Sink:
    """Takes the blocks of one run.

    A file is written beside its place and put there when it is closed: what lies in its place is whole. A run that was
    killed leaves ``<name>.writing``, which nobody can read, and no file in its place.

    Attributes:
        path: the file; None for memory.
    """

    def __init__(self, path: Path | None) -> None:
        """Begin with nothing; the file is made with the first block."""
        self.path = path
        self._blocks: list[pa.Table] = []
        self._writer: Any = None
        self._closed = False

    def add(self, block: pa.Table) -> None:
        """Take a block of ``TELEMETRY``.

        Args:
            block: the next rows.

        Raises:
            MeasureError: if the file was closed, or cannot be written.
        """
        if self.path is None:
            self._blocks.append(block)
            return
        if self._closed:
            raise MeasureError(
                f"'{self.path}' was closed and cannot take more rows; ask for the table when the training is over, or "
                "record into memory (path=None)"
            )
        self._write(self.path, block)

    def table(self) -> pa.Table:
        """Return all blocks as one table; a file is closed first."""
        if self.path is None:
            table = one_table(self._blocks)
            self._blocks = [table]
            return table
        self.close()
        import pyarrow.parquet

        return one_table([pyarrow.parquet.read_table(self.path, partitioning=None)])

    def close(self) -> None:
        """Put a file in its place, once; memory stays as it is."""
        if self.path is None or self._closed:
            return
        self._write(self.path, None)
        self._closed = True

    def _write(self, path: Path, block: pa.Table | None) -> None:
        """Write a block, or what ends the file."""
        beside = path.with_name(f"{path.name}.writing")
        try:
            if self._writer is None:
                import pyarrow.parquet

                path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pyarrow.parquet.ParquetWriter(beside, TELEMETRY, compression="zstd")
            if block is not None:
                self._writer.write_table(block)
                return
            self._writer.close()
            os.replace(beside, path)
        except OSError as error:
            raise MeasureError(
                f"telemetry cannot be written to '{path}' ({error.strerror or error}); give another path, or none to "
                "keep it in memory"
            ) from error
