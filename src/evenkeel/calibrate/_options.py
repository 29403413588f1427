"""Options of a calibration, refused before anything is trained."""

from __future__ import annotations

from evenkeel.calibrate._rates import rising_rates
from evenkeel.calibrate._thresholds import check_quantile
from evenkeel.calibrate._update_rules import budget_of_run

__all__ = ["check_options"]


def check_options(*, lowest: float, highest: float, quantile: float, travel: float) -> None:
    """Refuse what the probe, or what is read from it, would refuse later.

    Args:
        lowest: the rate that the range test begins with.
        highest: the rate that it ends with.
        quantile: of the norms, at which thresholds stand.
        travel: how far a component may travel in a run.

    Raises:
        MeasureError: if one of them cannot be.
    """
    rising_rates(lowest, highest, 2)
    check_quantile(quantile)
    budget_of_run(travel, 1)
