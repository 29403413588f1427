"""AdamW's update of many tensors on a GPU, by a multi-tensor Triton kernel that clips as it reads (extra ``gpu``)."""

from evenkeel.optim.gpu._segments import AdamWSegments
from evenkeel.optim.gpu._way import OnGpu

__all__ = ["AdamWSegments", "OnGpu"]
