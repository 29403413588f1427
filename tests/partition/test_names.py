from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from tests import _models
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from evenkeel import Components, components
from evenkeel.partition._names import plain, plain_parameters, plain_tree, unwrapped

# torch imports its compiler at the first call of torch.compile, and that import warns about its own use of TorchScript.
COMPILER = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
# The model's own switch got another name in transformers 5; the old one is there in all versions, and PEFT uses it.
CHECKPOINTING = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
Make = Callable[[], PreTrainedModel]


def gpt2() -> GPT2ForSequenceClassification:
    return GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=8, n_positions=8, n_embd=6, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


MODELS = pytest.mark.parametrize("make", [_models.bert, _models.masked_bert, gpt2], ids=["bert", "tied", "fused"])


# --- names alone


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("encoder.layer.0.query.weight", "encoder.layer.0.query.weight"),
        ("_orig_mod.encoder.weight", "encoder.weight"),
        ("encoder.0._orig_mod.query.weight", "encoder.0.query.weight"),
        ("encoder.0._orig_mod", "encoder.0"),
        ("_fsdp_wrapped_module.encoder.0._fsdp_wrapped_module.weight", "encoder.0.weight"),
        ("encoder.0._checkpoint_wrapped_module._orig_mod.weight", "encoder.0.weight"),
        ("_orig_mod._fsdp_wrapped_module.weight", "weight"),
        ("query.base_layer.weight", "query.weight"),
        ("query.base_layer.base_layer.weight", "query.weight"),
        ("classifier.modules_to_save.default.weight", "classifier.weight"),
        ("classifier.modules_to_save.default", "classifier"),
        ("classifier.modules_to_save.mine.out_proj.bias", "classifier.out_proj.bias"),
        ("query.lora_A.default.weight", "query.lora_A.default.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("_orig_mod_.weight", "_orig_mod_.weight"),
        ("base_layers.0.weight", "base_layers.0.weight"),
        ("_orig_mod", ""),
        ("", ""),
    ],
)
def test_what_wrappers_put_between_is_left_out(name: str, expected: str) -> None:
    assert plain(name) == expected


# --- wrappers around the whole


class Around(nn.Module):
    """Names parameters as DistributedDataParallel does, without a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class DeepSpeedEngine(nn.Module):
    """Has the model under ``module`` as the real one has, and other modules besides."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.timers = nn.Identity()


