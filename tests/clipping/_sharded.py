"""The calls that every layout is tried with, and the comparison with one process."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import torch
from tests.clipping._jobs import Clip, Outcome, in_one_process, norms_of

INF = math.inf
POISONED = {  # a parameter that every layout shards; of a fused one the first part
    "gpt2": "transformer.h.0.attn.c_attn.weight",
    "phi3": "model.layers.0.self_attn.qkv_proj.weight",
    "mixtral": "model.layers.1.mlp.experts.gate_up_proj",
    "llama": "model.layers.0.mlp.up_proj.weight",
    "sequence": "layers.1.up.weight",
}


def threshold(name: str, by: str, norm_type: float) -> float:
    """One that clips half of the components."""
    norms = norms_of(name, by, norm_type)
    return statistics.median(norms) if len(norms) > 1 else norms[0] / 2


def clips(name: str, *, full: bool = False) -> list[Clip]:
    """Every partition with every norm where ``full``; else each of them at least once, and NaN in both modes."""
    pairs = [(by, norm) for by in ("tensor", "role", "layer", "global") for norm in (2.0, 1.0, 3.0, INF)]
    if not full:
        pairs = [("tensor", 2.0), ("tensor", INF), ("role", 1.0), ("layer", 3.0), ("global", 2.0), ("global", INF)]
    plain = [Clip(by=by, norm_type=norm, max_norm=threshold(name, by, norm)) for by, norm in pairs]
    bad = [("tensor", 2.0, "propagate"), ("role", INF, "propagate"), ("tensor", 2.0, "zero"), ("layer", INF, "zero")]
    return plain + [
        Clip(
            by=by, norm_type=norm, max_norm=threshold(name, by, norm), nonfinite=nonfinite, poisoned=POISONED[name]
        )
        for by, norm, nonfinite in bad
    ]  # fmt: skip


def assert_as_in_one_process(
    name: str, calls: list[Clip], ranks: Iterable[list[Outcome]], *, whole: bool = True
) -> None:
    """Compare norms, coefficients and gradients on every rank; of a stage, what it has, its total being the model's."""
    for outcomes in ranks:
        for call, got in zip(calls, outcomes, strict=True):
            want = in_one_process(name, call)
            index = [want.names.index(part) for part in got.names]
            assert not whole or index == list(range(len(want.names)))
            assert got.gradients
            assert not whole or got.gradients.keys() == want.gradients.keys()
            close(got.norms, want.norms[index], f"norms of {call}")
            close(got.coefficients, want.coefficients[index], f"coefficients of {call}")
            close(got.total_norm, want.total_norm, f"total norm of {call}")
            for parameter, gradient in got.gradients.items():
                close(gradient, want.gradients[parameter], f"gradient of {parameter} after {call}")


def close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
    # A key's bias has a gradient of 0 but for rounding, which is relative to the other gradients.
    torch.testing.assert_close(
        got, want, rtol=1e-9, atol=1e-12, equal_nan=True, msg=lambda message: f"{what}\n{message}"
    )


def traffic(ranks: Iterable[list[Outcome]]) -> set[tuple[tuple[str, int], ...]]:
    """What was sent in any of the calls."""
    return {tuple(sorted(outcome.traffic.items())) for outcomes in ranks for outcome in outcomes}
