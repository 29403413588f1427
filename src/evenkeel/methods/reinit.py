"""Re-init: the top of the model drawn anew before fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method
from evenkeel.methods._fresh import drawn_anew
from evenkeel.methods._options import check_flag, check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.partition import ModelBlock, blocks

__all__ = ["Reinit"]


@final
@dataclass(frozen=True, kw_only=True)
class Reinit(Method):
    r"""Draw the pooler and the top blocks anew before training, and fine-tune everything.

    In the top ``layers`` blocks and the pooler every weight is drawn from :math:`N(0, \sigma^2)`, biases are 0, norms
    have the weight 1 and the bias 0, as in the beginning of BERT's pretraining, with :math:`\sigma = 0.02`. For other
    models that is what the model's own code does: ``_init_weights`` of transformers, which the published code follows
    too. It knows that Gemma's norms begin at a weight of 0, and that T5's projections have scales of their own. Draws
    are made on the CPU, alike on every device and rank, and not from torch's global generator.

    A model without a pooler (RoBERTa, ELECTRA, ModernBERT, GPT-2, Llama) has its blocks drawn alone: what stands for a
    pooler there is the head, which is new anyway, or nothing. That is what the published code does with ELECTRA.
    Of an encoder-decoder the top blocks are the decoder's, as there for BART.

    Source: Zhang et al. 2021, arXiv 2006.05987, section 5.

    Attributes:
        layers: how many blocks are drawn anew, from the top down; from 0, which is the pooler alone, to one less than
            there are. The paper tries 1 to 6 of BERT-large's 24, and says that the best number depends on the task.
        pooler: whether the pooler is drawn anew, where there is one.
        std: :math:`\sigma` of linear maps and embeddings, positive; None draws them as the model itself does, which is
            0.02 in BERT.

    Raises:
        MethodError: if a value is not as described, or nothing would be drawn.
    """

    name: ClassVar[str] = "reinit"
    summary: ClassVar[str] = "the pooler and the top block drawn anew before training"
    source: ClassVar[str] = "Zhang et al. 2021, arXiv 2006.05987"
    conflicts: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("bitfit", "head-only"), "it freezes weights that were drawn anew, which would stay random"
    )

    layers: int = 1
    pooler: bool = True
    std: float | None = None

    def __post_init__(self) -> None:
        check_number(self.name, "layers", self.layers, least=0, whole=True, advice="it counts blocks; 1 to 6 are usual")
        check_flag(self.name, "pooler", self.pooler, advice="true draws it anew")
        check_number(self.name, "std", self.std, above=0, optional=True, advice="0.02 is BERT's")
        if self.layers == 0 and not self.pooler:
            raise MethodError("reinit: layers=0 and pooler=false draw nothing anew; give layers, or use full")

    def check(self, setting: Setting) -> None:
        """Refuse models without enough blocks, and those in which what is to be drawn is frozen."""
        self._modules(setting)

    @torch.no_grad()
    def begin(self, setting: Setting) -> Session:
        """Draw the pooler and the top blocks."""
        parts = {parameter: part for part in setting.parts for parameter in part.parameters}
        drawn = [
            drawn_anew(setting.model, module, parts, setting.generator(self.name, place), self.std)
            for place, module in enumerate(self._modules(setting))
        ]
        for parameter, fresh in itertools.chain.from_iterable(drawn):  # all are known before any is written
            parameter.copy_(fresh)
        return Session()

    def _modules(self, setting: Setting) -> list[nn.Module]:
        """Return the modules that are drawn anew, from the top down."""
        owners = {
            id(parameter): module
            for module in setting.model.modules()
            for parameter in module.parameters(recurse=False)
        }
        chosen: dict[int, nn.Module] = {}
        for part in setting.parts if self.pooler else ():
            if part.role == "pooler":
                chosen.update((id(owner), owner) for owner in (owners[id(one)] for one in part.parameters))
        for block in self._blocks(setting.model):
            chosen[id(block.module)] = block.module
            inside = {id(parameter) for parameter in block.module.parameters()}
            beside = [one for one in block.parameters.values() if id(one) not in inside]
            chosen.update((id(owner), owner) for owner in (owners[id(one)] for one in beside))
        if not chosen:
            raise MethodError("reinit: layers=0 draws the pooler alone, and this model has none; give layers from 1")
        _refuse_frozen(setting, list(chosen.values()))
        return list(chosen.values())

    def _blocks(self, model: nn.Module) -> list[ModelBlock]:
        """Return the top blocks of the stack that the head stands on."""
        if self.layers == 0:
            return []
        found = blocks(model)
        stacks = {block.stack for block in found}
        if len(stacks) > 1 and "decoder" not in stacks:
            raise MethodError(
                f"reinit needs one stack of blocks, but found {', '.join(sorted(map(str, stacks)))}, and none of them "
                "is on top; use full for this model"
            )
        own = [block for block in found if len(stacks) == 1 or block.stack == "decoder"]
        if self.layers >= len(own):
            raise MethodError(
                f"reinit: layers must be less than the model's number of blocks with weights of their own, which is "
                f"{len(own)}, but got {self.layers}; a model that is drawn anew altogether is not pretrained"
            )
        return own[: -self.layers - 1 : -1]


def _refuse_frozen(setting: Setting, modules: list[nn.Module]) -> None:
    trained = {id(parameter) for part in setting.parts for parameter in part.parameters}
    names = {id(parameter): name for name, parameter in setting.model.named_parameters()}
    for parameter in itertools.chain.from_iterable(module.parameters() for module in modules):
        if id(parameter) not in trained:
            raise MethodError(
                f"reinit draws '{names[id(parameter)]}' anew, which is frozen, so that it would be random for good; "
                "release it, or draw fewer layers"
            )
