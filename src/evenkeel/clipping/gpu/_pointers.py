"""Tables that kernels read, brought to the device without waiting; and the one that changes: where tensors begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from evenkeel.errors import GradientError

__all__ = ["PointerTable", "StreamGate", "capturing", "upload"]

_SPARE = 16  # tables that can be made during captures before the next call outside of one


def capturing(device: torch.device) -> bool:
    """Whether the current stream is recorded into a CUDA graph.

    Args:
        device: where it would run.

    Returns:
        True during a capture; False on a CPU.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def upload(table: Tensor, device: torch.device) -> Tensor:
    """Copy a table to the device, behind what the current stream does; the host goes on at once.

    Args:
        table: on the CPU.
        device: where it is read.

    Returns:
        The copy; a table on the CPU stays what it is.
    """
    table = table.contiguous()
    if device.type == "cpu":
        return table
    # Pinned memory is not given to anybody else before the copy has read it: PyTorch's allocator sees to that.
    return table.pin_memory().to(device, non_blocking=True)


@final
class StreamGate:
    """Lets other streams than the one that copied tables wait, on the device, until these are there.

    Args:
        device: where the tables are.
        *tables: what was copied by :func:`upload` on the current stream.
    """

    def __init__(self, device: torch.device, *tables: Tensor) -> None:
        self._device = device
        self._tables = tables
        if device.type == "cuda":
            self._stream = torch.cuda.current_stream(device)
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record(self._stream)

    def enter(self) -> None:
        """Call it before work that reads the tables is put on the current stream."""
        if self._device.type != "cuda" or capturing(self._device):  # torch.cuda.graph waits for all streams beforehand
            return
        stream = torch.cuda.current_stream(self._device)
        if stream != self._stream:
            stream.wait_event(self._done)
            for table in self._tables:
                table.record_stream(stream)


@final
class PointerTable:
    """Where tensors begin, shape ``[T]``, int64. It is copied to the device only where something moved.

    A graph repeats a copy at each replay, out of the same host memory. So what a capture used is written never again,
    and lives as long as this object. Pinned memory cannot be had during a capture; it lies ready.

    Args:
        length: number of tensors, ``T``.
        device: where they are.
    """

    def __init__(self, length: int, device: torch.device) -> None:
        self._shape = (_SPARE, length)
        self._device = device
        self._known: tuple[list[int], object] | None = None
        self._table = torch.empty(0, dtype=torch.int64, device=device)
        self._used: list[tuple[Tensor, Tensor]] = []
        self._spare: list[tuple[Tensor, Tensor]] = []
        self._prepare()

    def of(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the table for ``tensors``.

        Args:
            tensors: ``T`` tensors on the device.

        Returns:
            Their addresses, int64, shape ``[T]``, on the device, for work on the current stream.

        Raises:
            GradientError: if more tables were made during captures than lay ready.
        """
        addresses = [tensor.data_ptr() for tensor in tensors]
        if capturing(self._device):
            return self._captured(addresses)
        self._prepare()
        # A table is ready for those who come later on its own stream; another stream gets its own.
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        if self._known != (addresses, stream):
            self._table = upload(torch.tensor(addresses, dtype=torch.int64, device="cpu"), self._device)
            self._known = addresses, stream
        return self._table

    def _captured(self, addresses: list[int]) -> Tensor:
        if not self._spare:
            raise GradientError(
                f"more than {_SPARE} calls were captured in CUDA graphs without one outside of a capture between them; "
                "run a step outside of a capture before the next one"
            )
        host, table = pair = self._spare.pop()
        self._used.append(pair)
        host.copy_(torch.tensor(addresses, dtype=torch.int64, device="cpu"))
        return table.copy_(host, non_blocking=True)

    def _prepare(self) -> None:
        if self._device.type == "cuda" and len(self._spare) < _SPARE // 2:
            host = torch.empty(self._shape, dtype=torch.int64, device="cpu", pin_memory=True)
            self._spare = list(zip(host, torch.empty(self._shape, dtype=torch.int64, device=self._device), strict=True))
