"""Numba's side of tensors: compiled functions that find entries by address. Imported where kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

__all__ = ["compiled", "entries", "fused"]

_Decorator = Callable[[Callable[..., Any]], Any]  # a type checker need not know what Numba makes of a function

# Both compile at the first call, to code that runs without Python's lock and divides as C does.
compiled: _Decorator = numba.njit(nogil=True, error_model="numpy")
# Here sums may be taken in any order, and products be fused with them; NaN stays NaN.
fused: _Decorator = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


def _to_pointer(typing_context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    float32, int64 = numba.types.float32, numba.types.int64
    return numba.types.CPointer(float32)(int64), generate  # type: ignore[no-untyped-call]


_pointer: Any = intrinsic(_to_pointer)


@compiled
def entries(address: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return ``count`` float32 entries that lie behind one another from ``address`` on."""
    return numba.carray(_pointer(address), count)  # type: ignore[attr-defined]
