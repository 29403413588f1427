"""The folder that a calibration is written to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evenkeel.calibrate._picture import figure
from evenkeel.calibrate._plan import methods_of, plan_text
from evenkeel.calibrate._probe import Probe
from evenkeel.calibrate._proposal import Proposal
from evenkeel.errors import StoreError
from evenkeel.study import Plan, check_new_folder, new_folder
from evenkeel.study.engines import Job

__all__ = ["write_calibration"]

_PLAN, _NUMBERS, _PAGE = "plan.yaml", "calibration.json", "calibration.html"


def write_calibration(out: Path, *, plan: Plan, job: Job, probe: Probe, proposal: Proposal) -> None:
    """Write ``plan.yaml``, ``calibration.json`` and ``calibration.html``, all or none.

    Args:
        out: a folder that is new or empty.
        plan: the plan of the probe.
        job: one of its runs, which says what data and what model it was.
        probe: the probe.
        proposal: what is proposed.

    Raises:
        StoreError: if the folder is not empty or cannot be written.
    """
    check_new_folder(out)
    numbers: dict[str, Any] = {
        "task": job.spec.task,
        "model": job.spec.model,
        "data_fingerprint": job.spec.data_fingerprint,
        "model_fingerprint": job.spec.model_fingerprint,
        "training": job.spec.training.model_dump(mode="json"),
        "seeds": list(probe.seeds),
        "steps": {"run": probe.budget.run, "steady": probe.budget.steady, "rising": probe.budget.rising},
        "methods": methods_of(proposal),
        **proposal.to_dict(),
    }
    try:
        with new_folder(out) as made:
            (made / _PLAN).write_text(plan_text(plan, proposal, name=_PLAN), encoding="utf-8")
            (made / _NUMBERS).write_text(json.dumps(numbers, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            page = figure(proposal, f"{job.spec.model} on {job.spec.task}")
            page.write_html(made / _PAGE, include_plotlyjs=True)
    except OSError as error:
        raise StoreError(f"'{out}' cannot be written ({error.strerror}); choose another folder with --out") from error
