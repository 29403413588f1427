"""A model's parameters by the names that they have without wrappers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from evenkeel.errors import ComponentError

__all__ = ["Tree", "plain", "plain_parameters", "plain_tree", "unwrapped"]

# Modules that stand around a whole model and have other children too, or another name for it, by class.
_AROUND = {
    "DeepSpeedEngine": "module.",
    "OptimizedModule": "_orig_mod.",
    "FullyShardedDataParallel": "_fsdp_wrapped_module.",
}
# What wrappers put between a module and its parent: torch.compile, FSDP1, activation checkpointing.
_BETWEEN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# The same of PEFT: the layer that an adapter wraps, and the copy of a module that is trained whole.
_OF_ADAPTERS = ("base_layer", r"modules_to_save\.[^.]+")
_PATTERNS = {
    adapters: re.compile(rf"(?:^|(?<=\.))(?:{'|'.join(names)})(?:\.|$)")
    for adapters, names in ((False, _BETWEEN), (True, (*_BETWEEN, *_OF_ADAPTERS)))
}


def plain(name: str, *, adapters: bool = True) -> str:
    """Return the dotted name without what wrappers put between a module and its parent.

    Args:
        name: dotted name of a parameter or module.
        adapters: whether the model has adapters of PEFT, whose names are ordinary words.

    Returns:
        The same as in a model that nothing wraps.

    Example:
        >>> plain("encoder.0._checkpoint_wrapped_module.query.base_layer.weight")
        'encoder.0.query.weight'
    """
    return _PATTERNS[adapters].sub("", name).rstrip(".")


def _has_adapters(model: nn.Module) -> bool:
    return any(type(module).__module__.startswith("peft.") for module in model.modules())


def unwrapped(model: nn.Module) -> tuple[str, nn.Module]:
    """Find the model inside the modules that stand around a whole model.

    Args:
        model: any module.

    Returns:
        What DDP, FSDP, torch.compile, DeepSpeed and PEFT put before its names, and the model itself.
    """
    before = ""
    while True:
        prefix = _prefix(model)
        if not prefix:
            return before, model
        before += prefix
        model = model.get_submodule(prefix.rstrip("."))


def _prefix(model: nn.Module) -> str:
    classes = [base.__name__ for base in type(model).__mro__]
    if "PeftModel" in classes:
        inner = model.get_submodule("base_model")
        # A tuner such as LoRA's holds the model; with prompt tuning the model itself stands there.
        return "base_model.model." if "BaseTuner" in [base.__name__ for base in type(inner).__mro__] else "base_model."
    if list(model._modules) == ["module"] and not model._parameters:  # DDP, and whatever is made like it
        return "module."
    return next((_AROUND[name] for name in classes if name in _AROUND), "")


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A model's modules without what wraps them.

    Attributes:
        modules: every module by each of its plain names, parents before children.
        adapted: for each module that an adapter (LoRA and its kin) wraps, by its plain name and by the one that it has
            among nested wrappers, the parameter that is adapted.
    """

    modules: Mapping[str, nn.Module]
    adapted: Mapping[str, str]


def plain_tree(model: nn.Module) -> Tree:
    """Find the modules of a model; of a wrapper and what it wraps, which have one name, the latter.

    Args:
        model: any module.

    Returns:
        The modules by plain name.
    """
    before, _ = unwrapped(model)
    adapters = _has_adapters(model)
    modules: dict[str, nn.Module] = {}
    adapted: dict[str, str] = {}
    for full, module in model.named_modules(remove_duplicate=False):
        raw = f"{full}.".removeprefix(before).rstrip(".")
        name = plain(raw, adapters=adapters)
        modules[name] = module
        if adapters and "base_layer" in module._modules:
            adapted[raw] = str(getattr(module, "parameter_name", "weight"))
            adapted.setdefault(name, adapted[raw])
    return Tree(modules=modules, adapted=adapted)


def plain_parameters(model: nn.Module) -> Iterator[tuple[tuple[str, ...], nn.Parameter]]:
    """Yield every parameter once, with all its plain names, the first one first.

    Where two parameters would have one plain name, as with adapters around adapters, the one that has it without
    wrappers keeps it, and the other its own.

    Args:
        model: any module.

    Yields:
        Names and parameter.

    Raises:
        ComponentError: if FSDP1 hides the parameters.
    """
    before, _ = unwrapped(model)
    adapters = _has_adapters(model)
    names: dict[int, list[str]] = defaultdict(list)
    tensors: dict[int, nn.Parameter] = {}
    raws = [
        (full.removeprefix(before), parameter) for full, parameter in model.named_parameters(remove_duplicate=False)
    ]
    owners = {raw: id(parameter) for raw, parameter in raws}
    for raw, parameter in raws:
        if raw.rpartition(".")[2] == "_flat_param":
            raise ComponentError(
                f"parameter '{raw}' is a flat one, in which FSDP1 hides what it is made of; wrap the model with "
                "use_orig_params=True, or shard it with fully_shard (FSDP2)"
            )
        name = plain(raw, adapters=adapters)
        names[id(parameter)].append(name if owners.setdefault(name, id(parameter)) == id(parameter) else raw)
        tensors[id(parameter)] = parameter
    for key, parameter in tensors.items():
        yield tuple(dict.fromkeys(names[key])), parameter
