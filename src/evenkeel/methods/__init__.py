"""Ways of fine-tuning, one file each, behind one contract."""

from evenkeel.methods._contract import Clipping, Method, Phase, Recipe
from evenkeel.methods._describe import Description, Option, describe, rivals
from evenkeel.methods._draws import Moment, private_generator
from evenkeel.methods._mix import Mix
from evenkeel.methods._registry import known_methods, mix_parts, parse_method, parse_mix
from evenkeel.methods._schedule import PhaseSchedule
from evenkeel.methods._session import Session, Sessions
from evenkeel.methods._setting import Batch, Problem, Setting, Step
from evenkeel.methods.adagc import AdaGC
from evenkeel.methods.agc import AGC
from evenkeel.methods.aggc import AGGC
from evenkeel.methods.autoclip import AutoClip
from evenkeel.methods.bert_adam import BertAdam
from evenkeel.methods.bitfit import BitFit
from evenkeel.methods.child_tuning_d import ChildTuningD
from evenkeel.methods.child_tuning_f import ChildTuningF
from evenkeel.methods.component_clip import ComponentClipping
from evenkeel.methods.component_update_clip import ComponentUpdateClipping
from evenkeel.methods.decay_to_pretrained import DecayToPretrained
from evenkeel.methods.ema import ExponentialMovingAverage
from evenkeel.methods.full import FullFineTuning
from evenkeel.methods.global_clip import GlobalClipping
from evenkeel.methods.gradient_stabilizer import GradientStabilizer
from evenkeel.methods.gradual_unfreezing import GradualUnfreezing
from evenkeel.methods.head_only import HeadOnly
from evenkeel.methods.hype import HyPe
from evenkeel.methods.lamb import LayerAdaptiveMoments
from evenkeel.methods.llrd import LayerWiseDecay
from evenkeel.methods.lnsr import LNSR
from evenkeel.methods.lora import LowRankAdaptation
from evenkeel.methods.mixout import Mixout
from evenkeel.methods.mosbach import Mosbach
from evenkeel.methods.noisytune import NoisyTune
from evenkeel.methods.prodigy import Prodigy
from evenkeel.methods.r3f import R3F
from evenkeel.methods.r_drop import RDrop
from evenkeel.methods.reinit import Reinit
from evenkeel.methods.sam import SharpnessAwareMinimization
from evenkeel.methods.schedule_free import ScheduleFree
from evenkeel.methods.smart import Smart
from evenkeel.methods.spamp import GradientShaping
from evenkeel.methods.stable_adamw import StableUpdate
from evenkeel.methods.swa import StochasticWeightAveraging
from evenkeel.methods.warmup import Warmup
from evenkeel.methods.zclip import ZClip

__all__ = [
    "AGC",
    "AGGC",
    "LNSR",
    "R3F",
    "AdaGC",
    "AutoClip",
    "Batch",
    "BertAdam",
    "BitFit",
    "ChildTuningD",
    "ChildTuningF",
    "Clipping",
    "ComponentClipping",
    "ComponentUpdateClipping",
    "DecayToPretrained",
    "Description",
    "ExponentialMovingAverage",
    "FullFineTuning",
    "GlobalClipping",
    "GradientShaping",
    "GradientStabilizer",
    "GradualUnfreezing",
    "HeadOnly",
    "HyPe",
    "LayerAdaptiveMoments",
    "LayerWiseDecay",
    "LowRankAdaptation",
    "Method",
    "Mix",
    "Mixout",
    "Moment",
    "Mosbach",
    "NoisyTune",
    "Option",
    "Phase",
    "PhaseSchedule",
    "Problem",
    "Prodigy",
    "RDrop",
    "Recipe",
    "Reinit",
    "ScheduleFree",
    "Session",
    "Sessions",
    "Setting",
    "SharpnessAwareMinimization",
    "Smart",
    "StableUpdate",
    "Step",
    "StochasticWeightAveraging",
    "Warmup",
    "ZClip",
    "describe",
    "known_methods",
    "mix_parts",
    "parse_method",
    "parse_mix",
    "private_generator",
    "rivals",
]
