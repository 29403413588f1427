from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tests import _models
from torch import nn

from evenkeel import components
from evenkeel.errors import MethodError, ThresholdError
from evenkeel.methods import ComponentClipping, FullFineTuning, GradualUnfreezing, Method, Mix


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            (FullFineTuning(), ComponentClipping()),
            r"full and component-clip .* how gradients are clipped; .*\(full,component-clip\)",
        ),
        ((ComponentClipping(), ComponentClipping(max_norm=1.0)), "component-clip and component-clip cannot be mixed"),
        ((GradualUnfreezing(), FullFineTuning(), GradualUnfreezing(epochs=1)), "what is trained when"),
        ((), "at least one method"),
    ],
)
def test_methods_that_decide_the_same_cannot_be_mixed(methods: Sequence[Method], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        Mix(methods)


@pytest.mark.parametrize(
    ("methods", "own"),
    [
        ((GradualUnfreezing(),), FullFineTuning()),  # nobody decides: as in full
        ((GradualUnfreezing(), ComponentClipping(max_norm=0.01)), ComponentClipping(max_norm=0.01)),
        ((FullFineTuning(max_norm=0.2), GradualUnfreezing()), FullFineTuning(max_norm=0.2)),
    ],
)
def test_clipping_is_its_owners(methods: Sequence[Method], own: Method) -> None:
    mixed, alone = _models.bert(), _models.bert()
    for model in (mixed, alone):
        _models.backward(model)
    result = Mix(methods).clipping(components(mixed)).clip()
    assert result.names == own.clipping(components(alone)).clip().names
    for mine, other in zip(mixed.parameters(), alone.parameters(), strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert torch.equal(mine.grad, other.grad)


def test_full_is_torchs_clipping_at_one() -> None:
    ours, theirs = _models.bert(), _models.bert()
    for model in (ours, theirs):
        _models.backward(model)
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad *= 100
    result = FullFineTuning().clipping(components(ours)).clip()
    total = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    torch.testing.assert_close(result.total_norm, total)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("by", "count"), [("tensor", 41), ("layer", 3), ("global", 1)])
def test_component_clipping_groups_as_told(by: str, count: int) -> None:
    model = _models.bert()
    _models.backward(model)
    result = ComponentClipping(max_norm=0.1, by=by).clipping(components(model)).clip()  # type: ignore[arg-type]
    assert len(result.norms) == count
    assert result.thresholds.tolist() == pytest.approx([0.1] * count)


def test_phases_are_their_owners_and_else_one_of_everything() -> None:
    parts = components(_models.bert(3))
    (only,) = Mix([ComponentClipping()]).phases(parts)
    assert only.epochs is None
    assert all(only.trainable(part) for part in parts)
    mixed = Mix((ComponentClipping(), GradualUnfreezing(epochs=2))).phases(parts)
    assert mixed == GradualUnfreezing(epochs=2).phases(parts)


def test_a_method_does_nothing_that_it_does_not_own() -> None:
    parts = components(_models.bert())
    with pytest.raises(NotImplementedError, match="FullFineTuning does not own the phases"):
        FullFineTuning().phases(parts)
    with pytest.raises(NotImplementedError, match="GradualUnfreezing does not own the clipping"):
        GradualUnfreezing().clipping(parts)


def test_thresholds_are_checked_against_the_whole_model_and_then_apply_to_what_is_trained() -> None:
    model = _models.bert()
    mix = Mix((ComponentClipping(max_norm={"embedding": 1e-9, "*": 1e9}), GradualUnfreezing()))
    mix.check(components(model))  # embeddings are there, though frozen at first
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)
    _models.backward(model)
    assert set(mix.clipping(components(model)).clip().coefficients.tolist()) == {1.0}
    with pytest.raises(ThresholdError, match="'qeury', which is the role or path of no component"):
        Mix((ComponentClipping(max_norm={"qeury": 1.0, "*": 1.0}),)).check(components(model))
