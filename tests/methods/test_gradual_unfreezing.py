from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import _models
from tests.integrations._training import DATA, EPSILON, RATE, After, assert_same_weights
from tests.methods._by_hand import STEPS, loss_of
from torch import nn
from transformers import TrainingArguments

from evenkeel import Components, components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import GradualUnfreezing, Method, parse_method
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier

Arguments = Callable[..., TrainingArguments]


def trained(parts: Components, **options: Any) -> list[set[str]]:
    """Paths trained in each phase, with every block shortened to ``layer.<n>``."""
    return [
        {f"layer.{part.layer}" if part.layer is not None else part.path for part in parts if phase.trainable(part)}
        for phase in GradualUnfreezing(**options).phases(parts)
    ]


def test_phases_of_a_bert_are_those_of_the_paper() -> None:
    head = {"head.weight", "head.bias", "pooler.weight", "pooler.bias"}
    embeddings = {f"embedding.{word}" for word in ("word", "position", "token_type", "norm.weight", "norm.bias")}
    assert trained(components(_models.bert(3))) == [
        head | {"layer.2"},
        head | {"layer.2", "layer.1"},
        head | {"layer.2", "layer.1", "layer.0"} | embeddings,
    ]


@pytest.mark.parametrize("name", _models.ALL)
def test_on_every_architecture_embeddings_come_last_and_everything_comes(name: str) -> None:
    parts = components(_models.ALL[name]())
    first, last = trained(parts)
    assert not {path for path in first if path.startswith("embedding")}
    assert "layer.0" not in first
    assert {"layer.1"} < first
    assert last - first == {path for path in last if path.startswith("embedding")} | {"layer.0"}
    assert all(GradualUnfreezing().phases(parts)[-1].trainable(part) for part in parts)


def test_a_block_is_released_whole() -> None:
    parts = components(_models.bert(3))
    for lowest, phase in zip((2, 1, 0), GradualUnfreezing().phases(parts), strict=True):
        assert {part.layer for part in parts if phase.trainable(part)} >= set(range(lowest, 3))
        assert all(phase.trainable(part) == (part.layer >= lowest) for part in parts if part.layer is not None)
        assert phase.name == f"layers {lowest} to 2"


@pytest.mark.parametrize("epochs", [None, 1, 2.5])
def test_every_phase_is_as_long_as_told(epochs: float | None) -> None:
    phases = GradualUnfreezing(epochs=epochs).phases(components(_models.bert(2)))
    assert [phase.epochs for phase in phases] == [epochs] * 2


@pytest.mark.parametrize("model", [_models.bert(1), nn.Linear(2, 1)])
def test_too_few_blocks_are_refused(model: nn.Module) -> None:
    with pytest.raises(MethodError, match=r"at least 2 blocks, but found [01]; use full"):
        GradualUnfreezing().phases(components(model))


@pytest.mark.parametrize("name", ["epochs", "final_epochs"])
@pytest.mark.parametrize("epochs", [0, -1, math.nan, math.inf, True, "2", [1]])
def test_epochs_are_positive(name: str, epochs: Any) -> None:
    with pytest.raises(MethodError, match=rf"gradual-unfreezing: {name} must be a finite number above 0 or none, but"):
        GradualUnfreezing(**{name: epochs})


@pytest.mark.parametrize("bad", [0, 1, None, "no"])
def test_restart_is_true_or_false(bad: Any) -> None:
    with pytest.raises(MethodError, match="gradual-unfreezing: restart must be true or false"):
        GradualUnfreezing(restart=bad)
    assert parse_method("gradual-unfreezing:restart=no") == GradualUnfreezing(restart=False)  # YAML's no


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"final_epochs": 4}, [None, None, 4]),
        ({"epochs": 1, "final_epochs": 4}, [1, 1, 4]),
        ({"epochs": 2}, [2, 2, 2]),
    ],
)
def test_the_last_phase_may_be_longer(options: dict[str, Any], lengths: list[float | None]) -> None:
    phases = GradualUnfreezing(**options).phases(components(_models.bert(3)))
    assert [phase.epochs for phase in phases] == lengths
    assert all(phase.restart for phase in phases)


