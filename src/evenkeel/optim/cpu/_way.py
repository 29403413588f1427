"""Steps on a CPU: in one pass where a coefficient needs no other gradient, else norms first."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult, cpu
from evenkeel.clipping.thresholds import Fixed, Limits
from evenkeel.optim._jobs import Jobs
from evenkeel.optim._settings import Settings
from evenkeel.optim._way import Clip, Way
from evenkeel.optim.cpu._many import clip_and_update_, update_

__all__ = ["OnCpu"]


@final
class OnCpu(Way):
    """Numba's kernels."""

    def reads(self, tensor: Tensor) -> bool:
        """Say whether a tensor is dense, float32, on the CPU."""
        return cpu.reads(tensor)

    def takes(self, jobs: Jobs) -> bool:
        """Say yes: every tensor counts for itself."""
        return True

    def step(
        self, jobs: Jobs, settings: Settings, clip: Clip, gain: Tensor | None, found_inf: Tensor | None
    ) -> ClipResult:
        """Update, in place; that ``found_inf`` is 0 was seen before."""
        signs = torch.tensor(settings.signs, dtype=torch.float32, device="cpu")[jobs.settings]
        gains = signs if gain is None else signs * gain
        at_once = (
            isinstance(clip.threshold, Fixed)
            and not clip.shared
            and clip.nonfinite != "error"
            and clip.norm_type == 2.0
            and len(set(jobs.owners)) == len(jobs.owners)
            and all(len(part.pieces) == 1 for part in clip.parts)
        )
        if at_once:
            settings.advance(found_inf)
            assert isinstance(clip.threshold, Fixed)  # noqa: S101  as was asked
            return _at_once(jobs, settings, clip, clip.threshold, gains)
        result = clip.coefficients(gain)
        settings.advance(found_inf)
        silenced = (
            ~result.norms.isfinite() if clip.nonfinite == "zero" else torch.zeros_like(result.norms, dtype=torch.bool)
        )
        factors = result.coefficients.float()[jobs.owners] * gains
        update_(jobs, factors, silenced[jobs.owners], settings.numbers())
        return result


def _at_once(jobs: Jobs, settings: Settings, clip: Clip, threshold: Fixed, gains: Tensor) -> ClipResult:
    silence = clip.nonfinite == "zero"
    thresholds = torch.tensor(threshold.values, dtype=torch.float32, device="cpu")
    norms = torch.zeros_like(thresholds)
    norms[jobs.owners] = clip_and_update_(jobs, thresholds[jobs.owners], gains, settings.numbers(), silence=silence)
    coefficients = Limits(thresholds=thresholds, norms=norms).coefficients
    return ClipResult(
        names=tuple(part.name for part in clip.parts),
        norms=norms,
        thresholds=thresholds,
        coefficients=coefficients.masked_fill(~norms.isfinite(), 0.0) if silence else coefficients,
    )
