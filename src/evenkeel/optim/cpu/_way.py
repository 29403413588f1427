"""Steps on a CPU: in one pass where a coefficient needs no other gradient, else norms first."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from evenkeel.clipping import ClipResult, cpu, weight_norms
from evenkeel.clipping.thresholds import Fixed, Limits
from evenkeel.optim._jobs import Jobs
from evenkeel.optim._max_update import UpdateLimit
from evenkeel.optim._settings import Settings
from evenkeel.optim._way import Clip, Way
from evenkeel.optim.cpu._many import clip_and_update_, limit_and_update_, update_

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
        if _known_at_once(clip) and len(set(jobs.owners)) == len(jobs.owners):
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

    def limits(self, clip: Clip) -> bool:
        """Say whether what is to be known of a component is known when its tensor was read."""
        return _known_at_once(clip)

    def limited_step(
        self, jobs: Jobs, settings: Settings, measured: Settings, limit: UpdateLimit, clip: Clip, gain: Tensor | None
    ) -> tuple[ClipResult, ClipResult]:
        """Update, in place; each tensor is one component."""
        assert isinstance(clip.threshold, Fixed)  # noqa: S101  as was asked
        settings.advance(None)
        signs = torch.tensor(settings.signs, dtype=torch.float32, device="cpu")[jobs.settings]
        thresholds = torch.tensor(clip.threshold.values, dtype=torch.float32, device="cpu")
        wide = torch.zeros(len(clip.parts), dtype=torch.float64, device="cpu")
        shares, floors = limit.constants(clip.parts, wide)
        numbers = [
            (float(group["lr"]) * float(group["weight_decay"]), *own[1:], judged[4])
            for group, own, judged in zip(settings.groups, settings.numbers(), measured.numbers(), strict=True)
        ]
        gradients, steps = limit_and_update_(
            jobs,
            thresholds[jobs.owners],
            signs if gain is None else signs * gain,
            numbers,
            silence=clip.nonfinite == "zero",
            shares=shares[jobs.owners],
            floors=floors[jobs.owners],
        )
        norms = torch.zeros_like(thresholds)
        norms[jobs.owners] = gradients
        moved, parts = torch.zeros_like(wide), torch.ones_like(wide)
        # What has no gradient is not moved, and nobody has read its weights.
        allowed = wide if len(jobs.owners) == len(wide) else limit.allowed(clip.parts, weight_norms(clip.parts))
        moved[jobs.owners], allowed[jobs.owners], parts[jobs.owners] = steps
        update = ClipResult(names=_names(clip), norms=moved, thresholds=allowed, coefficients=parts)
        return _clip_result(clip, norms, thresholds), update


def _known_at_once(clip: Clip) -> bool:
    """Say whether a coefficient follows from one tensor's own gradient."""
    return (
        isinstance(clip.threshold, Fixed)
        and not clip.shared
        and clip.nonfinite != "error"
        and clip.norm_type == 2.0
        and all(len(part.pieces) == 1 for part in clip.parts)
    )


def _at_once(jobs: Jobs, settings: Settings, clip: Clip, threshold: Fixed, gains: Tensor) -> ClipResult:
    silence = clip.nonfinite == "zero"
    thresholds = torch.tensor(threshold.values, dtype=torch.float32, device="cpu")
    norms = torch.zeros_like(thresholds)
    norms[jobs.owners] = clip_and_update_(jobs, thresholds[jobs.owners], gains, settings.numbers(), silence=silence)
    return _clip_result(clip, norms, thresholds)


def _clip_result(clip: Clip, norms: Tensor, thresholds: Tensor) -> ClipResult:
    coefficients = Limits(thresholds=thresholds, norms=norms).coefficients
    silence = clip.nonfinite == "zero"
    return ClipResult(
        names=_names(clip),
        norms=norms,
        thresholds=thresholds,
        coefficients=coefficients.masked_fill(~norms.isfinite(), 0.0) if silence else coefficients,
    )


def _names(clip: Clip) -> tuple[str, ...]:
    return tuple(part.name for part in clip.parts)
