"""Clipping and stepping inside of backward: gradients are gone as soon as they were used."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from evenkeel.clipping import ClipResult, MaxNorm, Nonfinite, check_nonfinite, check_norm_type, clip_grad_norm_
from evenkeel.errors import ComponentError, GradientError, OptimizerError, ThresholdError
from evenkeel.optim._clipped import refuse_unclippable
from evenkeel.optim._groups import refuse_strangers
from evenkeel.optim._limiter import Limiter, begun_rates
from evenkeel.optim._max_update import MaxUpdate, UpdateLimit, as_limit
from evenkeel.optim._states import ENTRY, refuse_copy
from evenkeel.optim._units import Unit, units_of
from evenkeel.partition import Components, components

__all__ = ["InBackward", "step_in_backward"]


def step_in_backward(
    parts: Components | nn.Module,
    make_optimizer: Callable[[list[Tensor]], Optimizer],
    max_norm: MaxNorm,
    *,
    max_update: MaxUpdate | None = None,
    norm_type: float = 2.0,
    nonfinite: Nonfinite = "propagate",
    replicated: bool | None = None,
) -> InBackward:
    """Clip, step and free every component in backward, as soon as its gradient is complete.

    Clipping by component needs no gradient but the component's own, so that the gradients of a model need never exist
    all at once. The weights are those of :func:`evenkeel.clip_grad_norm_` and ``step`` after backward.

    A training loop stays as it is; ``step`` and ``zero_grad`` find nothing left to do:

    - Gradient accumulation: all micro-steps but the last run backward under :meth:`InBackward.accumulate`. Gradients
      then live until the last one, and no memory is saved.
    - A component of several tensors waits for all of them, and a cut tensor for all its parts; with ``by="global"``
      that is the end of backward, and no memory is saved. What has no gradient in a backward is not stepped.
    - FSDP2 (``fully_shard``) and tensor parallel: by their DTensors; norms take one reduction for each component, in
      the order of backward, which is the same on every rank.
    - DDP: give the wrapped model, or say ``replicated=True``. Hooks run before its reduction, so that everything is
      stepped at the end of backward, once it is reduced, and no memory is saved.
    - Activation checkpointing: with ``use_reentrant=False``.
    - A weight that is also used through ``detach()`` behind its last use with a gradient is changed too early for that:
      torch says that it was "modified by an inplace operation".

    Args:
        parts: the components of the model as it is trained, or the model.
        make_optimizer: makes an optimizer of a list of parameters, in whatever groups; one that updates each parameter
            by its own gradient and state, as nearly all do.
        max_norm: the norm that a component may have, see :func:`evenkeel.clip_grad_norm_`; a threshold that learns must
            be ``separate``.
        max_update: the norm that a step may have, relative to the component's weights, see :class:`UpdateLimit`; None
            for any. Measured is the change that the optimizer makes, weight decay and all, at the price of a copy of
            one component's weights at a time.
        norm_type: order of the norm; positive, may be ``inf``.
        nonfinite: see :func:`evenkeel.clip_grad_norm_`. ``"error"`` raises in the midst of backward, when components
            nearer the loss have been stepped.
        replicated: whether a DistributedDataParallel reduces the gradients; None looks for one in the model, if it is
            the model that is given.

    Returns:
        What stands for the optimizer from now on: in schedulers, checkpoints, and the loop.

    Raises:
        OptimizerError: if the optimizer clips already, needs a closure, or its parameters lie on several devices; if
            they are FSDP1's; if several ranks train and nothing says how gradients are reduced.
        ComponentError: if a parameter belongs to no component.
        ThresholdError: if ``max_norm`` is no threshold, or one that looks at components together; if ``max_update`` is
            no limit.
        GradientError: if ``norm_type`` or ``nonfinite`` is unknown.

    Source: Lv et al. 2023, arXiv 2306.09782 (LOMO), for the fused backward; Yang & Ma 2022, arXiv 2210.10325,
        section 4.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = step_in_backward(model, lambda parameters: torch.optim.AdamW(parameters, lr=0.1), max_norm=0.05)
        >>> before = model.weight.detach().clone()
        >>> model(torch.ones(1, 2)).sum().backward()          # steps
        >>> bool((model.weight != before).all()), model.weight.grad
        (True, None)
    """
    check_norm_type(norm_type)
    check_nonfinite(nonfinite)
    if isinstance(parts, nn.Module):
        if replicated is None:
            replicated = any(isinstance(module, DistributedDataParallel) for module in parts.modules())
        parts = components(parts)
    parameters = list({id(tensor): tensor for part in parts for tensor in part.parameters}.values())
    if not parameters:
        raise ComponentError("there is nothing to step: no component has a parameter, or everything is frozen")
    optimizer = make_optimizer(parameters)
    refuse_unclippable(optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    refuse_strangers(trained, parts)
    _refuse_places(parts, trained, told=replicated is not None)
    return InBackward(
        optimizer,
        parts,
        units_of(parts, optimizer, max_norm),
        norm_type,
        nonfinite,
        limit=as_limit(max_update, parts),
        at_the_end=bool(replicated),
    )


@final
class InBackward(Optimizer):
    """An optimizer whose steps happen in backward; made by :func:`step_in_backward`.

    Schedulers, ``state_dict`` and ``load_state_dict`` are those of the optimizer behind it; what a threshold has learnt
    is the state's entry ``"threshold"``.

    Attributes:
        optimizer: the optimizer behind it.
        parts: the components, ``C`` of them.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parts: Components,
        units: Sequence[Unit],
        norm_type: float,
        nonfinite: Nonfinite,
        *,
        at_the_end: bool,
        limit: UpdateLimit | None = None,
    ) -> None:
        """Set hooks on the parameters; see :func:`step_in_backward`."""
        self._ready = False
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self._ready = True
        self.optimizer, self.parts = optimizer, parts
        self._share()
        self._units = list(units)
        self._norm_type, self._nonfinite, self._at_the_end = norm_type, nonfinite, at_the_end
        self._limiters = None if limit is None else [Limiter(unit.parts, limit) for unit in self._units]
        self._begun = begun_rates(optimizer)
        self._results: dict[int, ClipResult] = {}
        self._stepped: dict[int, ClipResult] = {}
        self._changes: dict[int, ClipResult] = {}
        self._accumulating = False
        self._task: int | None = None  # the backward that runs, or that did not finish
        self._came: dict[int, set[int]] = {}  # of this backward: unit -> parameters whose gradient is complete
        self._unit_of = {id(p): index for index, unit in enumerate(self._units) for p in unit.parameters}
        self._hooks: list[Any] = []
        self.attach()

    def attach(self) -> None:
        """Set the hooks again that :meth:`remove` took off; where they are, nothing happens.

        Raises:
            OptimizerError: if another one steps these parameters in backward.
        """
        if self._hooks:
            return
        trained = [parameter for unit in self._units for parameter in unit.parameters if parameter.requires_grad]
        hooks: list[Any] = [
            hook
            for parameter in trained
            for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()
        ]
        if any(isinstance(getattr(hook, "__self__", None), InBackward) for hook in hooks):
            raise OptimizerError(
                "these parameters are stepped in backward already, and their gradients would be gone before this "
                "optimizer saw them; call remove() of the one before"
            )
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for parameter in trained
        ]

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Let backward add to the gradients and step nothing: for all micro-steps but the last.

        Yields:
            Nothing.
        """
        before, self._accumulating = self._accumulating, True
        try:
            yield
        finally:
            self._accumulating = before

    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Step what still has a gradient, as after micro-steps that were all accumulated; else do nothing.

        Args:
            closure: refused.

        Raises:
            OptimizerError: if there is a closure, or a ``GradScaler`` calls.
        """
        if hasattr(self, "found_inf"):  # which a scaler sets while it steps
            raise OptimizerError(
                "a GradScaler was used with stepping in backward, where gradients are used before it can divide by its "
                "scale; train in bfloat16 (torch.autocast(dtype=torch.bfloat16)), which needs no scaler, or step after "
                "backward with ClippedAdamW"
            )
        if closure is not None:
            raise OptimizerError(
                "steps happen in backward here; call backward() instead of passing a closure to step()"
            )
        self._refuse_unfinished()
        self._step_all()

    # GradScaler then hands its scale over instead of failing on gradients that are gone.
    _step_supports_amp_scaling = True
    _evenkeel_clips = True  # see evenkeel.optim.clipped

    __deepcopy__ = refuse_copy
    __reduce_ex__ = refuse_copy

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop what still has a gradient, as after a backward that failed."""
        self.optimizer.zero_grad(set_to_none)
        self._task = None
        self._stepped, self._came = {}, {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse further parameters, by an ``OptimizerError``."""
        if self._ready:
            raise OptimizerError(
                "parameters cannot be added to stepping in backward; call remove(), and step_in_backward again with "
                "all components"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer behind, and what thresholds have learnt."""
        learnt = {unit.name: unit.threshold.state_dict() for unit in self._units}
        state = self.optimizer.state_dict()
        if any(learnt.values()):
            state[ENTRY] = {"name": type(self._units[0].threshold).__name__, "units": learnt}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a saved state, of this or of an ordinary optimizer.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it holds what another threshold has learnt, or one of other components.
        """
        saved = state_dict.get(ENTRY)
        if saved is not None:
            name, units = saved.get("name"), saved.get("units", {})
            mine = type(self._units[0].threshold).__name__
            if "units" not in saved:
                raise ThresholdError(
                    f"the state is that of an optimizer that clips after backward, whose {name} knows all components "
                    f"together; load it into one of the same kind, or leave its entry '{ENTRY}' out"
                )
            if name != mine or set(units) != {unit.name for unit in self._units}:
                raise ThresholdError(
                    f"the state was saved with the threshold {name} for {len(units)} parts of a model, and this "
                    f"optimizer has {mine} for {len(self._units)}; load it into one with the same threshold and "
                    f"components, or leave its entry '{ENTRY}' out"
                )
            for unit in self._units:
                unit.threshold.load_state_dict(units[unit.name])
        else:
            for unit in self._units:
                unit.begin_anew()
        self.optimizer.load_state_dict(state_dict)
        self._share()

    @property
    def last(self) -> ClipResult | None:
        """What the latest step clipped, in the order of the components; None before the first."""
        return self._joined(self._results, float(self._norm_type))

    @property
    def last_update(self) -> ClipResult | None:
        """The changes that the latest step made before they were limited; None before the first, or without limits."""
        return self._joined(self._changes, 2.0)

    def _joined(self, results: dict[int, ClipResult], norm_type: float) -> ClipResult | None:
        """Put the results of units together, in the order of the components."""
        if not results:
            return None
        wide = max((result.norms.dtype for result in results.values()), key=lambda dtype: dtype.itemsize)
        norms = next(iter(results.values())).norms.new_zeros(len(self.parts), dtype=wide)
        thresholds, coefficients = torch.full_like(norms, torch.inf), torch.ones_like(norms)
        for index, result in results.items():
            places = list(self._units[index].places)
            norms[places], thresholds[places] = result.norms.to(wide), result.thresholds.to(wide)
            coefficients[places] = result.coefficients.to(wide)
        return ClipResult(
            names=tuple(part.name for part in self.parts),
            norms=norms,
            thresholds=thresholds,
            coefficients=coefficients,
            norm_type=norm_type,
        )

    def remove(self) -> None:
        """Take the hooks off: backward is an ordinary one again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _share(self) -> None:
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def _arrived(self, parameter: Tensor) -> None:
        """Take notice of a complete gradient; called by autograd in backward."""
        if self._accumulating:
            return
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._begin(task)
        unit = self._unit_of[id(parameter)]
        came = self._came.setdefault(unit, set())  # a gradient may be there from micro-steps before, and incomplete
        came.add(id(parameter))
        if not self._at_the_end and len(came) == len(self._units[unit].parameters):
            self._step_unit(unit)

    def _begin(self, task: int) -> None:
        if _is_reentrant():
            raise OptimizerError(
                "stepping in backward met activation checkpointing with use_reentrant=True, whose backward runs in "
                "pieces, and weights that several pieces share would be changed in between; use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False), in transformers "
                "gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        self._refuse_unfinished()
        self._task = task
        self._stepped, self._came = {}, {}
        finish = self._finish
        if self._at_the_end:  # behind what DDP has queued by the end of backward

            def finish() -> None:
                Variable._execution_engine.queue_callback(self._finish)

        Variable._execution_engine.queue_callback(finish)

    def _refuse_unfinished(self) -> None:
        if self._task is not None:
            raise GradientError(
                f"the backward before did not come to its end: {len(self._stepped)} of {len(self._units)} parts of the "
                "model had been stepped, the others are as they were; call zero_grad() of what step_in_backward "
                "returned, which drops their gradients, and go on, or go back to a checkpoint"
            )

    def _finish(self) -> None:
        self._step_all()
        self._task = None

    def _step_all(self) -> None:
        """Step what is left at the end: components some of whose tensors were not used, or all under DDP."""
        for index, unit in enumerate(self._units):
            if any(parameter.grad is not None for parameter in unit.parameters):
                self._step_unit(index)
        if not self._stepped:
            return
        for index, unit in enumerate(self._units):
            if index not in self._stepped:
                unit.pass_over(self._norm_type)
        self._results, self._stepped = self._stepped, {}
        if self._limiters is not None:
            lasts = ((index, self._limiters[index].last) for index in self._results)
            self._changes = {index: last for index, last in lasts if last is not None}

    @torch.no_grad()
    def _step_unit(self, index: int) -> None:
        unit = self._units[index]
        self._stepped[index] = clip_grad_norm_(unit.parts, unit.threshold, self._norm_type, self._nonfinite)
        groups = self.optimizer.param_groups
        limiter = None if self._limiters is None else self._limiters[index]
        if limiter is not None:
            limiter.before()
        whole = [groups[place]["params"] for place, _ in unit.shares]
        try:  # the very groups, for a moment with this unit's parameters alone: what an optimizer notes there stays
            for place, parameters in unit.shares:
                groups[place]["params"] = list(parameters)
            self.optimizer.param_groups = [groups[place] for place, _ in unit.shares]
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
            for (place, _), parameters in zip(unit.shares, whole, strict=True):
                groups[place]["params"] = parameters
        if limiter is not None:
            limiter.after([(groups[place], self._begun[place], own) for place, own in unit.shares], keep=False)
        for parameter in unit.parameters:
            parameter.grad = None


def _refuse_places(parts: Components, trained: Sequence[Tensor], *, told: bool) -> None:
    devices = {str(parameter.device) for parameter in trained}
    if len(devices) > 1:
        raise OptimizerError(
            f"stepping in backward runs on one device, and these parameters lie on {', '.join(sorted(devices))}, whose "
            "backward threads would step at the same time; step after backward with ClippedAdamW"
        )
    if any(piece.flat is not None for part in parts for piece in part.pieces):
        raise OptimizerError(
            "the parameters are FSDP1's, whose gradients never arrive at them in backward; shard the model by "
            "torch.distributed.fsdp.fully_shard"
        )
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if several and not told and not any(isinstance(parameter, DTensor) for parameter in trained):
        raise OptimizerError(
            f"{dist.get_world_size()} ranks train, and components do not say whether a DistributedDataParallel reduces "
            "these parameters' gradients, which stepping in backward must wait for; pass the model itself, wrapped as "
            "it is trained, or replicated=True or False"
        )


def _is_reentrant() -> bool:
    """Say whether a backward runs inside of a checkpoint's backward."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "backward" and frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
