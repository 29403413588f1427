"""Norms and scaling of many tensors on a CPU, in one compiled call (extra ``cpu``: Numba)."""

from evenkeel.clipping.cpu._many import available, clip_, norms, reads, scale_

__all__ = ["available", "clip_", "norms", "reads", "scale_"]
