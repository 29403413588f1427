from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import _models
from tests.clipping.thresholds._drive import INF, NAN, Rows, bag, coefficient, history, show
from tests.clipping.thresholds.test_capped_ema import aggc
from tests.clipping.thresholds.test_percentile import autoclip
from tests.clipping.thresholds.test_zscore import zclip
from transformers import GPT2Config, GPT2Model

from evenkeel import Component, components
from evenkeel.clipping.thresholds import (
    Budget,
    CappedEma,
    Ema,
    Fixed,
    Grouped,
    Limits,
    Percentile,
    Seen,
    WeightRelative,
    ZScore,
)
from evenkeel.errors import ComponentError, ThresholdError

EVEN_ODD = [0, 1, 0]


def even_or_odd(part: Component) -> str:
    return "odd" if int(part.name[1:]) % 2 else "even"


def together(rows: Rows, owners: list[int]) -> Rows:
    """The norms of groups, in plain Python."""
    count = max(owners) + 1
    joined = []
    for row in rows:
        members: list[list[float]] = [[] for _ in range(count)]
        for norm, owner in zip(row, owners, strict=True):
            members[owner].append(norm)
        joined.append([math.nan if any(map(math.isnan, group)) else math.hypot(*group) for group in members])
    return joined


def agree(got: list[Limits], joined: Rows, thresholds: Rows, owners: list[int]) -> None:
    """Every component has the threshold, the norm and the coefficient of its group."""
    for limits, norms, allowed in zip(got, joined, thresholds, strict=True):
        wanted = [coefficient(limit, norm) for limit, norm in zip(allowed, norms, strict=True)]
        assert limits.thresholds.tolist() == pytest.approx([allowed[owner] for owner in owners], rel=1e-9)
        assert limits.norms.tolist() == pytest.approx([norms[owner] for owner in owners], rel=1e-12, nan_ok=True)
        assert limits.coefficients.tolist() == pytest.approx([wanted[owner] for owner in owners], rel=1e-9, nan_ok=True)


SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("examples", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_autoclip_as_published(examples: int) -> None:
    @settings(max_examples=examples)
    @given(SEEDS, st.booleans())
    def agrees(seed: int, useless: bool) -> None:
        rows = history(seed, useless=useless)
        joined = together(rows, [0, 0, 0])
        got = show(Grouped(Percentile(10), by="global"), rows)
        agree(got, joined, autoclip(joined, 10, 256)[0], [0, 0, 0])

    agrees()


@pytest.mark.parametrize("examples", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_zclip_as_published(examples: int) -> None:
    @settings(max_examples=examples)
    @given(SEEDS, st.booleans())
    def agrees(seed: int, useless: bool) -> None:
        rows = history(seed, useless=useless)
        joined = together(rows, [0, 0, 0])
        agree(show(Grouped(ZScore(), by="global"), rows), joined, zclip(joined, 2.5, 0.97, 25)[0], [0, 0, 0])

    agrees()


@pytest.mark.parametrize("examples", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_aggc_as_published(examples: int) -> None:
    @settings(max_examples=examples)
    @given(SEEDS)
    def agrees(seed: int) -> None:
        rows = history(seed)
        joined = together(rows, EVEN_ODD)
        got = show(Grouped(CappedEma(total_steps=100), by=even_or_odd), rows)
        agree(got, joined, aggc(joined, 0.6, 0.7, 0.95, 0.9, 100)[0], EVEN_ODD)

    agrees()


def test_the_whole_of_all_stages_is_the_global_norm() -> None:
    (limits,) = show(Grouped(Fixed((1.0,)), by="global"), [[3.0, 4.0]], whole=torch.tensor(50.0, dtype=torch.float64))
    assert limits.norms.tolist() == [50.0, 50.0]


def test_the_whole_leaves_other_groups_alone() -> None:
    whole = torch.tensor(50.0, dtype=torch.float64)
    (limits,) = show(Grouped(Fixed((1.0, 1.0)), by=even_or_odd), [[3.0, 1.0, 4.0]], whole=whole)
    assert limits.norms.tolist() == [5.0, 1.0, 5.0]


def test_a_bad_norm_stays_in_its_group() -> None:
    (limits,) = show(Grouped(Fixed((1.0, 1.0)), by=even_or_odd), [[NAN, 2.0, 1.0]])
    assert limits.coefficients.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("by", ["role", "layer", "module", "global", "tensor"])
def test_groups_are_those_of_the_partition(by: Any) -> None:
    model = _models.bert()
    fine, coarse = components(model), components(model, by=by)
    grouped = Grouped(Fixed((1.0,) * len(coarse)), by=by)
    grouped.bind(fine)
    norms = torch.rand(len(fine), dtype=torch.float64)
    got = grouped.limits(Seen(norms=norms)).norms
    owner = {
        piece.name: index for index, group in enumerate(coarse) for piece in group.pieces
    }  # no tensor of this model is cut
    members = [owner[part.pieces[0].name] for part in fine]
    wanted = torch.zeros(len(coarse), dtype=torch.float64).index_add(0, torch.tensor(members), norms**2).sqrt()
    torch.testing.assert_close(got, wanted[members])


@pytest.mark.parametrize("by", ["role", "module", "layer"])
def test_parts_of_cut_tensors_find_their_groups(by: Any) -> None:
    model = GPT2Model(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    fine = components(model)
    assert any(part.cut for part in fine)
    grouped = Grouped(Budget(1.0, share="equal"), by=by)
    grouped.bind(fine)
    limits = grouped.limits(Seen(norms=torch.ones(len(fine))))
    count = len(components(model, by=by))
    torch.testing.assert_close(limits.thresholds, torch.full((len(fine),), 1 / math.sqrt(count)))


def test_sizes_and_weights_are_those_of_groups() -> None:
    (limits,) = show(Grouped(Budget(1.0), by=even_or_odd), [[1.0, 1.0, 1.0]], sizes=(4, 3, 9))
    assert limits.thresholds.tolist() == pytest.approx([math.sqrt(13 / 16), math.sqrt(3 / 16), math.sqrt(13 / 16)])
    (limits,) = show(Grouped(Budget(1.0), by="global"), [[1.0] * 3], sizes=(4, 3, 9), elsewhere=(2, 7))
    assert limits.thresholds.tolist() == [1.0] * 3
    relative = Grouped(WeightRelative(0.1), by=even_or_odd)
    assert relative.needs_weights
    assert not Grouped(Percentile(), by="role").needs_weights
    (limits,) = show(relative, [[1.0] * 3], weights=torch.tensor([3.0, 1.0, 4.0], dtype=torch.float64))
    assert limits.thresholds.tolist() == pytest.approx([0.5, 0.1, 0.5])


@pytest.mark.parametrize(("order", "norm"), [(1.0, 7e30), (2.0, 5e30), (3.0, 91 ** (1 / 3) * 1e30), (INF, 4e30)])
def test_joint_norms_neither_overflow_nor_vanish(order: float, norm: float) -> None:
    for scale in (1.0, 1e-60):
        rows: Rows = [[3e30 * scale, 4e30 * scale]]
        (limits,) = show(Grouped(Fixed((1.0,)), by="global"), rows, dtype=torch.float32, norm_type=order)
        assert limits.norms.tolist() == pytest.approx([norm * scale] * 2, rel=1e-5)


@pytest.mark.parametrize("order", [0.5, 2.0, INF])
def test_joint_norms_say_what_is_not_finite(order: float) -> None:
    rows: Rows = [[INF, 1.0], [NAN, INF], [0.0, 0.0], [1.0, NAN]]
    got = [limits.norms[0].item() for limits in show(Grouped(Fixed((1.0,)), by="global"), rows, norm_type=order)]
    assert got == pytest.approx([INF, NAN, 0.0, NAN], nan_ok=True)


def test_groups_that_change_members_keep_their_state() -> None:
    threshold = Grouped(Ema(2.0, warmup=0), by=even_or_odd)
    parts = bag(1, 1, 1)
    for chosen in (parts, parts[1:], parts[:1], parts):
        threshold.bind(chosen)
        limits = threshold.limits(Seen(norms=torch.ones(len(chosen))))
    # The even ones had a joint norm of sqrt(2), then of 1 twice.
    average = 0.98 * (0.98 * math.sqrt(2) + 0.02) + 0.02
    assert limits.thresholds.tolist() == pytest.approx([2 * average, 2.0, 2 * average])


def test_what_cannot_be_is_refused() -> None:
    bad: Any = 0.5
    with pytest.raises(ThresholdError, match=r"needs a threshold object .*, but got 0\.5"):
        Grouped(bad, by="role")
    with pytest.raises(ThresholdError, match="per='row'"):
        Grouped(WeightRelative(per="row"), by="role")
    with pytest.raises(ThresholdError, match="call bind"):
        Grouped(Fixed((1.0,)), by="global").limits(Seen(norms=torch.ones(2)))
    wrong: Any = "rolle"
    with pytest.raises(ComponentError, match="did you mean 'role'"):
        Grouped(Fixed((1.0,)), by=wrong).bind(bag(1))


@pytest.mark.parametrize("state", [None, {}, {"threshold": {}, "more": 1}, {"names": []}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ThresholdError, match="Grouped cannot load a state"):
        Grouped(Percentile(), by="role").load_state_dict(state)


def test_it_shows_its_configuration() -> None:
    assert repr(Grouped(Percentile(10), by="global")) == "Grouped(threshold=Percentile(p=10, window=256), by='global')"
