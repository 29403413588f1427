"""Norms and scaling of many tensors on a GPU, by multi-tensor Triton kernels (extra ``gpu``)."""

from evenkeel.clipping.gpu._segments import DTYPES, Segments, available

__all__ = ["DTYPES", "Segments", "available"]
