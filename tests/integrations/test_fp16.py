"""fp16 as the frameworks themselves set it up on a GPU: their autocast in half precision, their scaler, their order.

On a CPU none of them turns fp16 on by itself: the Trainer's and Accelerate's fp16 make no scaler there, and Lightning
takes bf16. What is missing is put into their own objects, so that the paths are those of a GPU; all else is theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from tests import _models
from tests.integrations._training import BATCH, DATA, EPSILON, RATE, After, assert_same_weights, mean_over_all, weights
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainingArguments

from evenkeel import components, thresholds
from evenkeel.integrations.accelerate import clip_grad_norm_
from evenkeel.integrations.transformers import ComponentClip, MethodTrainer

MAX_NORM, SCALE, POISONED, STEPS = 0.02, 2.0**10, 2, len(DATA) // BATCH
SKIPPED = [step == POISONED for step in range(STEPS)]


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=10_000)


def as_on_a_gpu(accelerator: Accelerator) -> torch.amp.GradScaler:
    """Do what ``Accelerator(mixed_precision="fp16")`` does where its device is no CPU."""
    assert accelerator.mixed_precision == "fp16"
    assert accelerator.scaler is None  # if it makes one by now, this file has become simple
    accelerator.native_amp, accelerator.scaler = True, scaler()
    return accelerator.scaler


class Watched:
    """A model that overflows in one step, and tells in which precision it computes and how its gradients come."""

    def __init__(self, *, poisoned: bool = True) -> None:
        self.model = _models.bert()
        self.dtypes: set[torch.dtype] = set()
        self.raw: list[float] = []  # norm of one gradient as backward leaves it
        bias = self.model.get_parameter("classifier.bias")

        def arrived(parameter: Tensor) -> None:
            assert parameter.grad is not None
            if poisoned and len(self.raw) == POISONED:
                parameter.grad[0] = math.inf
            self.raw.append(parameter.grad.norm().item())

        bias.register_post_accumulate_grad_hook(arrived)
        self.model.get_submodule("classifier").register_forward_hook(lambda _, __, out: self.dtypes.add(out.dtype))


def by_hand(*, poisoned: bool = True) -> tuple[Watched, list[dict[str, float]]]:
    """The same by torch alone: each parameter clipped on its own, after its scaler's ``unscale_``."""
    watched, own, norms = Watched(poisoned=poisoned), scaler(), []
    optimizer = torch.optim.AdamW(watched.model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)
    for start in range(0, len(DATA), BATCH):
        ids = DATA.ids[start : start + BATCH]
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(watched.model(input_ids=ids).logits, ids[:, 0] % 2)
        own.scale(loss).backward()  # type: ignore[no-untyped-call]
        own.unscale_(optimizer)
        named = [(name, one) for name, one in watched.model.named_parameters() if one.grad is not None]
        norms.append({name: nn.utils.clip_grad_norm_([one], MAX_NORM).item() for name, one in named})
        own.step(optimizer)
        own.update()
        optimizer.zero_grad()
    return watched, norms


def assert_as_by_hand(watched: Watched, used: Any, *, poisoned: bool = True) -> None:
    """fp16 was on, the poisoned step was left out, and all others are those of the loop by hand."""
    assert type(used) is torch.amp.GradScaler
    assert used.is_enabled()
    assert used.get_scale() == (SCALE / 2 if poisoned else SCALE)
    oracle, norms = by_hand(poisoned=poisoned)
    assert watched.dtypes == oracle.dtypes == {torch.float16}
    assert watched.raw[0] == pytest.approx(SCALE * norms[0]["classifier.bias"], rel=1e-3)  # scaling was on
    assert watched.raw == pytest.approx(oracle.raw, rel=1e-3)
    assert_same_weights(watched.model, oracle.model, tolerance=1e-4)  # of steps of 1e-2: half precision rounds
    assert all(one.isfinite().all() for one in watched.model.parameters())


