from __future__ import annotations

import pytest
import torch
from tests import _models
from tests.partition import _zoo
from torch import Tensor, nn

from evenkeel.methods._stand_in import standing_in

IDS = _models.Rows(2).ids


def others(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach() * 0.5 + 0.1 for name, parameter in model.named_parameters()}


def pairs(model: nn.Module, tensors: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(parameter, tensors[name]) for name, parameter in model.named_parameters()]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_it_is_torchs_functional_call(name: str) -> None:
    model = (_models.bert() if name == "bert" else _zoo.fast("gpt2")).eval()  # GPT-2's head is its embedding too
    tensors = others(model)
    with standing_in(model, pairs(model, tensors)):
        found = model(input_ids=IDS).logits
    wanted = torch.func.functional_call(model, tensors, kwargs={"input_ids": IDS}).logits
    assert torch.equal(found, wanted)


def test_afterwards_every_parameter_is_in_its_place() -> None:
    model = _zoo.fast("gpt2")
    before = dict(model.named_parameters(remove_duplicate=False))
    with pytest.raises(KeyboardInterrupt), standing_in(model, pairs(model, others(model))):
        raise KeyboardInterrupt
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_pass_before_can_still_be_differentiated() -> None:
    model, twin = _models.bert(), _models.bert()
    loss = model(input_ids=IDS, labels=IDS[:, 0] % 2).loss
    with torch.no_grad(), standing_in(model, pairs(model, others(model))):
        model(input_ids=IDS)
    loss.backward()
    twin(input_ids=IDS, labels=IDS[:, 0] % 2).loss.backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]


def test_autocast_does_not_take_what_it_kept_of_the_parameters() -> None:
    model = _models.bert().eval()
    tensors = others(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=IDS)  # casts the parameters and keeps the casts
        with torch.no_grad(), standing_in(model, pairs(model, tensors)):
            found = model(input_ids=IDS).logits
        again = model(input_ids=IDS).logits
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = torch.func.functional_call(model, tensors, kwargs={"input_ids": IDS}).logits
        plain = model(input_ids=IDS).logits
    assert torch.equal(found, wanted)
    assert torch.equal(again, plain)
