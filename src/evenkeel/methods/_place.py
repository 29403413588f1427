"""Where a component lies in the model, for methods that go through it from the top down."""

from __future__ import annotations

from evenkeel.partition import Component

__all__ = ["is_above_blocks"]


def is_above_blocks(component: Component) -> bool:
    """Say whether a component lies behind the last block: head, pooler, and their norms or the last one.

    What is outside the blocks and not above them counts as embeddings: tables, their norms and projections, and what
    all blocks share, such as DeBERTa's table of relative positions with its norm.

    Args:
        component: the component, of the fine partition.

    Returns:
        Whether it lies above.
    """
    if component.layer is not None:
        return False
    path = component.path.removeprefix(f"{component.stack}.")
    own_norm = component.role == "norm" and path.startswith(("norm.", "head.", "pooler."))
    return own_norm or component.role in ("head", "pooler")
