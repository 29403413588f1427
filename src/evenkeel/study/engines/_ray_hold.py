"""What is put into Ray's object store for the nodes to fetch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

from evenkeel.models import TINY
from evenkeel.study._plan import TaskPlan
from evenkeel.study._prepare import load_data, locate_model
from evenkeel.study.engines._cargo import pack
from evenkeel.study.engines._contract import Job
from evenkeel.study.engines._ray_cluster import import_ray
from evenkeel.study.engines._ray_slot import Cargo, Here

__all__ = ["Hold"]


@final
class Hold:
    """Data and models of a study's runs, each in the object store once, from when the first run needs it."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._data: dict[TaskPlan, Any] = {}
        self._models: dict[str, Any] = {}

    def cargo(self, job: Job, here: Here) -> Cargo:
        """Return what is to be sent along with a job.

        Args:
            job: the job.
            here: what the process says of itself that is to execute it.

        Returns:
            References to the task's data and, for a process that does not see it, to the model's folder.
        """
        if job.task not in self._data:
            self._data[job.task] = import_ray().put(load_data(job.task))
        folder = Path(job.model).expanduser()
        if job.model == TINY or not folder.is_dir():  # of the package, or of the hub: each node has its own
            return Cargo(data=self._data[job.task], model=job.model)
        if here.sees_files:
            return Cargo(data=self._data[job.task], model=os.path.abspath(folder))
        return Cargo(data=self._data[job.task], model=job.model, parcel=self._parcel(job))

    def _parcel(self, job: Job) -> Any:
        fingerprint = job.spec.model_fingerprint
        if fingerprint not in self._models:
            self._models[fingerprint] = import_ray().put(pack(Path(locate_model(job.model).location)))
        return self._models[fingerprint]
