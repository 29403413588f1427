"""What AdamW's update multiplies by, from an optimizer group and the number of its step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["numbers", "numbers_on_device"]


def numbers(group: dict[str, Any], step: float, *, correct_bias: bool) -> tuple[float, ...]:
    r"""Return the seven numbers of a step.

    .. math::

        p \leftarrow d\,p - s\,\frac{m}{\sqrt{v} / r + \epsilon}, \qquad
        d = 1 - \eta\lambda,\quad s = \frac{\eta}{1 - \beta_1^t},\quad r = \sqrt{1 - \beta_2^t}

    Args:
        group: an optimizer group of ``torch.optim.AdamW``.
        step: the number of the step, ``t``, from 1.
        correct_bias: whether moments are corrected for beginning at 0; else ``s`` is the learning rate and ``r`` is 1.

    Returns:
        ``d``, :math:`1-\beta_1`, :math:`\beta_2`, :math:`1-\beta_2`, ``s``, ``r`` and epsilon.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.

    Example:
        >>> numbers({"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "eps": 1e-8}, 1, correct_bias=False)[4:6]
        (0.1, 1.0)
    """
    rate, (beta1, beta2) = float(group["lr"]), map(float, group["betas"])
    first, second = (1 - beta1**step, 1 - beta2**step) if correct_bias else (1.0, 1.0)
    decay = 1 - rate * group["weight_decay"]
    return decay, 1 - beta1, beta2, 1 - beta2, rate / first, math.sqrt(second), group["eps"]


def numbers_on_device(group: dict[str, Any], step: Tensor, *, correct_bias: bool) -> Tensor:
    """Return the same from a step that is counted on the device, without waiting for it.

    Args:
        group: an optimizer group; its learning rate may be a tensor.
        step: the number of the step, 0-dimensional.
        correct_bias: see :func:`numbers`.

    Returns:
        The numbers, float64, shape ``[7]``, on the device of ``step``; 1 less a small decay is coarse in float32.
    """

    def there(value: Any) -> Tensor:
        if isinstance(value, Tensor):
            return value.to(step.device, torch.float64, non_blocking=True).reshape(())
        return torch.full((), value, dtype=torch.float64, device=step.device)  # a fill, not a copy from the host

    rate, (beta1, beta2) = there(group["lr"]), map(there, group["betas"])
    one = there(1.0)
    first, second = (one - beta1**step, one - beta2**step) if correct_bias else (one, one)
    decay = one - rate * there(group["weight_decay"])
    found = (decay, one - beta1, beta2, one - beta2, rate / first, second.sqrt(), there(group["eps"]))
    return torch.stack(found)
