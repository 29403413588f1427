"""Clipping beside an Accelerator, against loops of torch alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from torch import Tensor, nn
from torch.utils.data import DataLoader

from evenkeel import components
from evenkeel.errors import GradientError, ThresholdError
from evenkeel.integrations.accelerate import clip_grad_norm_

MAX_NORM, RATE = 0.02, 0.1


@pytest.fixture
def accelerator() -> Iterator[Callable[..., Accelerator]]:
    """Make an Accelerator on the CPU; its state is global, and gone afterwards."""

    def reset() -> None:
        for state in (AcceleratorState, PartialState):
            state._reset_state()
        GradientState._reset_state()

    reset()
    yield lambda **options: Accelerator(cpu=True, **options)
    reset()


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"])


def train(
    accelerator: Accelerator, *, guarded: bool = True, batch: int = 4, **options: Any
) -> tuple[nn.Module, list[Any]]:
    model = _models.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(DATA, batch_size=batch))
    parts = components(model)
    results = []
    for rows in loader:
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, rows))
            if accelerator.sync_gradients or not guarded:
                results.append(clip_grad_norm_(accelerator, parts, MAX_NORM, **options))
            optimizer.step()
            optimizer.zero_grad()
    return model, results


def by_hand(batch: int = 4) -> tuple[nn.Module, list[dict[str, float]]]:
    model = _models.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    norms = []
    for rows in DataLoader(DATA, batch_size=batch):
        optimizer.zero_grad()
        loss_of(model, rows).backward()
        norms.append(
            {
                name: nn.utils.clip_grad_norm_([one], MAX_NORM).item()
                for name, one in model.named_parameters()
                if one.grad is not None
            }
        )
        optimizer.step()
    return model, norms


def test_it_is_a_loop_that_clips_every_parameter_on_its_own(accelerator: Callable[..., Accelerator]) -> None:
    ours, results = train(accelerator())
    theirs, norms = by_hand()
    assert_same_weights(ours, theirs)
    assert len(results) == len(norms)
    for result, expected in zip(results, norms, strict=True):
        assert result.to_dict() == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("guarded", [True, False])
def test_while_gradients_accumulate_nothing_is_clipped(accelerator: Callable[..., Accelerator], guarded: bool) -> None:
    ours, results = train(accelerator(gradient_accumulation_steps=2), guarded=guarded, batch=2)
    theirs, norms = by_hand()
    assert_same_weights(ours, theirs)
    assert sum(result is None for result in results) == (0 if guarded else 5)
    kept = [result.to_dict() for result in results if result is not None]
    assert kept[0] == pytest.approx(norms[0], rel=1e-3, abs=1e-6)


def scaled(accelerator: Accelerator, scale: float) -> torch.amp.GradScaler:
    """Give it a loss scale, as with mixed_precision='fp16' on a GPU; on a CPU Accelerate refuses that."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    assert accelerator.scaler.is_enabled()
    return accelerator.scaler


def test_a_loss_scale_is_divided_out_once_however_often_it_is_called(accelerator: Callable[..., Accelerator]) -> None:
    ours = _models.bert()
    accelerator_ = accelerator()
    scaler = scaled(accelerator_, 2.0**12)
    model, optimizer, loader = accelerator_.prepare(
        ours, torch.optim.SGD(ours.parameters(), lr=RATE), DataLoader(DATA, batch_size=4)
    )
    assert optimizer.scaler is scaler
    parts = components(model)
    theirs, norms = by_hand()
    for rows, expected in zip(loader, norms, strict=True):
        accelerator_.backward(loss_of(model, rows))
        raw = model.classifier.bias.grad.norm().item()
        assert raw == pytest.approx(2.0**12 * expected["classifier.bias"], rel=1e-3)  # scaling was active
        first = clip_grad_norm_(accelerator_, parts[:2], math.inf)
        result = clip_grad_norm_(accelerator_, parts, MAX_NORM)
        assert first is not None
        assert result is not None
        assert result.to_dict() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        optimizer.step()
        assert not optimizer.step_was_skipped
        optimizer.zero_grad()
    assert_same_weights(ours, theirs)


def test_a_step_that_the_scaler_skips_stays_one(accelerator: Callable[..., Accelerator]) -> None:
    made, model = accelerator(), _models.bert()
    scaler = scaled(made, 8.0)
    model, optimizer = made.prepare(model, torch.optim.SGD(model.parameters(), lr=RATE))
    parts, before = components(model), [one.detach().clone() for one in model.parameters()]
    made.backward(loss_of(model, next(iter(DataLoader(DATA, batch_size=4)))))
    model.classifier.bias.grad[0] = math.inf
    result = clip_grad_norm_(made, parts, MAX_NORM)
    assert result is not None
    assert result.norms.isfinite().sum() == len(parts) - 1  # the others were not touched
    optimizer.step()
    assert optimizer.step_was_skipped
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


def test_an_optimizer_of_another_model_is_left_alone(accelerator: Callable[..., Accelerator]) -> None:
    made = accelerator()
    scaled(made, 16.0)
    one, other = _models.bert(), _models.bert(seed=1)
    one, _, other, _ = made.prepare(
        one, torch.optim.SGD(one.parameters(), lr=RATE), other, torch.optim.SGD(other.parameters(), lr=RATE)
    )
    rows = next(iter(DataLoader(DATA, batch_size=4)))
    made.backward(loss_of(one, rows) + loss_of(other, rows))
    raw = other.classifier.bias.grad.clone()
    clip_grad_norm_(made, one, MAX_NORM)
    assert torch.equal(other.classifier.bias.grad, raw)  # still multiplied by the scale
    clip_grad_norm_(made, other, math.inf)
    assert torch.equal(other.classifier.bias.grad, raw / 16.0)


def test_an_optimizer_that_was_not_prepared_is_told_of(accelerator: Callable[..., Accelerator]) -> None:
    made, model = accelerator(), _models.bert()
    scaled(made, 16.0)
    made.backward(loss_of(model, next(iter(DataLoader(DATA, batch_size=4)))))
    with pytest.raises(GradientError, match=r"no optimizer .* prepared holds .* accelerator.prepare first"):
        clip_grad_norm_(made, model, MAX_NORM)


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA])
def test_gradients_that_are_elsewhere_are_refused(kind: DistributedType) -> None:
    elsewhere: Any = SimpleNamespace(distributed_type=kind, sync_gradients=True)
    with pytest.raises(GradientError, match=f"trains by {kind.value}, where"):
        clip_grad_norm_(elsewhere, _models.bert(), MAX_NORM)


def test_bad_thresholds_are_refused(accelerator: Callable[..., Accelerator]) -> None:
    model = _models.bert()
    _models.backward(model)
    with pytest.raises(ThresholdError, match="is no positive number"):
        clip_grad_norm_(accelerator(), model, -1.0)


def test_the_global_partition_is_their_own_clipping(accelerator: Callable[..., Accelerator]) -> None:
    made = accelerator()
    ours, theirs = _models.bert(), _models.bert()
    for model in (ours, theirs):
        _models.backward(model)
    result = clip_grad_norm_(made, components(ours, by="global"), 0.1)
    norm = made.clip_grad_norm_(theirs.parameters(), 0.1)
    assert result is not None
    assert result.total_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-8)
