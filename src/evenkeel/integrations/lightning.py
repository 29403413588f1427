"""Component-wise clipping as a callback of Lightning's Trainer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, final

from torch.optim import Optimizer

from evenkeel.clipping import (
    ClipResult,
    ClipStatistics,
    MaxNorm,
    Nonfinite,
    applicable,
    as_threshold,
    check_max_norm,
    check_nonfinite,
    clip_grad_norm_,
)
from evenkeel.clipping.thresholds import Threshold
from evenkeel.errors import GradientError, MissingExtraError
from evenkeel.integrations._role_log import RoleLog
from evenkeel.integrations._tested import warn_untested
from evenkeel.integrations._unscale import divide_out
from evenkeel.partition import By, Components, Roles, components, regroup

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise MissingExtraError(
        "evenkeel.integrations.lightning needs Lightning, which is not installed: pip install 'evenkeel[lightning]'"
    ) from error

__all__ = ["ComponentClip"]


@final
class ComponentClip(Callback):
    """Clip the gradient of every component on its own, in any LightningModule.

    It acts in ``on_before_optimizer_step``, which comes once per optimizer step, in automatic and in manual
    optimization: after accumulation and after the loss scale of ``precision="16-mixed"`` was divided out, before
    ``configure_gradient_clipping``. Each optimizer's parameters are clipped before its own step, and have a threshold
    of their own where it learns. Sharded models (FSDP, ``ModelParallelStrategy``) are clipped as one process would.

    The loggers get ``grad_norm``, ``grad_norm/<role>``, ``clip_rate`` and ``clip_rate/<role>`` every
    ``log_every_n_steps``; with several optimizers each name begins with ``optimizer0/`` and so on.

    What a threshold object has learnt is kept in every checkpoint, and a training that is resumed goes on with it.

    Attributes:
        last: what the latest step of each optimizer clipped, by its place among the optimizers.

    Example:
        >>> callback = ComponentClip(max_norm=0.05)  # lightning.Trainer(callbacks=[callback])
    """

    def __init__(
        self,
        max_norm: MaxNorm = 0.05,
        *,
        by: By = "tensor",
        roles: Roles | None = None,
        also_global: bool = False,
        nonfinite: Nonfinite = "propagate",
        statistics: ClipStatistics | None = None,
        log: bool = True,
    ) -> None:
        """Set up the callback.

        Args:
            max_norm: the norm that each component may have; or norms by role or path; or a threshold object, which
                begins anew with every training that is not resumed.
            by: what counts as one component, see :func:`evenkeel.components`.
            roles: rules for a model that evenkeel does not know, see :func:`evenkeel.components`.
            also_global: allow Lightning's own clipping (``gradient_clip_val``), which acts afterwards.
            nonfinite: what to do with gradients that are not finite, see :func:`evenkeel.clip_grad_norm_`.
            statistics: where to count how often each component is clipped.
            log: tell the loggers.

        Raises:
            ThresholdError: if ``max_norm`` is no threshold.
            GradientError: if ``nonfinite`` is unknown.
        """
        super().__init__()
        check_max_norm(max_norm)
        check_nonfinite(nonfinite)
        self._max_norm, self._by, self._roles = max_norm, by, roles
        self._also_global, self._nonfinite, self._statistics, self._log = also_global, nonfinite, statistics, log
        self.last: dict[int, ClipResult] = {}
        self._of: dict[int, _OfOptimizer] = {}
        self._learnt: Mapping[int, dict[str, Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew; a checkpoint is loaded after this."""
        warn_untested("lightning")
        self._of, self._learnt, self.last = {}, {}, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse, by a ``GradientError``, what would clip beside this, and gradients that are not here."""
        if trainer.gradient_clip_val and not self._also_global:
            raise GradientError(
                f"ComponentClip was given a Trainer that also clips (gradient_clip_val={trainer.gradient_clip_val}), "
                "which would shrink everything once more by its total norm; leave gradient_clip_val out, or set "
                "ComponentClip(also_global=True) if you mean both"
            )
        if sum(isinstance(one, ComponentClip) for one in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise GradientError(
                "this Trainer has several ComponentClip callbacks, and the later ones would see what the first one "
                'left; keep one (thresholds that differ by role or layer are one mapping: {"query": 0.1, "*": 0.05})'
            )
        if "DeepSpeed" in type(trainer.strategy).__name__:
            raise GradientError(
                "Lightning's DeepSpeed strategy keeps gradients inside of the engine, which also steps; use "
                "ModelParallelStrategy or FSDPStrategy, or evenkeel.integrations.deepspeed in a loop of your own"
            )
        if not isinstance(self._max_norm, Threshold):
            # A name that fits nothing is an error now; later it may be what is frozen, or another optimizer's.
            as_threshold(self._max_norm, components(trainer.model, self._by, roles=self._roles))  # type: ignore[arg-type]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clip what this optimizer is about to see."""
        held = (one for group in optimizer.param_groups for one in group["params"])
        if trainer.world_size == 1 and all(one.grad is None for one in held):
            return  # training_step returned None, which several processes may not: there was no backward
        # Fused optimizers take the scale themselves, after this; it is divided out before, once.
        divide_out(getattr(trainer.precision_plugin, "scaler", None), optimizer)
        index = next(place for place, one in enumerate(trainer.optimizers) if one is optimizer)
        own = self._of.get(index)
        if own is None:
            own = self._of[index] = self._begin(index)
        parts = own.parts(trainer, optimizer, self._by, self._roles)
        result = clip_grad_norm_(parts, applicable(own.max_norm, parts), nonfinite=self._nonfinite)
        self.last[index] = result
        if self._statistics is not None:
            self._statistics.update(result)
        if self._log and trainer.loggers:
            own.log.update(parts, result)
            self._report(trainer, index, own)

    def state_dict(self) -> dict[str, Any]:
        """Return what the thresholds have learnt, by optimizer."""
        learning = {index: own.max_norm for index, own in self._of.items() if isinstance(own.max_norm, Threshold)}
        return {"thresholds": dict(self._learnt) | {index: one.state_dict() for index, one in learning.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what thresholds had learnt until their optimizers step."""
        self._learnt = state_dict["thresholds"]

    def _begin(self, index: int) -> _OfOptimizer:
        own = _OfOptimizer(copy.deepcopy(self._max_norm))
        if isinstance(own.max_norm, Threshold) and index in self._learnt:
            own.max_norm.load_state_dict(dict(self._learnt[index]))
        return own

    def _report(self, trainer: Trainer, index: int, own: _OfOptimizer) -> None:
        own.steps += 1
        if own.steps % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        before = f"optimizer{index}/" if len(trainer.optimizers) > 1 else ""
        entries = {before + name: value for name, value in own.log.take().items()}
        for logger in trainer.loggers:
            logger.log_metrics(entries, step=trainer.global_step)


class _OfOptimizer:
    """What belongs to one optimizer: its components, its threshold, and its part of the log."""

    def __init__(self, max_norm: MaxNorm) -> None:
        self.max_norm = max_norm
        self.log = RoleLog()
        self.steps = 0
        self._seen: tuple[int, ...] | None = None
        self._parts: Components

    def parts(self, trainer: Trainer, optimizer: Optimizer, by: By, roles: Roles | None) -> Components:
        """Return the components of what the optimizer holds and trains by now."""
        held = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
        now = tuple(map(id, held))
        if now != self._seen:
            ours = set(now)
            found = components(trainer.model, roles=roles)  # type: ignore[arg-type]  # wrapped, as the strategy made it
            mine = [part for part in found if any(id(parameter) in ours for parameter in part.parameters)]
            if not mine:
                raise GradientError(
                    "an optimizer holds no parameter of the model that the strategy made, so there is nothing to clip; "
                    "make optimizers in configure_optimizers, of self.parameters()"
                )
            self._parts, self._seen = regroup(Components(mine), by), now
        return self._parts
