"""The plan of a study that tries what was proposed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evenkeel.calibrate._arrays import rounded
from evenkeel.calibrate._proposal import Proposal
from evenkeel.study import Plan

__all__ = ["methods_of", "plan_text"]

_SEEDS = 10
_HEADER = """\
# Written by evenkeel calibrate. What it proposes has not been tested on this task: this plan is the test.
#   evenkeel study {name} --out DIR
"""


def methods_of(proposal: Proposal) -> list[str]:
    """Return methods with what is proposed as their options, as plans and the command line take them.

    Args:
        proposal: the proposal.

    Returns:
        ``full``, ``component-clip`` with a threshold for each role, ``component-update-clip`` with r.
    """
    limits = ", ".join(f"{one.role}: {one.max_norm:g}" for one in proposal.thresholds)
    return [
        "full",
        f"component-clip:max_norm={{{limits}}}",
        f"component-update-clip:max_update={proposal.max_update:g}",
    ]


def plan_text(plan: Plan, proposal: Proposal, *, name: str) -> str:
    """Write the plan of a study: full fine-tuning and both kinds of clipping, at the proposed learning rate.

    Args:
        plan: the plan of the probe, from which task, model and the rest of the recipe are taken; its files may be
            relative to the working folder, and are absolute afterwards.
        proposal: what was proposed.
        name: the file that it is for.

    Returns:
        YAML.
    """
    content: dict[str, Any] = {
        "tasks": [_given(task.model_dump(mode="json", exclude_defaults=True)) for task in plan.tasks],
        "models": [str(Path(model).resolve()) if Path(model).is_dir() else model for model in plan.models],
        "methods": methods_of(proposal),
        "seeds": _SEEDS,
        "training": {
            **plan.training.model_dump(exclude={"record_every"}),
            "learning_rate": rounded(proposal.learning_rate.value),
        },
    }
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
    return _HEADER.format(name=name) + text


def _given(task: Mapping[str, Any]) -> dict[str, Any]:
    files = ("data", "train", "validation", "test")
    return {key: str(Path(value).resolve()) if key in files else value for key, value in task.items()}
