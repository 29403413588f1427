"""The tensors of one optimizer group, as torch's own update takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import AdamW, adamw

__all__ = ["Lists", "lists_of", "update_by_torch"]

_FAR = 1e30  # so many steps that nothing is left of the bias that moments have from beginning at 0


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Parameters with a gradient, and what belongs to each.

    Attributes:
        params: the parameters.
        targets: what the update is written to: the parameters, or what stands in their place.
        grads: their gradients.
        exp_avgs: first moments.
        exp_avg_sqs: second moments.
        max_exp_avg_sqs: largest second moments; none without ``amsgrad``.
        state_steps: how often each was updated, 0-dimensional tensors.
        has_complex: whether one is complex.
    """

    params: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    max_exp_avg_sqs: list[Tensor] = field(default_factory=list)
    state_steps: list[Tensor] = field(default_factory=list)
    has_complex: bool = False


def lists_of(optimizer: AdamW, group: dict[str, Any]) -> Lists:
    """Find the tensors of a group, and begin the state of parameters that have none.

    Args:
        optimizer: whose state it is.
        group: one of its groups.

    Returns:
        The tensors of the parameters that have a gradient.
    """
    kept: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
    has_complex = optimizer._init_group(group, *kept)  # type: ignore[no-untyped-call]
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
    return Lists(**dict(zip(names, kept, strict=True)), targets=list(kept[0]), has_complex=bool(has_complex))


def update_by_torch(group: dict[str, Any], lists: Lists, *, correct_bias: bool, found_inf: Tensor | None) -> None:
    """Update a group by torch's own AdamW.

    Args:
        group: the group's settings.
        lists: its tensors.
        correct_bias: whether moments are corrected for beginning at 0.
        found_inf: where it is not 0, nothing is changed; None for an update in any case.
    """
    steps = lists.state_steps
    if not correct_bias:
        steps = [torch.full_like(step, _FAR) for step in steps]
        torch._foreach_add_(lists.state_steps, 1)
    fused = group["fused"]
    free = fused is None and group["foreach"] is None and not group["amsgrad"] and not torch.compiler.is_compiling()
    four = (lists.targets, lists.grads, lists.exp_avgs, lists.exp_avg_sqs)
    if free and all(all(map(_is_plain, tensors)) for tensors in four):
        fused = True  # torch would go through the parameters one by one
    adamw(
        lists.targets,
        lists.grads,
        lists.exp_avgs,
        lists.exp_avg_sqs,
        lists.max_exp_avg_sqs,
        steps,
        foreach=group["foreach"],
        capturable=group["capturable"],
        differentiable=False,
        fused=fused,
        grad_scale=None,
        found_inf=found_inf,
        has_complex=lists.has_complex,
        amsgrad=group["amsgrad"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def _is_plain(tensor: Tensor) -> bool:
    """Say whether torch's fused update reads a tensor right: it goes by addresses, whatever the strides are."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_cpu
        and tensor.is_floating_point()
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
