"""Component-wise gradient norm clipping, the paper's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final, get_args

from evenkeel.clipping import MaxNorm, as_threshold, check_max_norm
from evenkeel.errors import ComponentError, ThresholdError, unknown_name
from evenkeel.methods._contract import Clipping, Method, Owned
from evenkeel.methods._setting import Setting
from evenkeel.partition import Components, regroup

__all__ = ["ComponentClipping"]


Partition = Literal["tensor", "module", "role", "layer", "global"]


@final
@dataclass(frozen=True, kw_only=True)
class ComponentClipping(Method):
    """Fine-tune everything and clip the gradient norm of every component on its own; no global clipping beside it.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4; headline threshold 0.05.

    Attributes:
        max_norm: the norm that each component's gradient may have, or norms by role or path.
        by: what counts as one component, see :func:`evenkeel.components`.

    Raises:
        ThresholdError: if ``max_norm`` is no threshold.
        ComponentError: if ``by`` is unknown.
    """

    name: ClassVar[str] = "component-clip"
    summary: ClassVar[str] = "all weights at once, the gradient norm of each component clipped on its own at 0.05"
    source: ClassVar[str] = "Yang & Ma 2022, arXiv 2210.10325"
    owns: ClassVar[frozenset[Owned]] = frozenset({"clipping"})

    max_norm: MaxNorm = 0.05
    by: Partition = "tensor"

    def __post_init__(self) -> None:
        try:
            check_max_norm(self.max_norm)
        except ThresholdError as error:
            raise ThresholdError(f"{self.name}: {error}") from error
        if self.by not in get_args(Partition):  # now, not at the first step of a study
            raise ComponentError(unknown_name(f"by of {self.name}", str(self.by), get_args(Partition)))

    def check(self, setting: Setting) -> None:
        """Refuse thresholds that name a component which the model does not have, or leave one out."""
        as_threshold(self.max_norm, regroup(setting.parts, self.by))

    def clipping(self, parts: Components) -> Clipping:
        """Clip every component to its threshold."""
        return Clipping(parts=regroup(parts, self.by), max_norm=self.max_norm)
