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
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
    TrainingArguments,
    XLMConfig,
    XLMForSequenceClassification,
)

from evenkeel import components
from evenkeel.errors import MethodError
from evenkeel.integrations.transformers import MethodTrainer
from evenkeel.methods import Method, Setting, parse_mix
from evenkeel.methods.reinit import Reinit
from evenkeel.testing import MethodContract

Arguments = Callable[..., TrainingArguments]
SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
}


def worn(model: nn.Module) -> nn.Module:
    """A model whose every weight is far from where weights begin."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 7
    return model


def setting(model: nn.Module, seed: int = 0) -> Setting:
    return Setting(model=model, parts=components(model), seed=seed)


def drawn(model: nn.Module, method: Reinit, *, seed: int = 0) -> dict[str, Tensor]:
    """The parameters that the method changed, by their names."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    state = torch.get_rng_state()
    method.begin(setting(model, seed)).close()
    assert torch.equal(torch.get_rng_state(), state)
    return {name: own.detach() for name, own in model.named_parameters() if not torch.equal(own, before[name])}


def is_normal(values: Tensor, std: float) -> bool:
    return bool(stats.kstest(values.flatten().numpy(), stats.norm(0, std).cdf).pvalue > 1e-3)


def test_the_top_of_a_bert_begins_as_in_pretraining() -> None:
    model = worn(BertForSequenceClassification(BertConfig(**SMALL)))
    found = drawn(model, Reinit(layers=2))
    wanted = {name for name, _ in model.named_parameters() if ".layer.1." in name or ".layer.2." in name}
    assert found.keys() == wanted | {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    for name, values in found.items():
        if "LayerNorm.weight" in name:
            assert torch.equal(values, torch.ones_like(values)), name
        elif name.endswith("bias"):
            assert torch.equal(values, torch.zeros_like(values)), name
        else:
            assert is_normal(values, 0.02), name
    matrices = [values for values in found.values() if values.dim() == 2]
    assert len({tuple(values[0].tolist()) for values in matrices}) == len(matrices) == 2 * 6 + 1  # none twice


@pytest.mark.parametrize(("layers", "pooler"), [(0, True), (1, False), (2, True)])
def test_it_draws_what_it_is_told(layers: int, pooler: bool) -> None:
    found = drawn(worn(_models.bert(3)), Reinit(layers=layers, pooler=pooler))
    tops = {int(name.split(".")[3]) for name in found if ".layer." in name}
    assert tops == set(range(3 - layers, 3))
    assert any("pooler" in name for name in found) is pooler
    assert not any("embeddings" in name or "classifier" in name for name in found)


@pytest.mark.parametrize("name", ["roberta", "electra", "llama"])
def test_without_a_pooler_blocks_are_drawn_alone(name: str) -> None:
    found = drawn(worn(_models.ALL[name](3)), Reinit())
    assert found
    assert all(".2." in name for name in found)
    with pytest.raises(MethodError, match="layers=0 draws the pooler alone, and this model has none"):
        Reinit(layers=0).check(setting(_models.ALL[name]()))


def test_the_standard_deviation_can_be_given() -> None:
    model = worn(BertForSequenceClassification(BertConfig(**SMALL, initializer_range=0.3)))
    for std, wanted in ((None, 0.3), (0.05, 0.05)):
        found = drawn(model, Reinit(std=std))
        assert all(is_normal(values, wanted) for values in found.values() if values.dim() == 2)
        assert {values.item() for name, values in found.items() if "Norm" in name for values in values} <= {0.0, 1.0}


def test_norms_whose_neutral_weight_is_zero_begin_there() -> None:
    model = worn(Gemma2ForSequenceClassification(Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=8)))
    found = drawn(model, Reinit())
    norms = {name: values for name, values in found.items() if "norm" in name}
    assert len(norms) == 4
    assert not any(values.any() for values in norms.values())


def test_scales_of_a_models_own_are_kept_and_the_top_of_two_stacks_is_the_decoders() -> None:
    config = T5Config(vocab_size=16, d_model=64, d_kv=16, num_heads=4, d_ff=32, num_layers=2, num_decoder_layers=2)
    found = drawn(worn(T5ForSequenceClassification(config)), Reinit())
    assert all(name.startswith("transformer.decoder.block.1.") for name in found)
    assert is_normal(found["transformer.decoder.block.1.layer.0.SelfAttention.q.weight"], (64 * 16) ** -0.5)
    assert is_normal(found["transformer.decoder.block.1.layer.0.SelfAttention.k.weight"], 64**-0.5)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    bart = BartForSequenceClassification(
        BartConfig(vocab_size=16, d_model=8, encoder_layers=1, decoder_layers=2, **heads)
    )
    assert all(name.startswith("model.decoder.layers.1.") for name in drawn(worn(bart), Reinit()))


def test_norms_that_stand_in_lists_beside_the_blocks_belong_to_them() -> None:
    model = worn(XLMForSequenceClassification(XLMConfig(vocab_size=16, emb_dim=16, n_layers=3, n_heads=2)))
    found = drawn(model, Reinit(pooler=False))
    lists = ("attentions", "layer_norm1", "ffns", "layer_norm2")
    assert {name.rpartition(".2.")[0].removeprefix("transformer.") for name in found} == set(lists)
    for values in (found["transformer.layer_norm1.2.weight"], found["transformer.layer_norm2.2.weight"]):
        assert torch.equal(values, torch.ones(16))


