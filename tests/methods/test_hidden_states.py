from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evenkeel.errors import MethodError
from evenkeel.methods._hidden_states import changed_input, changed_output, output_states

STATES = torch.zeros(1, 2, 3)


def one_more(states: Tensor) -> Tensor:
    return states + 1


def test_the_hidden_states_are_the_output_or_the_first_of_several() -> None:
    assert output_states(STATES) is STATES
    assert output_states((STATES, None)) is STATES
    assert output_states([STATES, "cache"]) is STATES


def test_the_rest_of_an_output_stays() -> None:
    assert torch.equal(changed_output(STATES, one_more), STATES + 1)
    for output in ((STATES, None, 5), [STATES, "cache"]):
        changed = changed_output(output, one_more)
        assert type(changed) is type(output)
        assert torch.equal(changed[0], STATES + 1)
        assert list(changed[1:]) == list(output[1:])


@pytest.mark.parametrize("output", [None, (), "text", ("text", STATES), {"hidden_states": STATES}], ids=repr)
def test_an_output_without_hidden_states_is_an_error(output: Any) -> None:
    with pytest.raises(MethodError, match=r"returns a \w+, in which no hidden states are known"):
        output_states(output)


def test_hidden_states_come_first_or_by_name() -> None:
    args, kwargs = changed_input((STATES, None), {"mask": 1}, one_more)
    assert torch.equal(args[0], STATES + 1)
    assert (args[1:], kwargs) == ((None,), {"mask": 1})
    args, kwargs = changed_input((), {"mask": 1, "hidden_states": STATES}, one_more)
    assert args == ()
    assert list(kwargs) == ["mask", "hidden_states"]
    assert torch.equal(kwargs["hidden_states"], STATES + 1)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((None,), {"mask": STATES}), ((), {"hidden_states": None})])
def test_an_input_without_hidden_states_is_an_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(MethodError, match="given no tensor of hidden states"):
        changed_input(args, kwargs, one_more)
