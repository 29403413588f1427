"""What happened inside a model while it trained."""

from evenkeel.measure._convergence import loss_area, steps_to
from evenkeel.measure._coverage import coverage, half_time, time_to
from evenkeel.measure._health import Vanishing, nonfinite, share_clipped, spikes, vanishing
from evenkeel.measure._racing import Racing, racing, weighted_quantile
from evenkeel.measure._recorded import Recorded
from evenkeel.measure._references import References
from evenkeel.measure._replacement import layer_replacement, layer_weights
from evenkeel.measure._schema import TELEMETRY
from evenkeel.measure._telemetry import Telemetry

__all__ = [
    "TELEMETRY",
    "Racing",
    "Recorded",
    "References",
    "Telemetry",
    "Vanishing",
    "coverage",
    "half_time",
    "layer_replacement",
    "layer_weights",
    "loss_area",
    "nonfinite",
    "racing",
    "share_clipped",
    "spikes",
    "steps_to",
    "time_to",
    "vanishing",
    "weighted_quantile",
]
