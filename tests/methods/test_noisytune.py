from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from tests import _models
from tests.integrations._training import DATA, assert_same_weights
from tests.methods._by_hand import by_hand
from torch import Tensor, nn
from transformers import TrainingArguments

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Setting, private_generator
from evenkeel.methods.noisytune import NoisyTune
from evenkeel.testing import MethodContract
from evenkeel.testing._tiny import classifier, language_model

Arguments = Callable[..., TrainingArguments]


def noise(model: nn.Module, strength: float = 0.15, *, seed: int = 0, problem: Any = "classification") -> list[Tensor]:
    """What is added to each parameter, in order."""
    before = [parameter.detach().clone() for parameter in model.parameters()]
    state = torch.get_rng_state()
    method = NoisyTune(strength=strength)
    method.begin(Setting(model=model, parts=components(model), problem=problem, seed=seed)).close()
    assert torch.equal(torch.get_rng_state(), state)
    return [own.detach() - old for own, old in zip(model.parameters(), before, strict=True)]


def worn(model: nn.Module) -> nn.Module:
    """A model whose biases and norms were trained, so that they are not constant."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def test_it_is_the_papers_formula() -> None:
    model, twin = worn(_models.bert().double()), worn(_models.bert().double())
    added = noise(model, 0.4, seed=3)
    for got, (name, weight) in zip(added, twin.named_parameters(), strict=True):
        entries = weight.flatten().tolist()
        mean = math.fsum(entries) / len(entries)
        spread = math.sqrt(math.fsum((entry - mean) ** 2 for entry in entries) / (len(entries) - 1))
        even = torch.rand(weight.shape, generator=private_generator(3, "noisytune", name), dtype=torch.float64) - 0.5
        wanted = torch.zeros_like(weight) if name.startswith("classifier") else even * 0.4 * spread
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-15)


def test_the_noise_is_uniform_within_its_bounds() -> None:
    layer = nn.Linear(200, 100)
    weight, bias = noise(layer, 0.3)
    for added, own in ((weight, layer.weight.detach() - weight), (bias, layer.bias.detach() - bias)):
        bound = 0.15 * own.std().item()
        assert stats.kstest(added.flatten().numpy(), stats.uniform(-bound, 2 * bound).cdf).pvalue > 0.01
        assert added.abs().max().item() <= bound + 1e-6
    assert not torch.equal(weight[:, 0] / weight.std(), bias / bias.std())


def test_what_is_constant_frozen_single_or_new_stays_as_it_is() -> None:
    model = _models.bert()
    model.bert.pooler.requires_grad_(False)
    named = dict(zip(dict(model.named_parameters()), noise(model), strict=True))
    still = {name for name, added in named.items() if not added.any()}
    constant = {name for name in named if name.endswith("bias") or "LayerNorm" in name}
    assert still == constant | {"bert.pooler.dense.weight", "classifier.weight"}
    assert [added.tolist() for added in noise(nn.Linear(1, 1))] == [[[0.0]], [0.0]]


def test_a_language_models_head_is_pretrained_and_gets_noise() -> None:
    model = language_model("llama")
    head = list(dict(model.named_parameters())).index("lm_head.weight")
    assert noise(model, problem="causal-lm")[head].any()
    assert not noise(model, problem="unknown")[head].any()


def test_parts_of_a_fused_tensor_have_noise_of_their_own_size() -> None:
    model = classifier("gpt2")
    fused = model.transformer.h[0].attn.c_attn.weight
    with torch.no_grad():
        fused[:, :16] *= 100  # the queries
    place = [parameter is fused for parameter in model.parameters()].index(True)
    query, key, value = noise(model, 1.0)[place].split(16, dim=1)
    assert query.std() > 30 * key.std()
    assert 0.5 < key.std() / value.std() < 2


def test_draws_depend_on_the_seed_alone() -> None:
    one, same, other = (noise(_models.bert(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(mine, again) for mine, again in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


def test_a_training_begins_with_the_noise(arguments: Arguments) -> None:
    ours, theirs = _models.bert().double(), _models.bert().double()
    MethodTrainer(ours, arguments(seed=9), methods=["noisytune"], train_dataset=DATA).train()
    noise(theirs, seed=9)
    by_hand(theirs)
    assert_same_weights(ours, theirs, tolerance=1e-10)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf, True, "0.1", None])
def test_strengths_are_numbers(bad: Any) -> None:
    with pytest.raises(MethodError, match=r"noisytune: strength must be a finite number from 0, but got .*; 0\.1 to"):
        NoisyTune(strength=bad)


class TestNoisyTuneContract(MethodContract):
    def make(self) -> Method:
        return NoisyTune()

    def neutral(self) -> Method:
        return NoisyTune(strength=0)
