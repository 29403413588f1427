"""Calibration: short probes that propose a learning rate, thresholds, and how large a step may be."""

from evenkeel.calibrate._folder import write_calibration
from evenkeel.calibrate._learning_rate import LearningRate, learning_rate
from evenkeel.calibrate._options import check_options
from evenkeel.calibrate._picture import figure
from evenkeel.calibrate._plan import methods_of, plan_text
from evenkeel.calibrate._probe import METHOD, Budget, Probe, budget, jobs_of, probe, steps_of_run
from evenkeel.calibrate._proposal import DEFAULT_RULE, Proposal, propose
from evenkeel.calibrate._range_test import RangeTest, range_test
from evenkeel.calibrate._rates import RisingRate, StopWhenExploded, rising_rates
from evenkeel.calibrate._smooth import Smooth, smooth
from evenkeel.calibrate._thresholds import PAPER, RoleThreshold, role_thresholds
from evenkeel.calibrate._update_rules import UpdateRule, at_rate, budget_of_run, first_steps, median_ratios

__all__ = [
    "DEFAULT_RULE",
    "METHOD",
    "PAPER",
    "Budget",
    "LearningRate",
    "Probe",
    "Proposal",
    "RangeTest",
    "RisingRate",
    "RoleThreshold",
    "Smooth",
    "StopWhenExploded",
    "UpdateRule",
    "at_rate",
    "budget",
    "budget_of_run",
    "check_options",
    "figure",
    "first_steps",
    "jobs_of",
    "learning_rate",
    "median_ratios",
    "methods_of",
    "plan_text",
    "probe",
    "propose",
    "range_test",
    "rising_rates",
    "role_thresholds",
    "smooth",
    "steps_of_run",
    "write_calibration",
]
