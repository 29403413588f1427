"""LoRA: low-rank changes of some projections, merged into the weights in the end."""

from __future__ import annotations

import contextlib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from evenkeel.errors import MethodError, MissingExtraError, unknown_name
from evenkeel.methods._contract import Method, Owned, Phase
from evenkeel.methods._options import check_number
from evenkeel.methods._session import Session
from evenkeel.methods._setting import Setting
from evenkeel.partition import ROLES, Component, Components

__all__ = ["LowRankAdaptation"]


@final
@dataclass(frozen=True, kw_only=True)
class LowRankAdaptation(Method):
    r"""Freeze the model and train low-rank changes of its query and value projections, and the new layers behind it.

    .. math:: h = W x + \frac{\alpha}{r} B A x, \qquad A \in \mathbb{R}^{r \times d}, \; B \in \mathbb{R}^{k \times r}

    :math:`B` begins as 0 and :math:`A` as torch begins a linear layer, which is what the published code and PEFT do
    (the paper says Gaussian). Layers are PEFT's, put into the model in place. When training ends, also by an exception,
    :math:`W + \frac{\alpha}{r} B A` takes the place of :math:`W`, and the model is made of its own modules again; a
    checkpoint in the middle holds :math:`A` and :math:`B` under PEFT's names.

    What is adapted is said by roles, so that it means the same on every architecture. Where one module makes several
    roles (GPT-2's ``c_attn``, ModernBERT's ``Wqkv``) all of it is adapted. Head and pooler are trained whole, because
    they are or may be new, but for a causal language model, whose head is pretrained. What the user froze is neither
    adapted nor trained.

    The learning rate is the training's own, and wants to be larger than that of full fine-tuning: 4e-4 to 5e-4 for
    RoBERTa in the paper. Clipping, learning rates by layer, SAM and averages (of :math:`A` and :math:`B`, each by
    itself) act on what is trained. ``dropout`` draws from torch's global generator, as any dropout of the model does.

    Source: Hu et al. 2021, arXiv 2106.09685, section 4 and appendix D.

    Attributes:
        rank: :math:`r`, from 1; 8 in the paper for GLUE, 4 for GPT-2.
        alpha: :math:`\alpha`, positive; the paper has 8 for RoBERTa base and 16 for large, 32 for GPT-2.
        dropout: the rate at which entries of :math:`x` are dropped on their way to :math:`A`, from 0 to below 1; 0.1 in
            the paper for some of GPT-2's tasks.
        roles: what is adapted, see ``evenkeel components``; any linear projection. Query and value in the paper.

    Raises:
        MethodError: if an option is none of these.
        MissingExtraError: at the start of a training, if PEFT is not installed.
    """

    name: ClassVar[str] = "lora"
    summary: ClassVar[str] = "low-rank changes of query and value projections, merged in the end (needs PEFT)"
    source: ClassVar[str] = "Hu et al. 2021, arXiv 2106.09685"
    owns: ClassVar[frozenset[Owned]] = frozenset({"phases"})
    conflicts: ClassVar[Mapping[str, str]] = {
        "child-tuning-d": "it chooses among the weights of the blocks, and LoRA freezes them",
        "decay-to-pretrained": "LoRA leaves the pretrained weights alone, so that nothing would be pulled back",
        "mixout": "it mixes trained weights with pretrained ones, and LoRA leaves those as they are",
        "reinit": "blocks that are drawn anew have to be trained whole",
    }

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    roles: Sequence[str] = ("query", "value")

    def __post_init__(self) -> None:
        check_number(self.name, "rank", self.rank, least=1, whole=True, advice="8 is the paper's for GLUE")
        check_number(self.name, "alpha", self.alpha, above=0, advice="16 is usual with a rank of 8")
        check_number(self.name, "dropout", self.dropout, least=0, below=1, advice="0 drops nothing")
        if not isinstance(self.roles, list | tuple) or not self.roles:
            raise MethodError(
                f"lora: roles must be a list of at least one role, but got {self.roles!r}; write roles=[query, value]"
            )
        for role in self.roles:
            if role in _WHOLE:
                raise MethodError(f"lora: '{role}' in roles is trained whole and cannot be adapted; leave it out")
            if role not in ROLES:
                raise MethodError(unknown_name("role of lora", str(role), ROLES))

    def check(self, setting: Setting) -> None:
        """Refuse a model that lacks a role, or has adapters, and what PEFT cannot adapt."""
        _needs_peft()
        self._targets(setting)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Train whatever is not frozen, in one phase."""
        return (Phase(name="adapters", trainable=_everything),)

    def begin(self, setting: Setting) -> Session:
        """Put the adapters in, and return the session that merges them."""
        _needs_peft()
        targets = self._targets(setting)
        with contextlib.ExitStack() as undo:
            session = _AdaptedSession(setting.model, targets)
            undo.callback(session.close)
            _inject(self, setting.model, targets)
            for place, target in enumerate(targets):
                _initialise(setting.model.get_submodule(target), setting.generator(self.name, place))
            for part in setting.parts:
                if part.role in _WHOLE and setting.problem != "causal-lm":
                    for parameter in part.parameters:
                        parameter.requires_grad_(True)
            undo.pop_all()
        return session

    def _targets(self, setting: Setting) -> list[str]:
        """Return the names of the modules that are adapted."""
        if any(type(module).__module__.startswith("peft.") for module in setting.model.modules()):
            raise MethodError(
                "lora puts adapters into a model without any, and this one has some; train them by 'full', or give "
                "the model without them"
            )
        found: dict[str, Component] = {}
        for role in self.roles:
            chosen = [part for part in setting.parts if part.role == role and part.kind == "weight"]
            if not chosen:
                known = {part.role for part in setting.parts if part.role and part.role not in _WHOLE}
                raise MethodError(
                    f"lora adapts the role '{role}', and this model trains no weight of it; choose among "
                    f"{', '.join(sorted(known)) or '(none)'}"
                )
            found |= {piece.name.rpartition(".")[0]: part for part in chosen for piece in part.pieces}
        for name, part in found.items():
            _refuse(name, setting.model.get_submodule(name), part)
        return list(found)


_WHOLE = ("head", "pooler")
_ADAPTER = "default"  # what PEFT calls the only one


def _everything(_: object) -> bool:
    return True


def _needs_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("lora needs PEFT, which is not installed: pip install 'evenkeel[lora]'") from error


def _refuse(name: str, module: nn.Module, part: Component) -> None:
    """Refuse a module that cannot be adapted and merged."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear | Conv1D):
        raise MethodError(
            f"lora adapts linear layers, and '{name}', of role '{part.role}', is a {type(module).__name__}; leave that "
            "role out"
        )
    if part.aliases:
        raise MethodError(
            f"lora cannot adapt '{name}', of role '{part.role}', whose weight stands in '{part.aliases[0]}' too; leave "
            "that role out"
        )


