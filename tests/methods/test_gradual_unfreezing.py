from __future__ import annotations

import math
from typing import Any

import pytest
from tests import _models
from torch import nn

from evenkeel import Components, components
from evenkeel.errors import MethodError
from evenkeel.methods import GradualUnfreezing


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


@pytest.mark.parametrize("epochs", [0, -1, math.nan])
def test_epochs_are_positive(epochs: float) -> None:
    with pytest.raises(MethodError, match="epochs must be positive"):
        GradualUnfreezing(epochs=epochs)
