"""What ranks do in the tests of weights that have moved."""

from __future__ import annotations

import warnings

import torch
from tests.clipping import _layouts
from tests.clipping._jobs import local

from evenkeel import components
from evenkeel.clipping import copied_norms, copy_weights, weight_distances, weight_norms


def moved(layout: str, name: str, factor: float) -> dict[str, list[float]]:
    """Multiply all weights of a spread model; return norms before, of the copies, after, and distances."""
    model, _, _ = _layouts.LAYOUTS[layout](_layouts.build(name))
    parts = components(model)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        copies, before = copy_weights(parts), weight_norms(parts)
        for parameter in {id(parameter): parameter for part in parts for parameter in part.parameters}.values():
            local(parameter).mul_(factor)
        found = [before, copied_norms(parts, copies), weight_norms(parts), weight_distances(parts, copies)]
    return dict(zip(("before", "copied", "after", "moved"), (row.tolist() for row in found), strict=True))
