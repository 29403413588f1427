"""AdamW with component-wise clipping inside its update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim.adamw import AdamW

from evenkeel.clipping import (
    ClipResult,
    MaxNorm,
    Nonfinite,
    applicable,
    as_threshold,
    check_max_norm,
    check_nonfinite,
    check_norm_type,
    clip_grad_norm_,
    cpu,
    gpu,
)
from evenkeel.clipping.thresholds import WeightRelative
from evenkeel.errors import OptimizerError
from evenkeel.optim._groups import Given, as_groups, trained_parts
from evenkeel.optim._jobs import find_jobs
from evenkeel.optim._limiter import begun_rate
from evenkeel.optim._lists import Lists, lists_of, update_by_torch
from evenkeel.optim._max_update import MaxUpdate, UpdateLimit, as_limit, refuse_stages
from evenkeel.optim._on_zeros import OnZeros
from evenkeel.optim._settings import Settings
from evenkeel.optim._states import keep_threshold, refuse_copy
from evenkeel.optim._way import Clip, Way
from evenkeel.optim.cpu import OnCpu
from evenkeel.optim.gpu import OnGpu
from evenkeel.partition import Components

__all__ = ["ClippedAdamW"]


@final
class ClippedAdamW(AdamW):
    r"""AdamW whose gradients are clipped component by component as they are read: clipping costs no pass of its own.

    The same as :func:`evenkeel.clip_grad_norm_` followed by ``torch.optim.AdamW``, within float32 rounding:

    .. math::

        \hat g_c = g_c \min\left(1, \frac{\delta_c}{\lVert g_c \rVert + 10^{-6}}\right), \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) \hat g, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \hat g^2, \quad
        p \leftarrow (1 - \eta \lambda) p - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    With the extra ``cpu`` (Numba), or ``gpu`` (Triton) on a GPU, that is one compiled update that never writes the
    gradients. Without, and for what the kernels do not read (``amsgrad``, complex or sparse parameters, mixed layouts,
    ``foreach=True``, ``fused=False``, inside ``torch.compile``), gradients are clipped in place and torch's own update
    follows. So what ``parameter.grad`` holds after a step is not defined.

    A true ``torch.optim.Optimizer``: groups, schedulers, ``GradScaler``, sharded parameters (FSDP2, tensor parallel),
    and a ``state_dict`` that ``torch.optim.AdamW`` loads and whose own it loads; a threshold that learns adds the entry
    ``"threshold"``, which torch's passes over. Components may have parameters in several groups, each of which is
    updated as its group says.

    With ``max_update`` a step changes no component by more than a share of its weights' norm, see
    :class:`UpdateLimit`. What is measured is Adam's step, and weight decay gives way with it:

    .. math::

        u = \frac{\hat m}{\sqrt{\hat v} + \epsilon}, \qquad
        k_c = \min\left(1, \frac{r_c (\lVert p_c \rVert + f \sqrt{n_c})}{\lVert \eta u \rVert_c}\right), \qquad
        p \leftarrow p - k_c \eta \lambda p - k_c \eta u

    Attributes:
        parts: the components.
        last: what the latest step clipped; None before the first.
        last_update: the norms of the latest step's changes, what was allowed, and the coefficients :math:`k_c`; None
            before the first, and without ``max_update``. ``ClipStatistics.update`` takes it.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4; Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2;
        without bias correction Devlin et al. 2019, arXiv 1810.04805.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = ClippedAdamW(model, lr=0.1, max_norm=0.05)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> {name: round(norm, 3) for name, norm in optimizer.last.to_dict().items()}
        {'weight': 1.414, 'bias': 1.0}
    """

    def __init__(
        self,
        params: Given,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        max_norm: MaxNorm,
        max_update: MaxUpdate | None = None,
        parts: Components | None = None,
        norm_type: float = 2.0,
        nonfinite: Nonfinite = "propagate",
        correct_bias: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        """Set up the optimizer; what is not told here is as in ``torch.optim.AdamW``.

        Args:
            params: the components, or the model; or groups, dictionaries whose ``"params"`` are components or
                parameters. Of the model as it is trained: wrapped, sharded, on its device.
            lr: learning rate.
            betas: decay of both moments per step.
            eps: added to the root of the second moment.
            weight_decay: decoupled, per unit of the learning rate.
            amsgrad: keep the largest second moment.
            max_norm: the norm that a component's gradient may have, see :func:`evenkeel.clip_grad_norm_`.
            max_update: the norm that a step may have, relative to the component's weights: a number, numbers by role
                or pattern, or an :class:`UpdateLimit`; None for any. On a CPU, where tensors are components, kernels
                read moments and weights once more; elsewhere it costs some passes, and memory for one more copy of the
                weights while the step is made.
            parts: the components, where ``params`` are parameters.
            norm_type: order of the norm; positive, may be ``inf``.
            nonfinite: what to do with a component whose norm is NaN or infinite. ``"zero"``: its gradient counts as
                zeros, and moments and weight decay still act. ``"error"`` waits for the device.
            correct_bias: whether moments are corrected for beginning at 0; False is the Adam of the published BERT.
            maximize: go uphill.
            foreach: True for torch's own multi-tensor update.
            capturable: count steps on the device, for CUDA graphs.
            differentiable: refused: the update is compiled, or changes parameters in place.
            fused: True for torch's fused update where the kernels cannot be used, and for a loss scale that is divided
                out inside of the step, without waiting for the device; False for neither kernels nor fused.
            group: the ranks of a pipeline's stages, see :func:`evenkeel.clip_grad_norm_`.

        Raises:
            ComponentError: if there are no parameters, or one belongs to no component.
            ThresholdError: if ``max_norm`` is no threshold for these components, or ``max_update`` no limit.
            GradientError: if ``norm_type`` or ``nonfinite`` is unknown.
            OptimizerError: if ``differentiable`` is asked for, or ``max_update`` beside ``group``.
            ValueError: from torch, if another value is out of range.
        """
        if differentiable:
            raise OptimizerError(
                "ClippedAdamW was given differentiable=True, but its update is compiled and reads gradients that "
                "autograd does not follow; clip with evenkeel.clip_grads inside your function, and update with "
                "torch.optim.AdamW(differentiable=True)"
            )
        check_max_norm(max_norm)
        check_norm_type(norm_type)
        check_nonfinite(nonfinite)
        groups, self.parts = as_groups(params, parts)
        as_threshold(max_norm, self.parts)
        self._limit = as_limit(max_update, self.parts)
        refuse_stages(self._limit, group)
        self._threshold = max_norm
        self._norm_type, self._nonfinite, self._stages = norm_type, nonfinite, group
        self._shared = group is not None or any(piece.spread() for part in self.parts for piece in part.pieces)
        self._correct_bias = correct_bias
        self._on_gpu = OnGpu()
        self._own: tuple[int, Components] | None = None
        self._ready = False
        self._begun: list[float | Tensor] = []  # the learning rate that each group was given
        self.last: ClipResult | None = None
        self.last_update: ClipResult | None = None
        super().__init__(
            groups,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=False,
            fused=fused,
        )
        self._ready = True
        keep_threshold(self, max_norm)

    __deepcopy__ = refuse_copy
    __reduce_ex__ = refuse_copy

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, whose parameters must belong to the components: a layer that is released, for instance.

        Args:
            param_group: as in torch; ``"params"`` may be components too.

        Raises:
            ComponentError: if a parameter belongs to no component.
        """
        if self._ready:
            (param_group,), _ = as_groups([param_group], self.parts)
        super().add_param_group(param_group)
        self._begun.append(begun_rate(self.param_groups[-1]))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Clip and update.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            What the closure returned, else None.

        Raises:
            GradientError: if ``nonfinite="error"`` met a norm that is not finite; without any gradient nothing happens,
                as in torch.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.device.type == "cpu" and found_inf.item():
            return loss  # GradScaler leaves the looking to optimizers that divide by its scale themselves
        missing = all(parameter.grad is None for group in self.param_groups for parameter in group["params"])
        if missing and not self._shared:  # where it is, the others wait for this rank's part of their norms
            return loss
        lists = [lists_of(self, group) for group in self.param_groups]
        if self._limit is None:
            self._update(self.param_groups, lists, scale, found_inf)
        elif not self._limit_at_once(self._limit, lists, scale):
            beside = OnZeros.of(self._trained(), self._limit, self.param_groups, lists, self._begun)
            self._update(beside.groups, beside.lists, scale, found_inf)
            self.last_update = beside.apply(found_inf)
        return loss

    def _limit_at_once(self, limit: UpdateLimit, lists: list[Lists], scale: Tensor | None) -> bool:
        """Update by limited steps where kernels know a component's limit once they have read it; or say no."""
        way = self._way() if self._kernels_wanted() else None
        if way is None or not way.limits(clip := self._clip()):
            return False
        settings = Settings.of(self.param_groups, lists, correct_bias=self._correct_bias)
        jobs = find_jobs(clip.parts, lists, settings.places, way.reads)
        if jobs is None or not way.takes(jobs) or len(set(jobs.owners)) < len(jobs.owners):
            return False
        begun = {id(group): rate for group, rate in zip(self.param_groups, self._begun, strict=True)}
        peaks = [{**group, "lr": limit.peak(group, begun[id(group)])} for group in settings.groups]
        measured = replace(settings, groups=peaks)
        self.last, self.last_update = way.limited_step(jobs, settings, measured, limit, clip, _gain(scale))
        return True

    def _update(
        self, groups: list[dict[str, Any]], lists: list[Lists], scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Clip, and update the targets of ``lists``."""
        if not (self._kernels_wanted() and self._by_kernels(groups, lists, scale, found_inf)):
            self._by_torch(groups, lists, scale, found_inf)

    def _by_torch(
        self, groups: list[dict[str, Any]], lists: list[Lists], scale: Tensor | None, found_inf: Tensor | None
    ) -> None:
        """Clip in place, then update."""
        grads = [grad for one in lists for grad in one.grads]
        if scale is not None:
            torch._foreach_div_(grads, scale)
        if grads or self._shared:
            parts = self._trained()
            max_norm = applicable(self._threshold, parts)
            self.last = clip_grad_norm_(parts, max_norm, self._norm_type, self._nonfinite, group=self._stages)
        for one in lists:  # clipping may have put others in the place of some
            one.grads[:] = [cast(Tensor, parameter.grad) for parameter in one.params]
        for group, one in zip(groups, lists, strict=True):
            if one.params:
                update_by_torch(group, one, correct_bias=self._correct_bias, found_inf=found_inf)

    def _kernels_wanted(self) -> bool:
        if torch.compiler.is_compiling() or any(
            group["amsgrad"] or group["foreach"] or group["fused"] is False for group in self.param_groups
        ):
            return False
        # A coefficient for every row is none for a component.
        return not (isinstance(self._threshold, WeightRelative) and self._threshold.per == "row")

    def _by_kernels(
        self, groups: list[dict[str, Any]], lists: list[Lists], scale: Tensor | None, found_inf: Tensor | None
    ) -> bool:
        """Update by coefficients, in one pass where these are known as soon as a gradient was read; or say no."""
        way = self._way()
        if way is None:
            return False
        settings = Settings.of(groups, lists, correct_bias=self._correct_bias)
        jobs = find_jobs(self._trained(), lists, settings.places, way.reads)
        if jobs is None or not way.takes(jobs):
            return False
        self.last = way.step(jobs, settings, self._clip(), _gain(scale), found_inf)
        return True

    def _clip(self) -> Clip:
        parts = self._trained()
        return Clip(
            parts=parts,
            threshold=as_threshold(applicable(self._threshold, parts), parts),
            norm_type=self._norm_type,
            nonfinite=self._nonfinite,
            stages=self._stages,
            shared=self._shared,
        )

    def _trained(self) -> Components:
        """Return the components that have a parameter in a group: others' gradients are none of its business."""
        groups = len(self.param_groups)
        if self._own is None or self._own[0] != groups:
            self._own = groups, trained_parts(self.param_groups, self.parts)
        return self._own[1]

    def _way(self) -> Way | None:
        """Return the kernels for the device that the parameters are on by now."""
        device = self.parts[0].pieces[0].tensor().device
        if gpu.available(device):
            return self._on_gpu
        return OnCpu() if device.type == "cpu" and cpu.available() else None


def _gain(scale: Tensor | None) -> Tensor | None:
    """Return what gradients are multiplied by where they still have a loss scale."""
    return None if scale is None else scale.double().reciprocal().float()
