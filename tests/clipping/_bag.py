"""Models that are nothing but parameters with given gradients, and slow norms to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from evenkeel import Components, components

EPSILON = 1e-6
INF, NAN = math.inf, math.nan


class Bag(nn.Module):
    """Parameters ``p0``, ``p1``, ... with given gradients."""

    def __init__(self, *grads: Tensor | None) -> None:
        super().__init__()
        for index, grad in enumerate(grads):
            layout = {} if grad is None or grad.layout is torch.strided else {"layout": torch.strided}
            parameter = nn.Parameter(torch.zeros(2) if grad is None else torch.zeros_like(grad, **layout))
            parameter.grad = grad
            self.register_parameter(f"p{index}", parameter)

    @property
    def grads(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.parameters()]


class Fused(nn.Module):
    """Three projections in one tensor, one below the other, and what lies beside each other in a second one."""

    def __init__(self, width: int = 4, rows: int = 2) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(7)
        self.qkv = nn.Parameter(torch.randn(3 * rows, width, generator=generator))
        self.qkv_bias = nn.Parameter(torch.randn(3 * rows, generator=generator))
        self.beside = nn.Parameter(torch.randn(width, 3 * rows, generator=generator))
        self.plain = nn.Parameter(torch.randn(rows, width, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        first = nn.functional.linear(x, self.qkv, self.qkv_bias)
        return (first * (x @ self.beside)).sum(-1) + nn.functional.linear(x, self.plain).square().sum(-1)


ROLES = {
    "Fused": {
        "qkv": "query | key | value",
        "qkv_bias": "query | key | value",
        "beside": "query | key | value @-1",
    }
}


def fused(by: str = "tensor") -> tuple[Fused, Components]:
    model = Fused()
    return model, components(model, by, roles=ROLES)  # type: ignore[arg-type]


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def slow_norm(grad: Tensor, norm_type: float) -> float:
    """One entry after the other, in Python's double precision; of complex entries the absolute values."""
    entries = [abs(entry) for entry in grad.detach().flatten().tolist()]
    if norm_type == INF:
        return max(entries, default=0.0)
    top = max(entries, default=0.0)
    if top in (0.0, INF) or math.isnan(top):
        return top
    return top * math.fsum((entry / top) ** norm_type for entry in entries) ** (1 / norm_type)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)
