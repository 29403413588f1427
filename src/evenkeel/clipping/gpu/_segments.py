"""Norms and scaling of many tensors in a constant number of kernel launches: the tables, and who launches what."""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.gpu._boxes import COLUMNS, boxes
from evenkeel.clipping.gpu._pointers import PointerTable, StreamGate, capturing, upload
from evenkeel.errors import GradientError

__all__ = ["DTYPES", "Segments", "available"]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_BLOCK = 16384  # bytes that a program has in flight: 64 for each of its 256 threads
_WARPS = 8
_CHUNK = 65536  # entries of a box at most: its partial sum then costs nothing beside it, and few are idle at the end
_PROGRAMS = 4096  # where there is less to do, boxes are made smaller to give every multiprocessor some


def available(device: torch.device) -> bool:
    """Whether the kernels can run there: on a GPU with Triton, or on the CPU where Triton interprets.

    Args:
        device: the gradients' device.

    Returns:
        Whether :class:`Segments` can be used for tensors on it.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":  # it follows pointers on the CPU, whatever they point to
        return device.type == "cpu" and _has_triton()
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):  # Triton's oldest, and bfloat16's
        return False
    return _has_triton()


@final
class Segments:
    """Tensors in a fixed arrangement, which components own: made once, used in every step.

    Between steps only the tensors' addresses may change, see :meth:`fits`. Nothing here waits for the device, and all
    but making it can be captured in a CUDA graph (so run a step first, as PyTorch asks anyway). It must live as long as
    the graph.

    Args:
        tensors: dense, real, floating (float64, float32, bfloat16, float16), on one device where :func:`available`
            holds; views, but no entry may share memory with another.
        owners: for each tensor the index of its component.
        count: number of components, ``C``.
        chunk: entries that one program takes at most; None for what suits a GPU.

    Raises:
        GradientError: if a tensor is of another kind, tensors lie on several devices, or a graph is being captured.
    """

    def __init__(
        self, tensors: Sequence[Tensor], owners: Sequence[int], count: int, *, chunk: int | None = None
    ) -> None:
        self._device = _check(tensors)
        self._count = count
        self._arrangement = [_kind(tensor) for tensor in tensors]
        self._wide = any(tensor.dtype == torch.float64 for tensor in tensors)
        table = _table(tensors, owners, chunk or _chunk(sum(tensor.numel() for tensor in tensors)))
        self._slots = len(table)
        held = torch.bincount(table[:, COLUMNS.index("component")], minlength=count)
        self._block = min(4096, max(256, 1 << int(held.max()).bit_length())) if count else 256
        ends = held.cumsum(0)
        with _on(self._device):
            self._firsts = upload(torch.cat([ends.new_zeros(1), ends]), self._device)
            self._nobody = upload(torch.zeros(count, dtype=torch.uint8, device="cpu"), self._device)
            self._launches = _by_dtype(tensors, table, self._device)
            self._starts = PointerTable(len(tensors), self._device)
            self._gate = StreamGate(self._device, self._firsts, self._nobody, *(one.boxes for one in self._launches))

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether ``tensors`` are arranged as those that this was made for: shapes, strides, dtypes and device.

        Args:
            tensors: the gradients of another step.

        Returns:
            Whether the other methods can take them.
        """
        return [_kind(tensor) for tensor in tensors] == self._arrangement

    def norms(self, tensors: Sequence[Tensor], norm_type: float) -> Tensor:
        r"""Return every component's norm, :math:`(\sum_{g \in c} \lVert g \rVert_p^p)^{1/p}`; the largest for infinity.

        Sums are accumulated in float32 (float64 for float64 tensors and for any p but 1, 2 and infinity), those of
        boxes joined in float64, always in the same order.

        Args:
            tensors: the gradients of this step, which must fit.
            norm_type: the order ``p``; positive, may be ``inf``. Each is compiled once.

        Returns:
            Norms, shape ``[C]``, float32 (float64 where a tensor is float64); 0 where a component owns nothing.
        """
        order = float(norm_type)
        with _on(self._device):
            norms = torch.empty(self._count, dtype=torch.float64 if self._wide else torch.float32, device=self._device)
            partials = torch.empty(self._slots, dtype=torch.float64, device=self._device)
            self._gate.enter()
            starts = self._starts.of(tensors)
            for launch in self._launches:
                wide = launch.dtype == torch.float64 or order not in (1.0, 2.0, math.inf)
                launch.run("partial_sums", starts, partials, order=order, wide=wide)
            if self._count:
                _run("component_norms", self._count, partials, self._firsts, norms, order=order, block=self._block)
        return norms

    def scale_(self, tensors: Sequence[Tensor], coefficients: Tensor, silenced: Tensor | None = None) -> None:
        """Multiply every tensor by its component's coefficient, in place; once, in float32 or float64, then rounded.

        Args:
            tensors: the gradients of this step, which must fit.
            coefficients: shape ``[C]``, float32 or float64, on the same device; where one is exactly 1, entries are
                neither read nor written.
            silenced: booleans of shape ``[C]``: whose entries become exact zeros, whatever they are; None for no one's.
        """
        factors = coefficients.contiguous()
        off = self._nobody if silenced is None else silenced.contiguous().view(torch.uint8)
        with _on(self._device):
            self._gate.enter()
            starts = self._starts.of(tensors)
            for launch in self._launches:
                launch.run("scale_boxes", starts, factors, off, wide=launch.dtype == torch.float64)
        torch.autograd.graph.increment_version(tensors)  # as PyTorch's own operations in place do


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """The boxes of all tensors of one dtype, shape ``[programs, len(COLUMNS)]``."""

    dtype: torch.dtype
    boxes: Tensor

    def run(self, kernel: str, *tables: Tensor, wide: bool, **constants: object) -> None:
        types = _kernels()["ELEMENTS"]
        _run(
            kernel,
            len(self.boxes),
            self.boxes,
            *tables,
            element=types[self.dtype],
            accumulator=types[torch.float64 if wide else torch.float32],
            block=2048 if wide else _BLOCK // self.dtype.itemsize,
            width=len(COLUMNS),
            **constants,
        )