@pytest.fixture
def anew() -> Iterator[None]:
    """Accelerate's state is global."""

    def reset() -> None:
        for state in (AcceleratorState, PartialState):
            state._reset_state()
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("poisoned", [False, True])
def test_the_trainer_with_the_callback(arguments: Callable[..., TrainingArguments], poisoned: bool) -> None:
    watched = Watched(poisoned=poisoned)
    before, left_out = weights(watched.model), []

    def look(model: nn.Module, *_: object) -> None:
        nonlocal before
        left_out.append(torch.equal(before, weights(model)))
        before = weights(model)

    trainer = Trainer(
        watched.model,
        arguments(fp16=True, logging_steps=1),
        train_dataset=DATA,
        compute_loss_func=mean_over_all,
        callbacks=[ComponentClip(MAX_NORM), After(look)],
    )
    trainer.remove_callback(PrinterCallback)
    used = as_on_a_gpu(trainer.accelerator)
    trainer.train()
    assert trainer.optimizer.scaler is used
    # By the weights: the Trainer's fused AdamW leaves a step out inside of its kernel, which Accelerate does not see.
    assert left_out == (SKIPPED if poisoned else [False] * STEPS)
    assert_as_by_hand(watched, used, poisoned=poisoned)
    log = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
    # The Trainer's own norm, at infinity, has made everything NaN by then; the scaler has looked before.
    assert [math.isnan(norm) for norm in log] == (SKIPPED if poisoned else [False] * STEPS)


@pytest.mark.usefixtures("anew")
def test_a_threshold_learns_nothing_of_a_step_left_out(arguments: Callable[..., TrainingArguments]) -> None:
    clip = ComponentClip(thresholds.Ema(0.9, warmup=1))
    trainer = Trainer(
        Watched().model, arguments(fp16=True), train_dataset=DATA, compute_loss_func=mean_over_all, callbacks=[clip]
    )
    as_on_a_gpu(trainer.accelerator)
    trainer.train()
    assert isinstance(clip.max_norm, thresholds.Ema)
    learnt = [value for value in clip.max_norm.state_dict().values() if isinstance(value, Tensor)]
    assert learnt
    assert all(value.isfinite().all() for value in learnt)
    assert clip.last is not None
    assert clip.last.thresholds.isfinite().all()


@pytest.mark.usefixtures("anew")
def test_the_method_trainer(arguments: Callable[..., TrainingArguments]) -> None:
    watched = Watched()
    trainer = MethodTrainer(
        watched.model,
        arguments(fp16=True),
        methods=[f"component-clip:max_norm={MAX_NORM}"],
        train_dataset=DATA,
        compute_loss_func=mean_over_all,
    )
    used = as_on_a_gpu(trainer.accelerator)
    trainer.train()
    assert_as_by_hand(watched, used)


@pytest.mark.usefixtures("anew")
def test_accelerate() -> None:
    watched, left_out = Watched(), []
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    used = as_on_a_gpu(accelerator)
    model, optimizer, loader = accelerator.prepare(
        watched.model,
        torch.optim.AdamW(watched.model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0),
        DataLoader(DATA, batch_size=BATCH),
    )
    assert optimizer.scaler is used
    parts = components(model)
    for batch in loader:
        accelerator.backward(F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"]))
        clip_grad_norm_(accelerator, parts, MAX_NORM)
        optimizer.step()
        left_out.append(optimizer.step_was_skipped)
        optimizer.zero_grad()
    assert left_out == SKIPPED
    assert_as_by_hand(watched, used)


@pytest.mark.usefixtures("anew")
def test_accelerates_own_clipping_cannot_be_called_for_each_component() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    as_on_a_gpu(accelerator)
    plain = _models.bert()
    model, _ = accelerator.prepare(plain, torch.optim.SGD(plain.parameters(), lr=RATE))
    accelerator.backward(model(input_ids=DATA.ids[:BATCH]).logits.float().square().mean())
    parameters = list(model.parameters())
    accelerator.clip_grad_norm_(parameters[:1], MAX_NORM)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        accelerator.clip_grad_norm_(parameters[1:], MAX_NORM)
    clip_grad_norm_(accelerator, model, MAX_NORM)  # which the page says can be done


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning's advice about speed
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")  # of Lightning's own code
@pytest.mark.parametrize("manual", [False, True])
def test_lightning(tmp_path: Path, manual: bool) -> None:
    pl = pytest.importorskip("lightning.pytorch", reason="the extra lightning is not installed")
    from lightning.pytorch.plugins import MixedPrecision

    from evenkeel.integrations.lightning import ComponentClip as ForLightning

    watched = Watched()

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = watched.model
            self.automatic_optimization = not manual

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss = F.cross_entropy(self.model(input_ids=batch["input_ids"]).logits, batch["labels"])
            if manual:
                optimizer = self.optimizers()
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0)

    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(tmp_path),
        callbacks=[ForLightning(MAX_NORM)],
        plugins=[MixedPrecision(precision="16-mixed", device="cpu", scaler=scaler())],
    )
    trainer.fit(Module(), DataLoader(DATA, batch_size=BATCH))
    assert_as_by_hand(watched, trainer.precision_plugin.scaler)
