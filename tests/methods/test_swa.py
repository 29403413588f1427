"""SWA, and what it has in common with the moving average: evaluation, result, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, After, assert_same_weights, weights
from tests.methods._by_hand import STEPS, loss_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import FullFineTuning, GradualUnfreezing, Method, Mix, Moment, Setting, Step
from evenkeel.methods.ema import ExponentialMovingAverage
from evenkeel.methods.swa import StochasticWeightAveraging
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
SWA, EMA = StochasticWeightAveraging, ExponentialMovingAverage


def weights_after_steps(args: TrainingArguments, *methods: Method, layers: int = 2) -> tuple[nn.Module, list[Tensor]]:
    """Train, and return the model and its weights after each step."""
    model, seen = _models.bert(layers), []
    keep = After(lambda model, optimizer, step: seen.append(weights(model)))
    MethodTrainer(model, args, methods=list(methods), train_dataset=DATA, callbacks=[keep]).train()
    return model, seen


@pytest.mark.parametrize(
    ("options", "averaged"),
    [
        ({"start": 0.0}, [1, 2, 3, 4, 5]),
        ({"start": 0.5}, [3, 4, 5]),  # half of 5 steps are 2 whole ones
        ({"start": 0.4, "every": 2}, [4]),
        pytest.param({"start": 0.0, "every": 2}, [2, 4], marks=pytest.mark.slow),
        pytest.param({"start": 0.0, "every": 5}, [5], marks=pytest.mark.slow),
    ],
)
def test_the_result_is_the_mean_of_the_weights(
    arguments: Arguments, options: dict[str, Any], averaged: list[int]
) -> None:
    model, seen = weights_after_steps(arguments(), SWA(**options))
    mean = torch.stack([seen[step - 1].double() for step in averaged]).mean(dim=0)
    torch.testing.assert_close(weights(model).double(), mean, rtol=0.0, atol=1e-6)


def test_it_is_what_torch_averages(arguments: Arguments) -> None:
    plain = _models.bert()
    twin = AveragedModel(plain, multi_avg_fn=get_swa_multi_avg_fn())

    def average(model: nn.Module, optimizer: Any, step: int) -> None:
        if step > 2:
            twin.update_parameters(model)

    MethodTrainer(
        plain, arguments(), methods=[FullFineTuning()], train_dataset=DATA, callbacks=[After(average)]
    ).train()
    model, _ = weights_after_steps(arguments(), SWA(start=0.5))
    assert_same_weights(model, twin.module, tolerance=0.0)


@pytest.mark.parametrize("options", [{"start": 1.0}, {"start": 0.5, "every": 4}])
def test_where_nothing_is_averaged_the_last_weights_are_the_result(
    arguments: Arguments, options: dict[str, Any]
) -> None:
    model, seen = weights_after_steps(arguments(), SWA(**options))
    assert torch.equal(weights(model), seen[-1])


@pytest.mark.parametrize("method", [SWA(start=0.2), EMA(decay=0.5)])
def test_the_training_goes_on_from_its_own_weights(arguments: Arguments, method: Method) -> None:
    _, plain = weights_after_steps(arguments(), FullFineTuning())
    model, seen = weights_after_steps(arguments(eval_strategy="no"), method)
    assert all(map(torch.equal, seen, plain))
    assert not torch.equal(weights(model), seen[-1])


@pytest.mark.parametrize("method", [SWA(start=0.2), EMA(decay=0.5)])
def test_evaluations_see_the_averages(arguments: Arguments, method: Method) -> None:
    model, seen = _models.bert(), []
    trainer = MethodTrainer(
        model,
        arguments(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=len(DATA)),
        methods=[method],
        train_dataset=DATA,
        eval_dataset=DATA,
        callbacks=[After(lambda model, optimizer, step: seen.append(weights(model)))],
    )
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    _, plain = weights_after_steps(arguments(), FullFineTuning())
    assert all(map(torch.equal, seen, plain))  # put back bit for bit
    for step, found in enumerate(losses):
        counted = seen[1 : step + 1] if isinstance(method, SWA) else seen[: step + 1]
        shares = [0.5 ** (len(counted) - 1 - place if isinstance(method, EMA) else 0) for place in range(len(counted))]
        twin = _models.bert()
        mean = sum(share * one for share, one in zip(shares, counted, strict=True)) if counted else seen[step]
        nn.utils.vector_to_parameters(mean / (sum(shares) or 1.0), twin.parameters())
        twin.eval()
        with torch.no_grad():
            expected = torch.stack([loss_of(twin, batch) for batch in range(STEPS)]).mean()
        assert found == pytest.approx(expected.item(), abs=1e-5)


def test_what_is_released_later_is_averaged_as_well(arguments: Arguments) -> None:
    model, seen = weights_after_steps(arguments(), SWA(start=0.0), GradualUnfreezing())
    assert len(seen) == 2 * STEPS
    mean = torch.stack([one.double() for one in seen]).mean(dim=0)
    torch.testing.assert_close(weights(model).double(), mean, rtol=0.0, atol=1e-6)


def test_averages_of_narrow_weights_are_wide(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    setting = Setting(model=model, parts=components(model))
    session, optimizer = SWA(start=0.0).begin(setting), torch.optim.SGD(model.parameters(), lr=1.0)
    values = [1.0, 1.0 + 2**-7, 1.0 + 2**-7, 1.0]
    for step, value in enumerate(values):
        nn.init.constant_(model.weight, value)
        session.after_step(Step(moment=Moment(step=step), total=4, parts=setting.parts, optimizer=optimizer))
    torch.save(session.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["averages"]["weight"].item() == sum(values) / 4  # bfloat16 has nothing between
    again = SWA(start=0.0).begin(setting)
    again.load_state_dict(state)
    again.after_step(Step(moment=Moment(step=4), total=5, parts=setting.parts, optimizer=optimizer))
    assert again.state_dict()["count"] == 5
    torch.testing.assert_close(again.state_dict()["averages"]["weight"].item(), (sum(values) + 1) / 5)


def test_weights_come_back_when_an_evaluation_fails() -> None:
    model = _models.bert()
    session = SWA(start=0.0).begin(Setting(model=model, parts=components(model)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    session.after_step(Step(moment=Moment(step=0), total=1, parts=components(model), optimizer=optimizer))
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    own = weights(model)
    seen: list[Tensor] = []

    def evaluate() -> None:
        with session.evaluating():
            seen.append(weights(model))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate()
    assert not torch.equal(seen[0], own)
    assert torch.equal(weights(model), own)


def test_the_best_checkpoint_cannot_be_the_result_beside_it(arguments: Arguments) -> None:
    args = arguments(
        load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1
    )
    with pytest.raises(MethodError, match="swa ends a training with other weights than its last ones"):
        MethodTrainer(_models.bert(), args, methods=[SWA()], train_dataset=DATA, eval_dataset=DATA)


def test_two_averages_cannot_both_be_the_result() -> None:
    with pytest.raises(MethodError, match="an average of its own"):
        Mix((EMA(), SWA()))


@pytest.mark.parametrize("start", [-0.1, 1.1, math.nan, math.inf, True, "0.5", None, [0.5]])
def test_start_is_a_share(start: Any) -> None:
    with pytest.raises(MethodError, match=r"start must be a .*number from 0 to 1, but got .*0\.75"):
        SWA(start=start)


@pytest.mark.parametrize("every", [0, -1, 1.5, math.nan, True, "2", None])
def test_every_is_a_number_of_steps(every: Any) -> None:
    with pytest.raises(MethodError, match="every must be a whole number from 1, but got"):
        SWA(every=every)


class TestStochasticWeightAveragingContract(MethodContract):
    def make(self) -> Method:
        return SWA(start=0.25)

    def neutral(self) -> Method:
        return SWA(start=1.0)
