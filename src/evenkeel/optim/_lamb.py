"""LAMB: Adam's direction, tensor by tensor as long as the tensor's weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT

from evenkeel.errors import OptimizerError
from evenkeel.optim._by_tensor import ByTensor, remember

__all__ = ["Lamb"]


@final
class Lamb(ByTensor):
    r"""Adam whose step in each tensor is as long as the learning rate's share of that tensor's weights.

    For every parameter tensor ``w``, at its step ``t``:

    .. math::

        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad \hat m = \frac{m}{1 - \beta_1^t}, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad \hat v = \frac{v}{1 - \beta_2^t}

        u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda w, \qquad
        r = \min\left(\frac{\lVert w \rVert}{\lVert u \rVert}, \mu\right), \qquad
        w \leftarrow w - \mathrm{lr} \, r \, u

    The bias correction is that of the paper's algorithm 2; its authors' published code has none. The paper's
    :math:`\phi(\lVert w \rVert)`, a norm kept within bounds that it does not tell, is the norm itself, as in that code.
    As in that code, too, ``r`` is 1 where either norm is 0, and for biases and norms, to which the paper's algorithm
    makes no exception: here for all tensors of fewer than two dimensions, which are these. The bound :math:`\mu` is
    that of LAMBC; the paper on LAMB has none.

    Norms are of whole tensors: parameters that are ``DTensor`` (FSDP2, tensor parallel) are refused, and shards that do
    not know that they are shards (FSDP1, ZeRO) must not be given. Narrow dtypes are computed in float32; moments are
    kept in the parameter's dtype, as in torch. A NaN in a gradient makes all of its tensor NaN. Nothing waits for the
    device.

    Attributes:
        ratios: ``r`` of every parameter that the latest step updated, 0-dimensional, on its device; not in the state.

    Source: You et al. 2020, arXiv 1904.00962, algorithm 2, with what ``lamb_optimizer.py`` of google-research/albert
        excepts; LAMBC: Fong et al. 2020, arXiv 2011.13584.

    Example:
        >>> weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
        >>> optimizer = Lamb([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.full((2, 2), 1e-3)
        >>> optimizer.step()
        >>> round(optimizer.ratios[weight].item(), 2), round(weight[0, 0].item(), 2)
        (3.0, 2.7)
    """

    _over: ClassVar[str] = "moments and norms"
    _usual_eps: ClassVar[str] = "1e-6"

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        max_ratio: float | None = None,
        vectors: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        r"""Set up the optimizer; defaults are those of the published code.

        Args:
            params: parameters, named parameters, or groups of them, as in torch.
            lr: learning rate: the share of a tensor's norm by which it moves in a step.
            betas: decay of both moments per step.
            eps: added to the root of the second moment.
            weight_decay: :math:`\lambda`, in the direction before it is rescaled.
            max_ratio: :math:`\mu`, the largest ``r``; positive, None for no bound.
            vectors: whether tensors of fewer than two dimensions are rescaled too.
            maximize: go uphill.
            foreach: as in :class:`evenkeel.optim.StableAdamW`.

        Raises:
            OptimizerError: if a value is out of range, in a group too.
            ValueError: from torch, if there are no parameters.
        """
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "max_ratio": max_ratio,
            "vectors": vectors,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    @property
    def ratios(self) -> dict[Tensor, Tensor]:
        """``r`` of every parameter that the latest step updated."""
        return self._numbers

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        most = group["max_ratio"]
        if most is not None and not most > 0:
            raise OptimizerError(
                f"Lamb was given max_ratio={most}, but steps are multiplied by it at most; give it a positive number, "
                "or None for no bound"
            )

    def _refuse(self, parameter: Tensor) -> None:
        if isinstance(parameter, DTensor):
            raise OptimizerError(
                f"Lamb was given a sharded parameter, of shape {list(parameter.shape)}, and measures the weights of "
                "whole tensors; train in one process or with DDP, or use torch.optim.AdamW or "
                "evenkeel.optim.StableAdamW"
            )
        super()._refuse(parameter)

    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
        return _update(group, parameters, states)


def _update(group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
    """Update ``K`` parameters of one device and dtype, each with a gradient; return the ``r`` of each, ``[K]``."""
    (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    weights = [parameter.detach().to(wide) for parameter in parameters]  # the same tensors, unless they are narrower
    _, means, squares, counts = remember(group, parameters, states)

    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, [math.sqrt(1 - beta2**count) for count in counts])
    torch._foreach_add_(roots, eps)
    changes = torch._foreach_div(means, roots)
    torch._foreach_div_(changes, [1 - beta1**count for count in counts])
    if decay:
        torch._foreach_add_(changes, weights, alpha=decay)

    ratios = _ratios(weights, changes, group["max_ratio"], vectors=group["vectors"])
    rate = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    torch._foreach_mul_(changes, list((rate * ratios).unbind()))
    torch._foreach_sub_(list(parameters), changes)
    return ratios


def _ratios(weights: Sequence[Tensor], changes: Sequence[Tensor], most: float | None, *, vectors: bool) -> Tensor:
    """Return the ``r`` of each tensor, shape ``[K]``; 1 for those that are not rescaled."""
    own, theirs = _norms(weights), _norms(changes)
    ratios = torch.where((own > 0) & (theirs > 0), own / theirs, 1.0)
    if most is not None:
        ratios = ratios.clamp(max=most)
    if not vectors:
        for place, weight in enumerate(weights):
            if weight.ndim < 2:
                ratios[place] = 1.0
    return ratios


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of each tensor, shape ``[K]``."""
    if tensors[0].device.type == "cpu":  # where torch's norm adds float32 one by one
        return torch.stack([tensor.square().sum() for tensor in tensors]).sqrt()
    return torch.stack(list(torch._foreach_norm(tuple(tensors))))
