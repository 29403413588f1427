"""Several threads share the tensors that one compiled call is about."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

__all__ = ["share"]

_ALONE = 4 * 1024 * 1024  # entries; fewer are done sooner than another thread is woken


def share(kernel: Callable[..., Any], counts: np.ndarray[Any, np.dtype[np.int64]], *arguments: Any) -> None:
    """Call ``kernel(*arguments, first, last)`` for all tensors, by as many threads as torch may use if that pays.

    A tensor is one thread's, so that results do not depend on the number of threads.

    Args:
        kernel: what is called; it must not need Python's lock.
        counts: the entries of every tensor, shape ``[T]``; each thread gets about as many.
        *arguments: the rest of what the kernel takes.
    """
    ends = counts.cumsum()
    entries = int(ends[-1]) if len(ends) else 0
    threads = 1 if entries < _ALONE else min(torch.get_num_threads(), len(counts))
    if threads == 1:
        kernel(*arguments, 0, len(counts))
        return
    borders = np.searchsorted(ends, [entries * part // threads for part in range(1, threads)]).tolist()
    first, *others = itertools.pairwise([0, *borders, len(counts)])
    waiting = []
    for span in others:
        try:
            waiting.append(_threads(os.getpid(), threads - 1).submit(kernel, *arguments, *span))
        except RuntimeError:  # a thread that goes on after the main one has ended gets no help any more
            kernel(*arguments, *span)
    kernel(*arguments, *first)
    for other in waiting:
        other.result()


@functools.cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Return threads that wait for work; a forked process, which inherits none, gets its own."""
    return ThreadPoolExecutor(count, thread_name_prefix="evenkeel")
