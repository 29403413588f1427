"""``MethodTrainer`` against the Trainer that it extends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, RATE, After, Before, assert_same_weights, by_hand, mean_over_all, weights
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import ComponentClip, MethodTrainer
from evenkeel.methods import ComponentClipping, FullFineTuning, GradualUnfreezing

Arguments = Callable[..., TrainingArguments]
STEPS = 5  # of one epoch
SLOW = pytest.mark.slow  # for further cases of what a quick test has seen once


def method_trainer(model: nn.Module, args: TrainingArguments, *methods: Any, **more: Any) -> MethodTrainer:
    return MethodTrainer(model, args, methods=methods, train_dataset=DATA, **more)


def rates(trainer: Trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


class Trained(TrainerCallback):
    """Keeps which blocks could be trained in each step."""

    def __init__(self) -> None:
        self.lowest: list[int] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        layers = [part.layer for part in components(kwargs["model"]) if part.layer is not None]
        self.lowest.append(min(layers))


# --- one phase


USUAL = {"train_sampling_strategy": "random", "lr_scheduler_type": "linear", "warmup_steps": 2, "weight_decay": 0.1}


def test_full_is_the_plain_trainer(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    trainer = method_trainer(ours, arguments(num_train_epochs=2, logging_steps=1, **USUAL), "full")
    trainer.train()
    plain = Trainer(
        theirs, arguments(num_train_epochs=2, max_grad_norm=1.0, logging_steps=1, **USUAL), train_dataset=DATA
    )
    plain.train()
    assert_same_weights(ours, theirs)
    assert rates(trainer) == rates(plain)
    logged = [
        [entry["grad_norm"] for entry in one.state.log_history if "grad_norm" in entry] for one in (trainer, plain)
    ]
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert max(logged[0]) > 1  # some step was clipped


def test_component_clip_is_the_plain_trainer_with_the_callback(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    method_trainer(ours, arguments(num_train_epochs=2, **USUAL), "component-clip:max_norm=0.01").train()
    args = arguments(num_train_epochs=2, **USUAL)
    Trainer(theirs, args, train_dataset=DATA, callbacks=[ComponentClip(max_norm=0.01)]).train()
    assert_same_weights(ours, theirs, tolerance=0)


def test_under_a_loss_scale_the_true_gradients_are_clipped(arguments: Arguments) -> None:
    ours, theirs = _models.bert(), _models.bert()
    trainer = method_trainer(ours, arguments(), "component-clip:max_norm=0.01")
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train()
    plain = method_trainer(theirs, arguments(), "component-clip:max_norm=0.01")
    plain.train()
    assert trainer.last_clip is not None
    assert plain.last_clip is not None
    assert trainer.last_clip.to_dict() == pytest.approx(plain.last_clip.to_dict(), rel=1e-3, abs=1e-6)
    assert_same_weights(ours, theirs)


def test_nan_in_one_component_reaches_no_other(arguments: Arguments) -> None:
    model = _models.bert()
    model.classifier.bias.register_hook(lambda grad: grad * math.nan)  # before the Trainer looks at norms of its own
    method_trainer(model, arguments(max_steps=1), "component-clip").train()
    bad = {name for name, parameter in model.named_parameters() if not parameter.isfinite().all()}
    assert bad == {"classifier.bias"}


def test_the_log_holds_the_norm_before_clipping(arguments: Arguments) -> None:
    model, twin = _models.bert(), _models.bert()
    trainer = method_trainer(
        model, arguments(logging_steps=1, max_steps=1), "component-clip:max_norm=1e-4", compute_loss_func=mean_over_all
    )
    trainer.train()
    norms = by_hand(twin, max_norm=math.inf)[0].values()
    assert trainer.state.log_history[0]["grad_norm"] == pytest.approx(math.hypot(*norms), rel=1e-5)


def test_arguments_are_copied_not_changed(arguments: Arguments) -> None:
    args = arguments(max_grad_norm=0.7, num_train_epochs=1)
    trainer = method_trainer(_models.bert(3), args, "gradual-unfreezing")
    assert (args.max_grad_norm, args.num_train_epochs) == (0.7, 1)
    assert (trainer.args.max_grad_norm, trainer.args.num_train_epochs) == (0.0, 3)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("full", r"must be a list, but got 'full'; write methods=\['full'\]"),
        (None, "must be a list, but got None"),
        (
            FullFineTuning(),
            r"must be a list, but got Full.*; write methods=\[FullFineTuning\(max_norm=1.0, correct_bias=True\)\]",
        ),
        ([FullFineTuning], "is no method"),
        ([["full"]], "is no method"),
        ([], "at least one method"),
        (["ful"], "did you mean 'full'"),
        (["full", "component-clip"], "cannot be mixed"),
        (["component-clip:max_norm=0"], "no positive number"),
    ],
)
def test_methods_that_cannot_be_are_refused(arguments: Arguments, methods: Any, said: str) -> None:
    with pytest.raises(MethodError, match=said):
        MethodTrainer(_models.bert(), arguments(), methods=methods, train_dataset=DATA)


def test_a_model_that_is_too_flat_is_refused_at_once(arguments: Arguments) -> None:
    with pytest.raises(MethodError, match="at least 2 blocks"):
        method_trainer(_models.bert(1), arguments(), GradualUnfreezing())


# --- several phases


def test_gradual_unfreezing_is_one_fine_tuning_after_the_other(arguments: Arguments) -> None:
    ours, theirs = _models.bert(3), _models.bert(3)
    usual = {"lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.1}
    method_trainer(ours, arguments(**usual), "gradual-unfreezing").train()
    for lowest in (2, 1, 0):
        theirs.bert.embeddings.requires_grad_(lowest == 0)
        for index, block in enumerate(theirs.bert.encoder.layer):
            block.requires_grad_(index >= lowest)
        Trainer(theirs, arguments(max_grad_norm=1.0, **usual), train_dataset=DATA).train()
    assert_same_weights(ours, theirs)


def test_a_block_moves_only_from_its_phase_on(arguments: Arguments) -> None:
    model = _models.bert(3)
    history: list[dict[str, Tensor]] = []

    def keep(model: nn.Module, *_: object) -> None:
        history.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})

    keep(model)
    trained = Trained()
    trainer = method_trainer(
        model, arguments(), GradualUnfreezing(), ComponentClipping(max_norm=0.05), callbacks=[After(keep), trained]
    )
    trainer.train()
    assert trained.lowest == [2] * STEPS + [1] * STEPS + [0] * STEPS
    assert len(history) == 1 + 3 * STEPS
    released = {2: 0, 1: STEPS, 0: 2 * STEPS}
    for part in components(model):
        first = released[part.layer] if part.layer is not None else 2 * STEPS * part.path.startswith("embedding.")
        moved = [not torch.equal(one[part.name], other[part.name]) for one, other in itertools.pairwise(history)]
        assert not any(moved[:first]), part.name
        if part.path != f"layer.{part.layer}.key.bias":  # its gradient is zero, but for rounding
            assert all(moved[first:]), part.name


def test_every_phase_starts_with_an_empty_optimizer(arguments: Arguments) -> None:
    steps: list[set[int]] = []

    def keep(_: object, optimizer: Any, __: object) -> None:
        steps.append({int(state["step"]) for state in optimizer.state.values()})

    method_trainer(_models.bert(3), arguments(), "gradual-unfreezing", callbacks=[After(keep)]).train()
    assert steps == [{step} for step in range(1, STEPS + 1)] * 3


@pytest.mark.parametrize(
    "schedule",
    [
        {"lr_scheduler_type": "linear", "warmup_steps": 2},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": RATE / 10}},
        pytest.param({"lr_scheduler_type": "linear", "warmup_steps": 0.2}, marks=SLOW),  # a share of the phase
        pytest.param({"lr_scheduler_type": "cosine"}, marks=SLOW),
        pytest.param({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3}, marks=SLOW),
        pytest.param({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": RATE / 10}}, marks=SLOW),
    ],
    ids=str,
)
def test_the_learning_rate_starts_anew_in_every_phase(arguments: Arguments, schedule: dict[str, Any]) -> None:
    once = Trainer(_models.bert(2), arguments(logging_steps=1, **schedule), train_dataset=DATA)
    once.train()
    phased = method_trainer(_models.bert(2), arguments(logging_steps=1, **schedule), "gradual-unfreezing")
    phased.train()
    assert len(rates(once)) == STEPS
    assert rates(phased) == pytest.approx(rates(once) * 2)


@pytest.mark.parametrize(
    ("epochs", "method", "total"),
    [(1, "gradual-unfreezing", 3), (2, "gradual-unfreezing", 6), (7, "gradual-unfreezing:epochs=1", 3), (2, "full", 2)],
)
def test_epochs_are_those_of_every_phase(arguments: Arguments, epochs: int, method: str, total: int) -> None:
    trainer = method_trainer(_models.bert(3), arguments(num_train_epochs=epochs), method)
    trainer.train()
    assert trainer.state.epoch == trainer.args.num_train_epochs == total
    assert trainer.state.global_step == total * STEPS


@pytest.mark.parametrize(
    ("steps", "lowest"), [(9, [2, 2, 2, 1, 1, 1, 0, 0, 0]), (7, [2, 2, 1, 1, 1, 0, 0]), (3, [2, 1, 0])]
)
def test_max_steps_are_shared_among_the_phases(arguments: Arguments, steps: int, lowest: list[int]) -> None:
    trained = Trained()
    method_trainer(_models.bert(3), arguments(max_steps=steps), "gradual-unfreezing", callbacks=[trained]).train()
    assert trained.lowest == lowest


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps_than_phases_are_refused(arguments: Arguments, steps: int) -> None:
    model = _models.bert(3)
    before = weights(model)
    with pytest.raises(MethodError, match=rf"{steps} steps are too few for 3 phases"):
        method_trainer(model, arguments(max_steps=steps), "gradual-unfreezing").train()
    assert torch.equal(weights(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_schedule_that_cannot_start_anew_is_refused(arguments: Arguments) -> None:
    args = arguments(lr_scheduler_type="reduce_lr_on_plateau", eval_strategy="epoch")
    with pytest.raises(MethodError, match="schedule 'reduce_lr_on_plateau' cannot start anew"):
        method_trainer(_models.bert(), args, "gradual-unfreezing", eval_dataset=DATA).train()
    method_trainer(_models.bert(), args, "full", eval_dataset=DATA).train()  # one phase needs no new start


def test_a_schedule_of_the_users_own_is_kept(arguments: Arguments) -> None:
    model = _models.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = method_trainer(model, arguments(logging_steps=1), "gradual-unfreezing", optimizers=(optimizer, schedule))
    trainer.train()
    assert rates(trainer) == pytest.approx([0.1 * 0.5**step for step in range(2 * STEPS)])


def test_afterwards_everything_can_be_trained_again(arguments: Arguments) -> None:
    model = _models.bert(3)
    method_trainer(model, arguments(max_steps=3), "gradual-unfreezing").train()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_everything_can_be_trained_again_after_a_crash(arguments: Arguments) -> None:
    frozen: list[int] = []

    def crash(model: nn.Module, *_: object) -> None:
        frozen.append(sum(not parameter.requires_grad for parameter in model.parameters()))
        raise KeyboardInterrupt

    model = _models.bert(3)
    with pytest.raises(KeyboardInterrupt):
        method_trainer(model, arguments(), "gradual-unfreezing", callbacks=[Before(crash)]).train()
    assert frozen == [2 * 16 + 5]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_the_user_froze_stays_frozen(arguments: Arguments) -> None:
    model = _models.bert(3)
    trained: list[set[str]] = []

    def keep(model: nn.Module, *_: object) -> None:
        trained.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})

    model.bert.embeddings.requires_grad_(False)
    trainer = method_trainer(model, arguments(max_steps=3), "gradual-unfreezing", callbacks=[Before(keep)])
    model.bert.pooler.requires_grad_(False)  # after the Trainer was made
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    trainer.train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name not in before)
        assert name not in before or torch.equal(parameter, before[name])
    assert [len(names) for names in trained] == [16 + 2, 2 * 16 + 2, 3 * 16 + 2]
    assert not set(before) & set().union(*trained)


# --- more than one training


@pytest.mark.parametrize("saved", [STEPS, STEPS + 2], ids=["between phases", "within a phase"])
@pytest.mark.parametrize("method", ["gradual-unfreezing", pytest.param("component-clip", marks=SLOW)])
def test_a_resumed_training_is_an_uninterrupted_one(
    arguments: Arguments, tmp_path: Path, method: str, saved: int
) -> None:
    usual = {
        "num_train_epochs": 1 if method == "gradual-unfreezing" else 2,
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "random",
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": saved,
    }
    whole = method_trainer(_models.bert(2), arguments(**usual), method)
    whole.train()
    resumed = method_trainer(_models.bert(2, seed=1), arguments(**usual), method)  # other weights: they are loaded
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{saved}"))
    assert whole.model is not None
    assert resumed.model is not None
    assert resumed.state.global_step == whole.state.global_step == 2 * STEPS
    assert rates(resumed) == rates(whole)
    assert_same_weights(resumed.model, whole.model)


def test_a_second_training_goes_through_all_phases_again(arguments: Arguments) -> None:
    trained = Trained()
    trainer = method_trainer(_models.bert(2), arguments(max_steps=4), "gradual-unfreezing", callbacks=[trained])
    trainer.train()
    trainer.train()
    assert trained.lowest == [1, 1, 0, 0] * 2


def test_a_model_made_anew_for_every_training_is_the_one_that_is_trained(arguments: Arguments) -> None:
    trained = Trained()
    trainer = MethodTrainer(
        args=arguments(max_steps=4),
        methods=["gradual-unfreezing", "component-clip"],
        train_dataset=DATA,
        model_init=lambda: _models.bert(),
        callbacks=[trained],
    )
    for trainings in (1, 2):
        trainer.train()
        assert trained.lowest == [1, 1, 0, 0] * trainings
    assert trainer.model is not None
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert not torch.equal(weights(trainer.model), weights(_models.bert()))
