"""What tests of methods with several passes share: dropout that a twin can repeat, and micro-batches by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tests import _models
from tests.integrations._training import DATA, weights
from tests.methods._by_hand import rows
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from evenkeel import components
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Batch, FullFineTuning, Method, Moment, Problem, Setting

DROPOUT = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
SEED = 42  # of TrainingArguments, unless told otherwise


class Seeds(TrainerCallback):
    """Seeds torch's global generator before each step, for a twin that does the same by ``seed``."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seed(state.global_step)


def seed(step: int) -> None:
    torch.manual_seed(1000 + step)


def labels(step: int) -> Tensor:
    return rows(step)[:, 0] % 2


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL divergence of softmax distributions, mean over rows: torch's own."""
    return F.kl_div(other.log_softmax(-1), one.log_softmax(-1), reduction="batchmean", log_target=True)


def symmetric(one: Tensor, other: Tensor) -> Tensor:
    return kl(one, other) + kl(other, one)


def setting(model: nn.Module, problem: Problem = "classification") -> Setting:
    return Setting(model=model, parts=components(model), problem=problem)


def words(model: nn.Module, ids: Tensor) -> Tensor:
    return model.get_input_embeddings()(ids)  # type: ignore[operator,no-any-return]


def batch_of(
    model: nn.Module, inputs: dict[str, Tensor], *, problem: Problem = "classification", items: int | None = None
) -> Batch:
    """A micro-batch whose first pass is made now."""

    def compute() -> tuple[Tensor, Any]:
        outputs = model(**inputs)
        return outputs.loss, outputs

    loss, outputs = compute()
    moment = Moment(step=3, micro=1, seed=7)
    return Batch(
        inputs=inputs, outputs=outputs, loss=loss, problem=problem, moment=moment, compute=compute, items=items
    )


def with_logits(first: Tensor, second: Tensor, *, problem: Problem, losses: tuple[float, float] = (0.0, 0.0)) -> Batch:
    """A micro-batch whose two passes gave these logits and losses."""
    return Batch(
        inputs={},
        outputs={"logits": first},
        loss=torch.tensor(losses[0], dtype=torch.float64),
        problem=problem,
        moment=Moment(step=0),
        compute=lambda: (torch.tensor(losses[1], dtype=torch.float64), {"logits": second}),
    )


def padded(count: int = 4, *, seed: int = 0) -> dict[str, Tensor]:
    """Rows for a classifier, the last tokens of some of which are padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, _models.VOCABULARY, (count, _models.LENGTH), generator=generator)
    mask = (torch.arange(_models.LENGTH) < torch.tensor([8, 5, 8, 3])[:count, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids[:, 0] % 2}


@contextmanager
def counted(module: nn.Module) -> Iterator[Callable[[], int]]:
    """Count calls of a module."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = module.register_forward_hook(count)
    try:
        yield lambda: calls
    finally:
        handle.remove()


def hooks(model: nn.Module) -> int:
    """How many forward hooks a model's modules have."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def assert_is_full_with_dropout(method: Method, arguments: Callable[..., TrainingArguments]) -> None:
    """A method that does nothing gives full fine-tuning's weights, draws what it draws, and makes no pass more."""
    found, states, passes = [], [], []
    for one in (method, FullFineTuning()):
        model = _models.bert(**DROPOUT)
        with counted(model) as calls:
            MethodTrainer(model, arguments(), methods=[one], train_dataset=DATA).train()
        found.append(weights(model))
        states.append(torch.get_rng_state())
        passes.append(calls())
    assert torch.equal(found[0], found[1])
    assert torch.equal(states[0], states[1])
    assert passes[0] == passes[1]