class Own(nn.Module):
    """Blocks of torch's own modules, in a model that says nothing of how it begins."""

    def __init__(self, *extra: type[nn.Module]) -> None:
        super().__init__()
        blocks = [[nn.Linear(40, 40), nn.LayerNorm(40), *(kind() for kind in extra)] for _ in range(2)]
        self.layers = nn.ModuleList(nn.Sequential(*block) for block in blocks)
        self.classifier = nn.Linear(40, 2)


def test_a_model_that_says_nothing_begins_as_berts() -> None:
    found = drawn(worn(Own()), Reinit())
    assert is_normal(found["layers.1.0.weight"], 0.02)
    assert not found["layers.1.0.bias"].any()
    assert torch.equal(found["layers.1.1.weight"], torch.ones(40))
    assert not found["layers.1.1.bias"].any()
    assert len(found) == 4


class Scale(nn.Module):
    """Holds a vector that is neither bias nor norm."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


def test_what_nobody_knows_is_refused_before_anything_is_drawn() -> None:
    model = worn(Own(Scale))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(MethodError, match=r"nobody says how 'layers\.1\.2\.gain' begins"):
        Reinit().begin(setting(model))
    assert all(torch.equal(own, old) for own, old in zip(model.parameters(), before, strict=True))


def test_what_a_checkpoint_was_loaded_from_is_drawn_all_the_same() -> None:
    model = worn(_models.bert(3))
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # as from_pretrained leaves it
    assert len(drawn(model, Reinit())) == 16 + 2


def test_draws_depend_on_the_seed_alone() -> None:
    one, same, other = (drawn(_models.bert(3), Reinit(), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["bert.pooler.dense.weight"], other["bert.pooler.dense.weight"])


def test_half_precision_weights_stay_half() -> None:
    model = worn(_models.bert(2)).to(torch.bfloat16)
    assert {values.dtype for values in drawn(model, Reinit()).values()} == {torch.bfloat16}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_training_begins_with_what_was_drawn(arguments: Arguments) -> None:
    ours, theirs = _models.bert(3).double(), _models.bert(3).double()
    MethodTrainer(ours, arguments(seed=9), methods=[Reinit(layers=2)], train_dataset=DATA).train()
    drawn(theirs, Reinit(layers=2), seed=9)
    by_hand(theirs)
    assert_same_weights(ours, theirs, tolerance=1e-10)


@pytest.mark.parametrize(
    ("layers", "blocks", "said"), [(3, 3, "is 3, but got 3"), (9, 2, "is 2, but got 9"), (1, 0, "is 0, but got 1")]
)
def test_something_stays_pretrained(layers: int, blocks: int, said: str) -> None:
    model: nn.Module = _models.bert(blocks) if blocks else nn.Linear(2, 2)
    with pytest.raises(MethodError, match=f"layers must be less than .* which {said}; a model that is drawn anew"):
        Reinit(layers=layers).check(setting(model))


def test_what_is_frozen_cannot_be_drawn() -> None:
    model = _models.bert(3)
    model.bert.encoder.layer[1].requires_grad_(False)
    Reinit(layers=1).check(setting(model))
    with pytest.raises(MethodError, match=r"draws 'bert\.encoder\.layer\.1\..*' anew, which is frozen"):
        Reinit(layers=2).check(setting(model))


def test_it_is_checked_where_tensors_have_no_values() -> None:
    with torch.device("meta"):
        model = _models.bert(3)
    Reinit(layers=2).check(setting(model))


def test_of_towers_side_by_side_none_is_on_top() -> None:
    block = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    towers = nn.ModuleDict(
        {
            name: nn.ModuleDict({"layers": nn.ModuleList([block, nn.Sequential(nn.Linear(2, 2))])})
            for name in ("text", "image")
        }
    )
    with pytest.raises(MethodError, match="needs one stack of blocks, but found image, text"):
        Reinit().check(setting(towers))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"layers": bad}, "layers must be a whole number from 0") for bad in (-1, 1.5, math.inf, None, "all", True)]
    + [({"std": bad}, "std must be a finite number above 0 or none") for bad in (0, -1, math.nan, math.inf, "a")]
    + [({"pooler": bad}, "pooler must be true or false") for bad in (None, 1, "no")]
    + [({"layers": 0, "pooler": False}, "draw nothing anew")],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=f"reinit: .*{said}"):
        Reinit(**options)


def test_what_freezes_the_rest_is_no_company() -> None:
    with pytest.raises(MethodError, match="it freezes weights that were drawn anew, which would stay random"):
        parse_mix("reinit+bitfit")
    assert parse_mix("reinit:layers=2+llrd+component-clip").acting == ("reinit",)


class TestReinitContract(MethodContract):
    refused = {"albert": "layers must be less than"}  # noqa: RUF012  as the suite's own

    def make(self) -> Method:
        return Reinit(layers=1)
