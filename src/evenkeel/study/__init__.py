"""Studies: a plan becomes runs, runs become records in a store that outlives any interruption."""

from evenkeel.study._execute import RunResult, execute
from evenkeel.study._finetune import finetune_one
from evenkeel.study._folder import StudyFolder
from evenkeel.study._plan import Measures, Plan, RunSpec, Training, load_plan
from evenkeel.study._prepare import Prepared, prepare
from evenkeel.study._store import RunRecord, Status, Store
from evenkeel.study._study import Study, open_study

__all__ = [
    "Measures",
    "Plan",
    "Prepared",
    "RunRecord",
    "RunResult",
    "RunSpec",
    "Status",
    "Store",
    "Study",
    "StudyFolder",
    "Training",
    "execute",
    "finetune_one",
    "load_plan",
    "open_study",
    "prepare",
]
