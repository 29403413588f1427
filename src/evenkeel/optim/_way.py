"""The contract of kernels that update many tensors in one call, with clipping inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from torch.distributed import ProcessGroup

from evenkeel.clipping import ClipResult, Nonfinite, clip_coefficients
from evenkeel.clipping.thresholds import Threshold
from evenkeel.optim._jobs import Jobs
from evenkeel.optim._max_update import UpdateLimit
from evenkeel.optim._settings import Settings
from evenkeel.partition import Components

__all__ = ["Clip", "Way"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """How a step clips.

    Attributes:
        parts: the components, ``C`` of them.
        threshold: what their norms may be.
        norm_type: order of the norm.
        nonfinite: what to do with a component whose norm is not finite.
        stages: the ranks of a pipeline's stages; None for this rank's alone.
        shared: whether norms need other ranks.
    """

    parts: Components
    threshold: Threshold
    norm_type: float
    nonfinite: Nonfinite
    stages: ProcessGroup | None
    shared: bool

    def coefficients(self, gain: Tensor | None) -> ClipResult:
        """Return the coefficients of a step whose gradients are to be multiplied by ``gain`` first, 0-dimensional."""
        return clip_coefficients(
            self.parts, self.threshold, self.norm_type, self.nonfinite, group=self.stages, gain=gain
        )


class Way(ABC):
    """Kernels of one kind of device."""

    def limits(self, clip: Clip) -> bool:
        """Say whether :meth:`limited_step` can be asked where gradients are clipped so; the default cannot."""
        return False

    def limited_step(
        self, jobs: Jobs, settings: Settings, measured: Settings, limit: UpdateLimit, clip: Clip, gain: Tensor | None
    ) -> tuple[ClipResult, ClipResult]:
        """Update, in place, by steps that are limited by the weights; asked where :meth:`limits` says so.

        Args:
            jobs: see :meth:`step`.
            settings: see :meth:`step`.
            measured: the same with the learning rates that steps are measured with.
            limit: how far a step may go.
            clip: see :meth:`step`.
            gain: see :meth:`step`.

        Returns:
            What was clipped, and what was limited.
        """
        raise NotImplementedError(f"{type(self).__name__} limits no steps")

    @abstractmethod
    def reads(self, tensor: Tensor) -> bool:
        """Say whether the kernels can take a tensor."""

    @abstractmethod
    def takes(self, jobs: Jobs) -> bool:
        """Say whether the kernels can take tensors that lie so beside each other."""

    @abstractmethod
    def step(
        self, jobs: Jobs, settings: Settings, clip: Clip, gain: Tensor | None, found_inf: Tensor | None
    ) -> ClipResult:
        """Update, in place.

        Args:
            jobs: what is updated; such as :meth:`takes` allows.
            settings: by which numbers; the step is counted here, once nothing can be refused any more.
            clip: how gradients are clipped.
            gain: one over a loss scale, 0-dimensional; None for 1.
            found_inf: where it is not 0, nothing is written; None to write in any case.

        Returns:
            What was clipped.
        """
