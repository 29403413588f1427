"""One run whose model is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
from transformers import TrainerCallback

from evenkeel.errors import PlanError
from evenkeel.study._execute import RunResult, execute
from evenkeel.study._folder import StudyFolder
from evenkeel.study._new_folder import check_new_folder, new_folder
from evenkeel.study._plan import Plan
from evenkeel.study._study import Study
from evenkeel.study.engines import Job, launch

__all__ = ["finetune_one"]


def finetune_one(plan: Plan, out: Path, *, callbacks: Sequence[TrainerCallback] = ()) -> dict[str, Any]:
    """Fine-tune the single run of a plan and save the model, its metrics and its predictions, all or none.

    Args:
        plan: a plan of one run.
        out: a folder that is new or empty.
        callbacks: callbacks for the Trainer.

    Returns:
        The run's outcome, with ``diverged``; a model that diverged is not saved.

    Raises:
        PlanError: if the plan has more runs than one, or callbacks are to follow a run into several processes.
        StoreError: if the folder is not empty or cannot be written.
        EvenkeelError: if task, model or method cannot be used.
    """
    check_new_folder(out)
    jobs = Study(plan, StudyFolder(out)).jobs()
    if len(jobs) != 1:
        raise PlanError(f"the plan has {len(jobs)} runs, and one model is to be kept; name one task, method and seed")
    job = jobs[0]
    if job.spec.processes > 1 and callbacks:
        raise PlanError(
            f"the run is one of {job.spec.processes} processes (resources.processes_per_run), and callbacks belong to "
            "this one; leave one of the two out"
        )
    with new_folder(out) as made:
        if job.spec.processes > 1:
            result = launch(job.spec.processes, _saved, job, made)
        else:
            result = execute(job.spec, job.task, model=job.model, save_to=made, callbacks=callbacks)
        outcome = {**result.outcome, "diverged": result.diverged}
        metrics = {"spec": job.spec.model_dump(mode="json"), **outcome}
        (made / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        pyarrow.parquet.write_table(result.tables["predictions"], made / "predictions.parquet")
    return outcome


def _saved(job: Job, made: Path) -> RunResult:
    return execute(job.spec, job.task, model=job.model, save_to=made)
