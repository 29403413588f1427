"""Clipping by component of Flax models, of both kinds; paths are labels there too."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from evenkeel.integrations.optax import clip_by_component

jax = pytest.importorskip("jax", reason="the extra optax is not installed")
optax = pytest.importorskip("optax", reason="the extra optax is not installed")
pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("flax") is None, reason="Flax is not installed"),
    pytest.mark.filterwarnings("ignore"),  # of Flax, about itself and what it stores models with
]


def norms(tree: Any) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): float(jax.numpy.linalg.norm(leaf.ravel()))
        for path, leaf in leaves
    }


def test_linen() -> None:
    from flax import linen

    class Net(linen.Module):
        @linen.compact
        def __call__(self, inputs: Any) -> Any:
            return linen.Dense(2, name="head")(linen.tanh(linen.Dense(4, name="query")(inputs)))

    net, inputs = Net(), jax.numpy.ones((3, 5))
    params = net.init(jax.random.key(0), inputs)
    gradients = jax.grad(lambda params: jax.numpy.square(net.apply(params, inputs) * 100).sum())(params)
    transformation = clip_by_component({"params/query/*": 0.01, "*": 0.5})
    updates, _ = transformation.update(gradients, transformation.init(params))
    assert norms(updates) == pytest.approx(
        {
            "params/head/bias": 0.5,
            "params/head/kernel": 0.5,
            "params/query/bias": 0.01,
            "params/query/kernel": 0.01,
        },
        rel=1e-4,
    )


def test_nnx() -> None:
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: Any) -> None:
            self.query = nnx.Linear(5, 4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, inputs: Any) -> Any:
            return self.head(nnx.tanh(self.query(inputs)))

    net, inputs = Net(nnx.Rngs(0)), jax.numpy.ones((3, 5))
    chain = optax.chain(clip_by_component({"query/*": 0.01, "*": 0.5}), optax.sgd(1.0))
    optimizer = nnx.Optimizer(net, chain, wrt=nnx.Param)
    before = jax.tree.map(lambda leaf: leaf.copy(), nnx.state(net, nnx.Param))
    optimizer.update(net, nnx.grad(lambda net: jax.numpy.square(net(inputs) * 100).sum())(net))
    moved = norms(jax.tree.map(lambda one, other: one - other, before, nnx.state(net, nnx.Param)))
    assert sorted(moved.values()) == pytest.approx([0.01, 0.01, 0.5, 0.5], rel=1e-3)
