"""The Trainer's callbacks against loops written by hand; ``MethodTrainer`` has the file beside this one."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel import components
from evenkeel.errors import GradientError, ThresholdError
from evenkeel.integrations.transformers import ComponentClip, Recorder, unscale

RATE, BATCH = 1e-2, 4
EPSILON = 1e-4  # the gradient of a key's bias is zero but for rounding, which Adam would make as large as any other
DATA = _models.Rows(5 * BATCH)
MAX_NORM = 0.02  # below most components' norms here, above some


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., TrainingArguments]:
    def make(**changes: Any) -> TrainingArguments:
        plain: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "learning_rate": RATE,
            "adam_epsilon": EPSILON,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "per_device_train_batch_size": BATCH,
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0,
            "weight_decay": 0.0,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**plain | changes)

    return make


def mean_over_all(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """A loss that adds up to the large batch's over accumulated small ones."""
    total = F.cross_entropy(outputs.logits, labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


def by_hand(
    model: nn.Module, *, batch: int = BATCH, epochs: int = 1, autocast: bool = False, max_norm: float | None = MAX_NORM
) -> list[dict[str, float]]:
    """Train with torch alone, each parameter clipped by torch on its own; return the norms before clipping."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)
    model.train()
    seen = []
    for _ in range(epochs):
        for start in range(0, len(DATA), batch):
            ids = DATA.ids[start : start + batch]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 2)
            loss.backward()
            bound = math.inf if max_norm is None else max_norm
            seen.append(
                {
                    name: nn.utils.clip_grad_norm_([parameter], bound).item()
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                }
            )
            optimizer.step()
    return seen


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        difference = (mine - theirs).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"


class Watch(TrainerCallback):
    """Keeps what a clipping callback before it saw."""

    def __init__(self, clip: ComponentClip) -> None:
        self.clip = clip
        self.norms: list[dict[str, float]] = []

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.clip.last is not None
        self.norms.append(self.clip.last.to_dict())


def train(model: nn.Module, args: TrainingArguments, clip: ComponentClip, **more: Any) -> tuple[Trainer, Watch]:
    watch = Watch(clip)
    trainer = Trainer(model, args, train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[clip, watch], **more)
    trainer.train()
    return trainer, watch


# --- ComponentClip


def test_it_is_a_loop_that_clips_every_parameter_on_its_own(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs, unclipped = _models.bert(), _models.bert(), _models.bert()
    _, watch = train(ours, arguments(num_train_epochs=2), ComponentClip(max_norm=MAX_NORM))
    norms = by_hand(theirs, epochs=2)
    assert_same_weights(ours, theirs)
    assert len(watch.norms) == len(norms) == 10
    for mine, other in zip(watch.norms, norms, strict=True):
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-6)
    by_hand(unclipped, epochs=2, max_norm=None)
    with pytest.raises(AssertionError, match="differs"):  # clipping did matter
        assert_same_weights(ours, unclipped, tolerance=1e-3)


def test_accumulated_gradients_are_clipped_once_and_whole(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    args = arguments(per_device_train_batch_size=BATCH // 2, gradient_accumulation_steps=2, num_train_epochs=2)
    trainer, watch = train(ours, args, ComponentClip(max_norm=MAX_NORM))
    norms = by_hand(theirs, epochs=2)
    assert trainer.state.global_step == len(watch.norms) == len(norms)
    assert watch.norms[0] == pytest.approx(norms[0], rel=1e-4, abs=1e-7)
    assert_same_weights(ours, theirs, tolerance=1e-6)


def test_a_last_incomplete_accumulation_is_clipped_too(arguments: Callable[..., TrainingArguments]) -> None:
    args = arguments(gradient_accumulation_steps=3)  # five batches: three and two
    trainer, watch = train(_models.bert(), args, ComponentClip(max_norm=MAX_NORM))
    assert trainer.state.global_step == len(watch.norms) == 2


def test_under_autocast_it_clips_what_the_optimizer_sees(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs, exact = _models.bert(), _models.bert(), _models.bert()
    train(ours, arguments(bf16=True), ComponentClip(max_norm=MAX_NORM))
    by_hand(theirs, autocast=True)
    by_hand(exact)
    assert_same_weights(ours, theirs)
    with pytest.raises(AssertionError, match="differs"):  # autocast was on
        assert_same_weights(ours, exact)


@pytest.mark.parametrize("max_norm", [{"query": 0.001, "layer.1.*": 0.01, "*": math.inf}, 0.01])
@pytest.mark.parametrize("by", ["tensor", "role"])
def test_thresholds_and_partition_are_those_asked_for(
    arguments: Callable[..., TrainingArguments], max_norm: Any, by: Any
) -> None:
    if by == "role" and isinstance(max_norm, dict):
        max_norm = {"query": 0.001, "*": math.inf}
    clip = ComponentClip(max_norm=max_norm, by=by)
    model = _models.bert()
    train(model, arguments(max_steps=1), clip)
    assert clip.last is not None
    assert clip.last.names == tuple(part.name for part in components(model, by))
    expected = 0.01 if max_norm == 0.01 else 0.001
    query = next(index for index, part in enumerate(components(model, by)) if part.role == "query")
    assert clip.last.thresholds[query].item() == pytest.approx(expected)


def test_components_follow_what_is_frozen_and_released(arguments: Callable[..., TrainingArguments]) -> None:
    class Freeze(TrainerCallback):
        def on_step_begin(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            kwargs["model"].bert.embeddings.requires_grad_(state.global_step not in (1, 2))

    clip = ComponentClip(max_norm=MAX_NORM)
    watch = Watch(clip)
    args = arguments()
    Trainer(_models.bert(), args, train_dataset=DATA, callbacks=[Freeze(), clip, watch]).train()
    assert [len(norms) for norms in watch.norms] == [41, 36, 36, 41, 41]
    assert not any(name.startswith("bert.embeddings") for name in watch.norms[1])


def test_one_callback_serves_one_training_after_the_other(arguments: Callable[..., TrainingArguments]) -> None:
    clip = ComponentClip(max_norm=MAX_NORM)
    for layers, count in ((2, 41), (3, 57)):
        train(_models.bert(layers), arguments(max_steps=1), clip)
        assert clip.last is not None
        assert len(clip.last.norms) == count


def test_global_clipping_beside_it_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    model, before = _models.bert(), _models.bert()
    with pytest.raises(GradientError, match=r"clips globally \(max_grad_norm=1.0\).*max_grad_norm=0\)"):
        train(model, arguments(max_grad_norm=1.0), ComponentClip())
    assert_same_weights(model, before, tolerance=0)


def test_global_clipping_acts_first_where_it_is_wanted(arguments: Callable[..., TrainingArguments]) -> None:
    clip = ComponentClip(max_norm=math.inf, also_global=True)
    train(_models.bert(), arguments(max_grad_norm=0.003), clip)
    assert clip.last is not None
    assert clip.last.total_norm.item() == pytest.approx(0.003, rel=1e-2)


@pytest.mark.parametrize("max_norm", [0, -1.0, True, "0.05", {}])
def test_a_bad_threshold_is_refused_at_once(max_norm: Any) -> None:
    with pytest.raises(ThresholdError):
        ComponentClip(max_norm)


def test_a_pattern_that_fits_nothing_is_refused(arguments: Callable[..., TrainingArguments]) -> None:
    with pytest.raises(ThresholdError, match=r"names 'layer\.7"):
        train(_models.bert(), arguments(), ComponentClip({"layer.7.*": 0.1, "*": 1.0}))


# --- with an fp16 loss scale


class Scaled(Trainer):
    """A Trainer that scales its loss as it would on a GPU in fp16, and keeps scales and losses that it saw."""

    def __init__(self, *args: Any, scaler: torch.amp.GradScaler, poison: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.accelerator.scaler = scaler
        self.poison = poison
        self.raw: list[float] = []

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        bias = model.get_parameter("classifier.bias")
        assert bias.grad is not None
        self.raw.append(bias.grad.norm().item())
        if self.state.global_step == self.poison:
            bias.grad[0] = math.inf
        return loss


def scaled(
    model: nn.Module, args: TrainingArguments, *callbacks: TrainerCallback, scale: float = 2.0**10, **more: Any
) -> Scaled:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    trainer = Scaled(
        model,
        args,
        train_dataset=DATA,
        compute_loss_func=mean_over_all,
        callbacks=list(callbacks),
        scaler=scaler,
        **more,
    )
    trainer.train()
    return trainer


def test_under_a_loss_scale_the_true_gradients_are_clipped(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    clip, recorder = ComponentClip(max_norm=MAX_NORM), Recorder(every=1)
    watch = Watch(clip)
    trainer = scaled(ours, arguments(), recorder, clip, watch)
    norms = by_hand(theirs)
    first = norms[0]["classifier.bias"]
    assert trainer.raw[0] == pytest.approx(first * 2**10, rel=1e-4)  # scaling was active
    assert watch.norms[0] == pytest.approx(norms[0], rel=1e-4, abs=1e-7)
    assert len(watch.norms) == len(norms)
    recorded = recorder.norms.table().to_pylist()
    assert [row["norm"] for row in recorded[: len(norms[0])]] == pytest.approx(
        list(norms[0].values()), rel=1e-4, abs=1e-7
    )
    assert_same_weights(ours, theirs, tolerance=1e-6)
    assert trainer.accelerator.scaler.get_scale() == 2.0**10


def test_an_overflowed_step_is_skipped_and_training_goes_on(arguments: Callable[..., TrainingArguments]) -> None:
    class Keep(TrainerCallback):
        def __init__(self) -> None:
            self.weights: list[Tensor] = []

        def on_step_end(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
        ) -> None:
            self.weights.append(nn.utils.parameters_to_vector(kwargs["model"].parameters()).detach().clone())

    keep, watch = Keep(), Watch(ComponentClip(max_norm=MAX_NORM))
    trainer = scaled(_models.bert(), arguments(), watch.clip, watch, keep, poison=2)
    changed = [not torch.equal(one, other) for one, other in zip(keep.weights, keep.weights[1:], strict=False)]
    assert changed == [True, False, True, True]  # the third step is the one that was poisoned
    assert all(weights.isfinite().all() for weights in keep.weights)
    assert not math.isfinite(watch.norms[2]["classifier.bias"])
    assert all(math.isfinite(norm) for norms in (watch.norms[1], watch.norms[3]) for norm in norms.values())
    assert trainer.accelerator.scaler.get_scale() == 2.0**9  # the scaler noticed, in spite of the clipping


class Wrapped:
    """What Accelerate hands to the Trainer: an optimizer and the scaler."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.optimizer = optimizer
        self.scaler = scaler


def test_a_scale_is_divided_out_once_however_often_one_asks() -> None:
    model = nn.Linear(1, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    scaler.scale(model(torch.ones(1)).sum()).backward()
    assert model.weight.grad is not None
    assert model.weight.grad.item() == 8.0
    for _ in range(3):
        unscale(wrapped)
        assert model.weight.grad.item() == 1.0


def test_what_else_the_scaler_says_is_not_hidden() -> None:
    model = nn.Linear(1, 1, bias=False)
    scaler = torch.amp.GradScaler("cpu")
    wrapped = Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler)
    scaler.scale(model(torch.ones(1)).sum()).backward()
    scaler.step(wrapped.optimizer)
    with pytest.raises(RuntimeError, match="after step"):
        unscale(wrapped)


@pytest.mark.parametrize("scaler", [None, torch.amp.GradScaler("cpu", enabled=False)])
def test_without_a_scale_nothing_is_divided(scaler: Any) -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.grad = torch.ones(1, 1)
    unscale(Wrapped(torch.optim.SGD(model.parameters(), lr=0.1), scaler))
    unscale(torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.weight.grad.item() == 1.0


# --- Recorder


def test_norms_are_recorded_before_clipping_at_every_such_step(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    recorder, clip = Recorder(every=2), ComponentClip(max_norm=MAX_NORM)
    args = arguments(num_train_epochs=1)
    Trainer(ours, args, train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[recorder, clip]).train()
    norms = by_hand(theirs)
    rows = recorder.norms.table().to_pylist()
    names = [part.path for part in components(ours)]
    assert [(row["step"], row["component"]) for row in rows] == [(step, name) for step in (0, 2, 4) for name in names]
    expected = [norm for step in (0, 2, 4) for norm in norms[step].values()]
    assert [row["norm"] for row in rows] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(expected) > 2 * MAX_NORM


def test_recording_changes_nothing(arguments: Callable[..., TrainingArguments]) -> None:
    ours, theirs = _models.bert(), _models.bert()
    Trainer(ours, arguments(), train_dataset=DATA, callbacks=[Recorder(every=1)]).train()
    Trainer(theirs, arguments(), train_dataset=DATA).train()
    assert_same_weights(ours, theirs, tolerance=0)


def test_a_recorder_goes_on_with_the_next_model(arguments: Callable[..., TrainingArguments]) -> None:
    recorder = Recorder(every=1)
    for layers in (2, 3):
        Trainer(_models.bert(layers), arguments(max_steps=1), train_dataset=DATA, callbacks=[recorder]).train()
    assert recorder.norms.table().num_rows == 41 + 57
