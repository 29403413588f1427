"""Norms and scaling of many tensors on a GPU, by multi-tensor Triton kernels (extra ``gpu``); what others build on."""

from evenkeel.clipping.gpu._boxes import COLUMNS, boxes
from evenkeel.clipping.gpu._pointers import PointerTable, StreamGate, capturing, upload
from evenkeel.clipping.gpu._segments import DTYPES, Segments, available

__all__ = ["COLUMNS", "DTYPES", "PointerTable", "Segments", "StreamGate", "available", "boxes", "capturing", "upload"]
