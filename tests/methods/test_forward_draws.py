from __future__ import annotations

import torch

from evenkeel.methods import Moment
from evenkeel.methods._forward_draws import ForwardDraws

CPU = torch.device("cpu")


def drawn(draws: ForwardDraws) -> list[float]:
    return torch.rand(2, generator=draws.on(CPU)).tolist()


def test_draws_go_on_within_a_micro_batch_and_begin_anew_with_the_next() -> None:
    draws = ForwardDraws("hype")
    seen = []
    for moment in (Moment(step=1), Moment(step=1, micro=1), Moment(step=1)):
        draws.begin(moment)
        seen.append((drawn(draws), drawn(draws)))
    assert seen[0] == seen[2]
    assert len({tuple(one) for pair in seen for one in pair}) == 4


def test_draws_are_those_of_the_moment_and_the_method() -> None:
    moment = Moment(step=5, micro=2, seed=3, rank=1)
    draws, other = ForwardDraws("hype"), ForwardDraws("mixout")
    draws.begin(moment)
    other.begin(moment)
    wanted = torch.rand(2, generator=moment.generator("hype")).tolist()
    assert drawn(draws) == wanted
    assert drawn(other) != wanted


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    drawn(ForwardDraws("hype"))  # and a pass before the first micro-batch has its own too
    assert torch.equal(torch.get_rng_state(), before)
