"""AdamW whose learning rate gives way, tensor by tensor, to gradients that outgrow their second moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from evenkeel.errors import OptimizerError
from evenkeel.optim._by_tensor import ByTensor
from evenkeel.optim._stable_update import update

__all__ = ["StableAdamW"]


@final
class StableAdamW(ByTensor):
    r"""AdamW with AdaFactor's update clipping: a tensor whose gradient outgrows its second moment takes a smaller step.

    For every parameter tensor of ``n`` entries, at its step ``t``:

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad \hat m = \frac{m}{1 - \beta_1^t}, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad \hat v = \frac{v}{1 - \beta_2^t}

        R = \sqrt{\frac{1}{n} \sum \frac{g^2}{\max(\hat v, \epsilon^2)}}, \qquad
        \eta = \frac{\mathrm{lr}}{\max(1, R)}, \qquad
        p \leftarrow p - \eta \lambda p - \eta \frac{\hat m}{\sqrt{\hat v} + \epsilon}

    ``v`` in ``R`` is the second moment that has seen ``g``, and weight decay gives way with the step, both as in the
    paper's algorithm 2 (some implementations decay by the full rate). The paper writes the bias correction into the
    betas, :math:`\hat\beta = \beta (1 - \beta^{t-1}) / (1 - \beta^t)`, which gives the same :math:`\hat m` and
    :math:`\hat v`. What is kept here are AdamW's ``m`` and ``v``, so that ``torch.optim.AdamW`` and this load each
    other's ``state_dict``: a training that begins to spike can go on with it. Where ``R`` is at most 1 the step is
    AdamW's, within rounding; ``R`` is 1 in the first step, and never above :math:`1 / \sqrt{1 - \beta_2}`.

    The gradient's own share in an update so has a root mean square of at most :math:`1 - \beta_1` (in the first steps
    :math:`1 - \hat\beta_1`) times lr, however large the gradient is. What a spike leaves in ``m`` is not held back: the
    steps after a single one are AdamW's.

    A true ``torch.optim.Optimizer``: groups, schedulers, closures, ``GradScaler``. Of parameters that are ``DTensor``
    (FSDP2, tensor parallel) ``R`` is that of the whole tensor: one reduction a step for all that are placed alike.
    Shards that do not know that they are shards (FSDP1, ZeRO) count as tensors of their own. Narrow dtypes are computed
    in float32; moments are kept in the parameter's dtype, as in torch, and in float16 small squares are 0 there. A NaN
    in a gradient makes all of its tensor NaN. Nothing waits for the device.

    Attributes:
        rms: ``R`` of every parameter that the latest step updated, 0-dimensional, on its device; not in the state.

    Source: Wortsman et al. 2023, arXiv 2304.13013, algorithm 2 and section 3.5; update clipping Shazeer & Stern 2018,
        arXiv 1804.04235, section 5.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = StableAdamW([weight], lr=0.1, betas=(0.0, 0.99))
        >>> for size in (1.0, 1.0, 100.0):
        ...     weight.grad = torch.full((2,), size)
        ...     optimizer.step()
        >>> round(optimizer.rms[weight].item(), 2), [round(x, 2) for x in weight.tolist()]
        (1.72, [-0.3, -0.3])
    """

    _over: ClassVar[str] = "both moments and the mean"
    _usual_eps: ClassVar[str] = "1e-8"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        """Set up the optimizer; defaults are those of ``torch.optim.AdamW``.

        Args:
            params: parameters, named parameters, or groups of them, as in torch.
            lr: learning rate, before it gives way.
            betas: decay of both moments per step. The smaller the second, the sooner the second moment has caught up.
            eps: added to the root of the second moment, and the least that a gradient is compared with.
            weight_decay: decoupled, per unit of the learning rate that is left.
            maximize: go uphill.
            foreach: whether all tensors are updated together, which takes memory for three more copies of them, or each
                alone; None for together, but on a CPU, where as many are as fit into the cache.

        Raises:
            OptimizerError: if a value is out of range, in a group too.
            ValueError: from torch, if there are no parameters.
        """
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @property
    def rms(self) -> dict[Tensor, Tensor]:
        """``R`` of every parameter that the latest step updated."""
        return self._numbers

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state, AdamW's too: that of a fused one counts its steps on the device.

        Args:
            state: what pickle or ``load_state_dict`` hands over.

        Raises:
            OptimizerError: if a setting in it is out of range, or it is the state of an AdamW with ``amsgrad``.
        """
        for group in state["param_groups"]:
            self._check(group)  # before anything is taken over
        super().__setstate__(state)
        for group in self.param_groups:
            for name in ("maximize", "foreach"):
                group.setdefault(name, self.defaults[name])
        for kept in self.state.values():
            if "step" in kept:
                kept["step"] = torch.as_tensor(kept["step"], dtype=torch.float32, device="cpu")

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group.get("amsgrad"):
            raise OptimizerError(
                "StableAdamW was given amsgrad=True, or the state of an AdamW that had it, and has no use for the "
                "largest second moments; set it to False, in the groups of the state too, to go on without them"
            )

    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
        return update(group, parameters, states)
