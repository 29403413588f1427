"""What is put into Ray's object store for the nodes to fetch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, final

from evenkeel.models import TINY
from evenkeel.study._prepare import locate_model
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
        self._parcels: dict[Path, Any] = {}

    def cargo(self, job: Job, here: Here) -> Cargo:
        """Return what is to be sent along with a job.

        Args:
            job: the job.
            here: what the process says of itself that is to execute it.

        Returns:
            The model as the process is to name it, and references to what it does not see.
        """
        inputs = None if here.sees_files or job.inputs is None else self._parcel(job.inputs)
        folder = Path(job.model).expanduser()
        if job.model == TINY or not folder.is_dir():  # of the package, or of the hub: each node has its own
            return Cargo(inputs=inputs, model=job.model)
        if here.sees_files:
            return Cargo(inputs=inputs, model=os.path.abspath(folder))
        return Cargo(inputs=inputs, model=job.model, parcel=self._parcel(Path(locate_model(job.model).location)))

    def _parcel(self, folder: Path) -> Any:
        if folder not in self._parcels:
            self._parcels[folder] = import_ray().put(pack(folder))
        return self._parcels[folder]
