"""How far one step may take the weights of a component, in proportion to these."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from evenkeel.clipping import applicable, check_max_norm, resolve
from evenkeel.errors import OptimizerError, ThresholdError
from evenkeel.partition import Components

__all__ = ["MaxUpdate", "UpdateLimit", "as_limit", "limit_coefficients", "refuse_stages"]

_FINITE = "must be a positive finite number"


@final
@dataclass(frozen=True)
class UpdateLimit:
    r"""Allow a step to change a component by a share of its weights, at most.

    .. math::

        w_c \leftarrow w_c + k_c \, \Delta_c, \qquad
        k_c = \min\left(1, \frac{r_c (\lVert w_c \rVert + f \sqrt{n_c})}{\lVert \Delta_c \rVert}\right)

    for every component :math:`c` of :math:`n_c` entries, with the step :math:`\Delta_c` that the optimizer would make
    of it. What is below the limit is left as it is: unlike a trust ratio (LARS, LAMB), this never makes a step longer,
    and a learning rate that is small enough is never felt.

    The floor lets weights move that begin at zero, such as biases and heads: they count as if each entry had the size
    :math:`f` beside its own.

    With ``decay`` the share falls with the learning rate, so that the limit of a step is
    :math:`\eta_t / \eta_\text{peak}` times as much, with the peak of the parameter's group: ``max_lr`` where a schedule
    has noted one in the group (``OneCycleLR``), else ``initial_lr``, which every schedule of torch notes there and
    scales, else the rate that the group was given. The coefficient is then the one that this step would have at
    the peak rate: the limit holds for the direction, and the schedule, warm-up too, for what is left of it.

    Attributes:
        max_update: :math:`r`, the largest norm of a step, relative to the weights' norm; positive, ``inf`` limits
            nothing; or numbers by role or by pattern on paths, of which the first that fits holds.
        floor: :math:`f`, in units of the weights, root mean square; positive and finite.
        decay: whether the limit falls and rises with the learning rate.

    Raises:
        ThresholdError: if a value is not as described.

    Source: ours. Related: trust ratios, You et al. 2017, arXiv 1708.03888 (LARS) and You et al. 2020, arXiv 1904.00962
        (LAMB), the latter with the additive term for gradients in place of steps; relative steps, Shazeer & Stern 2018,
        arXiv 1804.04235, section 8; gradients limited by weights, Brock et al. 2021, arXiv 2102.06171.

    Example:
        >>> from evenkeel.partition import components
        >>> parts = components(torch.nn.Linear(4, 1))
        >>> UpdateLimit(0.1, floor=0.5).allowed(parts, torch.tensor([3.0, 0.0]))        # weight, bias
        tensor([0.4000, 0.0500])
    """

    max_update: float | Mapping[str, float] = 3e-3
    _: KW_ONLY
    floor: float = 1e-3
    decay: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.max_update, Mapping | Real):
            raise ThresholdError(
                f"max_update {self.max_update!r} is neither a number nor numbers by role; 3e-3 is usual, None limits "
                "nothing, and objects of evenkeel.thresholds are for gradients alone"
            )
        _named("max_update", check_max_norm, self.max_update)
        if isinstance(self.floor, bool) or not isinstance(self.floor, Real) or not 0 < self.floor < math.inf:
            raise ThresholdError(
                f"the floor of max_update {_FINITE}, but got {self.floor!r}; 1e-3 is usual, and without one weights "
                "that begin at zero would stay there"
            )
        if not isinstance(self.decay, bool):
            raise ThresholdError(
                f"decay of max_update must be True or False, but got {self.decay!r}; True lets the limit follow the "
                "learning rate"
            )

    @property
    def off(self) -> bool:
        """Whether it limits nothing at all."""
        numbers = self.max_update.values() if isinstance(self.max_update, Mapping) else [self.max_update]
        return all(math.isinf(number) for number in numbers)

    def check(self, parts: Components) -> None:
        """Refuse, by a ``ThresholdError``, patterns that fit no component, and components that no pattern fits."""
        _named("max_update", resolve, self.max_update, parts)

    def allowed(self, parts: Components, weights: Tensor) -> Tensor:
        """Return the norms that the steps of components may have.

        Args:
            parts: the components, ``C`` of them.
            weights: the norms of their weights, shape ``[C]``.

        Returns:
            Norms, shape ``[C]``, on the same device; nothing waits for it.
        """
        shares, floors = self.constants(parts, weights)
        return shares * (weights + floors)

    def peak(self, group: Mapping[str, Any], begun: float | Tensor) -> float | Tensor:
        """Return the learning rate that a group's steps are measured with.

        Args:
            group: a group of the optimizer.
            begun: the rate that it was given.

        Returns:
            The peak of its schedule with ``decay``, else the rate of this step.
        """
        rate: float | Tensor = group.get("max_lr", group.get("initial_lr", begun)) if self.decay else group["lr"]
        return rate

    def constants(self, parts: Components, like: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return what is allowed but for the weights; copied to the device the first time only.

        Args:
            parts: the components, ``C`` of them.
            like: a tensor of the dtype and on the device that are wanted.

        Returns:
            The shares :math:`r`, and the floors :math:`f \sqrt n`, both of shape ``[C]``.
        """
        compiling = torch.compiler.is_compiling()  # then they are constants of the graph
        numbers = self.max_update
        key = ("max_update", tuple(numbers.items()) if isinstance(numbers, Mapping) else numbers, self.floor)
        found = None if compiling else parts.memory.get((*key, like.device, like.dtype))
        if found is None:
            shares = resolve(applicable(numbers, parts), parts)  # type: ignore[arg-type]  # no threshold object is
            floors = [self.floor * math.sqrt(part.size) for part in parts]
            found = tuple(torch.tensor(one, dtype=like.dtype, device="cpu").to(like.device) for one in (shares, floors))
            if not compiling:
                parts.memory[*key, like.device, like.dtype] = found
        return found


