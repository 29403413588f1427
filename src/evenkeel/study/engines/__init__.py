"""Where runs are executed, one file each."""

from evenkeel.study.engines._contract import Engine, Job, Report
from evenkeel.study.engines.local import LocalEngine

__all__ = ["Engine", "Job", "LocalEngine", "Report"]
