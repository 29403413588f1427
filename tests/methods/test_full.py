from __future__ import annotations

import math
from typing import Any

import pytest
from tests import _models
from tests.integrations._training import DATA, EPSILON, assert_same_weights
from tests.methods._by_hand import by_hand
from tests.methods._clipped_by_hand import Arguments

from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, Method
from evenkeel.methods.bert_adam import BertAdam
from evenkeel.testing import MethodContract


@pytest.mark.parametrize("max_norm", [0.3, math.inf])
def test_it_is_torchs_adamw_with_torchs_clipping(arguments: Arguments, max_norm: float) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    method = FullFineTuning(max_norm=max_norm)
    MethodTrainer(ours, arguments(weight_decay=0.1), methods=[method], train_dataset=DATA).train()
    by_hand(theirs, max_norm=max_norm, weight_decay=0.1)
    assert_same_weights(ours, theirs, tolerance=1e-10)


def test_without_bias_correction_it_is_the_legacy_adam(arguments: Arguments) -> None:
    ours, theirs, corrected = (_models.bert().double() for _ in range(3))
    legacy = BertAdam(max_norm=math.inf, weight_decay=0.0, eps=EPSILON)
    for model, method in (
        (ours, FullFineTuning(max_norm=math.inf, correct_bias=False)),
        (theirs, legacy),
        (corrected, FullFineTuning(max_norm=math.inf)),
    ):
        MethodTrainer(model, arguments(), methods=[method], train_dataset=DATA).train()
    assert_same_weights(ours, theirs, tolerance=1e-10)
    with pytest.raises(AssertionError):
        assert_same_weights(ours, corrected, tolerance=1e-10)


@pytest.mark.parametrize("bad", [None, 1, "yes"])
def test_bias_correction_is_on_or_off(bad: Any) -> None:
    with pytest.raises(MethodError, match="full: correct_bias must be"):
        FullFineTuning(correct_bias=bad)


@pytest.mark.parametrize("bad", [0, -1, math.nan, True, "1", None, {"query": 0.1}])
def test_thresholds_are_positive(bad: Any) -> None:
    with pytest.raises(MethodError, match="full: max_norm must be a number above 0 or inf, but got"):
        FullFineTuning(max_norm=bad)


class TestFullFineTuningContract(MethodContract):
    differs = False

    def make(self) -> Method:
        return FullFineTuning()
