"""Components that are clipped together, under a threshold for the group."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, final

from evenkeel.clipping.thresholds._members import Members, joint_norms
from evenkeel.clipping.thresholds._threshold import Limits, Seen, Threshold
from evenkeel.clipping.thresholds._weight_relative import WeightRelative
from evenkeel.errors import ThresholdError
from evenkeel.partition import By, Components

__all__ = ["Grouped"]


@final
@dataclass(frozen=True, eq=False)
class Grouped(Threshold):
    r"""Clip the components of a group together, by one coefficient.

    The group's norm is :math:`\left(\sum_{c \in \text{group}} \lVert g_c \rVert^p\right)^{1/p}`, and the threshold
    within sees groups where it would see components. So published rules that are not per component are

    - AutoClip: ``Grouped(Percentile(10), by="global")``
    - ZClip: ``Grouped(ZScore(), by="global")``
    - AGGC: ``Grouped(CappedEma(), by="role")``

    Unlike ``components(model, by=...)`` it leaves the components what they are: results still tell the norm of every
    one. A NaN in a component is one in its group, whose coefficient becomes NaN, and in no other group.

    With a pipeline's process group, ``by="global"`` means all stages; other groups are those of this rank's stages, and
    so are the weights' norms. Sums of many components are not the same to the last bit from run to run on a GPU, unless
    ``torch.use_deterministic_algorithms(True)`` is set.

    Attributes:
        threshold: the rule for a group.
        by: what is put together, as in ``evenkeel.components``: ``"role"``, ``"layer"``, ``"module"``, ``"global"``,
            ``"tensor"``, or a function from a component to something hashable.

    Raises:
        ThresholdError: if ``threshold`` is none, or clips rows, which have no groups.

    Example:
        >>> import torch
        >>> from evenkeel.clipping.thresholds import Fixed
        >>> from evenkeel.partition import components
        >>> threshold = Grouped(Fixed((2.5,)), by="global")
        >>> threshold.bind(components(torch.nn.Linear(2, 1)))
        >>> threshold.limits(Seen(norms=torch.tensor([3.0, 4.0]))).coefficients
        tensor([0.5000, 0.5000])
    """

    threshold: Threshold
    _: KW_ONLY
    by: By
    _members: Members = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, Threshold):
            raise ThresholdError(
                f"Grouped needs a threshold object such as Percentile(10), but got {self.threshold!r}; for one number "
                "per group, use components(model, by=...) and max_norm"
            )
        if isinstance(self.threshold, WeightRelative) and self.threshold.per == "row":
            raise ThresholdError(
                "Grouped was given WeightRelative(per='row'), but rows are clipped one by one and have no groups; use "
                "per='component'"
            )
        object.__setattr__(self, "_members", Members(self.by))
        object.__setattr__(self, "needs_weights", self.threshold.needs_weights)  # the class cannot know

    def bind(self, parts: Components) -> None:
        """Learn the groups, and tell the threshold within.

        Args:
            parts: the components, ``C`` of them.

        Raises:
            ComponentError: if ``by`` is no partition.
        """
        self.threshold.bind(self._members.bind(parts))

    def limits(self, seen: Seen) -> Limits:
        """Return what the groups are allowed.

        Args:
            seen: the norms of this step, ``C`` components.

        Returns:
            For every component the threshold of its group, and its group's norm.

        Raises:
            ThresholdError: if nobody told which components these are.
        """
        index = self._members.index(seen.norms)
        inner = self.threshold.limits(self._joined(seen))
        return Limits(thresholds=inner.thresholds.index_select(0, index), norms=inner.norms.index_select(0, index))

    def _joined(self, seen: Seen) -> Seen:
        """Return what there is to see of the groups."""
        members = self._members
        index, count, order = members.index(seen.norms), members.count, seen.norm_type
        weights = None if seen.weights is None else joint_norms(seen.weights, index, count, order)
        sizes = None if seen.sizes is None else members.sizes(seen.sizes)
        elsewhere = seen.elsewhere
        if self.by != "global":
            norms = joint_norms(seen.norms, index, count, order)
        else:  # the one group has a part on every stage
            norms = joint_norms(seen.norms, index, count, order) if seen.whole is None else seen.whole.reshape(1)
            sizes = None if sizes is None else (sizes[0] + elsewhere[1],)
            elsewhere = (0, 0)
        return Seen(norms=norms, weights=weights, norm_type=order, whole=seen.whole, sizes=sizes, elsewhere=elsewhere)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the threshold within, which is of groups by name."""
        return {"threshold": self.threshold.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another one with the same grouping was.

        Args:
            state: what :meth:`state_dict` returned.

        Raises:
            ThresholdError: if it is no state of a ``Grouped``, or none of the threshold within.
        """
        if not isinstance(state, dict) or set(state) != {"threshold"}:
            given = sorted(map(str, state)) if isinstance(state, dict) else f"a {type(state).__name__}"
            raise ThresholdError(
                f"Grouped cannot load a state of {given}, because its own holds ['threshold']; pass what state_dict() "
                "of the same class returned"
            )
        self.threshold.load_state_dict(state["threshold"])
