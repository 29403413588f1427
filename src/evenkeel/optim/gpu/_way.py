"""Steps on a GPU: all norms in one pass, all updates in a second; gradients are read twice and never written."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult
from evenkeel.clipping.gpu import DTYPES
from evenkeel.optim._jobs import Jobs
from evenkeel.optim._settings import Settings
from evenkeel.optim._way import Clip, Way
from evenkeel.optim.gpu._segments import AdamWSegments

__all__ = ["OnGpu"]

_ARRANGEMENTS = 64


@final
class OnGpu(Way):
    """Triton's kernels. Their tables are kept: a CUDA graph may go on reading them."""

    def __init__(self) -> None:
        """Begin with no tables."""
        self._made: dict[tuple[int, ...], list[AdamWSegments]] = {}

    def reads(self, tensor: Tensor) -> bool:
        """Say whether a tensor is a plain floating one."""
        return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.dtype in DTYPES and not tensor.is_neg()

    def takes(self, jobs: Jobs) -> bool:
        """Say whether gradients and moments are arranged as their parameters, and all lie on one device."""
        return len({parameter.device for parameter in jobs.parameters}) == 1 and all(map(_alike, *jobs.tensors))

    def step(
        self, jobs: Jobs, settings: Settings, clip: Clip, gain: Tensor | None, found_inf: Tensor | None
    ) -> ClipResult:
        """Update, in place, without waiting for the device."""
        result = clip.coefficients(gain)
        settings.advance(found_inf)
        silenced = ~result.norms.isfinite() if clip.nonfinite == "zero" else None
        factors = result.coefficients if gain is None else result.coefficients * gain
        numbers_of = settings.numbers_on(result.norms.device)
        for kind, (numbers, sign) in enumerate(zip(numbers_of, settings.signs, strict=True)):
            mine = [index for index, setting in enumerate(jobs.settings) if setting == kind]
            if not mine:
                continue
            tensors = [[listed[index] for index in mine] for listed in jobs.tensors]
            owners = tuple(jobs.owners[index] for index in mine)
            self._segments(tensors, owners, len(clip.parts)).step_(
                *tensors,
                numbers=numbers,
                coefficients=factors if sign > 0 else -factors,
                silenced=silenced,
                found_inf=found_inf,
            )
        return result

    def _segments(self, tensors: list[list[Tensor]], owners: tuple[int, ...], count: int) -> AdamWSegments:
        arrangements = self._made.setdefault(owners, [])
        for known in arrangements:
            if known.fits(*tensors):
                return known
        made = AdamWSegments(tensors[0], owners, count)
        if len(self._made) <= _ARRANGEMENTS:
            arrangements.append(made)
        return made


def _alike(parameter: Tensor, *others: Tensor) -> bool:
    return all(
        other.dtype == parameter.dtype and other.shape == parameter.shape and other.stride() == parameter.stride()
        for other in others
    )
