"""The driver: makes the runs of a plan, hands them to an engine, and records what comes back."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import torch

from evenkeel.errors import PlanError, StoreError
from evenkeel.methods import Setting, parse_mix
from evenkeel.models import skeleton
from evenkeel.partition import blocks, components
from evenkeel.study._folder import StudyFolder
from evenkeel.study._plan import Plan, RunSpec, TaskPlan, Training
from evenkeel.study._prepare import load_data, locate_model, prepare
from evenkeel.study._quiet import quieten
from evenkeel.study._store import RunRecord, Store
from evenkeel.study.engines import Engine, Job, Report

__all__ = ["Study", "open_study"]

_MAX_ATTEMPTS = 3  # of a run whose process dies, in one start of the driver


class Study:
    """A plan and its folder.

    Attributes:
        plan: what is to be done.
        folder: where it is recorded.
    """

    def __init__(self, plan: Plan, folder: StudyFolder) -> None:
        """Bind a plan to a folder; nothing is read or written yet."""
        self.plan = plan
        self.folder = folder
        self._jobs: list[Job] | None = None  # checking and loading take a while: once will do

    def jobs(self) -> list[Job]:
        """Load and check everything that the runs need.

        Returns:
            One job for each run, in the plan's order.

        Raises:
            EvenkeelError: if a task, model or method is unknown or cannot be used.
        """
        if self._jobs is None:
            quieten()
            self._jobs = self._checked_jobs()
        return self._jobs

    def _checked_jobs(self) -> list[Job]:
        if self.plan.training.precision == "fp16" and not torch.accelerator.is_available():
            raise PlanError("fp16 needs a GPU, and there is none here; use bf16, or float32")
        self._check_methods()
        self._check_measures()
        jobs = []
        for task, model, method, seed in self.plan.grid():
            prepared = prepare(task, model, self.plan.training.max_length)
            spec = RunSpec(
                task=task.name,
                metric=prepared.data.task.metric,
                data_fingerprint=prepared.data.fingerprint,
                model=prepared.model.name,
                model_fingerprint=prepared.model.fingerprint,
                method=method,
                seed=seed,
                training=self.plan.training,
            )
            jobs.append(Job(spec=spec, task=task, model=model, measures=self.plan.measures))
        return jobs

    def _check_methods(self) -> None:
        """See that every method can be, and finds in every model what it needs; the methods' names come first."""
        mixes = [parse_mix(method) for method in self.plan.methods]
        for task, model in itertools.product(self.plan.tasks, self.plan.models):
            built = skeleton(locate_model(model), load_data(task).classes)
            setting = Setting(model=built, parts=components(built), problem="classification")
            for mix in mixes:
                mix.check(setting)

    def _check_measures(self) -> None:
        """See that every model has what is to be measured; the end of a training is too late to find that out."""
        if not self.plan.measures.layer_replacement:
            return
        classes = load_data(self.plan.tasks[0]).classes
        for model in self.plan.models:
            if not blocks(skeleton(locate_model(model), classes)):
                raise PlanError(
                    f"measures.layer_replacement was asked for, and no layers were found in the model '{model}'; leave "
                    "it out, or choose another model"
                )

    def run(self, engine: Engine, *, on_report: Callable[[Report], None] = lambda _: None) -> list[RunRecord]:
        """Do what is not done yet. Interrupted at any point, the next call goes on.

        Args:
            engine: where the runs are executed.
            on_report: is told of every event, after it was recorded.

        Returns:
            All runs of the plan.

        Raises:
            EvenkeelError: if the plan cannot be, or the folder is not this study's.
        """
        jobs = self.jobs()
        self.folder.create()
        with self.folder.lock(), closing(Store(self.folder.store)) as store:
            self._admit(store, jobs)
            store.save_plan(self.plan, [job.spec for job in jobs])
            store.requeue("running", "error", "lost")  # what an earlier start left behind
            finished = {run.id for run in store.runs() if run.finished}
            waiting = [job for job in jobs if job.spec.id not in finished]
            try:
                with closing(self._reports(engine, waiting, store)) as reports:  # an error below stops the engine first
                    for report in reports:
                        on_report(report)
            finally:
                store.requeue("running")  # interrupted: nothing is running any more
            wanted = {job.spec.id for job in jobs}
            return [run for run in store.runs() if run.id in wanted]

    def _admit(self, store: Store, jobs: Sequence[Job]) -> None:
        """Refuse a folder that holds another study; more seeds and methods are welcome."""
        old = store.plan
        if old is None:
            return
        for field in ("tasks", "models", "training"):
            before, after = getattr(old, field), getattr(self.plan, field)
            if before != after:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds another study: its {field} differ "
                    f"({_difference(before, after)}); choose another folder with --out, or repeat the command that "
                    f"made it"
                )
        for field in ("methods", "seeds"):
            gone = [value for value in getattr(old, field) if value not in getattr(self.plan, field)]
            if gone:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds a study with more {field} "
                    f"({', '.join(map(str, gone[:5]))}); {field} can be added and not taken away: name them all, or "
                    f"choose another folder with --out"
                )
        now = {_files(job.spec) for job in jobs}
        for spec in (run.spec for run in store.runs()):
            if _files(spec) not in now:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds runs on another version of the files of task "
                    f"{spec.task} or model {spec.model}, which were changed since; put them back, or choose another "
                    "folder with --out"
                )

    def _reports(self, engine: Engine, jobs: list[Job], store: Store) -> Generator[Report, None, None]:
        """Run jobs, and those that were lost again, recording everything before it is passed on.

        A process that dies may take its neighbours' runs with it. So the last attempt is made alone: no run is given up
        for another's fault.
        """
        lost: Counter[str] = Counter()
        batches = deque([jobs] if jobs else [])
        while batches:
            again, alone = list[Job](), list[Job]()
            with closing(engine.run(batches.popleft())) as reports:  # type: ignore[type-var]  # they are generators
                for report in reports:
                    run = report.job.spec.id
                    if report.event == "lost":
                        lost[run] += 1
                        if lost[run] < _MAX_ATTEMPTS:
                            (again if lost[run] < _MAX_ATTEMPTS - 1 else alone).append(report.job)
                    self._record(report, store, given_up=lost[run] >= _MAX_ATTEMPTS)
                    yield report
            batches.extend(batch for batch in (again, *([job] for job in alone)) if batch)

    def _record(self, report: Report, store: Store, *, given_up: bool) -> None:
        run = report.job.spec.id
        if report.event == "started":
            store.start(run)
        elif report.event == "lost":
            store.finish(run, "lost" if given_up else "queued")
        elif report.result is None:
            store.finish(run, "error", error=report.traceback)
        else:
            self.folder.write_run(run, report.result.tables)
            store.finish(run, "diverged" if report.result.diverged else "done", outcome=report.result.outcome)


