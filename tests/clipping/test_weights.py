"""Norms of weights and of what became of them, against a loop over tensors in float64."""

from __future__ import annotations

import pytest
import torch
from tests import _models, _ranks
from tests.clipping import _jobs, _layouts, _moved
from torch import Tensor, nn

from evenkeel import Components, components
from evenkeel.clipping import _weights, copied_norms, copy_weights, weight_distances, weight_names, weight_norms
from evenkeel.errors import ComponentError


def norms(parts: Components, before: dict[str, Tensor] | None = None) -> list[float]:
    """Of every component, entry by entry in float64; of the difference where there are weights from before."""
    found = []
    for part in parts:
        total = 0.0
        for piece in part.pieces:
            now = piece.of(piece.tensor().detach())[0].double()
            then = 0.0 if before is None else piece.of(before[piece.name])[0].double()
            total += float((now - then).abs().square().sum())
        found.append(total**0.5)
    return found


def shaken(model: nn.Module, scale: float = 1e-3) -> dict[str, Tensor]:
    """Move all weights at random; return what they were."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return before


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("name", list(_models.ALL))
@pytest.mark.parametrize("by", ["tensor", "layer", "global"])
def test_norms_are_those_of_a_loop(name: str, by: str) -> None:
    model = _models.ALL[name]()
    parts = components(model, by)  # type: ignore[arg-type]
    copies, first = copy_weights(parts), norms(parts)
    before = shaken(model)
    assert weight_norms(parts).tolist() == pytest.approx(norms(parts), rel=1e-6)
    assert weight_distances(parts, copies).tolist() == pytest.approx(norms(parts, before), rel=1e-5)
    assert copied_norms(parts, copies).tolist() == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "mixtral"])
def test_cut_parameters_are_read_as_views(name: str) -> None:
    model = _layouts.build(name)
    parts = components(model)
    assert any(part.cut for part in parts)
    copies = copy_weights(parts)
    before = shaken(model)
    assert weight_norms(parts).tolist() == pytest.approx(norms(parts), rel=1e-12)
    assert weight_distances(parts, copies).tolist() == pytest.approx(norms(parts, before), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_differences_of_every_dtype_are_whole(dtype: torch.dtype) -> None:
    model = nn.Linear(40, 30, dtype=dtype)
    parts = components(model)
    copies = copy_weights(parts)
    before = shaken(model, 0.01)
    wide = {name: weights if dtype.is_complex else weights.double() for name, weights in before.items()}
    expected = [float((p.detach().to(wide[n].dtype) - wide[n]).abs().norm()) for n, p in model.named_parameters()]
    assert weight_distances(parts, copies).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_size_of_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(_weights.cpu, "available", lambda: False)
    model = _models.bert().to(dtype)
    parts = components(model)
    copies = copy_weights(parts)
    shaken(model)
    whole = weight_distances(parts, copies)
    monkeypatch.setattr(_weights, "_CHUNK", 300)
    assert torch.equal(weight_distances(parts, copies), whole)


def test_a_copy_that_nobody_needs_is_written_over() -> None:
    model = nn.Linear(3, 2)
    parts = components(model)
    first = copy_weights(parts)
    shaken(model)
    again = copy_weights(parts, into=first)
    assert [again[name][0].data_ptr() for name in again] == [first[name][0].data_ptr() for name in first]
    assert weight_distances(parts, again).tolist() == [0.0, 0.0]


def test_what_is_known_is_not_copied_again() -> None:
    parts = components(_models.bert())
    names = weight_names(parts)
    assert list(copy_weights(parts)) == names
    assert list(copy_weights(parts, known=names[:-2])) == names[-2:]
    assert copy_weights(parts, known=set(names)) == {}


def test_a_copy_is_no_view() -> None:
    model = nn.Linear(2, 2)
    copies = copy_weights(components(model))
    before = model.weight.detach().clone()
    nn.init.zeros_(model.weight)
    assert torch.equal(copies["weight"][0], before)


def test_what_was_not_copied_is_told() -> None:
    parts = components(nn.Linear(2, 2))
    with pytest.raises(ComponentError, match="the weights of 'bias' were not copied.*before they are trained"):
        weight_distances(parts, copy_weights(parts, known=["bias"]))


@pytest.mark.parametrize(
    ("layout", "name"),
    [("ddp", "gpt2"), ("fsdp2", "gpt2"), ("fsdp2", "phi3"), ("fsdp2", "mixtral"), ("fsdp1", "gpt2"), ("tp", "llama")],
)
def test_two_ranks_find_the_norms_of_one_process(layout: str, name: str) -> None:
    expected = norms(components(_layouts.build(name)))
    for found in _ranks.run(2, _moved.moved, layout, name, 1.5):
        assert found["before"] == pytest.approx(expected, rel=1e-9)
        assert found["copied"] == pytest.approx(expected, rel=1e-9)
        assert found["after"] == pytest.approx([1.5 * norm for norm in expected], rel=1e-9)
        assert found["moved"] == pytest.approx([0.5 * norm for norm in expected], rel=1e-9)


assert _jobs  # ranks preload it
