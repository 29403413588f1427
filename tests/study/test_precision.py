from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.study._small import InlineEngine, MakePlan

from evenkeel.errors import PlanError
from evenkeel.study import Study, StudyFolder
from evenkeel.study._precision import suitable_precision


@pytest.mark.parametrize(
    ("can", "chosen"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "float32"), ({}, "float32")],
)
def test_a_cpu_computes_in_bf16_only_where_it_can(
    monkeypatch: pytest.MonkeyPatch, can: dict[str, bool], chosen: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    assert suitable_precision() == chosen


@pytest.mark.parametrize(
    ("device", "bf16", "chosen"), [("cuda", True, "bf16"), ("cuda", False, "fp16"), ("mps", True, "float32")]
)
def test_a_gpu_computes_in_what_it_has(monkeypatch: pytest.MonkeyPatch, device: str, bf16: bool, chosen: str) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: SimpleNamespace(type=device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: bf16)
    assert suitable_precision() == chosen


def specs(study: Study) -> set[str]:
    return {job.spec.training.precision for job in study.jobs()}


def test_what_was_chosen_stands_in_the_record_and_stays(
    make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(methods=["full"], seeds=1, training={"precision": "auto", "epochs": 1.0})
    monkeypatch.setattr("evenkeel.study._study.suitable_precision", lambda: "bf16")
    (run,) = Study(plan, StudyFolder(tmp_path / "a")).run(InlineEngine())
    assert (run.spec.training.precision, run.outcome["provenance"]["precision"]) == ("bf16", "bf16")

    monkeypatch.setattr("evenkeel.study._study.suitable_precision", lambda: "float32")  # on another machine
    assert specs(Study(plan, StudyFolder(tmp_path / "a"))) == {"bf16"}
    assert specs(Study(plan, StudyFolder(tmp_path / "b"))) == {"float32"}


def test_it_is_nothing_to_sweep(make_plan: MakePlan) -> None:
    with pytest.raises(PlanError, match=r"sweep.training.precision: auto is one of the others; name those"):
        make_plan(sweep={"training.precision": ["auto", "bf16"]})
