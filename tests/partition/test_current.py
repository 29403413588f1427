from __future__ import annotations

import torch
from tests import _models
from torch import nn

from evenkeel import components
from evenkeel.partition import CurrentComponents


def test_looks_again_only_when_something_was_frozen_or_released() -> None:
    model = _models.bert()
    current = CurrentComponents(model)
    before = current()
    assert current() is before
    model.classifier.requires_grad_(False)
    assert [part.name for part in current()] == [part.name for part in before][:-2]
    model.classifier.requires_grad_(True)
    assert current() == before


def test_notices_an_exchange_of_as_many() -> None:
    model = _models.bert()
    current = CurrentComponents(model)
    model.classifier.bias.requires_grad_(False)
    first = current()
    model.classifier.bias.requires_grad_(True)
    model.classifier.weight.requires_grad_(False)
    assert len(current()) == len(first)
    assert current()[-1].name == "classifier.bias"


def test_notices_a_parameter_put_in_anothers_place() -> None:
    model = nn.Linear(2, 1)
    current = CurrentComponents(model)
    current()
    model.weight = nn.Parameter(torch.zeros(1, 2))
    assert current()[0].parameters[0] is model.weight


def test_groups_as_asked() -> None:
    model = _models.bert()
    current = CurrentComponents(model, "layer")
    assert current() == components(model, "layer")
    model.bert.encoder.layer[0].requires_grad_(False)
    assert [part.name for part in current()] == ["outside", "layer.1"]
