"""From the gradients of a step to what a threshold may look at."""

from __future__ import annotations

import torch

from evenkeel.clipping._gradients import Gradients, weights
from evenkeel.clipping._local import local_norms
from evenkeel.clipping._plan import Plan
from evenkeel.clipping._spread import join
from evenkeel.clipping.thresholds import Seen

__all__ = ["look"]


def look(gradients: Gradients, where: Plan, norm_type: float, *, with_weights: bool = False) -> Seen:
    """Take all norms of a step, over all ranks that share a component.

    Args:
        gradients: the gradients of the step.
        where: where they belong.
        norm_type: order of the norms.
        with_weights: whether to take the weights' norms too; they travel in the same vector.

    Returns:
        The norms, as they are: NaN and infinity too.
    """
    rows = [local_norms(gradients.read, gradients.slots, where, norm_type)]
    if with_weights:
        rows.append(local_norms(*weights(where), where, norm_type).to(rows[0]))
    norms, whole = join(torch.stack(rows), where, norm_type)
    stages = where.stages
    return Seen(
        norms=norms[0],
        weights=norms[1] if with_weights else None,
        norm_type=norm_type,
        whole=None if whole is None else whole[0],
        sizes=None if stages is None else stages.sizes,
        elsewhere=(0, 0) if stages is None else stages.elsewhere,
    )
