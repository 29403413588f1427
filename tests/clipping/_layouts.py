"""Tiny models of real architectures, and every way in which torch spreads one over ranks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

ROWS, LENGTH, VOCABULARY, HIDDEN = 4, 5, 13, 6  # a norm of 6 entries leaves one of 4 ranks empty
BLOCKS = ("GPT2Block", "LlamaDecoderLayer", "Phi3DecoderLayer", "MixtralDecoderLayer", "SequenceBlock")
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "initializer_range": 0.5,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


class SequenceBlock(nn.Module):
    """A norm whose input is cut along the sequence by tensor parallelism, and an MLP of two projections."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, 8)
        self.down = nn.Linear(8, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(self.up(self.norm(hidden)).relu())


class SequenceModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList([SequenceBlock(), SequenceBlock()])
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embed(ids)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=8, n_embd=HIDDEN, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, initializer_range=0.5,
        )
    )  # fmt: skip


def _mixtral() -> nn.Module:
    experts = {"num_local_experts": 3, "num_experts_per_tok": 2, "experts_implementation": "eager"}
    return MixtralForCausalLM(MixtralConfig(**_LLAMA | experts))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": _gpt2,  # cut along columns; tied
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_LLAMA)),  # cut along rows
    "mixtral": _mixtral,  # stacked experts
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA)),
    "sequence": SequenceModel,
}


def build(name: str) -> nn.Module:
    """The same weights on every rank, in float64."""
    torch.manual_seed(0)
    return MODELS[name]().double()


def backward(model: nn.Module, share: int = 0, shares: int = 1) -> None:
    """Give a model the gradients of its share of the rows; the mean over all shares is the gradient of all rows."""
    ids = torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))[share::shares]
    out = model(ids)
    logits = out if isinstance(out, Tensor) else out.logits
    nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in BLOCKS]


# --- layouts: each returns the wrapped model, this rank's share of the rows, and the number of shares


Layout = tuple[nn.Module, int, int]


@functools.cache  # process groups are slow to make
def mesh(**dims: int) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(dims.values()), mesh_dim_names=tuple(dims))


def ddp(model: nn.Module) -> Layout:
    return DistributedDataParallel(model), dist.get_rank(), dist.get_world_size()


def fsdp2(model: nn.Module) -> Layout:
    return _fully(model, mesh(dp=dist.get_world_size())), dist.get_rank(), dist.get_world_size()


