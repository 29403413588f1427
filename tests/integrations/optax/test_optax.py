"""Clipping by component in JAX, against torch on the same arrays."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evenkeel import clip_grad_norm_, components
from evenkeel.errors import ComponentError, GradientError, MissingExtraError, ThresholdError
from evenkeel.integrations.optax import clip_by_component

jax = pytest.importorskip("jax", reason="the extra optax is not installed")
optax = pytest.importorskip("optax", reason="the extra optax is not installed")


class Net(nn.Module):
    """A nested model whose parameters are the leaves of a tree."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(3, 4)
        self.key = nn.Linear(3, 4)
        self.head = nn.Linear(4, 2)


def torch_model(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    model = Net().to(dtype)
    for place, parameter in enumerate(model.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0 ** (place - 3)
    return model


def tree_of(model: nn.Module) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        gradient = parameter.grad
        assert gradient is not None
        array = gradient.float().numpy() if gradient.dtype == torch.bfloat16 else gradient.numpy()
        kind = "bfloat16" if gradient.dtype == torch.bfloat16 else array.dtype
        tree.setdefault(module, {})[leaf] = jax.numpy.asarray(array.copy(), dtype=kind)
    return tree


def clipped(tree: Any, *args: Any, jit: bool = False, **kwargs: Any) -> Any:
    transformation = clip_by_component(*args, **kwargs)
    state = transformation.init(tree)
    update = jax.jit(transformation.update) if jit else transformation.update
    return update(tree, state)[0]


def assert_same(tree: Any, model: nn.Module, tolerance: float = 1e-6) -> None:
    expected = tree_of(model)
    assert jax.tree_util.tree_structure(tree) == jax.tree_util.tree_structure(expected)
    for one, other in zip(jax.tree_util.tree_leaves(tree), jax.tree_util.tree_leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float64(one), np.float64(other), rtol=tolerance, atol=0)


@pytest.mark.parametrize(("jit", "norm_type"), [(False, 2.0), (True, 2.0), (False, 1.0), (False, math.inf)])
def test_every_leaf_is_clipped_as_torch_clips_it(jit: bool, norm_type: float) -> None:
    model = torch_model()
    found = clipped(tree_of(model), 0.5, norm_type=norm_type, jit=jit)
    result = clip_grad_norm_(components(model), 0.5, norm_type)
    assert 0 < int((result.coefficients < 1).sum()) < len(result.names)  # some are, some are not
    assert_same(found, model)


def test_labels_make_components_of_several_leaves() -> None:
    model = torch_model()
    labels = {"query": "attention", "key": "attention", "head": {"weight": "head", "bias": "bias"}}  # a prefix
    found = clipped(tree_of(model), {"attention": 0.01, "*": math.inf}, labels)
    parts = components(model, by=lambda part: part.name.split(".")[0] in ("query", "key"))
    limits = torch.tensor([0.01, math.inf])
    norms = [float(torch.cat([g.flatten() for g in part.gradients()]).norm()) for part in parts]
    for part, norm, limit in zip(parts, norms, limits.tolist(), strict=True):
        for gradient in part.gradients():
            gradient.mul_(min(1.0, limit / (norm + 1e-6)))
    assert_same(found, model)


def test_labels_may_be_a_function_and_patterns_go_in_order() -> None:
    model = torch_model()
    find = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: path[-1].key, tree
    )
    found = clipped(tree_of(model), {"bia*": 1e-3, "*": math.inf}, find)
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    nn.utils.clip_grad_norm_(biases, 1e-3)
    assert_same(found, model)


def test_paths_are_labels_where_none_are_given() -> None:
    model = torch_model()
    found = clipped(tree_of(model), {"query/*": 1e-4, "*": math.inf})
    for parameter in model.query.parameters():
        nn.utils.clip_grad_norm_([parameter], 1e-4)
    assert_same(found, model)


def test_one_label_for_all_is_optax_own_global_clipping() -> None:
    tree = tree_of(torch_model())
    found = clipped(tree, 0.7, "all")
    expected = optax.clip_by_global_norm(0.7).update(tree, optax.EmptyState())[0]
    for one, other in zip(jax.tree_util.tree_leaves(found), jax.tree_util.tree_leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_low_precision_is_summed_in_float32_and_stays_what_it_was() -> None:
    model = torch_model(torch.bfloat16)
    found = clipped(tree_of(model), 0.5)
    clip_grad_norm_(components(model), 0.5)
    assert_same(found, model, tolerance=2**-7)


def test_what_is_not_finite_stays_in_its_component() -> None:
    tree = tree_of(torch_model())
    tree["head"]["bias"] = tree["head"]["bias"].at[0].set(math.nan)
    found = clipped(tree, 0.5)
    broken = [bool(jax.numpy.isnan(leaf).any()) for leaf in jax.tree_util.tree_leaves(found)]
    assert sum(broken) == 1
    assert bool(jax.numpy.isnan(found["head"]["bias"]).all())


def test_an_infinite_threshold_leaves_every_bit() -> None:
    tree = tree_of(torch_model())
    for one, other in zip(
        jax.tree_util.tree_leaves(clipped(tree, math.inf)), jax.tree_util.tree_leaves(tree), strict=True
    ):
        assert np.array_equal(one, other)


def test_it_stands_first_in_a_chain() -> None:
    tree = tree_of(torch_model())
    chain = optax.chain(clip_by_component(0.1), optax.sgd(1.0))
    updates, _ = chain.update(tree, chain.init(tree), tree)
    for update in jax.tree_util.tree_leaves(updates):
        assert float(jax.numpy.linalg.norm(update.ravel())) <= 0.1 + 1e-6


@pytest.mark.parametrize("max_norm", [0.0, -1.0, True, math.nan, {}, {"*": 0}])
def test_bad_thresholds_are_refused_at_once(max_norm: Any) -> None:
    with pytest.raises(ThresholdError):
        clip_by_component(max_norm)


def test_thresholds_that_learn_are_refused() -> None:
    from evenkeel import thresholds

    with pytest.raises(ThresholdError, match="learns from step to step on torch tensors"):
        clip_by_component(thresholds.Ema())  # type: ignore[arg-type]


def test_misspelt_labels_are_refused() -> None:
    tree = tree_of(torch_model())
    with pytest.raises(ThresholdError, match="names 'qurey/.*', which no label fits; the labels begin with head/bias"):
        clip_by_component({"qurey/*": 0.1, "*": 1.0}).init(tree)
    with pytest.raises(ThresholdError, match=r"says nothing of the label 'head/bias'; add '\*'"):
        clip_by_component({"query/*": 0.1}).init(tree)
    with pytest.raises(ComponentError, match="labels do not fit the parameters"):
        clip_by_component(0.1, {"query": "a"}).init(tree)
    with pytest.raises(GradientError, match="norm_type"):
        clip_by_component(0.1, norm_type=0.0)


def test_without_optax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[optax\]'"):
        clip_by_component(0.1)
