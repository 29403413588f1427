"""Where runs are executed, one file each."""

from evenkeel._process import end_with
from evenkeel.study.engines._contract import Engine, Event, Job, Report
from evenkeel.study.engines._launch import RankError, RankLostError, launch
from evenkeel.study.engines._work import (
    Lost,
    Outcome,
    Raised,
    RunStopped,
    Stopped,
    Work,
    execute_job,
    report_of,
    settle,
    work,
)
from evenkeel.study.engines.local import LocalEngine
from evenkeel.study.engines.ray import RayEngine

__all__ = [
    "Engine",
    "Event",
    "Job",
    "LocalEngine",
    "Lost",
    "Outcome",
    "Raised",
    "RankError",
    "RankLostError",
    "RayEngine",
    "Report",
    "RunStopped",
    "Stopped",
    "Work",
    "end_with",
    "execute_job",
    "launch",
    "report_of",
    "settle",
    "work",
]
