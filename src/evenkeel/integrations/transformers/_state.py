"""What a threshold knows, as text in the file that a Trainer keeps beside every checkpoint."""

from __future__ import annotations

import base64
import binascii
import io
import pickle
from typing import Any

import torch

from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import ThresholdError

__all__ = ["pack", "unpack"]


def pack(threshold: Threshold) -> dict[str, str]:
    """Write the state of ``threshold`` as text that JSON can hold; this waits for the device.

    Args:
        threshold: a threshold.

    Returns:
        The name of its class, and its state.
    """
    buffer = io.BytesIO()
    torch.save(threshold.state_dict(), buffer)
    return {"threshold": type(threshold).__name__, "state": base64.b64encode(buffer.getvalue()).decode("ascii")}


def unpack(saved: Any, threshold: Threshold) -> None:
    """Give ``threshold`` the state that was written.

    Args:
        saved: what :func:`pack` returned, read back.
        threshold: a threshold of the same class.

    Raises:
        ThresholdError: if it is the state of another threshold, or unreadable.
    """
    name = type(threshold).__name__
    if not isinstance(saved, dict) or saved.get("threshold") != name:
        given = saved.get("threshold") if isinstance(saved, dict) else saved
        raise ThresholdError(
            f"the checkpoint was written with the threshold {given!r} and this training has {name}; resume with the "
            "same threshold, or begin a new training"
        )
    try:
        content = base64.b64decode(saved["state"], validate=True)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (KeyError, TypeError, ValueError, binascii.Error, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ThresholdError(
            f"the state of {name} in the checkpoint's trainer_state.json cannot be read ({error}); resume from another "
            "checkpoint"
        ) from error
    threshold.load_state_dict(state)
