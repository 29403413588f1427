"""What one call of the clipping function saw and did."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from evenkeel.clipping.thresholds import Seen

__all__ = ["ClipResult"]


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """What one call of :func:`clip_grad_norm_` saw and did. ``C`` components; tensors stay on the device.

    Attributes:
        names: the components' names, ``C`` of them.
        norms: norms before clipping, over all ranks that share a component, shape ``[C]``; 0 where a component has no
            gradient.
        thresholds: the norms allowed, shape ``[C]``.
        coefficients: what the gradients were multiplied by, shape ``[C]``; where rows are clipped, the share of the
            component's norm that is left.
        norm_type: order of the norm.
        whole: the norm of all components of all pipeline stages, 0-dimensional; None where one process has them all.
    """

    names: tuple[str, ...]
    norms: Tensor
    thresholds: Tensor
    coefficients: Tensor
    norm_type: float = 2.0
    whole: Tensor | None = field(default=None, repr=False)

    @property
    def total_norm(self) -> Tensor:
        """The norm of all components taken together, before clipping; 0-dimensional.

        Across pipeline stages where a process group was passed; else of the components that this process has.
        """
        return Seen(norms=self.norms, norm_type=self.norm_type, whole=self.whole).total_norm

    def to_dict(self) -> dict[str, float]:
        """Return the norm of every component by name. The only call here that waits for the device."""
        return dict(zip(self.names, self.norms.tolist(), strict=True))