def _inject(method: LowRankAdaptation, model: nn.Module, targets: Sequence[str]) -> None:
    """Let PEFT put its layers around modules; torch's generators are left as they are."""
    import peft

    config = peft.LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # it divides it only
        lora_dropout=method.dropout,
        target_modules="|".join(map(re.escape, targets)),  # a list would be of endings
        bias="none",
    )
    devices = {one.device for one in model.parameters() if one.device.type == "cuda"}
    with torch.random.fork_rng(list(devices)), warnings.catch_warnings():
        # It sees itself which layers hold their weights transposed, and says so.
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        peft.inject_adapter_in_model(config, model, adapter_name=_ADAPTER)


@torch.no_grad()
def _initialise(layer: nn.Module, generator: torch.Generator) -> None:
    """Draw A as torch draws a linear layer's weight, on the CPU, alike on every device and rank."""
    first = layer.get_parameter(f"lora_A.{_ADAPTER}.weight")
    drawn = torch.empty(first.shape)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    first.copy_(drawn)


@final
class _AdaptedSession(Session):
    """Takes the adapters of a model out again."""

    def __init__(self, model: nn.Module, targets: Sequence[str]) -> None:
        self._model, self._targets = model, targets
        self._trained: list[tuple[Tensor, bool]] = [(one, one.requires_grad) for one in model.parameters()]

    @torch.no_grad()
    def close(self) -> None:
        from peft.tuners.lora import LoraLayer

        for name in self._targets:
            layer: Any = self._model.get_submodule(name)
            if isinstance(layer, LoraLayer):
                layer.merge()
                parent, _, child = name.rpartition(".")
                setattr(self._model.get_submodule(parent), child, layer.get_base_layer())
        if "peft_config" in vars(self._model):
            del self._model.peft_config
        trained, self._trained = self._trained, []
        for parameter, is_trained in trained:
            parameter.requires_grad_(is_trained)
