"""Ways of fine-tuning, one file each, behind one contract."""

from evenkeel.methods._contract import Clipping, Method, Phase
from evenkeel.methods._mix import Mix
from evenkeel.methods._registry import known_methods, parse_method, parse_mix
from evenkeel.methods._schedule import PhaseSchedule
from evenkeel.methods.component_clip import ComponentClipping
from evenkeel.methods.full import FullFineTuning
from evenkeel.methods.gradual_unfreezing import GradualUnfreezing

__all__ = [
    "Clipping",
    "ComponentClipping",
    "FullFineTuning",
    "GradualUnfreezing",
    "Method",
    "Mix",
    "Phase",
    "PhaseSchedule",
    "known_methods",
    "parse_method",
    "parse_mix",
]