def test_what_all_blocks_share_is_released_with_the_lowest() -> None:
    parts = components(classifier("deberta-v2"))
    shared = {part.path for part in parts if part.layer is None and part.path.startswith("relative_position")}
    assert shared
    first, last = (GradualUnfreezing().phases(parts)[place] for place in (0, -1))
    for part in parts:
        assert last.trainable(part)
        assert not (part.path in shared and first.trainable(part))


def test_the_form_of_ulmfit_is_one_training_in_which_layers_come_in(arguments: Arguments) -> None:
    ours, theirs = _models.bert(3).double(), _models.bert(3).double()
    method = GradualUnfreezing(epochs=1, final_epochs=2, restart=False)
    counts: list[set[int]] = []

    def count(_: object, optimizer: Any, __: object) -> None:
        counts.append({int(state["step"]) for state in optimizer.state.values()})

    args = arguments(lr_scheduler_type="linear", warmup_steps=3, weight_decay=0.1, logging_steps=1)
    trainer = MethodTrainer(ours, args, methods=[method], train_dataset=DATA, callbacks=[After(count)])
    trainer.train()

    total = 4 * STEPS
    wanted = [RATE * min(step / 3, (total - step) / (total - 3)) for step in range(total)]
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == pytest.approx(wanted)
    assert counts[:STEPS] == [{step} for step in range(1, STEPS + 1)]
    assert counts[-1] == {total, total - STEPS, total - 2 * STEPS}  # the head's; one for each block that came later

    bare = {"weight_decay": 0.0, "params": [one for name, one in theirs.named_parameters() if is_bare(name)]}
    rest = {"weight_decay": 0.1, "params": [one for name, one in theirs.named_parameters() if not is_bare(name)]}
    optimizer = torch.optim.AdamW([rest, bare], lr=RATE, eps=EPSILON)
    for step, rate in enumerate(wanted):
        lowest = max(0, 2 - step // STEPS)
        theirs.bert.embeddings.requires_grad_(lowest == 0)
        for layer, block in enumerate(theirs.bert.encoder.layer):
            block.requires_grad_(layer >= lowest)
        optimizer.zero_grad()
        loss_of(theirs, step % STEPS).backward()
        nn.utils.clip_grad_norm_([one for one in theirs.parameters() if one.grad is not None], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert_same_weights(ours, theirs, tolerance=1e-10)


def is_bare(name: str) -> bool:
    """Whether a Trainer leaves a parameter undecayed."""
    return name.endswith("bias") or "LayerNorm" in name


def test_with_restarts_the_same_phases_are_another_training(arguments: Arguments) -> None:
    models = [_models.bert(3), _models.bert(3)]
    for model, restart in zip(models, (True, False), strict=True):
        method = GradualUnfreezing(epochs=1, final_epochs=2, restart=restart)
        trainer = MethodTrainer(model, arguments(), methods=[method], train_dataset=DATA)
        trainer.train()
        assert trainer.state.global_step == 4 * STEPS
    assert not torch.equal(models[0].classifier.weight, models[1].classifier.weight)


def test_the_form_of_ulmfit_can_be_resumed_between_its_phases(arguments: Arguments, tmp_path: Path) -> None:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": STEPS, "lr_scheduler_type": "linear"}
    found = []
    for start in (None, str(tmp_path / f"checkpoint-{STEPS}")):
        model = _models.bert(2)
        method = GradualUnfreezing(epochs=1, final_epochs=2, restart=False)
        MethodTrainer(model, arguments(**options), methods=[method], train_dataset=DATA).train(start)
        found.append(model)
    assert_same_weights(*found, tolerance=0)


class TestGradualUnfreezingContract(MethodContract):
    refused = {"albert": "at least 2 blocks"}  # noqa: RUF012  as the suite's own

    def make(self) -> Method:
        return GradualUnfreezing()


class TestUlmfitContract(MethodContract):
    refused = {"albert": "at least 2 blocks"}  # noqa: RUF012  as the suite's own

    def make(self) -> Method:
        return GradualUnfreezing(epochs=1, final_epochs=2, restart=False)
