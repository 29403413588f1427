"""Clipping the parts of fused tensors: by hand, on copies, in float64."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    PreTrainedModel,
    set_seed,
)

from evenkeel import clip_grad_norm_, components
from evenkeel.clipping import grad_norms

EPSILON = 1e-6
LAYERS, HIDDEN, HEADS, EXPERTS = 2, 6, 3, 3  # two ranks split BLOOM's 18 rows inside a head's key, and the experts
Parts = dict[str, Tensor]


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=8, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, initializer_range=0.5,
        )
    )  # fmt: skip


def bloom() -> PreTrainedModel:
    return BloomForCausalLM(
        BloomConfig(vocab_size=16, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS, initializer_range=0.5)
    )


def gpt_oss() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=16, hidden_size=HIDDEN, intermediate_size=6, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=1, head_dim=4, num_local_experts=EXPERTS, num_experts_per_tok=2, rope_parameters=rope,
            pad_token_id=0, eos_token_id=0, initializer_range=0.5,
            experts_implementation="eager",  # the grouped product knows no float64
        )
    )  # fmt: skip


def parts_of_gpt2(name: str, tensor: Tensor) -> Parts:
    if ".attn.c_attn." not in name:
        return {}
    return dict(zip(("query", "key", "value"), tensor.split(HIDDEN, dim=-1), strict=True))


def parts_of_bloom(name: str, tensor: Tensor) -> Parts:
    if ".query_key_value." not in name:
        return {}
    heads = tensor.view(HEADS, 3, HIDDEN // HEADS, *tensor.shape[1:])
    return {word: heads[:, index] for index, word in enumerate(("query", "key", "value"))}


def parts_of_gpt_oss(name: str, tensor: Tensor) -> Parts:
    if ".experts." not in name:
        return {}
    found: Parts = {}
    for expert, own in enumerate(tensor):
        if ".gate_up_proj" in name:
            found[f"{expert}.expert_gate"], found[f"{expert}.expert_in"] = own[..., ::2], own[..., 1::2]
        else:
            found[f"{expert}.expert_out"] = own
    return found


CASES = {"gpt2": (gpt2, parts_of_gpt2), "bloom": (bloom, parts_of_bloom), "gpt_oss": (gpt_oss, parts_of_gpt_oss)}


def trained(name: str, prepare: Callable[[PreTrainedModel], Any] = lambda model: None) -> PreTrainedModel:
    """A model in float64 with gradients from two rows of text."""
    set_seed(0)
    model = CASES[name][0]().double()
    prepare(model)
    ids = torch.randint(1, 16, (2, 6), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=ids).loss.backward()
    return model


def by_hand(name: str, model: PreTrainedModel) -> Parts:
    """Copies of the gradients by the name of their component, each a view of one copy."""
    return {
        f"{parameter}[{label}]" if label else parameter: part
        for parameter, tensor in model.named_parameters()
        if tensor.grad is not None
        for copy in [tensor.grad.clone()]
        for label, part in (CASES[name][1](parameter, copy) or {"": copy}).items()
    }


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    return request.param, trained(request.param)


def slow_norm(tensor: Tensor, norm_type: float) -> float:
    entries = [abs(entry) for entry in tensor.flatten().tolist()]
    return (
        max(entries) if norm_type == math.inf else math.fsum(entry**norm_type for entry in entries) ** (1 / norm_type)
    )


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_every_part_is_clipped_as_by_hand(case: tuple[str, PreTrainedModel], norm_type: float) -> None:
    name, model = case
    expected = by_hand(name, model)
    norms = {label: slow_norm(part, norm_type) for label, part in expected.items()}
    max_norm = sorted(norms.values())[len(norms) // 2]  # so that some are clipped and some are not
    result = clip_grad_norm_(components(model), max_norm, norm_type)
    assert set(result.names) == set(expected)
    assert any("[" in label for label in result.names)
    assert result.to_dict() == pytest.approx(norms, rel=1e-12)
    assert 0 < int((result.coefficients < 1).sum()) < len(norms)
    for label, part in expected.items():
        part *= min(1.0, max_norm / (norms[label] + EPSILON))
    for label, part in by_hand(name, model).items():
        torch.testing.assert_close(part, expected[label], rtol=1e-12, atol=0)


def test_the_norms_of_the_parts_are_that_of_the_whole(case: tuple[str, PreTrainedModel]) -> None:
    _, model = case
    result = clip_grad_norm_(components(model), math.inf)
    whole = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(result.total_norm, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_global_clipping_of_cut_models_is_torchs(case: tuple[str, PreTrainedModel], factor: float) -> None:
    name, model = case
    theirs = trained(name)
    total = torch.nn.utils.get_total_norm([parameter.grad for parameter in theirs.parameters()]).item()
    mine = clip_grad_norm_(components(model, by="global"), factor * total)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), factor * total)
    assert mine.norms.tolist() == pytest.approx([total], rel=1e-12)
    for own, other in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("by", ["layer", "module", "role"])
def test_merged_parts_are_clipped_as_by_hand(case: tuple[str, PreTrainedModel], by: Any) -> None:
    name, model = case
    expected, fine, coarse = by_hand(name, model), components(model), components(model, by)
    key = {"layer": lambda part: part.layer, "role": lambda part: part.role}.get(
        by, lambda part: part.pieces[0].name.rpartition(".")[0]
    )
    groups: dict[object, list[Tensor]] = {}
    for part in fine:
        groups.setdefault(key(part), []).append(expected[part.name])
    norms = [slow_norm(torch.cat([part.flatten() for part in group]), 2.0) for group in groups.values()]
    max_norm = sorted(norms)[len(norms) // 2]
    result = clip_grad_norm_(coarse, max_norm)
    assert result.norms.tolist() == pytest.approx(norms, rel=1e-12)
    for norm, group in zip(norms, groups.values(), strict=True):
        for part in group:
            part *= min(1.0, max_norm / (norm + EPSILON))
    for label, part in by_hand(name, model).items():
        torch.testing.assert_close(part, expected[label], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "role"), [("gpt2", "key"), ("bloom", "key"), ("bloom", "value"), ("gpt_oss", "expert_gate")]
)
def test_the_other_parts_of_a_tensor_keep_every_bit(name: str, role: str) -> None:
    model = trained(name)
    before = by_hand(name, model)
    # The gradient of BLOOM's key bias is zero but for rounding: the threshold lies far below that too.
    clip_grad_norm_(components(model), {role: 1e-30, "*": math.inf})
    after = by_hand(name, model)
    own = {part.name for part in components(model) if part.role == role}
    assert own < set(before)
    for label, part in before.items():
        assert torch.equal(part, after[label]) == (label not in own or not part.any()), label


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("nonfinite", ["propagate", "zero"])
def test_what_is_not_finite_stays_in_its_part(case: tuple[str, PreTrainedModel], nonfinite: Any, bad: float) -> None:
    name, model = case
    parts = components(model)
    culprit = next(part for part in parts if part.cut and part.kind == "weight")
    (view,) = culprit.gradients()
    view[(0,) * view.dim()] = bad
    others = by_hand(name, model)
    result = clip_grad_norm_(parts, math.inf, nonfinite=nonfinite)
    assert [label for label, norm in result.to_dict().items() if not math.isfinite(norm)] == [culprit.name]
    after = by_hand(name, model)
    for label, part in others.items():
        if label != culprit.name:
            assert torch.equal(part, after[label])
    if nonfinite == "zero":
        assert not after[culprit.name].any()


def test_a_fused_tensor_without_a_gradient_has_norms_of_zero(case: tuple[str, PreTrainedModel]) -> None:
    name, model = case
    parts = components(model)
    missing = next(part.pieces[0].tensor() for part in parts if part.cut)
    mine = [part.name for part in parts if part.pieces[0].tensor() is missing]
    missing.grad = None
    norms = clip_grad_norm_(parts, 1e-3).to_dict()
    assert len(mine) > 1
    assert {label for label, norm in norms.items() if norm == 0.0} >= set(mine)
    assert missing.grad is None
    for label, part in by_hand(name, model).items():
        assert slow_norm(part, 2.0) <= 1e-3
        assert norms[label] == 0.0 or slow_norm(part, 2.0) > 0


def test_the_gradients_of_parts_are_views_of_the_gradient(case: tuple[str, PreTrainedModel]) -> None:
    _, model = case
    for part in components(model):
        (view,) = part.gradients()
        whole = part.parameters[0].grad
        assert whole is not None
        assert view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert view.numel() == part.size


def test_clipping_keeps_the_gradient_tensor_itself(case: tuple[str, PreTrainedModel]) -> None:
    _, model = case
    before = [parameter.grad for parameter in model.parameters()]
    clip_grad_norm_(components(model), 1e-3)
    assert all(parameter.grad is grad for parameter, grad in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_in_other_precisions_are_those_in_float64(dtype: torch.dtype) -> None:
    model = trained("bloom")
    for parameter in model.parameters():
        assert parameter.grad is not None
        rounded = parameter.grad.to(dtype)
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)
        parameter.grad = rounded
    norms = grad_norms(components(model))
    expected = [slow_norm(by_hand("bloom", model)[part.name].double(), 2.0) for part in components(model)]
    assert norms.dtype == torch.float32
    assert norms.tolist() == pytest.approx(expected, rel=1e-5)


# --- shards


def on_a_rank(rank: int, folder: Path) -> None:
    """Train each model sharded over two ranks, and write down what this rank has of every component's gradient."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found: dict[str, dict[str, list[float]]] = {}
    for name in CASES:
        model = trained(name, lambda model: fully_shard(model, mesh=mesh))
        for part in components(model):
            views = part.gradients()
            (shard,) = {tensor.grad.to_local().untyped_storage().data_ptr() for tensor in part.parameters}  # type: ignore[union-attr]
            assert all(view.untyped_storage().data_ptr() == shard for view in views)
            found.setdefault(name, {})[part.name] = [entry for view in views for entry in view.flatten().tolist()]
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_views_of_all_ranks_together_are_those_of_one_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=on_a_rank, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    shares = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    for name in CASES:
        expected = by_hand(name, trained(name))
        assert set(expected) == set(shares[0][name]) == set(shares[1][name])
        for label, part in expected.items():
            together = sorted(shares[0][name][label] + shares[1][name][label])
            assert together == pytest.approx(sorted(part.flatten().tolist()), rel=1e-9, abs=1e-15), label
        if name != "gpt_oss":  # whose experts lie on one rank each
            assert any(shares[0][name][label] and shares[1][name][label] for label in expected if "[" in label)