def _files(spec: RunSpec) -> tuple[str, str, str, str]:
    return spec.task, spec.data_fingerprint, spec.model, spec.model_fingerprint


def _difference(old: Training | Sequence[TaskPlan | str], new: Training | Sequence[TaskPlan | str]) -> str:
    """Say what differs, in a few words."""
    if isinstance(old, Training) and isinstance(new, Training):
        before, after = old.model_dump(), new.model_dump()
        return ", ".join(f"{key} {before[key]} there, {after[key]} now" for key in before if before[key] != after[key])
    names = [", ".join(str(getattr(item, "name", item)) for item in items) for items in (old, new)]
    return f"{names[0]} there, {names[1]} now" if names[0] != names[1] else f"other files or columns of {names[0]}"


def open_study(path: Path) -> tuple[Plan, list[RunRecord], StudyFolder]:
    """Read what a study has so far; a running driver is not disturbed.

    Args:
        path: the study's folder.

    Returns:
        The plan, its runs in order, and the folder for their tables.

    Raises:
        StoreError: if there is no study.
    """
    folder = StudyFolder(path)
    if not folder.store.is_file():
        raise StoreError(f"'{path}' holds no study; give the folder that was named by --out")
    with closing(Store(folder.store)) as store:
        plan = store.plan
        if plan is None:
            raise StoreError(f"the study in '{path}' has no plan yet; start it again")
        return plan, store.runs(), folder
