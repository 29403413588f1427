"""Gradients that come and go by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from evenkeel.errors import GradientError, unknown_name
from evenkeel.partition import Components, Piece

__all__ = ["Named", "find_named", "names_of", "rebuilt"]


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a component owns of a tensor that came by name.

    Attributes:
        name: the name that it came by.
        piece: the parameter, or the cut of one.
        owner: index of the component.
        whole: the tensor.
    """

    name: str
    piece: Piece
    owner: int
    whole: Tensor

    @property
    def entries(self) -> Tensor:
        """What the piece owns of the tensor."""
        (entries,) = self.piece.of(self.whole)
        return entries

    @property
    def read(self) -> Tensor:
        """What to take the norm of; of a sparse tensor the sum of what is stored several times."""
        return self.whole.coalesce().values() if self.whole.layout is torch.sparse_coo else self.entries


def names_of(parts: object) -> dict[int, tuple[str, ...]]:
    """Return the names of a model's parameters, wrappers and all.

    Args:
        parts: a model, or anything else.

    Returns:
        Names by the identity of the parameter; of what is no model none.
    """
    found: dict[int, tuple[str, ...]] = {}
    if isinstance(parts, nn.Module):
        for name, parameter in parts.named_parameters(remove_duplicate=False):
            found[id(parameter)] = (*found.get(id(parameter), ()), name)
    return found


def find_named(
    tensors: Mapping[str, Tensor], parts: Components, names: Mapping[int, tuple[str, ...]], what: str = "gradient"
) -> list[Named]:
    """Find what components own of tensors that came by name.

    Args:
        tensors: tensors of the parameters' shapes, by name; one at least.
        parts: the components.
        names: further names of parameters, see :func:`names_of`.
        what: what the tensors are, for messages.

    Returns:
        The pieces, in the order of the components.

    Raises:
        GradientError: if there are none, a name is unknown or means the same as another, or a tensor does not fit.
    """
    if not isinstance(tensors, Mapping) or not tensors:
        given = "an empty mapping" if isinstance(tensors, Mapping) else f"a {type(tensors).__name__}"
        raise GradientError(
            f"clip_grads was given {given} as {what}s; it needs a mapping from names to tensors, as torch.func.grad "
            "returns for dict(model.named_parameters())"
        )
    canonical = _canonical(parts, names)
    given_as: dict[str, str] = {}
    for name, tensor in tensors.items():
        if name not in canonical:
            raise GradientError(
                f"{unknown_name('parameter', str(name), canonical)}; leave out the {what}s of frozen parameters and of "
                "those that no component owns"
            )
        first = given_as.setdefault(canonical[name], name)
        if first != name:
            raise GradientError(
                f"'{first}' and '{name}' are names of one tied parameter, whose {what} counts once; pass one of them"
            )
        if not isinstance(tensor, Tensor):
            raise GradientError(
                f"the {what} of '{name}' is a {type(tensor).__name__} and no tensor; leave out what has no {what}"
            )
    found: list[Named] = []
    for owner, part in enumerate(parts):
        for piece in part.pieces:
            if piece.name in given_as:
                name = given_as[piece.name]
                _refuse_misfit(name, tensors[name], piece, what)
                found.append(Named(name=name, piece=piece, owner=owner, whole=tensors[name]))
    return found


def _canonical(parts: Components, names: Mapping[int, tuple[str, ...]]) -> dict[str, str]:
    """Map every name of a parameter to the one that its pieces have."""
    found: dict[str, str] = {}
    for part in parts:
        for piece in part.pieces:
            aliases = part.aliases if len({other.name for other in part.pieces}) == 1 else ()
            further = () if piece.parameter is None else names.get(id(piece.parameter), ())
            found.update(dict.fromkeys((piece.name, *aliases, *further), piece.name))
    return found


def _refuse_misfit(name: str, tensor: Tensor, piece: Piece, what: str) -> None:
    why = ""
    if isinstance(tensor, DTensor) or piece.flat is not None:
        why = "is sharded; clip_grad_norm_ clips sharded gradients, in place"
    elif tuple(tensor.shape) != piece.shape:
        why = f"has the shape {tuple(tensor.shape)} and the parameter {piece.shape}; use torch.func.vmap for a batch"
    elif tensor.layout is not torch.strided and (tensor.layout is not torch.sparse_coo or piece.spans):
        why = f"has the layout {tensor.layout}, which cannot be clipped here; pass a dense one"
    if why:
        raise GradientError(f"the {what} of '{name}' {why}")


def rebuilt(
    tensors: Mapping[str, Tensor], found: Sequence[Named], factors: Sequence[Tensor], off: Sequence[Tensor] | None
) -> dict[str, Tensor]:
    """Return the tensors with every piece multiplied by its factor.

    Args:
        tensors: the tensors, by name.
        found: their pieces.
        factors: for each piece its factor, of a shape that it broadcasts with.
        off: for each piece whether it becomes exact zeros, 0-dimensional; None for no one.

    Returns:
        New tensors, under the same names and in the same order.
    """
    scaled: dict[str, Tensor] = {}
    silents: Sequence[Tensor | None] = [None] * len(found) if off is None else off
    for own, factor, silent in zip(found, factors, silents, strict=True):
        if not own.piece.spans:
            scaled[own.name] = _scaled_whole(own.whole, factor, silent)
            continue
        if own.name not in scaled:
            scaled[own.name] = _fresh(own.whole, factor, silent)
        (view,) = own.piece.of(scaled[own.name])
        view.copy_(_scaled(own.entries, factor, silent))
    return {name: scaled[name] for name in tensors}


def _fresh(tensor: Tensor, *others: Tensor | None) -> Tensor:
    """Copy a tensor; inside vmap once for each sample if it or one of the others has samples."""
    for other in others:
        if other is not None:
            tensor = tensor * torch.ones_like(other.detach().flatten()[0], dtype=tensor.dtype, device=tensor.device)
    return tensor


def _scaled_whole(tensor: Tensor, factor: Tensor, off: Tensor | None) -> Tensor:
    if tensor.layout is torch.strided:
        return _scaled(tensor, factor, off)
    tensor = tensor.coalesce()
    return torch.sparse_coo_tensor(
        tensor.indices(), _scaled(tensor.values(), factor, off), tensor.shape, is_coalesced=True, check_invariants=False
    )


def _scaled(entries: Tensor, factor: Tensor, off: Tensor | None) -> Tensor:
    factor = factor.to(entries.device)
    if entries.is_complex():  # as pairs of numbers: a complex product makes NaN of infinity times 1
        factor = factor.unsqueeze(-1) if factor.dim() else factor
        scaled = torch.view_as_complex((torch.view_as_real(entries.resolve_conj()) * factor).to(entries.real.dtype))
    else:
        scaled = (entries * factor).to(entries.dtype)  # rows' factors may be of a finer dtype
    return scaled if off is None else scaled.masked_fill(off.to(entries.device), 0.0)
