"""The precision that suits this machine's device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

__all__ = ["suitable_precision"]

_BF16 = ("avx512_bf16", "amx_bf16")  # without one of them a CPU only imitates bf16, slower than float32
_CUDA = "cuda"  # torch's name for AMD's devices too


def suitable_precision() -> Literal["float32", "bf16", "fp16"]:
    """Choose a precision for training: bf16 where the device computes in it, fp16 on older GPUs, else float32.

    Returns:
        The precision.
    """
    if not torch.accelerator.is_available():
        can: Mapping[str, object] = torch.cpu.get_capabilities()
        return "bf16" if any(can.get(name) for name in _BF16) else "float32"
    if torch.accelerator.current_accelerator().type != _CUDA:  # type: ignore[union-attr]  # there is one
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
