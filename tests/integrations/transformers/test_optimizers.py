"""``MethodTrainer`` with clipping inside of the optimizer, or inside of backward, trains to the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, After, assert_same_weights, mean_over_all, weights
from torch import nn
from transformers import TrainingArguments

from evenkeel.clipping.thresholds import Percentile
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import ComponentClipping
from evenkeel.optim import ClippedAdamW, InBackward

Arguments = Callable[..., TrainingArguments]
WAYS: dict[str, dict[str, Any]] = {
    "clipped adamw": {"optimizer": "clipped-adamw"},
    "in backward": {"in_backward": True},
}
USUAL: dict[str, Any] = {
    "train_sampling_strategy": "random",
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "weight_decay": 0.1,
}


def trained(args: TrainingArguments, methods: list[str], **more: Any) -> tuple[nn.Module, MethodTrainer]:
    model = _models.bert()
    trainer = MethodTrainer(model, args, methods=methods, train_dataset=DATA, **more)
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("methods", "options"),
    [
        pytest.param(["component-clip:max_norm=0.01"], {}, marks=pytest.mark.slow),
        (["component-clip:max_norm=0.01:by=layer"], {"bf16": True}),
        (["full"], {"optim": "adamw_torch"}),
        (["component-clip:max_norm=0.01", "gradual-unfreezing"], {}),
        (["component-clip:max_norm=0.01"], {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}),
    ],
)
def test_the_weights_are_the_same(way: str, methods: list[str], options: dict[str, Any], arguments: Arguments) -> None:
    plain, usual = trained(arguments(**USUAL | options), methods, compute_loss_func=mean_over_all)
    model, trainer = trained(arguments(**USUAL | options), methods, compute_loss_func=mean_over_all, **WAYS[way])
    assert isinstance(usual.optimizer.optimizer, torch.optim.AdamW)  # in Accelerate's wrapper
    kind = ClippedAdamW if way == "clipped adamw" else InBackward
    assert isinstance(trainer.optimizer.optimizer, kind)
    assert_same_weights(model, plain, tolerance=2e-6)
    assert trainer.last_clip is not None
    assert usual.last_clip is not None
    mine, theirs = trainer.last_clip.to_dict(), usual.last_clip.to_dict()
    assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_training_is_the_uninterrupted_one(way: str, arguments: Arguments, tmp_path: Path) -> None:
    options = USUAL | {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3}
    whole, _ = trained(arguments(**options, output_dir=str(tmp_path / "whole")), ["component-clip"], **WAYS[way])
    again = _models.bert(seed=5)
    args = arguments(**options, output_dir=str(tmp_path / "again"))
    resumed = MethodTrainer(again, args, methods=["component-clip"], train_dataset=DATA, **WAYS[way])
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_weights(again, whole, tolerance=0)


def test_the_log_holds_the_norm_before_clipping(arguments: Arguments) -> None:
    logs = []
    for more in ({}, *WAYS.values()):
        _, trainer = trained(arguments(logging_steps=1, max_steps=3), ["component-clip:max_norm=1e-3"], **more)
        logs.append([entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    assert logs[2] == pytest.approx(logs[0], rel=1e-3)


def test_no_gradient_is_left_for_the_optimizer_in_backward(arguments: Arguments) -> None:
    left: list[int] = []
    model = _models.bert()
    trainer = MethodTrainer(model, arguments(max_steps=2), methods=["full"], train_dataset=DATA, in_backward=True)
    trainer.add_callback(After(lambda model, *_: left.append(sum(p.grad is not None for p in model.parameters()))))
    trainer.train()
    assert left
    assert set(left) == {0}


def test_hooks_are_there_while_it_trains_and_no_longer(arguments: Arguments) -> None:
    model, trainer = trained(arguments(max_steps=2), ["component-clip"], in_backward=True)
    before = weights(model)
    _models.backward(model)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert torch.equal(weights(model), before)
    model.zero_grad()
    trainer.train()  # again
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        ({"optimizer": "clipped-adam"}, {}, "did you mean 'clipped-adamw'"),
        ({"optimizer": "clipped-adamw", "in_backward": True}, {}, "keep one of them"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    more: dict[str, Any], options: dict[str, Any], message: str, arguments: Arguments
) -> None:
    with pytest.raises(MethodError, match=message):
        MethodTrainer(_models.bert(), arguments(**options), methods=["full"], train_dataset=DATA, **more)


def test_a_loss_scale_is_refused_in_backward(arguments: Arguments) -> None:
    args = arguments()
    args.fp16 = True  # which transformers itself refuses to be made with on a CPU
    with pytest.raises(MethodError, match="bf16=True"):
        MethodTrainer(_models.bert(), args, methods=["full"], train_dataset=DATA, in_backward=True)


def test_another_optimizer_than_adamw_is_refused(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match=r"makes a SGD; set TrainingArguments\(optim='adamw_torch'\)"):
        trained(arguments(optim="sgd"), ["full"], optimizer="clipped-adamw")
    plain, _ = trained(arguments(optim="sgd"), ["full"])
    model, _ = trained(arguments(optim="sgd"), ["full"], in_backward=True)
    assert_same_weights(model, plain, tolerance=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_training_of_model_init_has_its_own_optimizer(way: str, arguments: Arguments) -> None:
    args = arguments(max_steps=2)
    trainer = MethodTrainer(
        None, args, model_init=lambda: _models.bert(), methods=["component-clip"], train_dataset=DATA, **WAYS[way]
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], weights(_models.bert()))


@pytest.mark.parametrize("way", WAYS)
def test_schedules_that_ask_the_optimizer_for_its_rate(way: str, arguments: Arguments) -> None:
    options = USUAL | {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-3}}
    plain, _ = trained(arguments(**options), ["component-clip"])
    model, _ = trained(arguments(**options), ["component-clip"], **WAYS[way])
    assert_same_weights(model, plain, tolerance=2e-6)


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}])
@pytest.mark.parametrize("methods", [["full"], ["component-clip:max_norm=0.01:by=layer"]])
def test_components_of_several_tensors_under_accumulation(
    methods: list[str], options: dict[str, Any], arguments: Arguments
) -> None:
    plain, _ = trained(arguments(**USUAL | options), methods, compute_loss_func=mean_over_all)
    model, _ = trained(arguments(**USUAL | options), methods, compute_loss_func=mean_over_all, in_backward=True)
    assert_same_weights(model, plain, tolerance=2e-6)


def test_an_optimizer_of_ones_own_is_not_replaced(arguments: Arguments) -> None:
    model = _models.bert()
    own = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.raises(MethodError, match="would take the place of yours"):
        MethodTrainer(
            model, arguments(), methods=["full"], train_dataset=DATA, optimizer="clipped-adamw", optimizers=(own, None)
        )


def test_batches_that_are_tried_again_are_refused_in_backward(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="auto_find_batch_size"):
        MethodTrainer(
            _models.bert(), arguments(auto_find_batch_size=True), methods=["full"], train_dataset=DATA, in_backward=True
        )


def test_a_training_that_was_interrupted_in_backward_can_begin_again(arguments: Arguments) -> None:
    model = _models.bert()
    trainer = MethodTrainer(model, arguments(max_steps=2), methods=["full"], train_dataset=DATA, in_backward=True)

    def interrupt(grad: torch.Tensor) -> None:
        raise KeyboardInterrupt

    hook = model.bert.embeddings.word_embeddings.weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    hook.remove()
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("more", [{}, *WAYS.values()])
def test_what_a_threshold_learns_ends_with_its_training(more: dict[str, Any], arguments: Arguments) -> None:
    methods = [ComponentClipping(max_norm=Percentile(20, window=8))]
    trainer = MethodTrainer(
        None, arguments(), model_init=lambda: _models.bert(), methods=methods, train_dataset=DATA, **more
    )
    found = []
    for _ in range(2):
        trainer.train()
        found.append(weights(trainer.model))
    assert torch.equal(found[0], found[1])


def test_what_a_threshold_has_learnt_is_in_the_checkpoint(arguments: Arguments, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
    methods = [ComponentClipping(max_norm=Percentile(20, window=8))]
    whole = MethodTrainer(_models.bert(), arguments(**options), methods=methods, train_dataset=DATA)
    whole.train()
    again = MethodTrainer(_models.bert(), arguments(**options), methods=methods, train_dataset=DATA)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(weights(again.model), weights(whole.model))


def test_a_checkpoint_without_what_the_threshold_had_learnt_is_refused(arguments: Arguments, tmp_path: Path) -> None:
    options = {"save_strategy": "steps", "save_steps": 3, "output_dir": str(tmp_path)}
    methods = [ComponentClipping(max_norm=Percentile(20, window=8))]
    MethodTrainer(_models.bert(), arguments(**options), methods=methods, train_dataset=DATA).train()
    (tmp_path / "checkpoint-3" / "evenkeel_methods.pt").unlink()
    again = MethodTrainer(_models.bert(), arguments(**options), methods=methods, train_dataset=DATA)
    with pytest.raises(MethodError, match="evenkeel_methods.pt is missing"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