def _run(kernel: str, programs: int, *tables: Tensor, **constants: object) -> None:
    """Launch a kernel; the only place that does."""
    # Fused multiply-add is asked for by name, because Triton warns where it is left to a default.
    _kernels()[kernel][(programs,)](*tables, **constants, num_warps=_WARPS, enable_fp_fusion=True)


@functools.cache
def _kernels() -> dict[str, Any]:
    return vars(importlib.import_module("evenkeel.clipping.gpu._kernels"))


@functools.cache
def _has_triton() -> bool:
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make it the current device, whose current stream is worked on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _check(tensors: Sequence[Tensor]) -> torch.device:
    """Refuse what the kernels would misread, and return the one device."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise GradientError(
            f"{len(tensors)} tensors on {len(devices)} devices were given to the multi-tensor kernels, which need at "
            "least one tensor and run on one device; group gradients by device and give each group its own Segments"
        )
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES:
            raise GradientError(
                f"the multi-tensor kernels were given a tensor of dtype {tensor.dtype} and layout {tensor.layout}, but "
                "read dense float64, float32, bfloat16 and float16; pass its values, or their real and imaginary parts"
            )
    (device,) = devices
    with _on(device):
        captured = capturing(device)
    if captured:
        raise GradientError(
            "the tables of the multi-tensor kernels cannot be made while a CUDA graph is being captured; run one step "
            "with gradients of the same shapes before the capture"
        )
    return device


def _chunk(entries: int) -> int:
    """Return how many entries a program takes, a power of 2."""
    return min(_CHUNK, max(4096, 1 << (max(1, entries // _PROGRAMS) - 1).bit_length()))


def _table(tensors: Sequence[Tensor], owners: Sequence[int], chunk: int) -> Tensor:
    """Cut all tensors into boxes, shape ``[boxes, len(COLUMNS)]``; slots lie behind one another for each component."""
    rows = torch.cat(
        [
            boxes(tensor.shape, tensor.stride(), chunk=chunk, tensor=index, component=owner)
            for index, (tensor, owner) in enumerate(zip(tensors, owners, strict=True))
        ]
    )
    order = torch.argsort(rows[:, COLUMNS.index("component")], stable=True)
    rows[order, COLUMNS.index("slot")] = torch.arange(len(rows), device="cpu")
    return rows


def _by_dtype(tensors: Sequence[Tensor], table: Tensor, device: torch.device) -> list[_Launch]:
    kinds = list(dict.fromkeys(tensor.dtype for tensor in tensors))
    kind_of = torch.tensor([kinds.index(tensor.dtype) for tensor in tensors], device="cpu")
    chosen = [(dtype, table[kind_of[table[:, 0]] == kind]) for kind, dtype in enumerate(kinds)]
    return [_Launch(dtype=dtype, boxes=upload(rows, device)) for dtype, rows in chosen if len(rows)]
