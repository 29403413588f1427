"""AdamW's update of many tensors on a CPU, with clipping inside, in one compiled call (extra ``cpu``: Numba)."""

from evenkeel.optim.cpu._way import OnCpu

__all__ = ["OnCpu"]
