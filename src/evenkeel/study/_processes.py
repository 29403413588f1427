"""What a run that several processes share cannot do, told before anything starts."""

from __future__ import annotations

from evenkeel.errors import PlanError
from evenkeel.integrations.transformers import check_sharded
from evenkeel.methods import parse_mix
from evenkeel.study._plan import Plan, RunSpec

__all__ = ["check_shared_plan", "check_shared_run"]


def check_shared_plan(plan: Plan) -> None:
    """Refuse what a plan asks of all of its runs.

    Args:
        plan: the plan.

    Raises:
        PlanError: if it asks several processes for what one can do alone.
    """
    processes = plan.resources.processes_per_run
    if processes == 1:
        return
    if plan.checkpoints.wanted:
        raise PlanError(
            f"checkpoints: each of the {processes} processes of a run (resources.processes_per_run) holds a part of "
            "the model and its optimizer, which cannot be put together within a run yet; leave checkpoints out: a run "
            "that was lost begins anew"
        )
    if plan.measures.layer_replacement:
        raise PlanError(
            "measures.layer_replacement puts whole weights back, and each of the "
            f"{processes} processes of a run (resources.processes_per_run) holds a part of them; leave one of them out"
        )


def check_shared_run(spec: RunSpec) -> None:
    """Refuse a run that cannot be shared out.

    Args:
        spec: the run.

    Raises:
        PlanError: if its batch cannot be divided, or its precision needs a single process.
        MethodError: if its method acts on whole parameters.
    """
    if spec.processes == 1:
        return
    parts = spec.processes * int(spec.overrides.get("gradient_accumulation_steps", 1))
    if spec.training.batch_size % parts:
        raise PlanError(
            f"resources.processes_per_run: batch_size {spec.training.batch_size} counts the examples of an optimizer "
            f"step over all processes, and is not to be split into {parts} equal parts ({spec.processes} processes, "
            f"{parts // spec.processes} accumulated); change one of them"
        )
    if spec.training.precision == "fp16":
        raise PlanError(
            f"training.precision: fp16's loss scale would be another one in each of the {spec.processes} processes of "
            "a run (resources.processes_per_run); use bf16, or float32"
        )
    check_sharded(parse_mix(spec.method), f"FSDP shards them over {spec.processes} processes")
