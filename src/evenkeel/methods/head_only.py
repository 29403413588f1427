"""The head alone, on features that stay as they were pretrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from evenkeel.errors import MethodError
from evenkeel.methods._contract import Method, Owned, Phase
from evenkeel.methods._options import check_flag
from evenkeel.methods._setting import Setting
from evenkeel.partition import Component, Components

__all__ = ["HeadOnly"]


@final
@dataclass(frozen=True, kw_only=True)
class HeadOnly(Method):
    """Train the head and the pooler, and freeze everything else.

    Without the pooler it is linear probing, where the head is one linear layer: what the pretrained features tell by
    themselves. With it, the default, the pretrained pooler becomes the task's own. Where a model has no pooler the two
    are the same.

    Source: Kumar et al. 2022, arXiv 2202.10054, section 2 (linear probing); Peters et al. 2019, arXiv 1903.05987
        (feature extraction).

    Attributes:
        pooler: whether the pooler is trained too, where there is one.

    Raises:
        MethodError: if ``pooler`` is neither true nor false.
    """

    name: ClassVar[str] = "head-only"
    summary: ClassVar[str] = "only the head and the pooler are trained"
    source: ClassVar[str] = "Kumar et al. 2022, arXiv 2202.10054; Peters et al. 2019, arXiv 1903.05987"
    owns: ClassVar[frozenset[Owned]] = frozenset({"phases"})

    pooler: bool = True

    def __post_init__(self) -> None:
        check_flag(self.name, "pooler", self.pooler, advice="false trains the head alone")

    def check(self, setting: Setting) -> None:
        """Refuse models without a head of their own."""
        self.phases(setting.parts)

    def phases(self, parts: Components) -> tuple[Phase, ...]:
        """Return the one phase, of the head and perhaps the pooler."""
        if not any(part.role == "head" for part in parts):
            raise MethodError(
                "head-only trains the head, and this model has none with weights of its own (a language model's may be "
                "tied to its embeddings); use bitfit, lora or full for it"
            )
        return (Phase(name="head", trainable=_is_head_or_pooler if self.pooler else _is_head),)


def _is_head(component: Component) -> bool:
    return component.role == "head"


def _is_head_or_pooler(component: Component) -> bool:
    return component.role in ("head", "pooler")
