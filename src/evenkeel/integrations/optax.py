"""Component-wise clipping as an Optax gradient transformation, for JAX and Flax models."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evenkeel.clipping import check_max_norm, check_norm_type
from evenkeel.errors import ComponentError, MissingExtraError, ThresholdError
from evenkeel.integrations._tested import warn_untested

if TYPE_CHECKING:
    import optax

__all__ = ["clip_by_component"]

_EPSILON = 1e-6  # as in torch


def clip_by_component(
    max_norm: float | Mapping[Any, float],
    labels: Any | Callable[[Any], Any] | None = None,
    *,
    norm_type: float = 2.0,
) -> optax.GradientTransformation:
    r"""Clip the gradient norm of every component on its own.

    .. math::

        g_c \leftarrow g_c \cdot \min\left(1, \frac{\delta_c}{\lVert g_c \rVert + 10^{-6}}\right)

    The first transformation of a chain: ``optax.chain(clip_by_component(0.05), optax.adamw(2e-5))``. Norms are taken in
    float32, float64 where a gradient is float64. A gradient that is not finite stays so, and touches no other
    component. It keeps no state and can be used inside ``jax.jit``; sharded arrays are clipped as whole ones.

    Args:
        max_norm: the norm that each component may have, ``inf`` clips nothing; or norms by label or shell pattern on
            labels, of which the first that fits holds.
        labels: a tree like the parameters', or a prefix of it, or a function that makes one of them: leaves with one
            label are one component. Without it every leaf is one, and its label is its path: ``layer_0/query/kernel``.
        norm_type: order of the norm; positive, may be ``inf``.

    Returns:
        The transformation.

    Raises:
        MissingExtraError: if Optax is not installed.
        ThresholdError: if a norm is no positive number; when it is first used, if a pattern fits no label, or a label
            no pattern.
        GradientError: if ``norm_type`` is no order of a norm.
        ComponentError: when it is first used, if ``labels`` do not fit the parameters.

    Source: Yang & Ma 2022, arXiv 2210.10325, section 4.
    """
    jax, transformations = _import("jax"), _import("optax")
    warn_untested("optax")
    if not isinstance(max_norm, Mapping):
        check_max_norm(max_norm)
    else:
        check_max_norm({str(label): number for label, number in max_norm.items()})
    if hasattr(max_norm, "limits"):
        raise ThresholdError(
            f"{max_norm!r} learns from step to step on torch tensors, and an Optax transformation cannot; pass a number"
        )
    order = check_norm_type(norm_type)

    def init(params: Any) -> Any:
        _limits(max_norm, _labels_of(jax, labels, params))
        return transformations.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        names = _labels_of(jax, labels, updates)
        leaves, tree = jax.tree_util.tree_flatten(updates)
        limits = _limits(max_norm, names)
        coefficients = _coefficients(jax, leaves, names, limits, order)
        clipped = [
            leaf if name not in coefficients else (leaf * coefficients[name]).astype(leaf.dtype)
            for leaf, name in zip(leaves, names, strict=True)
        ]
        return jax.tree_util.tree_unflatten(tree, clipped), state

    made: optax.GradientTransformation = transformations.GradientTransformation(init, update)
    return made


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f"clip_by_component needs Optax, and {name} is not installed: pip install 'evenkeel[optax]'"
        ) from error


def _labels_of(jax: Any, labels: Any, tree: Any) -> list[Hashable]:
    """Return the label of every leaf, in order."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if labels is None:
        return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    given = labels(tree) if callable(labels) else labels
    try:
        spread = jax.tree_util.tree_map(
            lambda label, below: [label] * len(jax.tree_util.tree_leaves(below)), given, tree
        )
        found = jax.tree_util.tree_leaves(spread)
        if len(found) != len(leaves):
            raise ValueError(f"there are {len(found)} labels and {len(leaves)} leaves")
        return list(found)
    except ValueError as error:
        raise ComponentError(
            f"labels do not fit the parameters ({str(error).splitlines()[0]}); pass a tree like the parameters', with "
            "a label at each leaf or at a node above it"
        ) from error


def _limits(max_norm: float | Mapping[Any, float], names: Sequence[Hashable]) -> dict[Hashable, float]:
    """Return the threshold of every label."""
    if not isinstance(max_norm, Mapping):
        return dict.fromkeys(names, float(max_norm))
    for pattern in max_norm:
        if pattern != "*" and not any(_fits(name, pattern) for name in names):
            shown = ", ".join(map(str, list(dict.fromkeys(names))[:3]))
            raise ThresholdError(f"max_norm names {pattern!r}, which no label fits; the labels begin with {shown}")
    limits: dict[Hashable, float] = {}
    for name in dict.fromkeys(names):
        found = next((number for pattern, number in max_norm.items() if _fits(name, pattern)), None)
        if found is None:
            raise ThresholdError(
                f"max_norm says nothing of the label {name!r}; add '*' for the rest, with float('inf') to leave it "
                "alone"
            )
        limits[name] = float(found)
    return limits


def _fits(name: Hashable, pattern: Hashable) -> bool:
    return name == pattern or (isinstance(pattern, str) and fnmatch.fnmatchcase(str(name), pattern))


def _coefficients(
    jax: Any, leaves: Sequence[Any], names: Sequence[Hashable], limits: Mapping[Hashable, float], order: float
) -> dict[Hashable, Any]:
    """Return what the leaves of each label are multiplied by; nothing where the threshold is infinite."""
    numbers = jax.numpy
    norms: dict[Hashable, list[Any]] = {}
    for leaf, name in zip(leaves, names, strict=True):
        if limits[name] != float("inf"):
            wide = numbers.promote_types(numbers.finfo(leaf.dtype).dtype, numbers.float32)
            entries = numbers.abs(leaf).astype(wide).ravel()
            norms.setdefault(name, []).append(numbers.linalg.norm(entries, order))
    whole = {name: numbers.linalg.norm(numbers.stack(each), order) for name, each in norms.items()}
    return {name: numbers.minimum(1.0, limits[name] / (norm + _EPSILON)) for name, norm in whole.items()}
