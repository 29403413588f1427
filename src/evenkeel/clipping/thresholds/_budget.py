"""One total, shared among the components."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal, final

from torch import Tensor

from evenkeel.clipping.thresholds._check import is_number, refuse_mismatch, require
from evenkeel.clipping.thresholds._constants import Constants
from evenkeel.clipping.thresholds._threshold import Limits, Seen, Threshold
from evenkeel.partition import Components

__all__ = ["Budget"]


@final
class _Sizes:
    """The sizes of the components bound; the same tuple as long as the components are the same."""

    def __init__(self) -> None:
        self.known: tuple[int, ...] | None = None
        self._parts: Components | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"known": self.known, "_parts": None}

    def bind(self, parts: Components) -> None:
        if parts is not self._parts:
            self._parts = parts
            self.known = tuple(part.size for part in parts)


@final
@dataclass(frozen=True, eq=False)
class Budget(Threshold):
    r"""Share one total norm among the components, so that the whole gradient keeps to it.

    .. math::

        \delta_c = C \left(\frac{n_c}{N}\right)^{1/p} \;\text{ (by size)}, \qquad
        \delta_c = C \left(\frac{1}{K}\right)^{1/p} \;\text{ (equal)}

    with :math:`n_c` entries in component :math:`c`, :math:`N` in all, :math:`K` components and the norm's order
    :math:`p`; for the maximum norm every component gets :math:`C`. Either way :math:`\sum_c \delta_c^p = C^p`: the
    bound of global clipping, but no component takes from another. :math:`N` and :math:`K` include what other pipeline
    stages hold, where a process group was passed.

    Attributes:
        total: the norm :math:`C` that the whole gradient may have; positive and finite.
        share: ``"sqrt_size"`` allows every entry the same (the root is for :math:`p = 2`), ``"equal"`` every component.

    Raises:
        ThresholdError: if a value is not as described.

    Source: McMahan et al. 2018, arXiv 1710.06963, section 3 (per-layer clipping).

    Example:
        >>> import torch
        >>> from evenkeel.partition import components
        >>> budget = Budget(2.0)
        >>> budget.bind(components(torch.nn.Linear(3, 1)))      # weight: 3 entries, bias: 1
        >>> budget.limits(Seen(norms=torch.ones(2))).thresholds
        tensor([1.7321, 1.0000])
    """

    total: float = 1.0
    _: KW_ONLY
    share: Literal["sqrt_size", "equal"] = "sqrt_size"
    _sizes: _Sizes = field(default_factory=_Sizes, init=False, repr=False)
    _constants: Constants = field(default_factory=Constants, init=False, repr=False)

    def __post_init__(self) -> None:
        require(
            is_number(self.total) and self.total > 0,
            "Budget.total",
            self.total,
            "a positive finite number",
            "to clip nothing, pass max_norm=float('inf')",
        )
        require(
            self.share in ("sqrt_size", "equal"),
            "Budget.share",
            self.share,
            "'sqrt_size' or 'equal'",
            "choose whether every entry or every component is allowed the same",
        )

    def bind(self, parts: Components) -> None:
        """Learn the sizes of the components.

        Args:
            parts: the components, ``C`` of them.
        """
        self._sizes.bind(parts)

    def limits(self, seen: Seen) -> Limits:
        """Return every component's share.

        Args:
            seen: the norms of this step, ``C`` components; only their number, order and sizes matter.

        Returns:
            The shares as thresholds, and the components' own norms.

        Raises:
            ThresholdError: if nobody told the sizes of these components.
        """
        return Limits(thresholds=self._shares(seen), norms=seen.norms)

    def _shares(self, seen: Seen) -> Tensor:
        sizes = self._sizes.known if seen.sizes is None else seen.sizes
        refuse_mismatch(seen.norms, None if sizes is None else len(sizes))
        assert sizes is not None  # noqa: S101  refused above
        others, entries = seen.elsewhere

        def numbers() -> tuple[float, ...]:
            root = 1 / seen.norm_type  # 0 for the maximum norm, of which every component gets all
            if self.share == "equal":
                return (self.total * (1 / (len(sizes) + others)) ** root,) * len(sizes)
            whole = max(1, sum(sizes) + entries)
            return tuple(self.total * (size / whole) ** root for size in sizes)

        return self._constants.get((sizes, seen.elsewhere, seen.norm_type), numbers, seen.norms)
