"""Studies: a plan becomes runs, runs become records in a store that outlives any interruption."""

from evenkeel.study._amend import amended
from evenkeel.study._calibrate import Calibration, calibrate, calibrate_side_by_side
from evenkeel.study._checkpoints import Checkpointing
from evenkeel.study._disk import checkpoint_disk, disk_notice, size
from evenkeel.study._estimate import Estimate, Share, estimate
from evenkeel.study._execute import RunResult, execute
from evenkeel.study._finetune import finetune_one
from evenkeel.study._folder import StudyFolder
from evenkeel.study._new_folder import check_new_folder, new_folder
from evenkeel.study._pack import pack
from evenkeel.study._plan import CheckpointPlan, Measures, Plan, Resources, RunSpec, TaskPlan, Training, load_plan
from evenkeel.study._prepare import Prepared, prepare
from evenkeel.study._recipes import recipe_names
from evenkeel.study._reporting import LOG_FOLDER
from evenkeel.study._store import RunRecord, Status, Store
from evenkeel.study._study import Study, open_study

__all__ = [
    "LOG_FOLDER",
    "Calibration",
    "CheckpointPlan",
    "Checkpointing",
    "Estimate",
    "Measures",
    "Plan",
    "Prepared",
    "Resources",
    "RunRecord",
    "RunResult",
    "RunSpec",
    "Share",
    "Status",
    "Store",
    "Study",
    "StudyFolder",
    "TaskPlan",
    "Training",
    "amended",
    "calibrate",
    "calibrate_side_by_side",
    "check_new_folder",
    "checkpoint_disk",
    "disk_notice",
    "estimate",
    "execute",
    "finetune_one",
    "load_plan",
    "new_folder",
    "open_study",
    "pack",
    "prepare",
    "recipe_names",
    "size",
]
