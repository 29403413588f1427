"""A place for one run at a time on a Ray cluster, seen from both ends."""

from __future__ import annotations

import os
import re
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from evenkeel._version import __version__
from evenkeel.study._inputs import inputs_come_from
from evenkeel.study._plan import Resources
from evenkeel.study._private import private
from evenkeel.study.engines._cargo import cache_folder, unpack
from evenkeel.study.engines._contract import Job, Report
from evenkeel.study.engines._ray_cluster import import_ray
from evenkeel.study.engines._work import Outcome, Raised, Work, report_of, settle, work

__all__ = ["Cargo", "Here", "RaySlot", "Setup"]

_CONTROL = "control"  # its calls are heard while a run is going on
_REASON = re.compile(r"The actor (?:is dead|died) because ([^.\n]+)")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How the processes of a study are set up.

    Attributes:
        by: what executes jobs.
        resources: what is set aside for each run, with GPUs decided.
        beacon: a file that the driver's machine has.
        checkpoints_beacon: a file beside the runs' checkpoints, where any are kept.
    """

    by: Work
    resources: Resources
    beacon: Path
    checkpoints_beacon: Path | None


@dataclass(frozen=True, kw_only=True)
class Cargo:
    """What is sent along with a job, as references into Ray's object store: a node fetches each once.

    Attributes:
        model: where the model is, as the process is to name it.
        inputs: the folder of the task's data and tokens, for a process that does not see it; None where it does.
        parcel: the model's folder, for a process that does not see it; None where it does, or where there is none.
    """

    model: str
    inputs: Any = None
    parcel: Any = None


@dataclass(frozen=True, kw_only=True)
class Here:
    """What a process says of itself.

    Attributes:
        version: of its evenkeel.
        sees_files: whether it sees the driver's files under the names that the driver knows.
    """

    version: str
    sees_files: bool


@final
class Slot:
    """The process on the node: imports, data, tokens and weights stay loaded in it."""

    def __init__(self, setup: Setup) -> None:
        """Prepare the process as a local worker is prepared."""
        if not setup.resources.gpus:  # Ray leaves the GPUs of a node visible to those that asked for none
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        settle(setup.resources.threads)
        self._setup = setup
        self._stop = threading.Event()

    def look(self) -> Here:
        """Say what this process is and sees."""
        return Here(version=__version__, sees_files=self._setup.beacon.exists())

    def execute(self, job: Job, cargo: Cargo) -> Outcome:
        """Execute a job."""
        get = import_ray().get
        if cargo.inputs is not None and job.inputs is not None:
            if job.spec.processes > 1:  # which see this machine's files, and not what this process holds
                return self._with_files(job, cargo)
            inputs_come_from(job.inputs, lambda: get(cargo.inputs).files)
        model = cargo.model
        if cargo.parcel is not None:
            model = str(unpack(job.spec.model_fingerprint, partial(get, cargo.parcel), cache_folder()))
        checkpoints = job.checkpoints if self._sees_checkpoints() else None
        return work(replace(job, model=model, checkpoints=checkpoints), stopping=self._stop.is_set, by=self._setup.by)

    def _with_files(self, job: Job, cargo: Cargo) -> Outcome:
        """Execute a job whose inputs are written to this machine's disk for as long as it takes."""
        with tempfile.TemporaryDirectory(prefix="inputs-evenkeel-") as folder:
            for name, content in import_ray().get(cargo.inputs).files.items():
                content.tofile(Path(folder) / Path(name).name)
            return self.execute(replace(job, inputs=Path(folder)), replace(cargo, inputs=None))

    def _sees_checkpoints(self) -> bool:
        shared = self._setup.checkpoints_beacon
        return shared is not None and shared.exists()

    def stop(self) -> None:
        """Let the job stop where it can."""
        self._stop.set()


@final
class RaySlot:
    """The driver's end.

    Attributes:
        job: what it executes; None while it starts or waits.
        news_from: the reference that is ready once there is news; None while it waits.
        here: what its process said of itself; None while it starts.
    """

    def __init__(self, setup: Setup) -> None:
        """Ask Ray for the process; it starts once a node has room."""
        self._ray = import_ray()
        self.job: Job | None = None
        self.here: Here | None = None
        self._asked_to_stop = False
        # Ray tries nothing again: the driver does, and counts.
        self._actor = (
            self._ray.remote(concurrency_groups={_CONTROL: 1})(Slot)
            .options(
                num_cpus=setup.resources.run_cpus,
                num_gpus=setup.resources.run_gpus or 0,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            .remote(setup)
        )
        self.news_from: Any = self._actor.look.remote()

    def begin(self) -> str | None:
        """Take note of how the start of the process went; to be called once there is news of it.

        Returns:
            None if it has started, else what stands in the way.
        """
        answer, self.news_from = self.news_from, None
        try:
            here: Here = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            return private(lines[-1]) if lines else type(error).__name__
        if here.version != __version__:
            return f"a node has evenkeel {here.version}, and the driver {__version__}"
        self.here = here
        return None

    def give(self, job: Job, cargo: Cargo) -> None:
        """Hand it a job."""
        self.job, self.news_from = job, self._actor.execute.remote(job, cargo)

    def ask_to_stop(self) -> None:
        """Let its job stop at a checkpoint where it keeps any."""
        if not self._asked_to_stop:
            self._asked_to_stop = True
            self._actor.stop.options(concurrency_group=_CONTROL).remote()

    def news(self, job: Job) -> Report:
        """Return what came of ``job``, which is then off its hands."""
        answer, self.job, self.news_from = self.news_from, None, None
        try:
            return report_of(job, self._ray.get(answer))
        except (self._ray.exceptions.RayTaskError, self._ray.exceptions.RaySystemError) as error:
            # What was done cannot be sent, or the process could not do it.
            return report_of(job, Raised(traceback=private(str(error)), out_of_memory=False))
        except self._ray.exceptions.RayError as error:
            return Report(job=job, event="lost", traceback=_how_it_ended(error))

    def end(self) -> None:
        """End the process at once."""
        with suppress(self._ray.exceptions.RayError, ValueError):  # it is dead already
            self._ray.kill(self._actor, no_restart=True)


def _how_it_ended(error: Exception) -> str:
    found = _REASON.search(str(error))
    return f"Ray: {found[1]}" if found else f"Ray: {type(error).__name__}"
