"""What the partition makes of every architecture that transformers has, and the table of it in docs/components.md.

python -m tests.partition._coverage        # writes the table
"""

from __future__ import annotations

import functools
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import transformers
from tests.partition import _zoo
from torch import nn

from evenkeel import components
from evenkeel.errors import ComponentError
from evenkeel.partition import ROLES, Component, Components

__all__ = ["DOCUMENT", "EXCEPTIONS", "UNBUILDABLE", "coverage", "documented", "problems", "table"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "components.md"
_BEGIN, _END = "<!-- coverage: python -m tests.partition._coverage -->\n", "<!-- end of coverage -->"
# Types whose partition is not told apart as it is elsewhere, and why.
EXCEPTIONS = {
    "gemma3n_text": "its last layers attend to the keys and values of an earlier one and make none",
    "rwkv": "its attention has keys and values, and a gate in the place of queries",
}
# Types that transformers cannot build from their default configuration, with a word of what it says.
UNBUILDABLE = {
    "cohere_compass_text": "KeyError",
    "dbrx": "rope_theta",
    "dots1": "empty()",
    "esm": "empty()",
    "gemma3n": "PIL",
    "gemma4_assistant": "validate_architecture",
    "gemma4_unified_assistant": "layer types",
    "hunyuan_v1_dense": "NoneType",
    "hunyuan_v1_moe": "NoneType",
    "layoutlmv2": "detectron2",
    "lfm2_moe": "NoneType",
    "ministral": "NoneType",
    "musicgen": "dropout",
    "musicgen_melody": "dropout",
    "nemotron": "NoneType",
    "qwen4_exp": "NoneType",
    "qwen4_exp_text": "NoneType",
    "reformer": "is_decoder",
}
MAKERS = {
    "queries": {"query", "query_a", "query_b", "query_key"},
    "keys": {"key", "key_b", "key_value_a", "key_rope", "key_value", "query_key"},
    "values": {"value", "value_b", "key_value_a", "key_value"},
}


def problems(model: nn.Module) -> list[str]:
    """Say what is wrong with the partition of a model."""
    try:
        parts = components(model)
    except ComponentError as error:
        return [str(error)]
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = [f"{parts.size} of {trainable} entries"] if parts.size != trainable else []
    found += _of_layers(parts)
    found += [f"{part.path} is no role: {part.role}" for part in parts if part.role not in ROLES]
    found += [f"unclaimed: {part.name}" for part in parts if part.role == "other" and part.layer is not None]
    found += [f"not cut: {part.name}" for part in parts if part.role == "qkv" and part.layer is not None]
    paths = Counter(part.path for part in parts)
    found += [f"path not unique: {path}" for path, count in paths.items() if count > 1 or "#" in path]
    return found


def _of_layers(parts: Components) -> list[str]:
    layers: dict[str | None, dict[int, list[Component]]] = {}
    for part in parts:
        if part.layer is not None:
            layers.setdefault(part.stack, {}).setdefault(part.layer, []).append(part)
    found = [] if layers else ["no blocks"]
    for stack, members in layers.items():
        if sorted(members) != list(range(len(members))):
            found.append(f"layers of {stack}: {sorted(members)}")
        for layer, own in members.items():
            roles = {part.role for part in own}
            told = {what for what, makers in MAKERS.items() if roles & makers}
            if told and len(told) < len(MAKERS):
                found.append(f"layer {layer} of {stack} makes {sorted(told)} alone")
    return found


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the partition makes of one type: problems, layers of each stack, cut tensors, roles."""

    problems: tuple[str, ...]
    layers: str
    cuts: tuple[str, ...]
    roles: frozenset[str | None]


@functools.cache
def coverage() -> tuple[dict[tuple[str, str], Finding], dict[tuple[str, str], str]]:
    """Return what is found of all types that can be built, and why others cannot."""
    found: dict[tuple[str, str], Finding] = {}
    unbuildable: dict[tuple[str, str], str] = {}
    for kind, model_type in _zoo.TYPES:
        try:
            model = _zoo.build(kind, model_type)
        except _zoo.UnbuildableError as error:
            unbuildable[kind, model_type] = str(error)
        else:
            found[kind, model_type] = _finding(model)
    return found, unbuildable


def _finding(model: nn.Module) -> Finding:
    wrong = tuple(problems(model))
    parts = components(model)
    depths: dict[str | None, int] = {}
    for part in parts:
        if part.layer is not None:
            depths[part.stack] = max(depths.get(part.stack, 0), part.layer + 1)
    layers = ", ".join(f"{stack} {depth}" if stack else str(depth) for stack, depth in depths.items())
    shared = " (some shared)" if any(part.shared for part in parts) else ""
    return Finding(
        problems=wrong,
        layers=layers + shared,
        cuts=tuple(dict.fromkeys(f"`{_tensor(part)}`: {_in_words(part.cut)}" for part in parts if part.cut)),
        roles=frozenset(part.role for part in parts),
    )


def _tensor(part: Component) -> str:
    """Return the last word of the name of what is cut: of the module, or of a parameter that is no module's weight."""
    bits = [bit for bit in part.pieces[0].name.split(".") if not bit.isdigit()]
    return bits[-2] if bits[-1] in ("weight", "bias") else bits[-1].removesuffix("_bias")


def _in_words(cut: str) -> str:
    return " ".join(cut.partition(" if ")[0].split()).replace("|", "\\|")


def table() -> str:
    """Write the section of the document that tells the coverage, in Markdown."""
    found, unbuildable = coverage()
    lines = [f"transformers {transformers.__version__}.", ""]
    for kind, name in (("lm", "causal language models"), ("seq", "sequence classification")):
        own = {model_type: finding for (one, model_type), finding in found.items() if one == kind}
        right = sum(not finding.problems for finding in own.values())
        lines.append(
            f"- {name}: {right} of {len(own)} buildable types right ({100 * right / len(own):.1f} %); "
            f"{sum(one == kind for one, _ in unbuildable)} cannot be built"
        )
    types: dict[tuple[str, Finding], list[str]] = {}
    for (kind, model_type), finding in found.items():
        same = Finding(problems=finding.problems, layers=finding.layers, cuts=finding.cuts, roles=frozenset())
        types.setdefault((model_type, same), []).append(kind)
    lines += ["", "| model type | as | layers | tensors that are cut | exception |", "|---|---|---|---|---|"]
    for (model_type, finding), kinds in sorted(types.items(), key=lambda item: item[0][0]):
        exception = EXCEPTIONS[model_type] if finding.problems else ""
        cuts = "<br>".join(finding.cuts)
        lines.append(f"| {model_type} | {', '.join(kinds)} | {finding.layers} | {cuts} | {exception} |")
    lines += ["", "Not built: what transformers' own code says to its default configuration.", ""]
    lines += ["| model type | as | reason |", "|---|---|---|"]
    reasons: dict[tuple[str, str], list[str]] = {}
    for (kind, model_type), reason in unbuildable.items():
        reasons.setdefault((model_type, _short(reason)), []).append(kind)
    lines += [f"| {model} | {', '.join(kinds)} | {reason} |" for (model, reason), kinds in sorted(reasons.items())]
    lines += ["", "The roles:", "", "| role | what it does |", "|---|---|"]
    lines += [f"| `{role}` | {meaning} |" for role, meaning in ROLES.items()]
    return "\n".join(lines) + "\n"


def _short(reason: str) -> str:
    return textwrap.shorten(reason, 110, placeholder=" ...").replace("|", "\\|")


def documented() -> str:
    """Return the section as the document has it."""
    return DOCUMENT.read_text(encoding="utf-8").partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    """Write the section into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    after = rest.partition(_END)[2]
    DOCUMENT.write_text(before + begin + table() + _END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