def lists(model: nn.Module) -> list[nn.ModuleList]:
    """The lists of blocks of these models, which have no others."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)  # wraps; nothing is compiled before the first call


@COMPILER
@MODELS
@pytest.mark.parametrize(
    "wrap",
    [
        Around,
        DeepSpeedEngine,
        compiled,
        lambda model: Around(compiled(model)),
        lambda model: compiled(Around(model)),
    ],
    ids=["ddp", "deepspeed", "compile", "ddp of compile", "compile of ddp"],
)
def test_what_stands_around_a_model_changes_no_component(wrap: Callable[[nn.Module], nn.Module], make: Make) -> None:
    model = make()
    plain_parts = components(model)
    wrapped = wrap(model)
    assert components(wrapped) == plain_parts
    assert unwrapped(wrapped)[1] is model
    for part in components(wrapped):
        for piece in part.pieces:
            assert model.get_parameter(piece.name) is piece.tensor()


def test_a_model_with_parameters_of_its_own_beside_its_module_is_no_wrapper() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.ones(1))

    assert [part.name for part in components(Own())] == ["scale", "module.weight", "module.bias"]


@pytest.mark.usefixtures("group")
@MODELS
def test_data_parallel_changes_no_component(make: Make) -> None:
    model = make()
    plain_parts = components(model)
    assert components(DistributedDataParallel(model)) == plain_parts


@COMPILER
@pytest.mark.usefixtures("group")
def test_data_parallel_of_compiled_blocks_changes_no_component() -> None:
    model = _models.bert()
    plain_parts = components(model)
    for index, block in enumerate(model.bert.encoder.layer):
        model.bert.encoder.layer[index] = compiled(block)
    assert components(DistributedDataParallel(model)) == plain_parts


@pytest.mark.usefixtures("group")
@MODELS
def test_fully_sharded_parameters_have_the_components_of_whole_ones(make: Make) -> None:
    model = make()
    plain_parts = components(model)
    mesh = init_device_mesh("cpu", (1,))
    for blocks in lists(model):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert components(model) == plain_parts


# --- wrappers between


@COMPILER
@MODELS
def test_blocks_compiled_one_by_one_change_no_component(make: Make) -> None:
    model = make()
    plain_parts = components(model)
    for blocks in lists(model):
        for index, block in enumerate(blocks):
            blocks[index] = compiled(block)
    assert any("_orig_mod" in name for name, _ in model.named_parameters())
    assert components(model) == plain_parts


@MODELS
def test_activation_checkpointing_changes_no_component(make: Make) -> None:
    model = make()
    plain_parts = components(model)
    inside = {id(block) for blocks in lists(model) for block in blocks}
    apply_activation_checkpointing(model, check_fn=lambda module: id(module) in inside)
    assert any("_checkpoint_wrapped_module" in name for name, _ in model.named_parameters())
    assert components(model) == plain_parts


@CHECKPOINTING
@MODELS
def test_gradient_checkpointing_changes_no_component(make: Make) -> None:
    model = make()
    plain_parts = components(model)
    model.gradient_checkpointing_enable()
    assert components(model) == plain_parts


@COMPILER
def test_the_tree_has_every_module_by_the_name_of_the_plain_model() -> None:
    model = _models.bert()
    names = dict(model.named_modules(remove_duplicate=False))
    assert dict(plain_tree(compiled(Around(model))).modules) == names


def test_a_tied_parameter_has_all_its_names_once() -> None:
    (names,) = {
        names
        for names, _ in plain_parameters(Around(_models.masked_bert()))
        if names[0].endswith("word_embeddings.weight")
    }
    assert names == ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")


# --- PEFT


def tuned(model: PreTrainedModel, config: Any) -> Components:
    return components(get_peft_model(model, config))


def described(parts: Components) -> dict[str, str | None]:
    return {part.path: part.role for part in parts}


def lora(*targets: str, **changes: Any) -> LoraConfig:
    return LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=list(targets), **changes)


HEAD = {"head.weight": "head", "head.bias": "head"}


@CHECKPOINTING
def test_lora_has_the_roles_and_layers_of_what_it_adapts() -> None:
    parts = tuned(_models.bert(), lora("query", "attention.output.dense"))
    expected = {
        f"layer.{layer}.{role}.lora_{side}.weight": role
        for layer in range(2)
        for role in ("query", "attention_output")
        for side in "AB"
    }
    assert described(parts) == expected | HEAD
    assert {part.layer for part in parts if part.role == "query"} == {0, 1}
    assert not any(part.cut for part in parts)


@CHECKPOINTING
def test_the_whole_head_that_is_trained_beside_lora_has_its_own_name() -> None:
    plain_parts = {part.name: part for part in components(_models.bert())}
    found = {part.name: part for part in tuned(_models.bert(), lora("query"))}
    for name in ("classifier.weight", "classifier.bias"):
        assert found[name] == plain_parts[name]


@CHECKPOINTING
def test_what_is_released_under_lora_has_the_names_of_the_plain_model() -> None:
    model = get_peft_model(_models.bert(), LoraConfig(r=2, target_modules=["query", "value"]))
    model.requires_grad_(True)
    found = {part.name: part for part in components(model)}
    for part in components(_models.bert()):
        assert found[part.name] == part
    assert len({part.path for part in found.values()}) == len(found)


@CHECKPOINTING
def test_lora_of_a_fused_projection_is_cut_where_its_output_is() -> None:
    model = get_peft_model(gpt2(), lora("c_attn", "mlp.c_proj", fan_in_fan_out=True))
    parts = components(model)
    expected = {
        f"layer.{layer}.{word}.weight": role
        for layer in range(2)
        for word, role in {
            "qkv.lora_A": "qkv",
            "query.lora_B": "query",
            "key.lora_B": "key",
            "value.lora_B": "value",
            "ffn_out.lora_A": "ffn_out",
            "ffn_out.lora_B": "ffn_out",
        }.items()
    }
    assert described(parts) == expected | {"head.weight": "head"}
    lora_b = model.get_parameter("base_model.model.transformer.h.0.attn.c_attn.lora_B.default.weight")
    lora_b.grad = torch.arange(lora_b.numel(), dtype=torch.float32).reshape(lora_b.shape)  # [out, rank]
    by_path = {part.path: part for part in parts}
    for word, rows in zip(("query", "key", "value"), lora_b.grad.split(6), strict=True):
        (mine,) = by_path[f"layer.0.{word}.lora_B.weight"].gradients()
        assert torch.equal(mine, rows)


@CHECKPOINTING
def test_the_keys_of_lora_alone_move_the_keys() -> None:
    """By behaviour: what B adds to the output of ``c_attn`` lies in the keys if only its key part is not zero."""
    model = get_peft_model(gpt2(), lora("c_attn", fan_in_fan_out=True)).eval()
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    hidden = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(0))
    before = layer(hidden)
    (part,) = (part for part in components(model) if part.path == "layer.0.key.lora_B.weight")
    with torch.no_grad():
        for view in part.pieces[0].of(part.parameters[0]):
            view += 1.0
    moved = (layer(hidden) - before).abs().amax(dim=(0, 1)).split(6)
    assert [bool(change.max() > 0) for change in moved] == [False, True, False]


@CHECKPOINTING
def test_dora_has_a_magnitude_for_every_output() -> None:
    parts = tuned(gpt2(), lora("c_attn", use_dora=True, fan_in_fan_out=True))
    magnitudes = {part.path: part.shape for part in parts.select(layer=0) if "magnitude" in part.path}
    assert magnitudes == {f"layer.0.{word}.lora_magnitude_vector.weight": (6,) for word in ("query", "key", "value")}
    plain_parts = tuned(_models.bert(), lora("query", use_dora=True))
    assert {part.role for part in plain_parts if "magnitude" in part.path} == {"query"}


@CHECKPOINTING
def test_lora_of_an_embedding_and_with_biases() -> None:
    parts = described(tuned(_models.bert(), lora("word_embeddings", "query", bias="lora_only")))
    assert parts["embedding.word.lora_embedding_A"] == parts["embedding.word.lora_embedding_B"] == "embedding"
    assert parts["layer.0.query.bias"] == "query"


@CHECKPOINTING
def test_ia3_has_the_roles_of_what_it_scales() -> None:
    targets, inputs = ["key", "value", "output.dense"], ["output.dense"]
    config = IA3Config(task_type=TaskType.SEQ_CLS, target_modules=targets, feedforward_modules=inputs)
    words = ("key", "value", "attention_output", "ffn_out")
    expected = {f"layer.{layer}.{word}.ia3_l": word for layer in range(2) for word in words}
    assert described(tuned(_models.bert(), config)) == expected | HEAD


@CHECKPOINTING
def test_ia3_of_a_fused_projection_is_complete() -> None:
    config = IA3Config(
        task_type=TaskType.SEQ_CLS, target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True
    )
    parts = tuned(gpt2(), config).select(layer=0)
    assert sum(part.size for part in parts) == 18
    assert {part.role for part in parts} <= {"qkv", "query", "key", "value"}


@CHECKPOINTING
def test_prompts_are_embeddings_and_the_model_keeps_its_names() -> None:
    model = get_peft_model(_models.bert(), PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=3))
    found = {part.name: part for part in components(model)}
    assert {name: part.role for name, part in found.items()} == {
        "classifier.weight": "head",
        "classifier.bias": "head",
        "prompt_encoder.default.embedding.weight": "embedding",
    }
    model.requires_grad_(True)
    released = {part.name: part for part in components(model)}
    for part in components(_models.bert()):
        if part.name != "bert.embeddings.word_embeddings.weight":  # PEFT keeps a second name of it
            assert released[part.name] == part


@CHECKPOINTING
@pytest.mark.parametrize(
    "config",
    [
        peft.AdaLoraConfig(task_type=TaskType.SEQ_CLS, total_step=10, target_modules=["query"]),
        peft.VeraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]),
        peft.LoHaConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]),
        peft.LoKrConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]),
        peft.OFTConfig(task_type=TaskType.SEQ_CLS, r=0, oft_block_size=4, target_modules=["query"]),
        peft.HRAConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"]),
        peft.FourierFTConfig(task_type=TaskType.SEQ_CLS, n_frequency=4, target_modules=["query"]),
    ],
    ids=lambda config: type(config).__name__,
)
def test_other_adapters_have_the_role_of_what_they_adapt_too(config: Any) -> None:
    parts = tuned(_models.bert(), config)
    inside = [part for part in parts if part.layer is not None]
    assert {(part.layer, part.role) for part in inside} == {(0, "query"), (1, "query")}
    assert all(part.path.startswith(f"layer.{part.layer}.query.") for part in inside)
    assert {part.path: part.role for part in parts if part.layer is None} == HEAD


@CHECKPOINTING
def test_an_adapter_of_another_name_is_an_adapter_too() -> None:
    model = get_peft_model(_models.bert(), lora("query"), adapter_name="mine")
    roles = {part.role for part in components(model)}
    assert roles == {"query", "head"}
    by_name = {part.name: part for part in components(model)}
    assert "classifier.weight" in by_name


@CHECKPOINTING
def test_two_adapters_are_told_apart() -> None:
    model = get_peft_model(_models.bert(), lora("query"))
    model.add_adapter("second", lora("query", "key"))
    model.requires_grad_(True)
    parts = components(model)
    assert len({part.path for part in parts}) == len({part.name for part in parts}) == len(parts)
    assert len([part for part in parts if "lora" in part.name]) == 2 * 2 * 3
    assert {part.role for part in parts if "lora" in part.name} == {"query", "key"}
    assert parts.bind(model) == parts


@CHECKPOINTING
def test_lora_on_stacked_experts_has_distinct_names_and_roles() -> None:
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=8, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, num_local_experts=2,
        )
    )  # fmt: skip
    config = LoraConfig(r=2, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    parts = components(get_peft_model(model, config))
    assert len({part.name for part in parts}) == len(parts)
    assert {part.shape: part.role for part in parts} == {
        (4, 8): "expert_in",  # of gates and inputs together
        (12, 4): "expert_in",
        (4, 6): "expert_out",
        (8, 4): "expert_out",
    }


@CHECKPOINTING
@COMPILER
@pytest.mark.usefixtures("group")
def test_wrappers_of_wrappers_change_nothing() -> None:
    model = get_peft_model(_models.bert(), lora("query"))
    parts = components(model)
    assert components(compiled(DistributedDataParallel(model))) == parts
