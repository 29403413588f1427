"""Ways of fine-tuning, one file each, behind one contract."""

from evenkeel.methods._contract import Clipping, Method, Phase, Recipe
from evenkeel.methods._describe import Description, Option, describe, rivals
from evenkeel.methods._draws import Moment, private_generator
from evenkeel.methods._mix import Mix
from evenkeel.methods._registry import known_methods, mix_parts, parse_method, parse_mix
from evenkeel.methods._schedule import PhaseSchedule
from evenkeel.methods._session import Session, Sessions
from evenkeel.methods._setting import Batch, Problem, Setting, Step
from evenkeel.methods.component_clip import ComponentClipping
from evenkeel.methods.full import FullFineTuning
from evenkeel.methods.gradual_unfreezing import GradualUnfreezing

__all__ = [
    "Batch",
    "Clipping",
    "ComponentClipping",
    "Description",
    "FullFineTuning",
    "GradualUnfreezing",
    "Method",
    "Mix",
    "Moment",
    "Option",
    "Phase",
    "PhaseSchedule",
    "Problem",
    "Recipe",
    "Session",
    "Sessions",
    "Setting",
    "Step",
    "describe",
    "known_methods",
    "mix_parts",
    "parse_method",
    "parse_mix",
    "private_generator",
    "rivals",
]
