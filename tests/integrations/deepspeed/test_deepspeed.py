"""Clipping of what a DeepSpeed engine keeps, against torch in one process; and every refusal, without an engine."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import _models
from torch import nn

from evenkeel import components, thresholds
from evenkeel.errors import ComponentError, GradientError, MissingExtraError, ThresholdError
from evenkeel.integrations.deepspeed import clip_grad_norm_

ROOT = Path(__file__).parents[3]
OPTIMIZERS = {0: "SGD", 1: "DeepSpeedZeroOptimizer", 2: "DeepSpeedZeroOptimizer", 3: "DeepSpeedZeroOptimizer_Stage3"}


def by_hand() -> tuple[nn.Module, list[dict[str, float]]]:
    from tests.integrations.deepspeed import _engine

    model = _models.bert()
    optimizer = torch.optim.SGD(model.parameters(), lr=_engine.RATE)
    norms = []
    for step in range(_engine.STEPS):
        optimizer.zero_grad()
        for ids in _engine.micro_batches(step, 0, 1):
            (model(input_ids=ids, labels=ids[:, 0] % 2).loss / _engine.ACCUMULATED).backward()
        named = [(name, one) for name, one in model.named_parameters() if one.grad is not None]
        norms.append({name: nn.utils.clip_grad_norm_([one], _engine.MAX_NORM).item() for name, one in named})
        optimizer.step()
    return model, norms


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="the extra deepspeed is not installed")
@pytest.mark.parametrize("stage", OPTIMIZERS)
def test_two_ranks_give_the_weights_of_one_process(stage: int, tmp_path: Path) -> None:
    script = Path(__file__).parent / "_engine.py"
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"),
            *(str(script), str(stage), str(tmp_path)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    model, norms = by_hand()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["optimizer"] == OPTIMIZERS[stage]
        assert [one is None for one in found["norms"]] == [True, False] * len(norms)  # nothing while accumulating
        for one, expected in zip([one for one in found["norms"] if one is not None], norms, strict=True):
            assert one == pytest.approx(expected, rel=2e-3, abs=1e-6)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found["weights"][name], parameter.detach(), rtol=0, atol=1e-5)


# --- without an engine: its access to gradients, laid over torch's own


@pytest.mark.parametrize("scale", [1.0, 2.0**8])
def test_what_is_read_is_clipped_and_written_back(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = _models.bert(), _models.bert()
    kept: dict[int, torch.Tensor] = {}
    for model in (ours, theirs):
        _models.backward(model)
    frozen = ours.get_parameter("classifier.bias")
    for parameter in ours.parameters():
        assert parameter.grad is not None
        if parameter is not frozen:  # stands for one that took no part
            kept[id(parameter)] = parameter.grad * scale
        parameter.grad = None
    access = SimpleNamespace(
        safe_get_full_grad=lambda parameter: kept.get(id(parameter)),
        safe_set_full_grad=lambda parameter, value: kept.__setitem__(id(parameter), value),
    )
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(utils=access))
    monkeypatch.setitem(sys.modules, "deepspeed.utils", access)
    made = engine(scale=scale)
    result = clip_grad_norm_(made, components(ours), 0.02)
    assert result is not None
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if parameter is frozen:
            assert id(parameter) not in kept
            continue
        norm = nn.utils.clip_grad_norm_([other], 0.02).item()
        assert result.to_dict()[name] == pytest.approx(norm, rel=1e-4, abs=1e-9)
        torch.testing.assert_close(kept[id(parameter)] / scale, other.grad, rtol=1e-5, atol=1e-9)
    assert clip_grad_norm_(engine(boundary=False), components(ours), 0.02) is None


# --- refusals


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's access to gradients, of which nothing is asked here."""
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deepspeed.utils", SimpleNamespace())


def engine(clipping: float = 0.0, *, scale: float = 1.0, boundary: bool = True) -> Any:
    return SimpleNamespace(
        gradient_clipping=lambda: clipping,
        is_gradient_accumulation_boundary=lambda: boundary,
        optimizer=SimpleNamespace(loss_scale=scale),
    )


@pytest.mark.usefixtures("there")
def test_what_cannot_be_is_refused() -> None:
    parts = components(nn.Linear(2, 1))
    with pytest.raises(GradientError, match=r"also clips globally \(gradient_clipping=1.0\)"):
        clip_grad_norm_(engine(1.0), parts, 0.1)
    with pytest.raises(ThresholdError, match="looks at weights, which DeepSpeed keeps elsewhere"):
        clip_grad_norm_(engine(), parts, thresholds.WeightRelative(0.01))
    emptied = nn.Linear(2, 1)
    emptied.weight.ds_shape = torch.Size([4, 2])  # type: ignore[assignment]
    with pytest.raises(ComponentError, match=r"call evenkeel.components\(model\) before deepspeed.initialize"):
        clip_grad_norm_(engine(), components(emptied), 0.1)


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'evenkeel\[deepspeed\]'"):
        clip_grad_norm_(engine(), components(nn.Linear(2, 1)), 0.1)
