"""What every threshold must keep to, whoever wrote it."""

from __future__ import annotations

import copy
import io
import pickle
from abc import ABC, abstractmethod
from typing import ClassVar
from unittest import SkipTest

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from evenkeel.clipping import clip_grad_norm_
from evenkeel.clipping.thresholds import Limits, Threshold
from evenkeel.partition import components
from evenkeel.testing._stage import Stage, check, same, same_limits, spoilt

__all__ = ["ThresholdContract"]

_WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::equal"}
_USELESS = (float("nan"), float("inf"), 0.0)  # norms that tell nothing
_OTHERS = (0, 2, 3)  # what happens, happens to component 1


class ThresholdContract(ABC):
    """Tests that a threshold passes if it keeps to the contract of ``evenkeel.thresholds.Threshold``.

    Subclass it in a test file, under a name that your test runner collects, and say how the threshold is made. What is
    special about it is said by class attributes, and by the threshold's own ``separate``. Where a test cannot be asked
    of it, the test is skipped.

    Attributes:
        counts_steps: whether limits move with the number of steps, whatever the norms are, as schedules do.
        of_places: whether limits belong to places in the list of components and not to their names.
        steps: how many steps the tests take; more than any warm-up of the threshold.
        device: where the norms are.

    Example:
        >>> from evenkeel.clipping.thresholds import Percentile
        >>> class TestMine(ThresholdContract):
        ...     def make(self):
        ...         return Percentile(25)
        >>> TestMine().test_state_goes_by_name()
    """

    counts_steps: ClassVar[bool] = False
    of_places: ClassVar[bool] = False
    steps: ClassVar[int] = 40
    device: ClassVar[str] = "cpu"

    @abstractmethod
    def make(self) -> Threshold:
        """Return a new threshold for four components, always of the same configuration."""

    def _used(self, stage: Stage) -> Threshold:
        threshold = self.make()
        stage.run(threshold, stage.history(self.steps))
        return threshold

    # --- limits

    def test_limits_are_like_the_norms(self) -> None:
        """Shape, dtype and device are those of the norms."""
        stage = Stage(self.device)
        for dtype in (torch.float32, torch.float64):
            threshold = self.make()
            for norms in stage.history(self.steps, dtype):
                limits = stage.step(threshold, norms)
                for name, tensor in (("thresholds", limits.thresholds), ("norms", limits.norms)):
                    check(
                        (tensor.shape, tensor.dtype, tensor.device) == (norms.shape, norms.dtype, norms.device),
                        f"limits.{name} is {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, for norms "
                        f"of {norms.dtype}, shape {tuple(norms.shape)} on {norms.device}",
                    )

    def test_thresholds_are_numbers_from_0_on(self) -> None:
        """Never NaN, and coefficients lie from 0 to 1, for finite norms of any size."""
        stage = Stage(self.device)
        for scale in (1.0, 1e-12, 1e12, 0.0):
            threshold = self.make()
            for norms in stage.history(self.steps):
                limits = stage.step(threshold, norms * scale)
                check(bool((limits.thresholds >= 0).all()), f"thresholds are {limits.thresholds} for norms x {scale}")
                good = (limits.coefficients >= 0) & (limits.coefficients <= 1)
                check(bool(good.all()), f"coefficients are {limits.coefficients} for norms x {scale}")

    def test_thresholds_are_numbers_where_norms_are_none(self) -> None:
        """A norm that is NaN, infinite or 0 makes no threshold NaN, whatever was seen before."""
        stage = Stage(self.device)
        for useless in _USELESS:
            threshold = self.make()
            for norms in stage.history(self.steps):
                for places in ((1,), (0, 1, 2, 3)):
                    limits = stage.step(threshold, spoilt(norms, places, useless))
                    check(bool((limits.thresholds >= 0).all()), f"thresholds are {limits.thresholds} at {useless}")
                stage.step(threshold, norms)

    def test_norms_are_not_changed(self) -> None:
        """What a step saw is left as it was."""
        stage, threshold = Stage(self.device), self.make()
        for norms in stage.history(self.steps):
            before = norms.clone()
            stage.step(threshold, norms)
            same(norms, before, "the norms were changed in place")

    def test_nothing_waits_for_the_device(self) -> None:
        """No step reads a value back, neither the first ones nor those after a change of components."""
        stage, threshold = Stage(self.device), self.make()
        history = stage.history(self.steps)
        with profile(activities=[ProfilerActivity.CPU]) as record:
            stage.run(threshold, history)
            if not self.of_places:
                stage.step(threshold, history[0], (3, 1))
                stage.run(threshold, history[:2])
        waits = sorted(_WAITS & {event.key for event in record.key_averages()})
        check(not waits, f"steps wait for the device, by {waits}")

    # --- what leaves traces

    def test_a_norm_that_tells_nothing_leaves_no_trace(self) -> None:
        """A step in which a norm is NaN, infinite or 0 is one in which the component had no part.

        Where components are looked at together all norms are such, and there was no step.
        """
        stage = Stage(self.device)
        history = stage.history(self.steps)
        for when in (0, 3, self.steps // 2):
            runs = [self._after_useless(stage, history, when, useless) for useless in _USELESS]
            if not self.of_places and (self.make().separate or not self.counts_steps):
                runs.append(self._after_absence(stage, history, when))
            for run in runs[1:]:
                same_limits(run, runs[0], f"a norm that tells nothing left a trace, in step {when}")

    def _after_useless(self, stage: Stage, history: list[Tensor], when: int, useless: float) -> list[Limits]:
        threshold = self.make()
        stage.run(threshold, history[:when])
        stage.step(threshold, spoilt(history[when], (1,) if self.make().separate else (0, 1, 2, 3), useless))
        return stage.run(threshold, history[when + 1 :])

    def _after_absence(self, stage: Stage, history: list[Tensor], when: int) -> list[Limits]:
        threshold = self.make()
        stage.run(threshold, history[:when])
        if self.make().separate:
            stage.step(threshold, history[when], _OTHERS)
        return stage.run(threshold, history[when + 1 :])

    def test_what_a_component_does_leaves_the_others_alone(self) -> None:
        """NaN, infinity, nothing or a spike in one of them changes no limit of another, then or later."""
        self._ask_only_if(self.make().separate, "its components are looked at together")
        stage = Stage(self.device)
        history, others = stage.history(self.steps), list(_OTHERS)
        plain = stage.run(self.make(), history)
        for value in (*_USELESS, 1e6):
            changed = [spoilt(norms, (1,), value) if step % 3 == 1 else norms for step, norms in enumerate(history)]
            for limits, wanted in zip(stage.run(self.make(), changed), plain, strict=True):
                same(limits.thresholds[others], wanted.thresholds[others], f"{value} changed others' thresholds")
                same(limits.coefficients[others], wanted.coefficients[others], f"{value} changed others' coefficients")

    # --- components

    def test_binding_again_changes_nothing(self) -> None:
        """Neither the same components nor others that are equal to them."""
        stage = Stage(self.device)
        once, often = self.make(), self.make()
        for norms in stage.history(self.steps):
            wanted = stage.step(once, norms)
            often.bind(stage.parts())
            often.bind(components(stage.model))
            same_limits([stage.step(often, norms)], [wanted], "binding again changed the limits")

    def test_state_goes_by_name(self) -> None:
        """The same components in another order keep what they had."""
        self._ask_only_if(not self.of_places, "its limits belong to places")
        stage, order = Stage(self.device), (2, 0, 3, 1)
        stayed, turned = self._used(stage), self._used(stage)
        for norms in stage.history(5):
            limits, wanted = stage.step(turned, norms, order), stage.step(stayed, norms)
            # Where norms are added up, their order may show in the last bit.
            torch.testing.assert_close(limits.thresholds, wanted.thresholds[list(order)], rtol=1e-6, atol=0.0)
            torch.testing.assert_close(limits.norms, wanted.norms[list(order)], rtol=1e-6, atol=0.0)

    def test_components_that_return_find_their_state(self) -> None:
        """A component that goes away for some steps is afterwards as if it had had no gradient in them."""
        self._ask_only_if(self.make().separate and not self.of_places, "a component gone is a change for the others")
        stage = Stage(self.device)
        left, stayed = self._used(stage), self._used(stage)
        for norms in stage.history(7):
            limits, wanted = stage.step(left, norms, _OTHERS), stage.step(stayed, spoilt(norms, (1,), 0.0))
            same(limits.thresholds, wanted.thresholds[list(_OTHERS)], "those that stayed lost their state")
        future = stage.history(5)
        same_limits(stage.run(left, future), stage.run(stayed, future), "what came back lost its state")

    # --- states

    def test_a_saved_state_goes_on_alike(self) -> None:
        """Through a file, loaded before or after the components are known, into a new object or a used one."""
        stage = Stage(self.device)
        future = stage.history(7)
        for steps_before in (None, 0, 3):
            old, new = self._used(stage), self.make()
            saved = io.BytesIO()
            torch.save(old.state_dict(), saved)
            saved.seek(0)
            if steps_before is not None:
                new.bind(stage.parts())
                stage.run(new, stage.history(10)[:steps_before])
            new.load_state_dict(torch.load(saved, weights_only=True))
            same_limits(stage.run(new, future), stage.run(old, future), "a loaded state goes on otherwise")

    def test_a_saved_state_stays_as_it_is(self) -> None:
        """Later steps do not change it, neither those of the saved object nor those of the one that loads it."""
        stage = Stage(self.device)
        old, new = self._used(stage), self.make()
        state = old.state_dict()
        before = copy.deepcopy(state)
        new.load_state_dict(state)
        for threshold in (old, new):
            stage.run(threshold, stage.history(5))
        check(repr(state) == repr(before), f"steps changed a state that was saved before, from {before} to {state}")

    def test_copies_go_on_alike_and_alone(self) -> None:
        """Pickled and deep copies, made before the first step or later, go on as the original and do not touch it."""
        stage = Stage(self.device)
        future = stage.history(7)
        for original in (self.make(), self._used(stage)):
            copies = [copy.deepcopy(original), pickle.loads(pickle.dumps(original))]  # noqa: S301  our own bytes
            runs = [stage.run(threshold, future) for threshold in (*copies, original)]
            for run in runs[:-1]:
                same_limits(run, runs[-1], "a copy goes on otherwise, or changed its original")

    # --- training

    def test_training_goes_on(self) -> None:
        """A small network that is clipped with it learns."""
        stage, threshold = Stage(self.device), self.make()
        parts = stage.parts()
        inputs = torch.randn(32, 3, device=self.device)
        targets = inputs.sum(1, keepdim=True).tanh()
        optimizer = torch.optim.SGD(stage.model.parameters(), lr=0.1)
        losses = []
        for _ in range(2 * self.steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(stage.model(inputs), targets)
            torch.autograd.backward(loss)
            result = clip_grad_norm_(parts, max_norm=threshold)
            good = (result.coefficients >= 0) & (result.coefficients <= 1)
            check(bool(good.all()), f"coefficients are {result.coefficients}")
            optimizer.step()
            losses.append(float(loss.detach()))
        check(losses[-1] < losses[0], f"the loss went from {losses[0]} to {losses[-1]}")

    def _ask_only_if(self, good: bool, reason: str) -> None:
        if not good:
            raise SkipTest(reason)
