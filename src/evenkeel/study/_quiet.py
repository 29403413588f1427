"""Silence for libraries whose bars and reports would drown our own."""

from __future__ import annotations

import logging

__all__ = ["quieten"]


def quieten() -> None:
    """Let transformers, datasets and the hub's client print errors only, and no progress bars."""
    import datasets
    import transformers

    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of every retry
