"""Tasks: data, labels and a metric."""

from evenkeel.tasks._load import load_task
from evenkeel.tasks._metrics import METRICS, majority_score, score
from evenkeel.tasks._spec import KNOWN, Task, TaskData, TaskSource

__all__ = ["KNOWN", "METRICS", "Task", "TaskData", "TaskSource", "load_task", "majority_score", "score"]
