"""Numbers from scores: NumPy and SciPy alone, no torch."""

from __future__ import annotations

from evenkeel.stats._budget import expected_maximum
from evenkeel.stats._chance import better_than_chance, failed
from evenkeel.stats._compare import Comparison, compare, compare_failures, holm
from evenkeel.stats._concordance import Concordance, concordance
from evenkeel.stats._describe import Description, describe
from evenkeel.stats._disagreement import disagreement
from evenkeel.stats._paired import PairedComparison, compare_paired, compare_paired_failures
from evenkeel.stats._power import runs_needed
from evenkeel.stats._proportion import wilson
from evenkeel.stats._rank_correlation import failed_regression, rank_correlation_p
from evenkeel.stats._sign_flip import sign_flip_p
from evenkeel.stats._trend import Trend, trend

__all__ = [
    "Comparison",
    "Concordance",
    "Description",
    "PairedComparison",
    "Trend",
    "better_than_chance",
    "compare",
    "compare_failures",
    "compare_paired",
    "compare_paired_failures",
    "concordance",
    "describe",
    "disagreement",
    "expected_maximum",
    "failed",
    "failed_regression",
    "holm",
    "rank_correlation_p",
    "runs_needed",
    "sign_flip_p",
    "trend",
    "wilson",
]
