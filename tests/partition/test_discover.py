from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests import _models
from torch import nn
from transformers import BartConfig, BartForSequenceClassification, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from evenkeel import components
from evenkeel.errors import ComponentError
from evenkeel.partition import ROLES

LAYERS = 2
ATTENTION = ("query", "key", "value", "attention_output")
REST = ("attention_norm", "ffn_in", "ffn_out", "ffn_norm")
BERT_BLOCK = {f"{word}.{kind}" for word in (*ATTENTION, *REST) for kind in ("weight", "bias")}
BLOCKS = dict.fromkeys(("bert", "roberta", "electra", "distilbert"), BERT_BLOCK) | {
    "llama": {f"{word}.weight" for word in (*ATTENTION, *REST, "ffn_gate")}
}
EMBEDDING = {"embedding.word", "embedding.position", "embedding.norm.weight", "embedding.norm.bias"}
HEAD = {"head.weight", "head.bias"}
DEEP_HEAD = {"head.dense.weight", "head.dense.bias", "head.out_proj.weight", "head.out_proj.bias"}
POOLER = {"pooler.weight", "pooler.bias"}
OUTSIDE = {
    "bert": EMBEDDING | {"embedding.token_type"} | POOLER | HEAD,
    "roberta": EMBEDDING | {"embedding.token_type"} | DEEP_HEAD,
    "electra": EMBEDDING | {"embedding.token_type", "embedding.projection", "embedding.projection.bias"} | DEEP_HEAD,
    "distilbert": EMBEDDING | POOLER | HEAD,
    "llama": {"embedding.word", "norm.weight", "head.weight"},
}


@pytest.fixture(params=_models.ALL)
def named(request: pytest.FixtureRequest) -> tuple[str, PreTrainedModel]:
    make: Callable[[int], PreTrainedModel] = _models.ALL[request.param]
    return request.param, make(LAYERS)


def test_every_trainable_parameter_is_in_exactly_one_component(named: tuple[str, PreTrainedModel]) -> None:
    _, model = named
    parts = components(model)
    assert [part.name for part in parts] == [name for name, _ in model.named_parameters()]
    for part, parameter in zip(parts, model.parameters(), strict=True):
        assert part.parameters == (parameter,)
        assert part.shape == tuple(parameter.shape)
    assert sum(part.size for part in parts) == sum(parameter.numel() for parameter in model.parameters())


def test_paths_read_alike_on_every_architecture(named: tuple[str, PreTrainedModel]) -> None:
    name, model = named
    parts = components(model)
    assert parts.depth == LAYERS
    for layer in range(LAYERS):
        assert {part.path for part in parts if part.layer == layer} == {f"layer.{layer}.{end}" for end in BLOCKS[name]}
    assert {part.path for part in parts if part.layer is None} == OUTSIDE[name]
    assert len({part.path for part in parts}) == len(parts)


def test_roles_and_kinds_follow_from_the_paths(named: tuple[str, PreTrainedModel]) -> None:
    _, model = named
    parts = components(model)
    assert len(parts.unclaimed) == 0
    for part in parts:
        word = part.path.split(".")[2 if part.layer is not None else 0]
        expected = "norm" if "norm" in part.path else word
        assert part.role == expected
        assert part.role in ROLES
        assert part.kind == ("bias" if part.path.endswith(".bias") else "weight")
        assert part.stack is None


def test_an_encoder_and_a_decoder_are_told_apart() -> None:
    model = BartForSequenceClassification(
        BartConfig(
            vocab_size=8, d_model=8, encoder_layers=2, decoder_layers=1, encoder_attention_heads=1,
            decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=8,
        )
    )  # fmt: skip
    parts = components(model)
    assert {(part.stack, part.layer) for part in parts} == {
        (None, None),
        ("encoder", None),
        ("encoder", 0),
        ("encoder", 1),
        ("decoder", None),
        ("decoder", 0),
    }
    outside = {part.path for part in parts if part.layer is None}
    embeddings = ("embedding.position", "embedding.norm.weight", "embedding.norm.bias")
    assert outside == {"embedding.word"} | DEEP_HEAD | {
        f"{stack}.{path}" for stack in ("encoder", "decoder") for path in embeddings
    }
    paths = [part.path for part in parts]
    assert {"encoder.layer.1.query.weight", "decoder.layer.0.query.weight"} <= set(paths)
    assert "decoder.layer.0.cross_query.weight" in paths  # a decoder's second attention goes by names of its own
    assert len(set(paths)) == len(paths)
    assert not parts.unclaimed
    assert sorted(part.name for part in components(model, "layer")) == [
        "decoder.layer.0",
        "decoder.outside",
        "encoder.layer.0",
        "encoder.layer.1",
        "encoder.outside",
        "outside",
    ]


def test_frozen_parameters_are_left_out_and_come_back() -> None:
    model = _models.bert()
    everything = components(model)
    model.bert.requires_grad_(False)
    assert [part.name for part in components(model)] == ["classifier.weight", "classifier.bias"]
    model.bert.requires_grad_(True)
    assert components(model) == everything


def test_freezing_does_not_change_what_the_rest_is_called() -> None:
    model = _models.bert(3)
    everything = {part.name: part for part in components(model)}
    model.bert.encoder.layer[0].requires_grad_(False)
    for part in components(model):
        assert part == everything[part.name]


