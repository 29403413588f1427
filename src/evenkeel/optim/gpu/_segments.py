"""AdamW's update of many tensors in a constant number of kernel launches: the tables, and who launches what."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from evenkeel.clipping.gpu import COLUMNS, DTYPES, PointerTable, StreamGate, boxes, capturing, upload
from evenkeel.errors import OptimizerError

__all__ = ["AdamWSegments"]

_ROLES = 4  # parameter, gradient, first and second moment
_NUMBERS = 7
_BLOCK = 8192  # bytes of each of the four that a program has in flight: 32 for each of its 256 threads
_WARPS = 8
_CHUNK = 16384  # entries of a box at most: seven times their bytes are moved, and few programs idle at the end
_PROGRAMS = 4096  # where there is less to do, boxes are made smaller to give every multiprocessor some


@final
class AdamWSegments:
    r"""Parameters in a fixed arrangement, which components own, and their update by AdamW with clipping inside.

    .. math::

        g' = c\,g, \quad
        m \leftarrow m + (1 - \beta_1)(g' - m), \quad
        v \leftarrow \beta_2 v + (1 - \beta_2)\,g'^2, \quad
        p \leftarrow d\,p - s\,\frac{m}{\sqrt{v} / r + \epsilon}

    with the component's coefficient :math:`c`. Every entry is read once and rounded once, from float32 (float64 for
    float64) to its tensor's dtype; gradients are never written.

    Made once, used in every step, for all parameters that share learning rate, betas, epsilon, decay and step. Between
    steps only addresses may change, see :meth:`fits`. Nothing here waits for the device, and all but making it can be
    captured in a CUDA graph (so run a step first, as PyTorch asks anyway). It must live as long as the graph.

    Args:
        parameters: ``T`` dense, floating tensors (float64, float32, bfloat16, float16), on one device where
            ``evenkeel.clipping.gpu.available`` holds; views, where a component owns a part of a tensor, but no entry
            may share memory with another.
        owners: for each parameter the index of its component.
        count: number of components, ``C``.
        chunk: entries that one program takes at most; None for what suits a GPU.

    Raises:
        OptimizerError: if a parameter is of another kind, parameters lie on several devices, an owner is no component,
            or a graph is being captured.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.
    """

    def __init__(
        self, parameters: Sequence[Tensor], owners: Sequence[int], count: int, *, chunk: int | None = None
    ) -> None:
        self._device = _check(parameters, owners, count)
        self._count = count
        self._arrangement = [_kind(parameter) for parameter in parameters]
        entries = sum(parameter.numel() for parameter in parameters)
        with _on(self._device):
            self._nobody = upload(torch.zeros(count, dtype=torch.uint8, device="cpu"), self._device)
            self._finite = upload(torch.zeros(1, device="cpu", dtype=torch.float32), self._device)
            self._launches = _by_dtype(parameters, owners, chunk or _chunk(entries), self._device)
            self._starts = PointerTable(_ROLES * len(parameters), self._device)
            self._gate = StreamGate(self._device, self._nobody, self._finite, *(one.boxes for one in self._launches))

    def fits(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
    ) -> bool:
        """Whether all four are arranged as the parameters that this was made for: shapes, strides, dtypes, device.

        Args:
            parameters: the parameters of another step.
            gradients: their gradients.
            exp_avgs: their first moments.
            exp_avg_sqs: their second moments.

        Returns:
            Whether :meth:`step_` can take them.
        """
        roles = (parameters, gradients, exp_avgs, exp_avg_sqs)
        return all([_kind(tensor) for tensor in tensors] == self._arrangement for tensors in roles)

    def step_(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        *,
        numbers: Tensor,
        coefficients: Tensor,
        silenced: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        r"""Update parameters and moments in place; gradients are read. One launch for each dtype.

        The tensors must fit; the rest lies on the same device, and float32 tables may be float64 as well.

        Args:
            parameters: ``T`` tensors.
            gradients: their gradients.
            exp_avgs: their first moments, :math:`m`.
            exp_avg_sqs: their second moments, :math:`v`.
            numbers: float32, shape ``[7]``: :math:`d` (one less learning rate times decay), :math:`1 - \beta_1`,
                :math:`\beta_2`, :math:`1 - \beta_2`, :math:`s` (learning rate over :math:`1 - \beta_1^t`),
                :math:`r = \sqrt{1 - \beta_2^t}` and :math:`\epsilon`. As float32, :math:`d` is a multiple of 6e-8;
                where less is to be lost of a decay of 1e-6 per step, pass float64.
            coefficients: float32, shape ``[C]``: what the components' gradients are multiplied by, once.
            silenced: booleans of shape ``[C]``: whose gradients count as exact zeros, whatever they hold; None for
                no one's. Moments and decay still act.
            found_inf: floating, one entry: where it is not 0, nothing at all is written; None for 0.

        Raises:
            OptimizerError: if a table is of another shape, dtype or device.
        """
        off = self._nobody if silenced is None else silenced
        inf = self._finite if found_inf is None else found_inf
        self._expect("numbers", numbers, _NUMBERS, (torch.float32, torch.float64))
        self._expect("coefficients", coefficients, self._count, (torch.float32, torch.float64))
        self._expect("silenced", off, self._count, (torch.bool, torch.uint8))
        self._expect("found_inf", inf, 1, DTYPES)
        roles = zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True)
        with _on(self._device):
            tables = numbers.contiguous(), coefficients.contiguous(), off.contiguous().view(torch.uint8), inf
            self._gate.enter()
            starts = self._starts.of([tensor for four in roles for tensor in four])
            for launch in self._launches:
                launch.run(starts, *tables)
        for written in (parameters, exp_avgs, exp_avg_sqs):
            torch.autograd.graph.increment_version(written)  # as PyTorch's own operations in place do

    def _expect(self, name: str, table: Tensor, length: int, dtypes: Sequence[torch.dtype]) -> None:
        """Refuse what the kernel would misread."""
        shapes = ((), (1,)) if length == 1 else ((length,),)
        if tuple(table.shape) not in shapes or table.dtype not in dtypes or table.device != self._device:
            raise OptimizerError(
                f"the multi-tensor update was given {name} of shape {list(table.shape)}, {table.dtype}, on "
                f"{table.device}, but reads shape [{length}], {dtypes[0]}, on {self._device}; convert it first"
            )


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """The boxes of all parameters of one dtype, shape ``[programs, len(COLUMNS)]``."""

    dtype: torch.dtype
    boxes: Tensor

    def run(self, *tables: Tensor) -> None:
        wide = self.dtype == torch.float64
        _run(
            len(self.boxes),
            self.boxes,
            *tables,
            element=_element(self.dtype),
            accumulator=_element(torch.float64 if wide else torch.float32),
            block=_BLOCK // self.dtype.itemsize,
            width=len(COLUMNS),
        )


def _run(programs: int, *tables: Tensor, **constants: object) -> None:
    """Launch the kernel; the only place that does."""
    # Fused multiply-add is asked for by name, because Triton warns where it is left to a default.
    _kernels()["update_boxes"][(programs,)](*tables, **constants, num_warps=_WARPS, enable_fp_fusion=True)


@functools.cache
def _kernels() -> dict[str, Any]:
    return vars(importlib.import_module("evenkeel.optim.gpu._kernels"))


@functools.cache
def _element(dtype: torch.dtype) -> object:
    """Return what Triton calls it; the names are the same."""
    return getattr(_kernels()["tl"], str(dtype).removeprefix("torch."))


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make it the current device, whose current stream is worked on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _kind(tensor: Tensor) -> tuple[object, ...]:
    """Return what the tables depend on; the stride of a dimension of size 1 leads nowhere, and gradients make it up."""
    if tensor.layout is not torch.strided:
        return (tensor.layout,)
    if tensor.is_contiguous():
        return tensor.shape, tensor.dtype, tensor.device
    strides = [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]
    return tensor.shape, tensor.dtype, tensor.device, strides


def _check(parameters: Sequence[Tensor], owners: Sequence[int], count: int) -> torch.device:
    """Refuse what the kernel would misread, and return the one device."""
    devices = {parameter.device for parameter in parameters}
    if len(devices) != 1:
        raise OptimizerError(
            f"{len(parameters)} parameters on {len(devices)} devices were given to the multi-tensor update, which "
            "needs at least one and runs on one device; make AdamWSegments for each device"
        )
    for parameter in parameters:
        if parameter.layout is not torch.strided or parameter.dtype not in DTYPES:
            raise OptimizerError(
                f"the multi-tensor update was given a parameter of dtype {parameter.dtype} and layout "
                f"{parameter.layout}, but knows dense float64, float32, bfloat16 and float16; update it by torch.optim"
            )
    strange = [owner for owner in owners if not 0 <= owner < count]
    if strange or len(owners) != len(parameters):
        raise OptimizerError(
            f"the multi-tensor update was given {len(owners)} owners for {len(parameters)} parameters, "
            f"{len(strange)} of them outside of the {count} components; give each parameter the index of its component"
        )
    (device,) = devices
    with _on(device):
        captured = capturing(device)
    if captured:
        raise OptimizerError(
            "the tables of the multi-tensor update cannot be made while a CUDA graph is being captured; run one step "
            "with parameters of the same shapes before the capture"
        )
    return device


def _chunk(entries: int) -> int:
    """Return how many entries a program takes, a power of 2."""
    return min(_CHUNK, max(2048, 1 << (max(1, entries // _PROGRAMS) - 1).bit_length()))


def _by_dtype(parameters: Sequence[Tensor], owners: Sequence[int], chunk: int, device: torch.device) -> list[_Launch]:
    """Cut all parameters into boxes; a box's tensor is the place of its parameter among the addresses of all four."""
    tables: dict[torch.dtype, list[Tensor]] = {}
    for index, (parameter, owner) in enumerate(zip(parameters, owners, strict=True)):
        rows = boxes(parameter.shape, parameter.stride(), chunk=chunk, tensor=_ROLES * index, component=owner)
        if len(rows):
            tables.setdefault(parameter.dtype, []).append(rows)
    return [_Launch(dtype=dtype, boxes=upload(torch.cat(rows), device)) for dtype, rows in tables.items()]
