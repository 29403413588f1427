from __future__ import annotations

import pytest
import torch
from tests import _models
from tests.methods._passes import DROPOUT

from evenkeel.methods._replay import Replay

IDS = _models.Rows(2).ids


def test_a_replayed_pass_has_the_dropout_of_the_first() -> None:
    model = _models.bert(**DROPOUT).train()
    replay = Replay(model)
    replay.remember()
    first, second = model(input_ids=IDS).logits, model(input_ids=IDS).logits
    with replay.again():
        replayed = model(input_ids=IDS).logits
    assert torch.equal(replayed, first)
    assert not torch.equal(second, first)


def test_the_generator_stands_afterwards_where_it_stood_before() -> None:
    replay = Replay(_models.bert())
    replay.remember()
    torch.rand(3)
    before = torch.get_rng_state()
    with replay.again():
        torch.rand(5)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyboardInterrupt), replay.again():
        raise KeyboardInterrupt
    assert torch.equal(torch.get_rng_state(), before)