def hsdp(model: nn.Module) -> Layout:
    return _fully(model, mesh(replica=2, shard=dist.get_world_size() // 2)), dist.get_rank(), dist.get_world_size()


def _fully(model: nn.Module, where: DeviceMesh) -> nn.Module:
    for block in blocks(model):
        fully_shard(block, mesh=where)
    fully_shard(model, mesh=where)
    return model


def fsdp1(model: nn.Module, strategy: str = "FULL_SHARD", *, own: bool = True, nested: bool = True) -> Layout:
    where = mesh(replica=2, shard=dist.get_world_size() // 2) if strategy == "HYBRID_SHARD" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch no longer recommends it, and people still use it
        wrapped = FullyShardedDataParallel(
            model,
            auto_wrap_policy=ModuleWrapPolicy({type(block) for block in blocks(model)}) if nested else None,
            sharding_strategy=ShardingStrategy[strategy],
            use_orig_params=own,
            device_mesh=where,
            device_id=torch.device("cpu"),
        )
    return wrapped, dist.get_rank(), dist.get_world_size()


def tensor_parallel(model: nn.Module) -> Layout:
    return _parallel(model, mesh(tp=dist.get_world_size())), 0, 1


def fsdp2_with_tensor_parallel(model: nn.Module) -> Layout:
    where = mesh(dp=dist.get_world_size() // 2, tp=2)
    wrapped = _fully(_parallel(model, where["tp"]), where["dp"])
    return wrapped, where.get_local_rank("dp"), where.size(0)


def _parallel(model: nn.Module, where: DeviceMesh) -> nn.Module:
    if isinstance(model, SequenceModel):
        return _sequence_parallel(model, where)
    column = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
    plan: dict[str, ParallelStyle] = {f"self_attn.{name}": ColwiseParallel() for name in column[:3]}
    plan |= {f"mlp.{name}": ColwiseParallel() for name in column[3:]}
    plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for block in blocks(model):
        parallelize_module(block, where, plan)
    return parallelize_module(model, where, {"lm_head": ColwiseParallel(output_layouts=Replicate())})


def _sequence_parallel(model: SequenceModel, where: DeviceMesh) -> nn.Module:
    plan: dict[str, ParallelStyle] = {
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(output_layouts=Shard(1), use_local_output=False),
    }
    for block in blocks(model):
        parallelize_module(block, where, plan)
    outer: dict[str, ParallelStyle] = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        "head": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
    }
    return parallelize_module(model, where, outer)


def fused_with_tensor_parallel(model: nn.Module) -> nn.Module:
    """Phi-3 as it is stored, for its gradients alone: its forward pass knows nothing of cut fused projections."""
    where = mesh(dp=dist.get_world_size() // 2, tp=2)
    for block in blocks(model):
        fused = {"self_attn.qkv_proj": ColwiseParallel(), "mlp.gate_up_proj": ColwiseParallel()}
        parallelize_module(block, where["tp"], fused)
    return _fully(model, where["dp"])


LAYOUTS: dict[str, Callable[[nn.Module], Layout]] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "hsdp": hsdp,
    "fsdp1": fsdp1,
    "fsdp1-flat": lambda model: fsdp1(model, nested=False),
    "fsdp1-grad-op": lambda model: fsdp1(model, "SHARD_GRAD_OP"),
    "fsdp1-no-shard": lambda model: fsdp1(model, "NO_SHARD"),
    "fsdp1-hybrid": lambda model: fsdp1(model, "HYBRID_SHARD"),
    "tp": tensor_parallel,
    "fsdp2-tp": fsdp2_with_tensor_parallel,
}


# --- by hand: parameters and gradients are put where a rule says

Placements = list[Placement]
# For a parameter: its mesh, its placements, and those of its gradient; None where it stays whole on every rank.
Rule = Callable[[str, Tensor], tuple[DeviceMesh, Placements, Placements] | None]


def place(model: nn.Module, rule: Rule) -> nn.Module:
    """Shard parameters and the gradients that they have."""
    for name, parameter in list(model.named_parameters()):
        placed = rule(name, parameter)
        if placed is not None:
            where, placements, of_gradient = placed
            sharded = nn.Parameter(distribute(parameter, where, placements))
            if parameter.grad is not None:
                sharded.grad = distribute(parameter.grad, where, of_gradient)
            _replace(model, parameter, sharded)
    return model


def distribute(tensor: Tensor, where: DeviceMesh, placements: Placements) -> DTensor:
    """Give every rank its entries; where placements say ``Partial``, a share of them."""
    local = tensor.detach()
    for ranks, rank, placement in zip(where.shape, where.get_coordinate() or (), placements, strict=True):
        if placement.is_partial():
            local = local * 2 * (rank + 1) / (ranks * (ranks + 1))  # shares that sum to one
        elif not placement.is_replicate():
            dim, groups = placement.dim, getattr(placement, "split_factor", 1)  # type: ignore[attr-defined]
            local = torch.cat([_chunk(_chunk(local, groups, i, dim), ranks, rank, dim) for i in range(groups)], dim)
    return DTensor.from_local(local.clone(), where, placements, shape=tensor.shape, stride=tensor.stride())


def _chunk(tensor: Tensor, number: int, index: int, dim: int) -> Tensor:
    chunks = tensor.chunk(number, dim)
    return chunks[index] if index < len(chunks) else tensor.narrow(dim, 0, 0)


def _replace(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    for module in model.modules():  # tied ones stay tied
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter is old:
                module.register_parameter(name, new)


def placement(kind: str, dim: int) -> Placement:
    if kind == "strided":
        return _StridedShard(dim, split_factor=2)
    return Shard(dim) if kind == "shard" else Replicate()


def _everywhere(placements: Placements, of_gradient: Placements | None = None, **dims: int) -> Rule:
    where = mesh(**dims)
    return lambda name, parameter: (where, placements, of_gradient or placements)


def _last(**dims: int) -> Rule:
    where = mesh(**dims)
    return lambda name, parameter: (where, [Shard(parameter.dim() - 1)], [Shard(parameter.dim() - 1)])


def _experts() -> Rule:
    """Experts on their own mesh of two dimensions, matrices sharded on another one, and vectors plain."""
    own, rest = mesh(ep=2, inner=2), mesh(dp=4)

    def rule(name: str, parameter: Tensor) -> tuple[DeviceMesh, Placements, Placements] | None:
        if ".experts." in name:
            return own, [Shard(0), Shard(1)], [Shard(0), Shard(1)]
        return (rest, [Shard(0)], [Shard(0)]) if parameter.dim() > 1 else None

    return rule


RULES: dict[str, Callable[[], Rule]] = {
    "columns": lambda: _last(tp=4),
    "rows-twice": lambda: _everywhere([Shard(0), Shard(0)], a=2, b=2),
    "strided": lambda: _everywhere([_StridedShard(0, split_factor=2), Shard(0)], dp=2, tp=2),
    "experts": _experts,
    "partial": lambda: _everywhere([Replicate()], [Partial()], tp=4),
    "shard-partial": lambda: _everywhere([Shard(0), Replicate()], [Shard(0), Partial()], dp=2, tp=2),
    "partial-shard": lambda: _everywhere([Shard(0)], [Partial()], dp=4),
    "replicate-shard": lambda: _everywhere([Shard(0)], [Replicate()], dp=4),
}


def stage(model: nn.Module, index: int) -> nn.Module:
    """Leave of a trained model of two layers what one of two pipeline stages has; a tied embedding stays on both."""
    core = model.get_submodule(model.base_model_prefix)  # type: ignore[arg-type]
    layers = "h" if hasattr(core, "h") else "layers"
    tied = core.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator,union-attr]
    others = {0: ["norm", "ln_f"], 1: ["wpe"] if tied else ["embed_tokens"]}[index]
    setattr(core, layers, nn.ModuleDict({str(index): core.get_submodule(layers).get_submodule(str(index))}))
    for name in others:
        if hasattr(core, name):
            delattr(core, name)
    if index == 0:
        del model.lm_head
    return model
