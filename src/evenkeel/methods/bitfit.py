"""BitFit: biases alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Owned, Phase
from evenkeel.methods._setting import Setting
from evenkeel.partition import Component, Components

__all__ = ["BitFit"]


@final
@dataclass(frozen=True, kw_only=True)
class BitFit(Method):
    """Train the biases and the head, and freeze everything else.

    Biases are those of all linear maps and norms, in blocks, embeddings and pooler; the weights of a pooler are frozen,
    as in the published code. The head is trained whole, which of a head of two layers, as RoBERTa's, is both.

    A tenth of a percent of the weights wants greater steps than all of them: the published code's learning rate is
    1e-3, unless told otherwise.

    Source: Ben Zaken et al. 2022, arXiv 2106.10199, section 3.
    """

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "only biases and the head are trained"
    source: ClassVar[str] = "Ben Zaken et al. 2022, arXiv 2106.10199"
    owns: ClassVar[frozenset[Owned]] = frozenset({"phases"})

    def check(self, setting: Setting) -> None:
        """Refuse models without biases, as Llama is one."""
        self.phases(setting.parts)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return the one phase, of biases and head."""
        if not any(part.kind == "bias" and part.role != "head" for part in parts):
            raise MethodError(
                "bitfit trains biases, and this model has none but in its head; use head-only, or lora, for it"
            )
        return (Phase(name="biases and head", trainable=_is_bias_or_head),)


def _is_bias_or_head(component: Component) -> bool:
    return component.kind == "bias" or component.role == "head"
