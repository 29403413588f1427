"""Norms and scaling of many tensors on a CPU, in one compiled call (extra ``cpu``: Numba)."""

from evenkeel.clipping.cpu._many import addresses, available, clip_, distances, norms, readable, reads, scale_
from evenkeel.clipping.cpu._threads import share

__all__ = ["addresses", "available", "clip_", "distances", "norms", "readable", "reads", "scale_", "share"]
