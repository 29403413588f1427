"""What a Recorder keeps in a checkpoint, and takes up from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evenkeel.clipping import WeightCopies, copy_weights, weight_names
from evenkeel.errors import MeasureError
from evenkeel.measure import References, Telemetry
from evenkeel.partition import Components

__all__ = ["Kept", "keep", "kept_in"]

_TABLE, _TENSORS = "evenkeel_telemetry.parquet", "evenkeel_recorder.safetensors"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is known of a training before its checkpoint is loaded into the model.

    Attributes:
        initial: the weights that training began with.
        state: the references of the checkpoint; None where it has none.
        table: what was recorded before the checkpoint; None where it has nothing.
    """

    initial: WeightCopies
    state: Mapping[str, Tensor] | None
    table: pa.Table | None

    def references(self, parts: Components) -> References | None:
        """Return what drift was measured from, where the weights of ``parts`` now lie; None where they lie otherwise.

        A model that was sharded since then has other entries on this rank.
        """
        if self.state is None:
            return None
        views = [piece.of(piece.tensor().detach()) for part in parts for piece in part.pieces]
        there: dict[str, tuple[Tensor, ...]] = {}
        for name, here in zip(weight_names(parts), views, strict=True):
            copies = self.initial.get(name, ())
            if [copy.shape for copy in copies] != [view.shape for view in here]:
                return None
            there[name] = tuple(copy.to(view.device) for copy, view in zip(copies, here, strict=True))
        references = References(there)
        references.load_state_dict(self.state)
        return references


def keep(telemetry: Telemetry, checkpoint: Path, *, with_table: bool) -> None:
    """Write what was recorded so far, and what drift is measured from, into a checkpoint.

    Args:
        telemetry: what was recorded.
        checkpoint: the folder, which is there.
        with_table: whether the rows are in memory, and are to be written.
    """
    if with_table:
        beside = checkpoint / f"{_TABLE}.new"
        pyarrow.parquet.write_table(telemetry.table(), beside, compression="zstd")
        os.replace(beside, checkpoint / _TABLE)
    if telemetry.references is not None and not telemetry.references.spread:  # other ranks hold the rest of them
        beside = checkpoint / f"{_TENSORS}.new"
        save_file({name: tensor.contiguous() for name, tensor in telemetry.references.state_dict().items()}, beside)
        os.replace(beside, checkpoint / _TENSORS)


def kept_in(checkpoint: Path, parts: Components) -> Kept:
    """Read what :func:`keep` wrote.

    Args:
        checkpoint: the folder.
        parts: the components, with the weights that training began with.

    Returns:
        What is known; without files as without a recorder in the training before.

    Raises:
        MeasureError: if a file cannot be read.
    """
    table, tensors = checkpoint / _TABLE, checkpoint / _TENSORS
    try:
        return Kept(
            initial=copy_weights(parts),
            state=load_file(tensors) if tensors.is_file() else None,
            table=pyarrow.parquet.read_table(table, partitioning=None) if table.is_file() else None,
        )
    except (pa.ArrowException, OSError, SafetensorError) as error:
        raise MeasureError(
            f"what a Recorder kept in '{checkpoint}' cannot be read ({error}); resume from another checkpoint, or "
            "leave the Recorder out"
        ) from error
