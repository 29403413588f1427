"""The arrays that are passed around, and how the numbers read from them are written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "rounded"]

Floats = NDArray[np.float64]


def rounded(value: float) -> float:
    """Round to two digits: a probe knows no more."""
    return float(f"{value:.2g}")
