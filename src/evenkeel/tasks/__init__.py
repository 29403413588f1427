"""Tasks: data, labels and a metric."""

from evenkeel.tasks._known import KNOWN
from evenkeel.tasks._load import load_task
from evenkeel.tasks._metrics import METRICS, Metric, Problem, majority_score, metrics_for, score
from evenkeel.tasks._spec import HUB, Task, TaskData, TaskSource

__all__ = [
    "HUB",
    "KNOWN",
    "METRICS",
    "Metric",
    "Problem",
    "Task",
    "TaskData",
    "TaskSource",
    "load_task",
    "majority_score",
    "metrics_for",
    "score",
]
