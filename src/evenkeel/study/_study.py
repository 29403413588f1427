"""The driver: makes the runs of a plan, hands them to an engine, and records what comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from evenkeel.errors import StoreError
from evenkeel.study._check import check_plan, check_specs
from evenkeel.study._checkpoints import Checkpointing
from evenkeel.study._disk import disk_notice
from evenkeel.study._driver import Driver
from evenkeel.study._folder import StudyFolder
from evenkeel.study._inputs import inputs_folder, write_inputs
from evenkeel.study._interrupts import stoppable
from evenkeel.study._places import without_places
from evenkeel.study._plan import Plan, RunSpec, TaskPlan, Training
from evenkeel.study._precision import suitable_precision
from evenkeel.study._prepare import prepare
from evenkeel.study._quiet import quieten
from evenkeel.study._records import check_records
from evenkeel.study._smaller import substituted
from evenkeel.study._store import RunRecord, Store
from evenkeel.study.engines import Engine, Job, Report

__all__ = ["Study", "open_study"]


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
        self._planned: list[Job] | None = None  # checking and loading take a while: once will do

    def jobs(self) -> list[Job]:
        """Load and check everything that the runs need.

        Returns:
            One job for each run, in the plan's order; where another run took the place of one that ran out of memory,
            as the folder has it, that one.

        Raises:
            EvenkeelError: if a task, model or method is unknown or cannot be used.
        """
        planned = self._planned_jobs()
        if not self.folder.store.is_file():
            return planned
        try:
            with closing(Store.reading(self.folder.store)) as store:
                return substituted(planned, store.substitutes())
        except StoreError:  # whoever opens it next says so; opening it to write may mend it
            return planned

    def _planned_jobs(self) -> list[Job]:
        if self._planned is None:
            quieten()
            self._planned = self._checked_jobs()
        return self._planned

    def _checked_jobs(self) -> list[Job]:
        check_plan(self.plan)
        jobs, chosen = list[Job](), {}
        if self.plan.training.precision == "auto":
            chosen = {"precision": self._earlier_precision() or suitable_precision()}
        for run in self.plan.grid():
            training = run.training.model_copy(update=chosen)
            prepared = prepare(run.task, run.model, training.max_length)
            spec = RunSpec(
                task=run.task.name,
                metric=prepared.data.task.metric,
                data_fingerprint=prepared.data.fingerprint,
                model=prepared.model.name,
                model_fingerprint=prepared.model.fingerprint,
                method=run.method,
                seed=run.seed,
                training=training,
                init_seed=run.init_seed,
                order_seed=run.order_seed,
                split_seed=run.split_seed,
                overrides=run.overrides,
                processes=self.plan.resources.processes_per_run,
            )
            jobs.append(Job(spec=spec, task=run.task, model=run.model, measures=self.plan.measures))
        check_specs(job.spec for job in jobs)
        return jobs

    def _earlier_precision(self) -> str | None:
        """Return what the device suited on which the study was begun: all of its runs are to be of one kind."""
        if not self.folder.store.is_file():
            return None
        with closing(Store.reading(self.folder.store)) as store:
            same = store.plan is not None and store.plan.training.precision == "auto"
            return next((run.spec.training.precision for run in store.runs()), None) if same else None

    def run(
        self,
        engine: Engine,
        *,
        on_report: Callable[[Report], None] = lambda _: None,
        on_notice: Callable[[str], None] = lambda _: None,
    ) -> list[RunRecord]:
        """Do what is not done yet. Interrupted at any point, the next call goes on.

        The first Ctrl-C lets the running runs end, or stop at a checkpoint where they keep any; the second one stops
        at once.

        Args:
            engine: where the runs are executed.
            on_report: is told of every event, after it was recorded.
            on_notice: is told what the driver decided, in a sentence: fewer runs at a time, a stop.

        Returns:
            All runs of the plan.

        Raises:
            EvenkeelError: if the plan cannot be, or the folder is not this study's.
            KeyboardInterrupt: after a stop, with a sentence that says what there is; at once after two.
        """
        planned = self._planned_jobs()
        self.folder.create()
        with self.folder.lock(), closing(Store(self.folder.store)) as store:
            jobs = substituted(planned, store.substitutes())
            self._admit(store, jobs)
            store.save_plan(without_places(self.plan), [job.spec for job in jobs])
            store.requeue("running", "error", "lost")  # what an earlier start left behind
            finished = {run.id for run in store.runs() if run.finished}
            if not self.plan.checkpoints.keep:
                for run in finished:  # of a driver that was killed after it recorded them
                    self.folder.drop_checkpoints(run)
            for run in store.substitutes():
                self.folder.drop_checkpoints(run)
            waiting = [self._with_checkpoints(job) for job in jobs if job.spec.id not in finished]
            if self.plan.checkpoints.wanted and waiting:
                keep, packing = self.plan.checkpoints.keep, engine.packing
                on_notice(disk_notice(waiting, self.folder.path, at_a_time=packing, keep=keep))
            driver = Driver(
                engine, store, self.folder,
                retries=self.plan.retries, smaller_batches=self.plan.smaller_batches,
                keep_checkpoints=self.plan.checkpoints.keep, on_notice=on_notice,
            )  # fmt: skip
            try:
                with (
                    _with_inputs(waiting) as ready,
                    stoppable(driver.stop),
                    closing(driver.reports(ready)) as reports,
                ):
                    for report in reports:  # an error of what is called ends the engine first
                        on_report(report)
            finally:
                with suppress(StoreError):  # the disk may be full; the next start does it as well
                    store.requeue("running")  # interrupted: nothing is running any more
            wanted = {job.spec.id for job in planned}
            runs = [run for run in store.runs() if (run.stands_for or run.id) in wanted]
        if driver.stopping and not all(run.finished for run in runs):
            raise KeyboardInterrupt(f"{sum(run.finished for run in runs)} of {len(runs)} runs have a result")
        return runs

    def _with_checkpoints(self, job: Job) -> Job:
        wanted = self.plan.checkpoints
        if not wanted.wanted:
            return job
        how = Checkpointing(
            folder=self.folder.checkpoints(job.spec.id),
            every_steps=wanted.every_steps,
            every_minutes=wanted.every_minutes,
        )
        return replace(job, checkpoints=how)

    def _admit(self, store: Store, jobs: Sequence[Job]) -> None:
        """Refuse a folder that holds another study; more seeds and methods are welcome."""
        old, new = store.plan, without_places(self.plan)
        if old is None:
            return
        for field in ("tasks", "models", "training", "overrides", "vary"):
            before, after = getattr(old, field), getattr(new, field)
            if before != after:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds another study: its {field} differ "
                    f"({_difference(before, after)}); choose another folder with --out, or repeat the command that "
                    f"made it"
                )
        listed: dict[str, tuple[Sequence[object], Sequence[object]]] = {
            "methods": (old.expanded_methods(), new.expanded_methods()),
            "seeds": (old.seeds, new.seeds),
        }
        for field, (before, after) in listed.items():
            gone = [value for value in before if value not in after]
            if gone:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds a study with more {field} "
                    f"({', '.join(map(str, gone[:5]))}); {field} can be added and not taken away: name them all, or "
                    f"choose another folder with --out"
                )
        shared = {run.spec.processes for run in store.runs()} - {job.spec.processes for job in jobs}
        if shared:
            raise StoreError(
                f"the folder '{self.folder.path}' holds runs of {min(shared)} processes each, and now "
                f"resources.processes_per_run is {new.resources.processes_per_run}, which makes other runs (dropout "
                "draws differ); put it back, or choose another folder with --out"
            )
        now = {_files(job.spec) for job in jobs}
        for spec in (run.spec for run in store.runs()):
            if _files(spec) not in now:
                raise StoreError(
                    f"the folder '{self.folder.path}' holds runs on another version of the files of task "
                    f"{spec.task} or model {spec.model}, which were changed since; put them back, or choose another "
                    "folder with --out"
                )
        wanted = {job.spec.id for job in jobs}
        dropped = [run for run in store.runs() if run.id not in wanted]
        if dropped:
            raise StoreError(
                f"the folder '{self.folder.path}' holds {len(dropped)} runs that this plan leaves out, such as "
                f"{dropped[0].spec.task}, {dropped[0].spec.method}, {dropped[0].spec.draw}; runs can be added and not "
                "taken away: widen include, exclude and sweep again, or choose another folder with --out"
            )


@contextmanager
def _with_inputs(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Write what the runs read, once for all processes; it goes when they are done."""
    with inputs_folder() as home:
        folders, ready = dict[tuple[TaskPlan, str, int], Path](), list[Job]()
        for job in jobs:
            wanted = job.task, job.model, job.spec.training.max_length
            if wanted not in folders:
                folders[wanted] = home / str(len(folders))
                write_inputs(prepare(*wanted), folders[wanted])
            ready.append(replace(job, inputs=folders[wanted]))
        yield ready


def _files(spec: RunSpec) -> tuple[str, str, str, str]:
    return spec.task, spec.data_fingerprint, spec.model, spec.model_fingerprint


_Field = Training | dict[str, Any] | Sequence[TaskPlan | str]


def _difference(old: _Field, new: _Field) -> str:
    """Say what differs, in a few words."""
    if isinstance(old, Training) and isinstance(new, Training):
        before, after = old.model_dump(), new.model_dump()
        return ", ".join(f"{key} {before[key]} there, {after[key]} now" for key in before if before[key] != after[key])
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in {**old, **new} if old.get(key) != new.get(key))
        return ", ".join(f"{key} {old.get(key, 'unset')} there, {new.get(key, 'unset')} now" for key in keys)
    names = [", ".join(str(getattr(item, "name", item)) for item in items) or "none" for items in (old, new)]
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
    with closing(Store.reading(folder.store)) as store:
        plan, runs = store.plan, store.runs()
    if plan is None:
        raise StoreError(f"the study in '{path}' has no plan yet; start it again")
    check_records(path, runs)
    return plan, runs, folder
