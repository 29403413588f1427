"""The contract finds what breaks it: each test of it fails for a threshold made to fail it."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import pytest
import torch
from torch import Tensor

from evenkeel import Components
from evenkeel.clipping.thresholds import Budget, Limits, Percentile, Seen, Threshold
from evenkeel.testing import ThresholdContract


class Peak(Threshold):
    """Half the greatest norm of a component so far: a user's own threshold, plain and right."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.peaks: dict[str, Tensor] = {}

    @property
    def separate(self) -> bool:
        return True

    def bind(self, parts: Components) -> None:
        self.names = [part.name for part in parts]

    def limits(self, seen: Seen) -> Limits:
        thresholds = []
        for name, norm, usable in zip(self.names, seen.norms, seen.usable, strict=True):
            old = self.peaks.get(name, torch.zeros_like(norm)).to(norm.dtype)
            self.peaks[name] = torch.where(usable, torch.maximum(old, norm), old)
            thresholds.append(torch.where(self.peaks[name] > 0, self.peaks[name] / 2, torch.inf))
        return Limits(thresholds=torch.stack(thresholds), norms=seen.norms)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.peaks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.peaks = dict(state)


def contract(make: Callable[[], Threshold], **special: Any) -> ThresholdContract:
    made: type[ThresholdContract] = type("TestMine", (ThresholdContract,), {"make": lambda _: make(), **special})
    return made()


TESTS = sorted(name for name, _ in inspect.getmembers(ThresholdContract) if name.startswith("test_"))


@pytest.mark.parametrize("test", TESTS)
def test_a_threshold_of_ones_own_passes(test: str) -> None:
    getattr(contract(Peak), test)()


# --- and these do not


class Doubled(Peak):
    def limits(self, seen: Seen) -> Limits:
        limits = super().limits(seen)
        return Limits(thresholds=limits.thresholds.double(), norms=limits.norms)


class Negative(Peak):
    def limits(self, seen: Seen) -> Limits:
        limits = super().limits(seen)
        return Limits(thresholds=limits.thresholds - 1.0, norms=limits.norms)


class Infected(Peak):
    """NaN reaches its thresholds and, through the mean, all components."""

    def limits(self, seen: Seen) -> Limits:
        self.peaks["mean"] = self.peaks.get("mean", torch.tensor(0.0)).to(seen.norms.dtype) + seen.norms.mean()
        return Limits(thresholds=self.peaks["mean"].expand_as(seen.norms), norms=seen.norms)


class Overwriting(Peak):
    def limits(self, seen: Seen) -> Limits:
        seen.norms.mul_(0.5)
        return super().limits(seen)


class Waiting(Peak):
    def limits(self, seen: Seen) -> Limits:
        assert float(seen.norms.max()) != 0.25
        return super().limits(seen)


class Counting(Peak):
    """A norm that tells nothing still takes its turn."""

    def limits(self, seen: Seen) -> Limits:
        for name in self.names:
            self.peaks[name + " turns"] = self.peaks.get(name + " turns", torch.tensor(1.0)) + 1
        turns = torch.stack([self.peaks[name + " turns"] for name in self.names]).to(seen.norms.dtype)
        return Limits(thresholds=1 / turns, norms=seen.norms)


class Restless(Peak):
    """Every call of bind counts."""

    def bind(self, parts: Components) -> None:
        super().bind(parts)
        self.peaks["calls"] = self.peaks.get("calls", torch.tensor(0.0)) + 1

    def limits(self, seen: Seen) -> Limits:
        return Limits(thresholds=self.peaks["calls"] * torch.ones_like(seen.norms), norms=seen.norms)


class Placed(Peak):
    """State belongs to places."""

    def bind(self, parts: Components) -> None:
        self.names = [str(place) for place, _ in enumerate(parts)]


class Forgetful(Peak):
    """What goes away is forgotten."""

    def bind(self, parts: Components) -> None:
        super().bind(parts)
        self.peaks = {name: peak for name, peak in self.peaks.items() if name in self.names}


class Unsaved(Peak):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Leaking(Peak):
    """What it saves, later steps change."""

    def limits(self, seen: Seen) -> Limits:
        limits = super().limits(seen)
        for name, norm in zip(self.names, seen.norms, strict=True):
            self.peaks.setdefault(name + " sum", torch.zeros(())).add_(norm)
        return limits


class Shared(Peak):
    """Copies have one memory."""

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


class Freezing(Peak):
    def limits(self, seen: Seen) -> Limits:
        return Limits(thresholds=torch.zeros_like(seen.norms), norms=seen.norms)


BROKEN = [
    (Doubled, "test_limits_are_like_the_norms", "limits.thresholds is torch.float64"),
    (Negative, "test_thresholds_are_numbers_from_0_on", "thresholds are"),
    (Infected, "test_thresholds_are_numbers_where_norms_are_none", "thresholds are"),
    (Overwriting, "test_norms_are_not_changed", "changed in place"),
    (Waiting, "test_nothing_waits_for_the_device", "wait for the device, by"),
    (Counting, "test_a_norm_that_tells_nothing_leaves_no_trace", "left a trace"),
    (Infected, "test_what_a_component_does_leaves_the_others_alone", "changed others' thresholds"),
    (Restless, "test_binding_again_changes_nothing", "binding again changed"),
    (Placed, "test_state_goes_by_name", "Mismatched elements"),
    (Forgetful, "test_components_that_return_find_their_state", "lost its state"),
    (Unsaved, "test_a_saved_state_goes_on_alike", "goes on otherwise"),
    (Leaking, "test_a_saved_state_stays_as_it_is", "steps changed a state"),
    (Shared, "test_copies_go_on_alike_and_alone", "goes on otherwise, or changed its original"),
    (Freezing, "test_training_goes_on", "the loss went from"),
]


@pytest.mark.parametrize(("threshold", "test", "message"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_one_fails(threshold: type[Threshold], test: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        getattr(contract(threshold), test)()


def test_every_test_was_seen_to_fail() -> None:
    assert sorted({test for _, test, _ in BROKEN}) == TESTS


def test_what_cannot_be_asked_is_skipped() -> None:
    with pytest.raises(SkipTest, match="looked at together"):
        contract(lambda: Budget(1.0)).test_what_a_component_does_leaves_the_others_alone()
    with pytest.raises(SkipTest, match="places"):
        contract(Peak, of_places=True).test_state_goes_by_name()


class TestCollected(ThresholdContract):
    """As users write it."""

    def make(self) -> Threshold:
        return Percentile(25)


@pytest.mark.slow
def test_it_needs_no_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import evenkeel.testing; print('_pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
