"""What a step updates: parameters, or the parts of them that components own, with gradient and moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.distributed.tensor import DTensor

from evenkeel.optim._lists import Lists
from evenkeel.partition import Components, Piece

__all__ = ["Jobs", "find_jobs"]


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """``T`` plain tensors of this rank with what belongs to them, in the order of the components.

    Attributes:
        parameters: what is updated.
        gradients: read.
        exp_avgs: first moments.
        exp_avg_sqs: second moments.
        owners: the component of each.
        settings: which optimizer group's settings, at which step, hold for each.
    """

    parameters: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    exp_avgs: list[Tensor] = field(default_factory=list)
    exp_avg_sqs: list[Tensor] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    settings: list[int] = field(default_factory=list)

    @property
    def tensors(self) -> tuple[list[Tensor], ...]:
        """Parameters, gradients, first and second moments."""
        return self.parameters, self.gradients, self.exp_avgs, self.exp_avg_sqs


def find_jobs(
    parts: Components, lists: Iterable[Lists], kinds: Mapping[int, int], reads: Callable[[Tensor], bool]
) -> Jobs | None:
    """Find what a step updates.

    Args:
        parts: the components, which own every entry of their parameters.
        lists: the tensors of all groups.
        kinds: which settings hold for a parameter, by its ``id``.
        reads: says whether the kernels can take a tensor.

    Returns:
        The jobs; None where some tensor is not for the kernels.
    """
    own = {
        id(parameter): tensors
        for one in lists
        for parameter, *tensors in zip(one.params, one.targets, one.grads, one.exp_avgs, one.exp_avg_sqs, strict=True)
    }
    jobs = Jobs()
    for owner, piece, parameter, plain in _places(parts):
        whole = own.get(parameter)
        if whole is None:
            continue
        if not plain and _is_partial(whole[1], whole[0]):
            return None
        for view in (whole,) if plain else zip(*map(piece.of, whole), strict=True):
            if not (reads(view[0]) and reads(view[1]) and reads(view[2]) and reads(view[3])):
                return None
            jobs.parameters.append(view[0])
            jobs.gradients.append(view[1])
            jobs.exp_avgs.append(view[2])
            jobs.exp_avg_sqs.append(view[3])
            jobs.owners.append(owner)
            jobs.settings.append(kinds[parameter])
    return jobs


def _places(parts: Components) -> list[tuple[int, Piece, int, bool]]:
    """Return owner, piece, parameter (its ``id``) and whether the piece is a plain whole one; looked up once."""
    known: list[tuple[int, Piece, int, bool]] | None = parts.memory.get("jobs")
    if known is None:
        known = parts.memory["jobs"] = [
            (owner, piece, id(piece.tensor()), not piece.spans and not isinstance(piece.tensor(), DTensor))
            for owner, part in enumerate(parts)
            for piece in part.pieces
        ]
    return known


def _is_partial(grad: Tensor, parameter: Tensor) -> bool:
    """Say whether a gradient is a share of a sum that was not taken yet."""
    if not isinstance(parameter, DTensor):
        return False
    return not isinstance(grad, DTensor) or grad.placements != parameter.placements
