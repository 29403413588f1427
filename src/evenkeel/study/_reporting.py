"""Where a run's log goes beside the study's own record: TensorBoard, Weights & Biases, MLflow, Trackio."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evenkeel.errors import unknown_name

if TYPE_CHECKING:
    from evenkeel.study._spec import RunSpec

__all__ = ["LOG_FOLDER", "REPORTING", "checked_places", "reporting", "run_name"]

REPORTING = ("report_to", "project")
LOG_FOLDER = "TENSORBOARD_LOGGING_DIR"  # as transformers calls it
_PLACES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


def checked_places(places: Sequence[str]) -> tuple[str, ...]:
    """See that a log can go to every place: that it is known, and that its package is installed.

    Args:
        places: names, as ``TrainingArguments.report_to`` has them.

    Returns:
        The same.

    Raises:
        ValueError: if one cannot be.
    """
    from transformers.integrations import integration_utils

    there: list[str] = integration_utils.get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for place in places:
        if place in there:
            continue
        if place not in _PLACES:
            raise ValueError(unknown_name("place to report to", place, {*_PLACES, *there}))
        raise ValueError(f"'{place}' is not installed here; pip install {_PLACES[place]}, or leave it out")
    return tuple(places)


def run_name(spec: RunSpec) -> str:
    """Name a run so that people find it, and no two are alike.

    Args:
        spec: the run.

    Returns:
        Its task, method, draw and id, without what no file may be called.
    """
    name = f"{spec.task}-{spec.method}-{spec.draw}-{spec.id}"
    return "".join(letter if letter.isalnum() or letter in "-_.=+" else "_" for letter in name)


@contextmanager
def reporting(spec: RunSpec, places: Sequence[str]) -> Iterator[None]:
    """Give the run a folder of its own in TensorBoard, and end what a place would go on with in the next run.

    Args:
        spec: the run.
        places: where its log goes.
    """
    before = os.environ.get(LOG_FOLDER)
    if "tensorboard" in places:
        os.environ[LOG_FOLDER] = os.path.join(before or "tensorboard", run_name(spec))
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(LOG_FOLDER, None)
        else:
            os.environ[LOG_FOLDER] = before
        wandb = sys.modules.get("wandb")
        if "wandb" in places and wandb is not None and wandb.run is not None:
            wandb.finish()  # a process does many runs, and the callback takes up a run that is still open
