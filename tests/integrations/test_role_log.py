"""What logs are told, against counting step by step."""

from __future__ import annotations

import math

import pytest
import torch
from tests import _models
from torch import nn

from evenkeel import ClipStatistics, clip_grad_norm_, components
from evenkeel.integrations._role_log import RoleLog


def test_rates_are_those_of_the_statistics_over_many_steps_and_changes_of_the_model() -> None:
    model, log, statistics = _models.bert(), RoleLog(), ClipStatistics()
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        if step in (70, 100):
            model.bert.pooler.requires_grad_(step == 100)
        parts = components(model) if step in (0, 70, 100) else parts  # noqa: F821  made in the first step
        for parameter in model.parameters():
            scale = 10 ** torch.empty(1).uniform_(-4, 0, generator=generator)
            parameter.grad = torch.randn(parameter.shape, generator=generator) * scale
        result = clip_grad_norm_(parts, 0.05)
        log.update(parts, result)
        statistics.update(result)
    entries, rates = log.take(), statistics.clipped
    roles = {part.name: part.role for part in components(model)}
    for role in ("query", "pooler", "head"):
        of_role = [rate for name, rate in rates.items() if roles[name] == role]
        assert entries[f"clip_rate/{role}"] == pytest.approx(sum(of_role) / len(of_role))
    assert entries["clip_rate"] == pytest.approx(sum(rates.values()) / len(rates))
    assert entries["grad_norm"] == pytest.approx(result.total_norm.item())


def test_it_begins_anew_and_says_nothing_of_nothing() -> None:
    model, log = nn.Linear(2, 1), RoleLog()
    assert log.take() == {}
    model.weight.grad = torch.ones(1, 2)
    log.update(components(model), clip_grad_norm_(components(model), 1.0))
    assert log.take() == {
        "grad_norm": pytest.approx(math.sqrt(2)),
        "grad_norm/other": pytest.approx(math.sqrt(2)),
        "clip_rate": 1.0,  # of the weight: the bias has no gradient
        "clip_rate/other": 1.0,
    }
    assert log.take() == {}


def test_what_is_not_finite_is_seen_in_the_norm_and_not_in_the_rate() -> None:
    model, log = nn.Linear(2, 1), RoleLog()
    model.weight.grad, model.bias.grad = torch.full((1, 2), math.nan), torch.zeros(1) + 2
    log.update(components(model), clip_grad_norm_(components(model), 1.0))
    entries = log.take()
    assert math.isnan(entries["grad_norm"])
    assert math.isnan(entries["grad_norm/other"])
    assert entries["clip_rate"] == 1.0
