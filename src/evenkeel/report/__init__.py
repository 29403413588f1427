"""Reports: a study's store becomes numbers, sentences, tables and one page; no live model is looked at."""

from evenkeel.report._findings import findings
from evenkeel.report._page import write_report
from evenkeel.report._results import Row, results
from evenkeel.report._tables import results_markdown, results_table

__all__ = ["Row", "findings", "results", "results_markdown", "results_table", "write_report"]
