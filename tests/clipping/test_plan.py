"""What is found out once, and who is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.clipping._bag import Bag, drawn, fused
from torch import nn

from evenkeel import Component, Components, clip_grad_norm_, components
from evenkeel.clipping._plan import as_components, plan
from evenkeel.errors import ComponentError, GradientError


def test_a_plan_is_made_once_for_the_same_components() -> None:
    parts = components(nn.Linear(2, 1))
    assert plan(parts, None) is plan(parts, None)
    assert plan(parts, None) is not plan(parts[:1], None)


def test_every_component_has_its_slot_whatever_gradients_there_are() -> None:
    _, parts = fused()
    where = plan(parts, None)
    assert where.names == tuple(part.name for part in parts)
    assert where.owners == tuple(range(len(parts)))
    assert where.alone
    assert [slot for _, _, slot in where.entries] == list(range(len(parts)))
    merged = plan(fused("global")[1], None)
    assert set(merged.owners) == {0}
    assert [slot for _, _, slot in merged.entries] == [0] * 4


def test_an_index_is_made_once_for_each_device() -> None:
    where = plan(components(nn.Linear(2, 1)), None)
    device = torch.device("cpu")
    assert where.index((0, 1), device) is where.index([0, 1], device)
    assert where.index((1, 0), device).tolist() == [1, 0]
    assert where.index((0, 1), torch.device("meta")).is_meta


def test_empty_components_are_told_of_once() -> None:
    model = Bag(torch.ones(0, 3), torch.ones(2))
    parts = components(model)
    with pytest.warns(UserWarning, match="1 components have no entries and are never clipped: p0") as caught:
        result = clip_grad_norm_(parts, 0.1)
    assert caught[0].filename == __file__
    assert result.norms[0].item() == 0.0
    assert model.grads[1] is not None
    assert model.grads[1].norm().item() == pytest.approx(0.1, rel=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm_type in (1.0, 2.0, float("inf")):
            assert clip_grad_norm_(parts, 0.1, norm_type).norms[0].item() == 0.0


@pytest.mark.filterwarnings("ignore:.*have no entries:UserWarning")
def test_a_model_of_empty_components_alone_has_norm_zero() -> None:
    result = clip_grad_norm_(Bag(torch.ones(0), torch.ones(2, 0)), 0.1)
    assert result.norms.tolist() == [0.0, 0.0]
    assert result.coefficients.tolist() == [1.0, 1.0]


def test_a_component_twice_or_over_another_is_refused() -> None:
    model, parts = fused()
    whole = components(model)
    with pytest.raises(ComponentError, match="share entries of a tensor, which would be clipped twice"):
        clip_grad_norm_([*parts, parts[0]], 1.0)
    with pytest.raises(ComponentError, match="'qkv\\[query\\]' and 'qkv' share entries"):
        clip_grad_norm_([parts[0], whole[0]], 1.0)
    with pytest.raises(ComponentError, match="share entries"):
        Components([whole[0], parts[1]])


def test_components_may_come_in_any_order_and_from_a_generator() -> None:
    model = Bag(torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0]))
    backwards = clip_grad_norm_(reversed(list(components(model))), 1.0)
    assert backwards.to_dict() == {"p1": 10.0, "p0": 5.0}
    assert clip_grad_norm_((part for part in components(model)), 100.0).names == ("p0", "p1")


def used_up() -> Iterator[Component]:
    parts = iter(components(nn.Linear(2, 1)))
    list(parts)
    return parts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: [torch.ones(2)], "tensors that are no parameters, gradients by the look of them"),
        (lambda: torch.ones(2), r"given a tensor of shape \(2,\)"),
        (lambda: nn.Linear(2, 1).parameters(), "a generator that holds a Parameter"),
        (lambda: list(nn.Linear(2, 1).parameters()), "a list that holds a Parameter"),
        (lambda: nn.Linear(2, 1).named_parameters(), "a generator that holds a tuple"),
        (used_up, "is empty; a generator is empty once it was used"),
        (list, "the list given as components is empty"),
        (lambda: 3, "given a int"),
        (lambda: None, "given a NoneType"),
        (lambda: "weight", "a str that holds a str"),
    ],
)
def test_what_is_no_component_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ComponentError, match=said):
        as_components(given())


def test_components_without_a_model_are_refused() -> None:
    import pickle

    parts = pickle.loads(pickle.dumps(components(nn.Linear(2, 1))))  # noqa: S301
    with pytest.raises(ComponentError, match=r"bound to no model, as after unpickling; call Components.bind\(model\)"):
        clip_grad_norm_(parts, 1.0)


def test_no_gradient_at_all_is_refused_after_a_step_that_had_some() -> None:
    model = Bag(drawn(2))
    parts = components(model)
    clip_grad_norm_(parts, 1.0)
    model.zero_grad()
    with pytest.raises(GradientError, match="none of the 1 components has a gradient"):
        clip_grad_norm_(parts, 1.0)


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(ComponentError, match="there are no components to clip"):
        clip_grad_norm_(components(nn.Linear(2, 1)).select("query"), 1.0)
