"""Component-wise clipping as a callback."""

from __future__ import annotations

import copy
from typing import Any, cast, final

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

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
from evenkeel.errors import GradientError, ThresholdError
from evenkeel.integrations._role_log import RoleLog
from evenkeel.integrations._tested import warn_untested
from evenkeel.integrations.transformers._each_step import EachStep
from evenkeel.integrations.transformers._handler import LogFirst, handler_of
from evenkeel.integrations.transformers._method_clip import MethodClip
from evenkeel.integrations.transformers._state import pack, unpack
from evenkeel.partition import By, Components, Roles, components

__all__ = ["ComponentClip"]


@final
class ComponentClip(EachStep, ExportableState):
    """Clip the gradient of every component on its own, in anybody's Trainer.

    It runs once per optimizer step, after accumulation and unscaling and before the optimizer. The components are
    looked up again whenever parameters are frozen or released, adapters put in or merged.

    The Trainer's log gets ``grad_norm`` (of the whole gradient, before clipping), ``grad_norm/<role>``, ``clip_rate``
    and ``clip_rate/<role>``, before its reporters (TensorBoard, W&B, MLflow) see the entry: see ``log``.

    With ``max_grad_norm=0`` transformers 5.23 still clips all gradients together at infinity, for its log, before any
    callback runs: where one component's gradient is not finite, that makes all of them NaN. No callback can prevent it;
    ``MethodTrainer`` leaves it out.

    What a threshold object has learnt is kept in every checkpoint (``trainer_state.json``) and taken up again by a
    training that is resumed, whatever ``restore_callback_states_from_checkpoint`` says.

    Attributes:
        last: what the latest step clipped; None before the first.

    Example:
        >>> from transformers import TrainingArguments
        >>> arguments = TrainingArguments(max_grad_norm=0)  # no global clipping beside it
        >>> callback = ComponentClip(max_norm=0.05)  # Trainer(args=arguments, callbacks=[callback], ...)
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
            also_global: allow the Trainer's own global clipping (``max_grad_norm``), which acts first.
            nonfinite: what to do with gradients that are not finite, see :func:`evenkeel.clip_grad_norm_`.
            statistics: where to count how often each component is clipped.
            log: add to the Trainer's log entries: norms by role in the latest step, and the share of steps since the
                entry before in which components were clipped.

        Raises:
            ThresholdError: if ``max_norm`` is no threshold.
            GradientError: if ``nonfinite`` is unknown.
        """
        super().__init__(by, roles)
        check_max_norm(max_norm)
        check_nonfinite(nonfinite)
        self.max_norm = max_norm
        self._given = copy.deepcopy(max_norm)  # two trainings must not share what a threshold learns
        self.also_global = also_global
        self.nonfinite: Nonfinite = nonfinite
        self.statistics = statistics
        self.log = log
        self._role_log = RoleLog()
        self.last: ClipResult | None = None
        self._lost: list[str] = []

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, in JSON's terms: the configuration, and what the threshold has learnt."""
        given: dict[str, Any] = {
            "max_norm": self.max_norm,
            "by": self.by,
            "also_global": self.also_global,
            "nonfinite": self.nonfinite,
            "log": self.log,
        }
        # A mapping is no simple value: its order counts, and the Trainer's JSON is sorted.
        kept = {name: value for name, value in given.items() if isinstance(value, float | int | str)}
        others = {"roles": self.roles, "statistics": self.statistics}
        lost = [*(given.keys() - kept), *(name for name, value in others.items() if value is not None)]
        learnt = pack(self.max_norm) if isinstance(self.max_norm, Threshold) else None
        return {"args": kept, "attributes": {"_lost": sorted(lost), "_learnt": learnt}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the model; refuse, by a ``GradientError``, the Trainer or another callback that clips beside this."""
        warn_untested("transformers")
        if self._lost:
            raise GradientError(
                "restore_callback_states_from_checkpoint=True rebuilt ComponentClip without its "
                f"{', '.join(self._lost)}, which JSON cannot hold; leave it False: ComponentClip takes up by itself "
                "what its threshold had learnt"
            )
        if args.max_grad_norm and not self.also_global:
            raise GradientError(
                f"ComponentClip was given a Trainer that also clips globally (max_grad_norm={args.max_grad_norm}), "
                "which acts first and hides the components' own norms; set TrainingArguments(max_grad_norm=0), or "
                "ComponentClip(also_global=True) if you mean both"
            )
        if args.deepspeed or getattr(args, "deepspeed_plugin", None):
            raise GradientError(
                "under DeepSpeed backward also makes the step, inside of the engine, so that ComponentClip would clip "
                "what is gone; train without DeepSpeed (FSDP2 shards as well), or use "
                "evenkeel.integrations.deepspeed in a loop of your own"
            )
        self._take_place()
        super().on_train_begin(args, state, control, **kwargs)
        # A name that fits nothing is an error now; later it may be what is frozen.
        self.max_norm = copy.deepcopy(self._given)
        as_threshold(self.max_norm, components(kwargs["model"], self.by, roles=self.roles))
        callbacks = cast("dict[str, Any]", state.stateful_callbacks)  # by now, whatever its annotation says
        saved = callbacks.setdefault(type(self).__name__, {})  # else the Trainer fails at its next save
        if state.global_step:
            self._resume(saved.get("attributes", {}).get("_learnt") if isinstance(saved, dict) else saved)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add norms and clip rates by role to an entry of the training's log; this waits for the device."""
        if not self.log or logs is None or "loss" not in logs:  # of an evaluation, or of the training's end
            return
        entries = self._role_log.take()
        if self.also_global:
            entries.pop("grad_norm", None)  # the Trainer's own is the one before all clipping
        logs.update(entries)
        if state.log_history and "loss" in state.log_history[-1]:  # which holds a copy of the entry
            state.log_history[-1].update(entries)

    def _take_place(self) -> None:
        """Look at the callbacks beside this one: no second one may clip, and reporters must come later."""
        self._role_log = RoleLog()
        handler = handler_of(self)
        if handler is None:
            return
        clipping = [type(one).__name__ for one in handler.callbacks if isinstance(one, ComponentClip | MethodClip)]
        if len(clipping) > 1:
            raise GradientError(
                f"this Trainer has {len(clipping)} callbacks that clip ({', '.join(clipping)}), and the later ones "
                "would see what the first one left; keep one ComponentClip (thresholds that differ by role or layer "
                'are one mapping: {"query": 0.1, "*": 0.05}), and none in a MethodTrainer'
            )
        if self.log:
            LogFirst.put_into(handler, self)

    def _resume(self, learnt: Any) -> None:
        if isinstance(self.max_norm, Threshold):
            unpack(learnt, self.max_norm)
        elif learnt is not None:
            raise ThresholdError(
                f"the checkpoint was written with the threshold {learnt['threshold']} and this training has "
                f"{self.max_norm!r}; resume with the same threshold, or begin a new training"
            )

    def _act(self, parts: Components, state: TrainerState) -> None:
        self.last = clip_grad_norm_(parts, applicable(self.max_norm, parts), nonfinite=self.nonfinite)
        if self.statistics is not None:
            self.statistics.update(self.last)
        if self.log:
            self._role_log.update(parts, self.last)