MaxUpdate = float | Mapping[str, float] | UpdateLimit


def as_limit(max_update: MaxUpdate | None, parts: Components | None = None) -> UpdateLimit | None:
    """Return the limit that ``max_update`` stands for.

    Args:
        max_update: one number, numbers by role or pattern, a limit, or None.
        parts: the components that it is to hold for; None where they are not known yet.

    Returns:
        The limit; None where nothing is limited.

    Raises:
        ThresholdError: if it is no limit, or none for these components.
    """
    if max_update is None:
        return None
    limit = max_update if isinstance(max_update, UpdateLimit) else UpdateLimit(max_update)
    if parts is not None:
        limit.check(parts)
    return None if limit.off else limit


def refuse_stages(limit: UpdateLimit | None, group: ProcessGroup | None) -> None:
    """Refuse, by an ``OptimizerError``, to limit steps where a pipeline's stages share components."""
    if limit is not None and group is not None:
        raise OptimizerError(
            "max_update was given together with the ranks of a pipeline's stages (group), and steps are limited within "
            "one stage alone, where weights that stages share would drift apart; leave one of them out"
        )


def limit_coefficients(norms: Tensor, allowed: Tensor) -> Tensor:
    """Return what steps are multiplied by.

    Args:
        norms: the norms of the steps, shape ``[C]``.
        allowed: the norms that they may have, shape ``[C]``.

    Returns:
        Coefficients up to 1, shape ``[C]``; NaN where one of the two is.
    """
    return torch.where(norms <= allowed, 1.0, allowed / norms)  # 1 for a norm of 0 and for an infinite limit


def _named(name: str, check: Any, *arguments: Any) -> Any:
    """Call a check of ``max_norm``, whose rules hold here too, and let its errors speak of ``name``."""
    try:
        return check(*arguments)
    except ThresholdError as error:
        raise ThresholdError(str(error).replace("max_norm", name)) from error
