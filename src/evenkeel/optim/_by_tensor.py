"""What optimizers share that keep Adam's moments and judge the step of each tensor by one number."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from evenkeel.errors import OptimizerError

__all__ = ["ByTensor", "alike", "local", "remember"]

_CACHED = 2**17  # entries on a CPU that are updated together: calls are shared, and all of it stays in the cache


class ByTensor(Optimizer, ABC):
    """An optimizer with AdamW's state, whose step in a tensor depends on a number that it finds for that tensor.

    Class attributes:
        _over: what is taken over all entries of a tensor, for errors.
        _usual_eps: an epsilon that is usual, for errors.
    """

    _over: ClassVar[str]
    _usual_eps: ClassVar[str]

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        """Set up groups.

        Args:
            params: parameters, named parameters, or groups of them, as in torch.
            defaults: the settings of groups that have none of their own.

        Raises:
            OptimizerError: if a value is out of range, in a group too.
            ValueError: from torch, if there are no parameters.
        """
        self._numbers: dict[Tensor, Tensor] = {}
        super().__init__(params, defaults)

    @abstractmethod
    def _update(self, group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> Tensor:
        """Update ``K`` parameters that are alike, each with a gradient; return the number of each, shape ``[K]``."""

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse settings that are out of range; NaN always is."""
        name = type(self).__name__
        rate, betas, eps, decay = (group[setting] for setting in ("lr", "betas", "eps", "weight_decay"))
        if isinstance(rate, Tensor) and rate.numel() != 1:
            raise OptimizerError(
                f"{name} was given lr of shape {list(rate.shape)}, but a group has one; make a group for each rate"
            )
        if not rate >= 0:
            raise OptimizerError(f"{name} was given lr={rate}, but a learning rate is 0 or more; see maximize=True")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise OptimizerError(
                f"{name} was given betas={betas}, but decays are two numbers from 0 to below 1; (0.9, 0.999) is usual"
            )
        if not eps > 0:
            raise OptimizerError(
                f"{name} was given eps={eps}, but entries whose gradient was 0 so far are divided by it; give it a "
                f"small positive number such as {self._usual_eps}"
            )
        if not decay >= 0:
            raise OptimizerError(f"{name} was given weight_decay={decay}, but a decay is 0 or more; 0 turns it off")

    def _refuse(self, parameter: Tensor) -> None:
        """Refuse a gradient of a kind that cannot be used."""
        name, grad = type(self).__name__, cast(Tensor, parameter.grad)
        if grad.layout is not torch.strided:
            raise OptimizerError(
                f"{name} was given a sparse gradient, of a parameter of shape {list(parameter.shape)}, but "
                f"{self._over} are over all entries; use sparse=False in the embedding, or torch.optim.SparseAdam"
            )
        if grad.is_complex():
            raise OptimizerError(
                f"{name} was given a complex gradient, of a parameter of shape {list(parameter.shape)}, and the paper "
                "says nothing on these; keep torch.view_as_real of it as the parameter, or use torch.optim.AdamW"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a state.

        Args:
            state: what pickle or ``load_state_dict`` hands over.

        Raises:
            OptimizerError: if a setting in it is out of range.
        """
        super().__setstate__(state)
        self.__dict__.setdefault("_numbers", {})
        for group in self.param_groups:
            self._check({**self.defaults, **group})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a layer that is released, for instance.

        Args:
            param_group: as in torch.

        Raises:
            OptimizerError: if a value is out of range.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What the closure returned, else None.

        Raises:
            OptimizerError: if a gradient is of a kind that cannot be used; nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = [(group, [one for one in group["params"] if one.grad is not None]) for group in self.param_groups]
        for _, parameters in work:
            for parameter in parameters:
                self._refuse(parameter)
        self._numbers = {}
        for group, parameters in work:
            for together in alike(parameters, group["foreach"]):
                numbers = self._update(group, together, [self._state_of(parameter) for parameter in together])
                self._numbers.update(zip(together, numbers.unbind(), strict=True))
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")  # where reading it waits for nothing
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state


def alike(parameters: Sequence[Tensor], foreach: bool | None) -> Iterator[list[Tensor]]:
    """Sort parameters into lists that can be updated together: of one device, dtype and placement.

    Args:
        parameters: the parameters.
        foreach: whether such lists are as long as they can be, or of one parameter; None for what costs least: on a CPU
            lists that fit into the cache, elsewhere and for sharded parameters, each list of which is one reduction, as
            long as they can be.

    Yields:
        The lists, in the same order on every rank.
    """
    found: dict[tuple[torch.device, torch.dtype, object], list[Tensor]] = {}
    for parameter in parameters:
        place = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        found.setdefault((parameter.device, parameter.dtype, place), []).append(parameter)
    for (device, _, placed), fitting in found.items():
        if foreach is None and device.type == "cpu" and placed is None:
            yield from _split(fitting, _CACHED)
        else:
            yield from _split(fitting, 1 if foreach is False else math.inf)


def _split(parameters: Sequence[Tensor], most: float) -> list[list[Tensor]]:
    """Cut a list whenever it holds as many entries as ``most``."""
    lists: list[list[Tensor]] = []
    held = most
    for parameter in parameters:
        if held >= most:
            lists.append([])
            held = 0
        lists[-1].append(parameter)
        held += parameter.numel()
    return lists


def remember(
    group: dict[str, Any], parameters: Sequence[Tensor], states: Sequence[dict[str, Any]]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[float]]:
    """Let the moments of parameters that are alike see their gradients, and count the step.

    Args:
        group: the settings.
        parameters: the parameters, ``K`` of them, each with a gradient.
        states: the state of each; its step counter is on the CPU.

    Returns:
        Gradients, first and second moments, as they are stored here and in float32 at least; and the steps of each.
    """
    beta1, beta2 = group["betas"]
    wide = torch.promote_types(parameters[0].dtype, torch.float32)
    grads = [local(_placed(parameter)).to(wide) for parameter in parameters]
    kept = [local(state[name]) for name in ("exp_avg", "exp_avg_sq") for state in states]
    moments = [moment.to(wide) for moment in kept]  # the same tensors, unless they are narrower
    means, squares = moments[: len(states)], moments[len(states) :]
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1.0)

    torch._foreach_lerp_(means, torch._foreach_neg(grads) if group["maximize"] else grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    if wide != parameters[0].dtype:
        torch._foreach_copy_(kept, moments)
    return grads, means, squares, torch.stack(steps).tolist()


def _placed(parameter: Tensor) -> Tensor:
    """Return the gradient, placed as its parameter is: with sequence parallelism it may be a share of a sum."""
    grad = cast(Tensor, parameter.grad)
    if isinstance(parameter, DTensor) and isinstance(grad, DTensor) and grad.placements != parameter.placements:
        return grad.redistribute(placements=parameter.placements)
    return grad


def local(tensor: Tensor) -> Tensor:
    """Return the entries that are stored here; what is written to them is written to the tensor."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local
