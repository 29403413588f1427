"""LAMB: Adam's direction, tensor by tensor as long as the tensor's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from evenkeel.errors import OptimizerError
from evenkeel.optim._stable_update import alike

__all__ = ["Lamb"]


@final
class Lamb(Optimizer):
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
        self.ratios: dict[Tensor, Tensor] = {}
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what pickle or ``load_state_dict`` hands over.

        Raises:
            OptimizerError: if a setting in it is out of range.
        """
        super().__setstate__(state)
        self.__dict__.setdefault("ratios", {})
        for group in self.param_groups:
            _check({**self.defaults, **group})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a layer that is released, for instance.

        Args:
            param_group: as in torch.

        Raises:
            OptimizerError: if a value is out of range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What the closure returned, else None.

        Raises:
            OptimizerError: if a gradient is sparse or complex, or a parameter sharded; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, [one for one in group["params"] if one.grad is not None]) for group in self.param_groups]
        for _, parameters in work:
            for parameter in parameters:
                _refuse(parameter)
        self.ratios = {}
        for group, parameters in work:
            for together in alike(parameters, group["foreach"]):
                ratios = _update(group, together, [self._state_of(parameter) for parameter in together])
                self.ratios.update(zip(together, ratios.unbind(), strict=True))
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # where reading it waits for nothing
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def _update(group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
    """Update ``K`` parameters of one device and dtype, each with a gradient; return the ``r`` of each, ``[K]``."""
    (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    weights = [parameter.detach().to(wide) for parameter in parameters]  # the same tensors, unless they are narrower
    grads = [cast(Tensor, parameter.grad).to(wide) for parameter in parameters]
    kept = [state[name] for name in ("exp_avg", "exp_avg_sq") for state in states]
    moments = [moment.to(wide) for moment in kept]
    means, squares = moments[: len(states)], moments[len(states) :]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1.0)
    counts = torch.stack(steps).tolist()

    torch._foreach_lerp_(means, torch._foreach_neg(grads) if group["maximize"] else grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    if wide != parameters[0].dtype:
        torch._foreach_copy_(kept, moments)

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


def _check(group: dict[str, Any]) -> None:
    """Refuse settings that are out of range; NaN always is."""
    rate, betas, eps, decay, most = (group[name] for name in ("lr", "betas", "eps", "weight_decay", "max_ratio"))
    if isinstance(rate, Tensor) and rate.numel() != 1:
        raise OptimizerError(
            f"Lamb was given lr of shape {list(rate.shape)}, but a group has one; make a group for each rate"
        )
    if not rate >= 0:
        raise OptimizerError(f"Lamb was given lr={rate}, but a learning rate is 0 or more; see maximize=True")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise OptimizerError(
            f"Lamb was given betas={betas}, but decays are two numbers from 0 to below 1; (0.9, 0.999) is usual"
        )
    if not eps > 0:
        raise OptimizerError(
            f"Lamb was given eps={eps}, but entries whose gradient was 0 so far are divided by it; give it a small "
            "positive number such as 1e-6"
        )
    if not decay >= 0:
        raise OptimizerError(f"Lamb was given weight_decay={decay}, but a decay is 0 or more; 0 turns it off")
    if most is not None and not most > 0:
        raise OptimizerError(
            f"Lamb was given max_ratio={most}, but steps are multiplied by it at most; give it a positive number, or "
            "None for no bound"
        )


def _refuse(parameter: Tensor) -> None:
    """Refuse a parameter or a gradient of a kind that cannot be used."""
    grad, shape = cast(Tensor, parameter.grad), list(parameter.shape)
    if isinstance(parameter, DTensor):
        raise OptimizerError(
            f"Lamb was given a sharded parameter, of shape {shape}, and measures the weights of whole tensors; train "
            "in one process or with DDP, or use torch.optim.AdamW or evenkeel.optim.StableAdamW"
        )
    if grad.layout is not torch.strided:
        raise OptimizerError(
            f"Lamb was given a sparse gradient, of a parameter of shape {shape}, but moments and norms are over all "
            "entries; use sparse=False in the embedding, or torch.optim.SparseAdam"
        )
    if grad.is_complex():
        raise OptimizerError(
            f"Lamb was given a complex gradient, of a parameter of shape {shape}, and the paper says nothing on these; "
            "keep torch.view_as_real of it as the parameter, or use torch.optim.AdamW"
        )
