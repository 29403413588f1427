"""The partition of every architecture that transformers can classify texts or go on writing with."""

from __future__ import annotations

import functools

import pytest
import torch
from tests.partition import _coverage, _zoo
from tests.partition._coverage import EXCEPTIONS, UNBUILDABLE, coverage, documented, problems, table

from evenkeel import components
from evenkeel.partition import ROLES
from evenkeel.partition._span import views

FAST = [*_zoo.FAST, "torch"]
EXACT = ["gpt2", "bloom", "falcon-40b", "gpt_bigcode-multi-query", "codegen", "phi3", "gpt_oss", "llama4_text", "dbrx"]
EXACT += ["deepseek_v3", "qwen3_next", "mamba2", "jetmoe", "torch"]


@pytest.mark.parametrize("name", FAST)
def test_a_family_of_the_fast_subset_is_known_whole(name: str) -> None:
    assert problems(_zoo.fast(name, meta=True)) == []


@pytest.mark.parametrize("name", EXACT)
def test_every_entry_is_in_exactly_one_component(name: str) -> None:
    model = _zoo.fast(name)
    times = {id(parameter): torch.zeros(parameter.shape) for parameter in model.parameters()}
    for part in components(model):
        size = 0
        for piece in part.pieces:
            entries = views(times[id(piece.tensor())], piece.spans)
            entries.add_(1)
            size += entries.numel()
        assert size == part.size, part.path
    assert all(bool((count == 1).all()) for count in times.values())


def test_the_fast_subset_holds_thirty_families() -> None:
    assert len({type(_zoo.fast(name, meta=True)).__module__ for name in FAST}) >= 30


@pytest.mark.parametrize("roles", [{"GPT2Attention": {"c_attn": "qkv"}}, {"GPT2MLP": {"c_fc": "other"}}])
def test_what_is_not_cut_or_not_claimed_is_a_problem(
    roles: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself can fail."""
    monkeypatch.setattr(_coverage, "components", functools.partial(components, roles=roles))
    assert problems(_zoo.fast("gpt2", meta=True))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kind", ["lm", "seq"])
def test_nearly_every_type_of_a_mapping_is_known_whole(kind: str) -> None:
    found = {model_type: finding.problems for (own, model_type), finding in coverage()[0].items() if own == kind}
    wrong = {model_type: texts for model_type, texts in found.items() if texts}
    assert {model_type: texts for model_type, texts in wrong.items() if model_type not in EXCEPTIONS} == {}
    assert len(wrong) <= 0.05 * len(found)


@pytest.mark.slow
@pytest.mark.matrix
def test_exceptions_are_no_more_than_there_are() -> None:
    found, unbuildable = coverage()
    assert {model_type for (_, model_type), finding in found.items() if finding.problems} == set(EXCEPTIONS)
    assert {model_type for _, model_type in unbuildable} == set(UNBUILDABLE)
    for (_, model_type), reason in unbuildable.items():
        assert UNBUILDABLE[model_type] in reason


@pytest.mark.slow
@pytest.mark.matrix
def test_every_role_of_the_vocabulary_is_seen() -> None:
    seen = {role for finding in coverage()[0].values() for role in finding.roles}
    seen |= {part.role for name in FAST for part in components(_zoo.fast(name, meta=True))}
    assert set(ROLES) - seen == {"other", "qkv"}  # what no rule claims or cuts


@pytest.mark.slow
@pytest.mark.matrix
def test_the_document_tells_what_is_so() -> None:
    assert documented() == table(), "run python -m tests.partition._coverage"