def test_a_tied_parameter_is_one_component_with_aliases() -> None:
    model = _models.masked_bert()
    tied = [part for part in components(model) if part.aliases]
    assert {part.name: part.aliases for part in tied} == {
        "bert.embeddings.word_embeddings.weight": ("cls.predictions.decoder.weight",),
        "cls.predictions.bias": ("cls.predictions.decoder.bias",),
    }
    assert sum(part.size for part in components(model)) == sum(parameter.numel() for parameter in model.parameters())


def test_weights_are_not_read() -> None:
    plain = components(_models.bert())
    with torch.device("meta"):
        meta = _models.bert()
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert components(meta) == plain


class LikeDDP(nn.Module):
    """Names parameters as DistributedDataParallel does, without a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)  # wraps; nothing is compiled before the first call


# torch imports its compiler at the first call of torch.compile, and that import warns about its own use of TorchScript.
COMPILER = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")


@COMPILER
@pytest.mark.parametrize(
    "wrap",
    [LikeDDP, compiled, lambda model: LikeDDP(compiled(model)), lambda model: compiled(LikeDDP(model))],
    ids=["ddp", "compile", "ddp of compile", "compile of ddp"],
)
@pytest.mark.parametrize("make", [_models.bert, _models.masked_bert, lambda: nn.Linear(2, 1)])
def test_a_wrapped_model_has_the_components_of_the_plain_one(
    wrap: Callable[[nn.Module], nn.Module], make: Callable[[], nn.Module]
) -> None:
    model = make()
    assert components(wrap(model)) == components(model)


@COMPILER
def test_blocks_compiled_one_by_one_keep_layer_and_role() -> None:
    model = _models.bert()
    plain = components(model)
    for index, block in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = compiled(block)
    after = components(model)
    assert [(part.path, part.role, part.layer) for part in after] == [
        (part.path, part.role, part.layer) for part in plain
    ]


def test_a_list_inside_a_block_makes_no_layers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block() for _ in range(2))

    parts = components(Model())
    assert [part.layer for part in parts] == [0, 0, 0, 1, 1, 1]
    assert parts[4].path == "layer.1.experts.1.weight"


def test_a_list_of_unlike_modules_makes_no_layers() -> None:
    parts = components(nn.ModuleDict({"mixed": nn.ModuleList([nn.Linear(1, 1), nn.LayerNorm(1)])}))
    assert {part.layer for part in parts} == {None}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ([torch.zeros(1)], "was given a list"),
        (torch.zeros(1), "was given a Tensor"),
        (_models.bert, "was given a function"),
        (nn.Linear(2, 1).requires_grad_(False), "Linear has no trainable parameter"),
        (nn.ReLU(), "ReLU has no trainable parameter"),
        (nn.Sequential(nn.Linear(1, 1), nn.LazyLinear(1)), r"parameter '1\.weight' is lazy"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_what_has_no_components_is_refused(model: Any, said: str) -> None:
    with pytest.raises(ComponentError, match=said):
        components(model)


def test_frozen_parameters_of_any_shape_are_left_alone() -> None:
    """Quantized weights are frozen, and stored in shapes that no rule fits."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=24, n_head=4, vocab_size=8, bos_token_id=0, eos_token_id=0))
    model.transformer.h[0].attn.c_attn.weight = nn.Parameter(torch.zeros(96, 1, dtype=torch.uint8), requires_grad=False)
    parts = components(model)
    assert not [part for part in parts if part.name.startswith("transformer.h.0.attn.c_attn.weight")]
    assert [part.role for part in parts if part.name.startswith("transformer.h.0.attn.c_attn.bias")] == [
        "query",
        "key",
        "value",
    ]


def test_a_linear_in_the_place_of_a_conv1d_is_cut_along_its_output() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=24, n_head=4, vocab_size=8, bos_token_id=0, eos_token_id=0))
    width = model.config.n_embd
    model.transformer.h[0].attn.c_attn = nn.Linear(width, 3 * width)
    cut = [part for part in components(model) if part.name.startswith("transformer.h.0.attn.c_attn.weight")]
    assert [part.role for part in cut] == ["query", "key", "value"]
    assert {part.shape for part in cut} == {(width, width)}
    assert [part.pieces[0].spans[0].dim for part in cut] == [0, 0, 0]


def test_lists_inside_the_blocks_of_a_model_that_is_a_list_make_no_layers() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2)
            self.subs = nn.ModuleList(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3))

    parts = components(nn.Sequential(Inner(), Inner()))
    assert [part.layer for part in parts] == [0] * 8 + [1] * 8


def test_a_child_called_base_layer_is_no_adapter_without_peft() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(2))

    model = nn.ModuleDict({"layers": nn.ModuleList([Own(), Own()])})
    parts = components(model)
    assert [part.name for part in parts] == [name for name, _ in model.named_parameters()]
    assert [part.layer for part in parts] == [0, 0, 0, 1, 1, 1]


def test_parametrizations_keep_the_role_of_what_they_make() -> None:
    model = _models.bert()
    nn.utils.parametrizations.weight_norm(model.bert.encoder.layer[0].attention.self.query)
    parts = [part for part in components(model) if "parametrizations" in part.name]
    assert [part.role for part in parts] == ["query", "query"]
    assert [part.path for part in parts] == ["layer.0.query.weight.original0", "layer.0.query.weight.original1"]


def test_flat_parameters_are_refused() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._flat_param = nn.Parameter(torch.zeros(4))

    with pytest.raises(ComponentError, match="use_orig_params=True"):
        components(Flat())
